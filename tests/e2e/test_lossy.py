"""Real clients over a bad link: every byte arrives once, in order, and every connection ends in order.

Scenarios are drawn from a seed: SANPROXY_SEED=N runs that one alone, SANPROXY_SEEDS=N the first N.
"""

import os
import random
import signal
import socket
import threading
import time

from harness import admin, case, settings, wait
from harness.pattern import Pattern
from harness.relay import RelayedLab

DAILY_SEEDS = 6
PATIENCE_S = 200


def seeds():
    if "SANPROXY_SEED" in os.environ:
        return [int(os.environ["SANPROXY_SEED"])]
    return range(1, int(os.environ.get("SANPROXY_SEEDS", DAILY_SEEDS)) + 1)


def fnv1a64(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return f"{value:016x}"


class Scenario:
    def __init__(self, seed):
        self.seed = seed
        self.draw = random.Random(seed)
        self.to_proxy = self._faults()
        self.to_client = self._faults()
        # Whoever cuts packets: their sender's kernel puts them together again by itself.
        fragment = self.draw.choice([0, 0, 0, 256, 552, 1232])
        if fragment:
            # Each of five fragments may be lost: with more loss a client's own timer backs off to a
            # minute.
            self.to_proxy |= {"fragment": fragment, "loss": self.to_proxy["loss"] / 5, "burst": 1}
        self.clients = [Client(self, index) for index in range(8)]

    def _faults(self):
        draw = self.draw
        out = {"loss": draw.choice([0, 0, 0.002, 0.01, 0.03, 0.05]),
               "burst": draw.choice([1, 1, 2, 5]),
               "duplicate": draw.choice([0, 0, 0.02, 0.1]),
               "corrupt": draw.choice([0, 0, 0.01]),
               "reorder": draw.choice([0, 0, 0.02, 0.2]),
               "reorder_us": draw.choice([300, 3000, 20_000]),
               "delay_us": draw.choice([0, 0, 300, 2000, 8000]),
               "jitter_us": draw.choice([0, 0, 500, 3000])}
        if draw.random() < 0.4:
            out |= {"rate": draw.choice([1_000_000, 4_000_000, 20_000_000]),
                    "queue": draw.choice([4000, 10_000, 40_000]), "policer": draw.choice([0, 1])}
        if draw.random() < 0.25:
            out |= {"blackout_every_ms": draw.choice([700, 1500]),
                    "blackout_ms": draw.choice([50, 250])}
        if draw.random() < 0.3:
            out |= {"mtu": draw.choice([620, 1000, 1300, 1400]),
                    "mtu_after_ms": draw.choice([0, 20, 100, 400])}
        return out

    def bytes_per_s(self, window, mss):
        """About what a connection may hope for: enough to choose amounts by."""
        ways = (self.to_proxy, self.to_client)
        rtt = 0.002 + sum(way["delay_us"] + way["jitter_us"] for way in ways) / 1e6
        loss = sum((way["loss"] * way["burst"] + way["corrupt"]) for way in ways)
        late = max(way["reorder"] * way["reorder_us"] for way in ways) / 1e6
        slow = (loss + 1e-4) * 0.25 + late  # seconds lost with each segment
        rate = min(window / rtt, mss / (slow + 1e-5), 20e6)
        return min([rate] + [way["rate"] / 8 for way in ways if "rate" in way])

    def __str__(self):
        return f"to the proxy {self.to_proxy}, to the client {self.to_client}"


class Client:
    """One connection: what it is like, what it does, what came of it."""

    def __init__(self, scenario, index):
        draw = scenario.draw
        self.index = index
        self.family = draw.choice([4, 6])
        self.kind = draw.choice(["echo", "upload", "download"])
        self.receive_buffer = draw.choice([2048, 3000, 4096, 8192, 16_384, 65_536])
        self.send_buffer = draw.choice([4096, 16_384, 65_536, 0])
        self.mss = draw.choice([88, 200, 536, 1000, 1220, 1460])
        self.pause_s = draw.choice([0, 0, 0, 0.002, 0.03])
        self.piece = draw.choice([700, 3000, 20_000, 65_536])
        rate = scenario.bytes_per_s(min(self.receive_buffer, 30_000) / 2, self.mss)
        if self.pause_s:
            rate = min(rate, self.piece / self.pause_s / 2)
        self.total = int(min(max(rate * draw.choice([0.3, 1, 2]), 3000), 600_000))
        self.pattern = Pattern(f"lossy {index}")
        # The server looks at a file that it knows once a second.
        self.file = f"{scenario.seed}-{index}.bin"
        self.offset = 0
        self.error = None

    def __str__(self):
        return (f"client {self.index}: {self.kind} of {self.total} bytes over IPv{self.family}, "
                f"receive buffer {self.receive_buffer}, send buffer {self.send_buffer}, MSS "
                f"{self.mss}, reads {self.piece} each {self.pause_s} s")

    def run(self, lab):
        try:
            with self._connect(lab) as sock:
                {"echo": self._echo, "upload": self._upload, "download": self._download}[self.kind](
                    sock)
        except (AssertionError, OSError) as error:
            self.error = f"{error!r} at byte {self.offset} of {self.total}"

    def _connect(self, lab):
        def prepare(sock):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, self.mss)
        return lab.connect(7 if self.kind == "echo" else 80, self.family, timeout_s=PATIENCE_S,
                           receive_buffer=self.receive_buffer,
                           send_buffer=self.send_buffer or None, prepare=prepare)

    def _pieces(self, sock):
        while piece := sock.recv(self.piece):
            yield piece
            if self.pause_s:
                time.sleep(self.pause_s)

    def _check(self, piece):
        assert piece == self.pattern.slice(self.offset, len(piece)), "wrong bytes"
        self.offset += len(piece)

    def _send(self, sock):
        try:
            for chunk in self.pattern.chunks(self.total, self.piece):
                sock.sendall(chunk)
            if self.kind == "echo":
                sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.error = f"{error!r} while sending"

    def _echo(self, sock):
        sender = threading.Thread(target=self._send, args=(sock,))
        sender.start()
        try:
            for piece in self._pieces(sock):
                self._check(piece)
        finally:
            sender.join()
        assert self.offset == self.total, "ended early"

    def _head(self, sock):
        """Up to the end of an answer's head: what has come behind it."""
        head = b""
        while b"\r\n\r\n" not in head:
            piece = sock.recv(self.piece)
            assert piece, f"ended in the head: {head}"
            head += piece
        head, _, rest = head.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        return rest

    def _download(self, sock):
        sock.sendall(b"GET /%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" %
                     self.file.encode())
        self._check(self._head(sock))
        for piece in self._pieces(sock):
            self._check(piece)
        assert self.offset == self.total, "ended early"

    def _upload(self, sock):
        sock.sendall(b"PUT /upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                     b"Content-Length: %d\r\n\r\n" % self.total)
        self._send(sock)
        answer = self._head(sock) + b"".join(self._pieces(sock))
        expected = fnv1a64(b"".join(self.pattern.chunks(self.total)))
        assert f'"received":{self.total}'.encode() in answer.replace(b" ", b""), answer
        assert expected.encode() in answer, answer


class Lossy(case.LabTest):
    def _lab(self):
        one = RelayedLab(".".join(self.id().split(".")[-2:]), fabric={"trust": "isolated"})
        self.addCleanup(one.close)
        self.root = os.path.join(one.log_dir, "root")
        os.makedirs(self.root)
        one.start_proxy()
        for family in (4, 6):
            one.start_httpd(80, family, root=self.root)
            one.start_echo(port=7, family=family)
        return one

    def _run(self, one, seed):
        scenario = Scenario(seed)
        for client in scenario.clients:
            client.pattern.write_file(os.path.join(self.root, client.file), client.total)
        one.start_relay(seed, scenario.to_proxy, scenario.to_client)
        threads = [threading.Thread(target=client.run, args=(one,)) for client in scenario.clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wrong = [f"{client}: {client.error}" for client in scenario.clients if client.error]
        self.assertEqual(wrong, [], f"SANPROXY_SEED={seed}: {scenario}\n{one.tail()}")
        # Both sides agree that it is over, with what the link does to the last segments too.
        wait.until(lambda: admin.open_connections(one.status()) == 0,
                   lambda: f"no connection is left: SANPROXY_SEED={seed}: {scenario}", PATIENCE_S)
        one.stop_relay()

    def test_every_byte_arrives_whatever_the_link_does(self):
        one = self._lab()
        for seed in seeds():
            signal.alarm(settings.test_timeout_s)  # each has a test's time
            start = time.monotonic()
            self._run(one, seed)
            if os.environ.keys() & {"SANPROXY_SEED", "SANPROXY_SEEDS"}:
                print(f"SANPROXY_SEED={seed}: {time.monotonic() - start:.1f} s", flush=True)
        one.assert_healthy()
        one.assert_clean_stop()
