"""How clients behave and misbehave on one connection: half-close, reset, stall, trickle."""

import hashlib
import os
import socket
import struct
import zlib

from harness import case, settings, wait
from harness.pattern import Pattern

BYTES = Pattern("connections")


def reset(sock):
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_exactly(sock, length):
    data = bytearray()
    while len(data) < length:
        piece = sock.recv(min(262144, length - len(data)))
        if not piece:
            raise AssertionError(f"end after {len(data)} of {length} bytes")
        data += piece
    return bytes(data)


class Connections:
    def test_nc_half_closes_and_every_byte_comes_back_before_the_end(self):
        one = self.lab()
        one.start_echo(family=self.family)
        size = (4 << 20) + 1
        source = os.path.join(one.log_dir, "in.bin")
        BYTES.write_file(source, size)
        address = "10.77.0.10" if self.family == 4 else "fd77::10"
        with open(source, "rb") as file:
            got = one.run("nc", "-N", "-w", "20", address, "7", stdin=file, timeout_s=60)
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertEqual(len(got.stdout), size)
        self.assertEqual(hashlib.sha256(got.stdout).hexdigest(), BYTES.sha256(size))

    def test_a_client_that_half_closes_without_a_byte_gets_the_end_back(self):
        one = self.lab()
        one.start_echo(family=self.family)
        sock = self.socket(one, 7)
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(sock.recv(1), b"")

    def test_trickle_of_single_bytes_comes_back_in_order(self):
        one = self.lab()
        one.start_echo(family=self.family)
        sock = self.socket(one, 7)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        count = 500 if settings.quick else 3000
        for offset in range(count):  # one at a time
            sock.sendall(BYTES.slice(offset, 1))
            self.assertEqual(sock.recv(10), BYTES.slice(offset, 1))
        for offset in range(count):  # without waiting
            sock.send(BYTES.slice(offset, 1))
        self.assertEqual(read_exactly(sock, count), BYTES.slice(0, count))

    def test_a_client_that_stalls_in_the_middle_goes_on_later(self):
        one = self.lab()
        one.start_echo(family=self.family)
        sock, busy = self.socket(one, 7), self.socket(one, 7)
        sock.sendall(BYTES.slice(0, 5000))
        for round_ in range(200):  # the stall is measured in another connection's round trips
            busy.sendall(BYTES.slice(round_, 1000))
            self.assertEqual(read_exactly(busy, 1000), BYTES.slice(round_, 1000))
        sock.sendall(BYTES.slice(5000, 5000))
        self.assertEqual(read_exactly(sock, 10000), BYTES.slice(0, 10000))

    def test_a_client_that_does_not_read_for_long_loses_nothing(self):
        one = self.lab()
        one.start_echo(family=self.family)
        sock = self.socket(one, 7, receive_buffer=32768)
        sock.setblocking(False)
        sent = 0
        # Without reading, everything on the way fills up and the client is held back.
        def full():
            nonlocal sent
            try:
                while sent < 256 << 20:
                    sent += sock.send(BYTES.slice(sent, 65536))
            except BlockingIOError:
                if full.last == sent:
                    full.same += 1
                else:
                    full.last, full.same = sent, 0
            return full.same > 20
        full.last, full.same = -1, 0
        wait.until(full, "the sender is held back", timeout_s=60)
        self.assertLess(sent, 64 << 20, "nothing held the sender back")
        sock.setblocking(True)
        sock.settimeout(20)
        sock.shutdown(socket.SHUT_WR)
        offset = 0
        while piece := sock.recv(262144):
            self.assertEqual(piece, BYTES.slice(offset, len(piece)), f"near {offset}")
            offset += len(piece)
        self.assertEqual(offset, sent)

    def test_clients_with_tiny_receive_buffers_get_every_byte_before_the_end(self):
        one = self.lab()
        one.start_echo(family=self.family)
        socks, got = [], {}
        for number in range(24):  # together: what is read of one leaves the windows of others shut
            size = (1, 5000, 9000, 50_001)[number % 4]
            sock = self.socket(one, 7, receive_buffer=(2048, 2048, 4096)[number % 3])
            for at in range(0, size, 1000):
                sock.sendall(BYTES.slice(at, min(1000, size - at)))
            sock.shutdown(socket.SHUT_WR)
            socks.append((sock, size))
            got[sock] = bytearray()
        left = [sock for sock, _ in socks]
        while left:
            for sock in list(left):
                piece = sock.recv(1000)
                got[sock] += piece
                if not piece:
                    left.remove(sock)
        for sock, size in socks:
            self.assertEqual(bytes(got[sock]), BYTES.slice(0, size))

    def test_reset_at_any_moment_ends_the_connection_and_nothing_else(self):
        one = self.lab()
        one.start_echo(family=self.family)
        other = self.socket(one, 7)

        def after_connect(sock):
            pass

        def after_first_byte(sock):
            sock.sendall(b"x")

        def after_first_answer(sock):
            sock.sendall(b"x")
            sock.recv(1)

        def amid_upload(sock):
            sock.sendall(BYTES.slice(0, 300_000))
            sock.recv(1)

        def with_unread_answer(sock):
            sock.sendall(BYTES.slice(0, 100_000))
            wait.until(lambda: len(sock.recv(50_000, socket.MSG_PEEK)) > 1, "an answer")

        def after_half_close(sock):
            sock.sendall(BYTES.slice(0, 10_000))
            sock.shutdown(socket.SHUT_WR)

        def after_both_ends(sock):
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)

        moments = [after_connect, after_first_byte, after_first_answer, amid_upload,
                   with_unread_answer, after_half_close, after_both_ends]
        for round_ in range(3 if settings.quick else 20):
            for moment in moments:
                sock = one.connect(7, self.family)
                moment(sock)
                reset(sock)
            other.sendall(BYTES.slice(round_, 2000))
            self.assertEqual(read_exactly(other, 2000), BYTES.slice(round_, 2000))
        wait.until(lambda: one.open_connections() == 1, "only the other connection is open")

    def test_bulk_both_ways_at_once_is_verified(self):
        one = self.lab()
        one.start_echo(family=self.family)
        size = (32 << 20) if settings.quick else (256 << 20)
        script = os.path.join(os.path.dirname(__file__), "harness", "bulk_client.py")
        address = "10.77.0.10" if self.family == 4 else "fd77::10"
        done = one.run("/usr/bin/python3", script, address, "7", str(size), timeout_s=200)
        self.assertEqual(done.returncode, 0, done.stderr.decode()[-2000:])
        print(f"     {done.stdout.decode().strip()}")

    def test_a_source_sends_all_its_bytes_and_then_the_end(self):
        one = self.lab()
        size = (8 << 20) + 5
        one.start_echo(mode="source", family=self.family, extra=["--bytes", size])
        sock = self.socket(one, 7)
        sock.sendall(b"x")  # delayed binding: without a byte nobody is asked
        got = bytearray()
        while piece := sock.recv(262144):
            got += piece
        self.assertEqual(len(got), size)
        self.assertEqual(bytes(got), (b"0123456789abcdef" * (size // 16 + 1))[:size])

    def test_uploads_are_digested_whole_and_answered_after_the_half_close(self):
        one = self.lab()
        one.start_echo(mode="digest", family=self.family)
        for size in (1, 1000, 1025, 65537, 5_000_003):
            sock = self.socket(one, 7)
            checksum = 1
            for chunk in BYTES.chunks(size):
                sock.sendall(chunk)
                checksum = zlib.adler32(chunk, checksum)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := sock.recv(1000):
                answer += piece
            self.assertEqual(answer, b"%d %d\n" % (size, checksum))

    def test_a_sink_takes_everything_and_the_end(self):
        one = self.lab()
        one.start_echo(mode="sink", family=self.family)
        sock = self.socket(one, 7)
        for chunk in BYTES.chunks(20 << 20):
            sock.sendall(chunk)
        sock.shutdown(socket.SHUT_WR)
        self.assertEqual(sock.recv(1), b"")

    def test_many_short_connections_one_after_the_other_are_all_served(self):
        one = self.lab()
        one.start_echo(family=self.family)
        for index in range(300 if settings.quick else 3000):
            with one.connect(7, self.family) as sock:
                sock.sendall(BYTES.slice(index, 100))
                self.assertEqual(read_exactly(sock, 100), BYTES.slice(index, 100))

    def test_a_port_without_a_service_answers_with_reset(self):
        one = self.lab()
        one.start_echo(family=self.family)
        with self.assertRaises(ConnectionRefusedError):
            one.connect(8, self.family)


globals().update(case.over(Connections, shared=True))
