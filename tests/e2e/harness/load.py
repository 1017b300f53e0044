"""EchoLoad: connections that send a known stream to an echo service and check all that returns."""

import os
import selectors
import threading
import time

from .pattern import Pattern

_PATTERN = Pattern("echo load")


class _Connection:
    def __init__(self, sock, seed, chunk_bytes, in_flight_bytes):
        self.sock = sock
        self.base = seed * 7919  # every connection starts elsewhere in the stream
        self.chunk_bytes = chunk_bytes
        self.in_flight_bytes = in_flight_bytes
        self.sent = 0
        self.received = 0
        self.shut = False
        self.done = False
        self.lost = None  # why, when it ended otherwise than by finish()

    def wants(self):
        events = selectors.EVENT_READ
        if not self.shut and self.sent - self.received < self.in_flight_bytes:
            events |= selectors.EVENT_WRITE
        return events


class EchoLoad:
    """Runs in a thread of its own between start() and finish()."""

    def __init__(self, lab, port=7, connections=64, family=4, chunk_bytes=16384,
                 in_flight_bytes=65536, modest=False):
        """`modest`: leaves the processor to everybody else."""
        self._modest = modest
        self._lab = lab
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.bytes_verified = 0
        self.wrong = []  # corrupt bytes: always a failure
        self.connections = []
        for index in range(connections):
            sock = lab.connect(port, family)
            sock.setblocking(False)
            conn = _Connection(sock, index, chunk_bytes, in_flight_bytes)
            self.connections.append(conn)
            self._selector.register(sock, conn.wants(), conn)

    def start(self):
        self._thread.start()
        return self

    @property
    def lost(self):
        return [c for c in self.connections if c.lost]

    def alive(self):
        return [c for c in self.connections if not c.lost and not c.done]

    def rate(self, duration_s):
        """Verified bytes per second during the next `duration_s` seconds."""
        before, start = self.bytes_verified, time.monotonic()
        time.sleep(duration_s)
        return (self.bytes_verified - before) / (time.monotonic() - start)

    def marks(self):
        return [c.received for c in self.connections]

    def all_progressed(self, marks, bytes_each=1):
        return all(c.lost or c.received >= mark + bytes_each
                   for c, mark in zip(self.connections, marks))

    def push_on(self):
        """Every connection sends something, also one that waits for an answer: a peer that is gone
        is noticed by nobody who is silent."""
        for conn in self.connections:
            conn.in_flight_bytes = 1 << 40
            try:
                self._selector.modify(conn.sock, conn.wants(), conn)
            except (OSError, ValueError, KeyError):
                pass  # lost already

    def finish(self, timeout_s=60):
        """Half-closes every connection and waits for the rest of its bytes and the end."""
        self._stop.set()
        self._thread.join(timeout_s)
        unfinished = [c for c in self.connections if not c.done and not c.lost]
        for conn in self.connections:
            conn.sock.close()
        if unfinished:
            one = unfinished[0]
            raise AssertionError(f"{len(unfinished)} connections did not end, one with "
                                 f"{one.received} of {one.sent} bytes back")
        if self.wrong:
            raise AssertionError("wrong bytes: " + "; ".join(self.wrong[:3]))
        return self

    def close(self):
        """For the end of a test, whatever happened."""
        self._stop.set()
        for conn in self.connections:
            if conn.sock.fileno() >= 0:
                conn.lost = conn.lost or "given up"
                try:
                    self._selector.unregister(conn.sock)
                except (KeyError, ValueError):
                    pass
                conn.sock.close()

    def _run(self):
        if self._modest:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        deadline = None
        while any(not c.done and not c.lost for c in self.connections):
            if self._stop.is_set():
                deadline = deadline or time.monotonic() + 50
                if time.monotonic() > deadline:
                    return
                self._half_close_all()
            try:
                ready = self._selector.select(0.1)
            except (OSError, ValueError):
                continue
            for key, events in ready:
                self._serve(key.data, events)

    def _half_close_all(self):
        for conn in self.connections:
            if not conn.shut and not conn.done and not conn.lost:
                conn.shut = True
                try:
                    conn.sock.shutdown(1)
                    self._selector.modify(conn.sock, conn.wants(), conn)
                except (OSError, ValueError, KeyError) as error:
                    self._lose(conn, error)

    def _serve(self, conn, events):
        try:
            if events & selectors.EVENT_READ and not self._read(conn):
                return
            if events & selectors.EVENT_WRITE and not conn.shut:
                piece = _PATTERN.slice(conn.base + conn.sent, conn.chunk_bytes)
                conn.sent += conn.sock.send(piece)
            self._selector.modify(conn.sock, conn.wants(), conn)
        except BlockingIOError:
            pass
        except (OSError, ValueError, KeyError) as error:
            self._lose(conn, error)

    def _read(self, conn):
        data = conn.sock.recv(262144)
        if not data:
            if conn.shut and conn.received == conn.sent:
                conn.done = True
                self._selector.unregister(conn.sock)
            else:
                self._lose(conn, f"end after {conn.received} of {conn.sent} bytes")
            return False
        if data != _PATTERN.slice(conn.base + conn.received, len(data)):
            self.wrong.append(f"connection {conn.base // 7919} near offset {conn.received}")
            self._lose(conn, "wrong bytes")
            return False
        conn.received += len(data)
        self.bytes_verified += len(data)
        return True

    def _lose(self, conn, why):
        conn.lost = type(why).__name__ if isinstance(why, Exception) else str(why)
        try:
            self._selector.unregister(conn.sock)
        except (KeyError, ValueError):
            pass
