"""Slow parties stop themselves and nobody else (docs/flow_control.md)."""

import concurrent.futures
import signal
import socket
import struct

from harness import case, load, settings, wait
from harness.pattern import Pattern

BYTES = Pattern("slow")
SECONDS = 1.0  # of each rate, which is printed and not judged
# What the proxy may grow by while parties are slow: far below what it would hold without windows.
GROWTH_BYTES_MAX = 256 << 20


def fill(sock):
    """Sends until the other side holds us back for good; returns how much went."""
    sock.setblocking(False)
    state = {"sent": 0, "last": -1, "same": 0}

    def held_back():
        try:
            while state["sent"] < 256 << 20:
                state["sent"] += sock.send(BYTES.slice(state["sent"], 65536))
        except BlockingIOError:
            pass
        state["same"] = state["same"] + 1 if state["last"] == state["sent"] else 0
        state["last"] = state["sent"]
        return state["same"] > 20
    wait.until(held_back, "the sender is held back", timeout_s=60)
    assert state["sent"] < 128 << 20, "nothing held the sender back"
    return state["sent"]


REPEATED = bytes((k * 131 + (k >> 8) * 7) & 0xff for k in range(65536))  # what httpd gives


def ask(sock, size):
    sock.sendall(b"GET /bytes/%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % size)


def check_answer(sock, size):
    """Reads and verifies all of what was asked for."""
    sock.settimeout(30 * settings.slowness)
    got = bytearray()
    while piece := sock.recv(262144):
        got += piece
    head, _, body = bytes(got).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    assert len(body) == size, f"{len(body)} of {size} bytes"
    assert body == (REPEATED * (size // len(REPEATED) + 1))[:size], "wrong bytes"


def check_echo(sock, total):
    """Half-closes, then reads and verifies everything that was sent."""
    sock.setblocking(True)
    sock.settimeout(30 * settings.slowness)
    sock.shutdown(socket.SHUT_WR)
    offset = 0
    while piece := sock.recv(262144):
        assert piece == BYTES.slice(offset, len(piece)), f"wrong bytes near {offset}"
        offset += len(piece)
    assert offset == total, f"{offset} of {total} bytes"


class SlowParties:
    alone = True  # it prints rates to compare
    def with_load(self, one, connections=64):
        busy = load.EchoLoad(one, port=7, connections=connections, family=self.family)
        self.addCleanup(busy.close)
        busy.start()
        wait.until(lambda: busy.all_progressed([0] * connections), "the load runs")
        return busy

    def others_go_on(self, one, busy, before, what):
        marks = busy.marks()
        during = busy.rate(SECONDS)
        print(f"     {what}: {before / 1e6:.0f} -> {during / 1e6:.0f} MB/s "
              f"({100 * during / before:.0f} %)")
        wait.until(lambda: busy.all_progressed(marks, 65536), "every other connection goes on")
        self.assertEqual(busy.lost, [])

    def test_many_clients_that_never_read_stop_only_their_own_connections(self):
        # Each could fill its windows both ways, and together they would need all the memory, and all
        # the places in queues, that there are between the proxy and the application node.
        one = self.lab()
        one.start_echo(family=self.family)
        busy = self.with_load(one)
        before = busy.rate(SECONDS)
        deaf = [self.socket(one, 7, receive_buffer=65536)
                for _ in range(4 if settings.in_guest else 24)]
        with concurrent.futures.ThreadPoolExecutor(len(deaf)) as pool:
            sent = list(pool.map(fill, deaf))
        self.others_go_on(one, busy, before, f"{len(deaf)} clients never read")
        for sock, total in zip(deaf, sent):
            check_echo(sock, total)
        busy.finish()

    def test_many_downloads_that_nobody_reads_stop_nobody_else(self):
        # On shm with so few places that they take them all: then bytes go inline.
        on_shm = self.kind == "shm"
        one = self.lab(fabric={"max_references": 1024, "trust": self.trust} if on_shm else {})
        one.start_httpd(family=self.family)
        deaf = []
        for _ in range(16 if settings.in_guest else 400 if on_shm else 150):
            deaf.append(self.socket(one, 80, receive_buffer=16384))
            ask(deaf[-1], 1_000_000)
        for sock in deaf:
            sock.settimeout(30 * settings.slowness)
            sock.recv(1, socket.MSG_PEEK)
        if on_shm:
            inline = one.metrics()['sanproxy_bytes_copied_total{reason="inline"}']
            self.assertGreater(inline, 1 << 20, "there were places for all of them")
        for size in (13, 10_000, 100_000, 5_000_000) * 2:
            other = self.socket(one, 80)
            ask(other, size)
            check_answer(other, size)
            other.close()
        for sock in deaf:
            check_answer(sock, 1_000_000)

    def test_an_application_that_never_reads_stops_only_its_own_connection(self):
        one = self.lab()
        one.start_echo(family=self.family)
        one.start_echo(mode="stall", port=9, family=self.family)
        busy = self.with_load(one)
        rss, before = one.proxy.rss_bytes(), busy.rate(SECONDS)
        stalled = self.socket(one, 9)
        fill(stalled)
        self.others_go_on(one, busy, before, "one application never reads")
        self.assertLess(one.proxy.rss_bytes() - rss, GROWTH_BYTES_MAX)
        # A FIN would wait behind the bytes that nobody takes.
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stalled.close()
        busy.finish()

    def test_a_client_that_never_reads_stops_only_its_own_connection(self):
        one = self.lab()
        one.start_echo(family=self.family)
        busy = self.with_load(one)
        rss, before = one.proxy.rss_bytes(), busy.rate(SECONDS)
        deaf = self.socket(one, 7, receive_buffer=65536)
        sent = fill(deaf)
        self.others_go_on(one, busy, before, "one client never reads")
        self.assertLess(one.proxy.rss_bytes() - rss, GROWTH_BYTES_MAX)
        check_echo(deaf, sent)
        busy.finish()

    def test_a_stopped_application_node_holds_up_only_itself_and_loses_no_byte(self):
        # As if it stood still more briefly than it does: else it would get nothing new meanwhile.
        one = self.lab(config={"heartbeat": {"timeout_ms": 600_000}})
        one.start_echo(family=self.family)
        frozen = one.start_echo(port=9, family=self.family)
        busy = self.with_load(one)
        rss, before = one.proxy.rss_bytes(), busy.rate(SECONDS)
        sockets = [self.socket(one, 9) for _ in range(4)]
        for sock in sockets:
            sock.sendall(BYTES.slice(0, 1))
        for sock in sockets:
            sock.recv(1, socket.MSG_PEEK)
        frozen.signal(signal.SIGSTOP)
        for sock in sockets:
            sock.sendall(BYTES.slice(1, 0))
        sent = []
        for sock in sockets:
            sock.setblocking(False)
            total = 1
            sent.append(self.fill_from(sock, total))
        self.others_go_on(one, busy, before, "one application node is stopped")
        self.assertLess(one.proxy.rss_bytes() - rss, GROWTH_BYTES_MAX)
        # Connections that come while the node stands still wait, and are served afterwards.
        late = self.socket(one, 9)
        late.sendall(BYTES.slice(0, 1000))
        frozen.signal(signal.SIGCONT)
        for sock, total in zip(sockets, sent):
            check_echo(sock, total)
        check_echo(late, 1000)
        busy.finish()

    def test_many_small_pieces_for_a_stopped_node_take_no_buffers_from_others(self):
        # A piece of one byte arrives in a buffer of 64 KB: held as they came, these would be all
        # the buffers that there are.
        one = self.lab(config={"proxy": {"ingress_pool_bytes": 32 << 20}})
        one.start_echo(family=self.family)
        frozen = one.start_echo(port=9, family=self.family)
        busy = self.with_load(one, 16)
        before = busy.rate(SECONDS)
        sockets = [self.socket(one, 9) for _ in range(32)]
        for sock in sockets:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(b"s")
            self.assertEqual(sock.recv(1), b"s")
        frozen.signal(signal.SIGSTOP)
        for offset in range(200):
            for sock in sockets:
                sock.sendall(BYTES.slice(offset, 1))
        self.others_go_on(one, busy, before, "small pieces wait for a stopped node")
        frozen.signal(signal.SIGCONT)
        for sock in sockets:
            check_echo(sock, 200)
        busy.finish()

    def test_clients_far_ahead_of_what_they_read_are_served_whatever_is_kept_for_them(self):
        # What waits to be echoed fills the windows, then the application node's memory, then all
        # the buffers that it may keep: no more comes in, until what it has sent is acknowledged.
        one = self.lab()
        one.start_echo(family=self.family)
        busy = load.EchoLoad(one, port=7, connections=64, family=self.family,
                             in_flight_bytes=1 << 40)
        self.addCleanup(busy.close)
        busy.start()
        for _ in range(2 if settings.in_guest else 8):
            marks = busy.marks()
            wait.until(lambda: busy.all_progressed(marks, 262144), "every connection goes on",
                       timeout_s=60)
        for conn in busy.connections:
            conn.in_flight_bytes = 65536
        busy.finish()
        self.assertEqual(busy.lost, [])

    @staticmethod
    def fill_from(sock, start):
        state = {"sent": start, "last": -1, "same": 0}

        def held_back():
            try:
                while state["sent"] < 64 << 20:
                    state["sent"] += sock.send(BYTES.slice(state["sent"], 65536))
            except BlockingIOError:
                pass
            state["same"] = state["same"] + 1 if state["last"] == state["sent"] else 0
            state["last"] = state["sent"]
            return state["same"] > 20
        wait.until(held_back, "the sender is held back", timeout_s=60)
        assert state["sent"] < 64 << 20, "nothing held the sender back"
        return state["sent"]


globals().update(case.over(SlowParties, families=(4,), shared=True, network=("tcp", "verbs")))
