#!/usr/bin/python3
"""Many long-lived connections to an echo service, each of whose bytes is verified.

One process, one line of JSON on stdin for each order, one on stdout for each answer:

    {"do": "open", "host": H, "port": P, "count": N}   opens N more
    {"do": "verify", "timeout_s": S}    a message over each connection and back; waits for all
    {"do": "beat", "period_s": S}       from now on each sends a message every S seconds; 0: none
    {"do": "stats"}                     and forgets the longest silence
    {"do": "close", "names": [...]}     ends those connections ("IP:PORT" of our end) in order
    {"do": "names"}                     of those that are open, too
    {"do": "quit"}
"""

import collections
import errno
import json
import os
import resource
import select
import socket
import sys
import time

import paths  # noqa: F401
from harness.pattern import Pattern

MESSAGE_BYTES = 64
OPENING_MAX = 64  # at a time
PATTERN = Pattern("long-lived")


class Connection:
    __slots__ = ("sock", "name", "base", "sent", "received", "since", "due", "wanted")

    def __init__(self, sock, base):
        self.sock, self.base = sock, base
        self.name = None  # once it is open
        self.sent = self.received = 0
        self.since = 0.0  # when the message under way was sent
        self.due = 0.0
        self.wanted = False  # by verify


class Clients:
    def __init__(self):
        self.epoll = select.epoll()
        self.by_fd = {}
        self.opening = {}
        self.beats = collections.deque()
        self.period_s = 0.0
        self.made = self.verified = self.wrong = 0
        self.lost = collections.Counter()
        self.silence_s = 0.0
        self.wanted = 0  # connections that verify still waits for

    # --- one connection

    def lose(self, conn, why):
        self.lost[why] += 1
        self.forget(conn)

    def forget(self, conn):
        fd = conn.sock.fileno()
        self.by_fd.pop(fd, None)
        self.opening.pop(fd, None)
        if conn.wanted:
            conn.wanted = False
            self.wanted -= 1
        conn.sock.close()
        conn.name = None

    def send(self, conn, now):
        conn.since = now
        piece = PATTERN.slice(conn.base + conn.sent, MESSAGE_BYTES)
        try:
            if conn.sock.send(piece) != MESSAGE_BYTES:
                self.lose(conn, "a short send")
                return
        except OSError as error:
            self.lose(conn, errno.errorcode.get(error.errno, str(error)))
            return
        conn.sent += MESSAGE_BYTES

    def receive(self, conn, now):
        try:
            data = conn.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(conn, errno.errorcode.get(error.errno, str(error)))
            return
        if not data:
            self.lose(conn, "end")
            return
        if data != PATTERN.slice(conn.base + conn.received, len(data)) or \
                conn.received + len(data) > conn.sent:
            self.wrong += 1
            self.lose(conn, "wrong bytes")
            return
        conn.received += len(data)
        if conn.received == conn.sent:
            self.verified += 1
            self.silence_s = max(self.silence_s, now - conn.since)
            if conn.wanted:
                conn.wanted = False
                self.wanted -= 1

    # --- the loop

    def turn(self, timeout_s):
        """Serves what is ready; True when stdin is."""
        asked = False
        for fd, events in self.epoll.poll(timeout_s, 512):
            if fd == 0:
                asked = True
                continue
            now = time.monotonic()
            conn = self.by_fd.get(fd)
            if conn is None:
                continue
            if fd in self.opening:
                self.opened(conn, events)
            else:
                self.receive(conn, now)
        if self.period_s:
            self.beat()
        return asked

    def beat(self):
        now = time.monotonic()
        for _ in range(min(len(self.beats), 256)):
            conn = self.beats[0]
            if conn.due > now:
                return
            self.beats.popleft()
            if conn.name is None:
                continue
            if conn.sent == conn.received:
                self.send(conn, now)
            else:
                self.silence_s = max(self.silence_s, now - conn.since)
            conn.due = now + self.period_s
            self.beats.append(conn)

    def opened(self, conn, events):
        fd = conn.sock.fileno()
        error = conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error or events & (select.EPOLLERR | select.EPOLLHUP):
            self.lose(conn, "opening: " + errno.errorcode.get(error, "hung up"))
            return
        del self.opening[fd]
        host, port = conn.sock.getsockname()[:2]
        conn.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.epoll.modify(fd, select.EPOLLIN)
        self.beats.append(conn)

    # --- orders

    def open(self, host, port, count, timeout_s=60):
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        deadline = time.monotonic() + timeout_s
        while (count or self.opening) and time.monotonic() < deadline:
            while count and len(self.opening) < OPENING_MAX:
                sock = socket.socket(kind, socket.SOCK_STREAM)
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.connect_ex((host, port))
                conn = Connection(sock, self.made * 7919)
                self.made += 1
                self.by_fd[sock.fileno()] = self.opening[sock.fileno()] = conn
                self.epoll.register(sock.fileno(), select.EPOLLOUT)
                count -= 1
            self.turn(0.1)
        for conn in list(self.opening.values()):
            self.lose(conn, "opening: no answer")

    def verify(self, timeout_s):
        begin = time.monotonic()
        waiting = list(self.by_fd.values())
        for conn in waiting:
            self.want(conn)
        # One message is under way at a time: those that have one already send theirs after it.
        while (self.wanted or waiting) and time.monotonic() < begin + timeout_s:
            later = []
            for number, conn in enumerate(waiting):
                if conn.name is None:
                    continue
                if conn.sent == conn.received:
                    self.want(conn)  # what came back meanwhile was sent before
                    self.send(conn, time.monotonic())
                elif conn.since < begin:
                    later.append(conn)
                if number % 128 == 0:
                    self.turn(0)
            waiting = later
            self.turn(0.02)
        silent = [conn.name for conn in self.by_fd.values() if conn.wanted]
        for conn in self.by_fd.values():
            conn.wanted = False
        self.wanted = 0
        return silent

    def want(self, conn):
        if not conn.wanted:
            conn.wanted = True
            self.wanted += 1

    def stats(self):
        now = time.monotonic()
        under_way = [now - c.since for c in self.by_fd.values() if c.sent != c.received]
        found = {"open": len(self.by_fd), "verified": self.verified, "wrong": self.wrong,
                 "lost": dict(self.lost), "silence_s": max([self.silence_s, *under_way])}
        self.silence_s = 0.0
        return found

    def set_beat(self, period_s):
        self.period_s = period_s
        now = time.monotonic()
        for number, conn in enumerate(self.beats):  # spread over the period
            conn.due = now + period_s * number / max(len(self.beats), 1)

    def obey(self, order):
        what = order["do"]
        silent = []
        if what == "open":
            self.open(order["host"], order["port"], order["count"])
        elif what == "verify":
            silent = self.verify(order["timeout_s"])
        elif what == "beat":
            self.set_beat(order["period_s"])
        elif what == "close":
            names = set(order["names"])
            for conn in list(self.by_fd.values()):
                if conn.name in names:
                    self.forget(conn)
        answer = {**self.stats(), "silent": len(silent)}
        if what == "names":
            answer["names"] = [conn.name for conn in self.by_fd.values()]
        return answer


def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = Clients()
    clients.epoll.register(0, select.EPOLLIN)
    os.set_blocking(0, False)
    text = b""
    while True:
        if not clients.turn(0.02 if clients.period_s else 1.0):
            continue
        piece = os.read(0, 1 << 20)
        if not piece:
            return 0
        text += piece
        while b"\n" in text:
            line, _, text = text.partition(b"\n")
            order = json.loads(line)
            if order["do"] == "quit":
                return 0
            print(json.dumps(clients.obey(order)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
