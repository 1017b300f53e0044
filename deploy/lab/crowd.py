"""Crowd: long-lived connections from several client processes. Doors: new connections, all the time."""

import ctypes
import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import threading
import time

import paths

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent():
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)  # Ctrl-C is for the laboratory, which ends everything in order


class Crowd:
    def __init__(self, hosts):
        """`hosts`: namespaces; one process in each."""
        self._processes = []
        for host in hosts:
            argv = host.argv(["/usr/bin/python3", os.path.join(paths.HERE, "clients.py")])
            self._processes.append(subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                preexec_fn=_die_with_parent))

    def _tell(self, orders):
        """An order for each process (none: not this one); the sum of their answers."""
        told = [(process, order) for process, order in zip(self._processes, orders) if order]
        for process, order in told:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        total = {"open": 0, "verified": 0, "wrong": 0, "lost": {}, "silence_s": 0.0, "silent": 0,
                 "names": set()}
        for process, _ in told:
            line = process.stdout.readline()
            if not line:
                raise AssertionError(f"a client process ended with {process.wait()}")
            one = json.loads(line)
            for key in ("open", "verified", "wrong", "silent"):
                total[key] += one[key]
            total["silence_s"] = max(total["silence_s"], one["silence_s"])
            total["names"].update(one.get("names", ()))
            for why, count in one["lost"].items():
                total["lost"][why] = total["lost"].get(why, 0) + count
        return total

    def _tell_all(self, **order):
        return self._tell([order] * len(self._processes))

    def open(self, targets, count):
        """`targets`: (host, port) for each process, in turns."""
        share, rest = divmod(count, len(self._processes))
        return self._tell([{"do": "open", "host": targets[i % len(targets)][0],
                            "port": targets[i % len(targets)][1],
                            "count": share + (1 if i < rest else 0)}
                           for i in range(len(self._processes))])

    def verify(self, timeout_s=60):
        return self._tell_all(do="verify", timeout_s=timeout_s)

    def beat(self, period_s):
        return self._tell_all(do="beat", period_s=period_s)

    def stats(self):
        return self._tell_all(do="stats")

    def names(self):
        return self._tell_all(do="names")["names"]

    def close_some(self, names):
        return self._tell_all(do="close", names=sorted(names))

    def close(self):
        for process in self._processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        self._processes = []


SLOW_S = 0.5  # a client's first repetition of a lost SYN comes after 1 s


class _Attempt:
    __slots__ = ("sock", "begin", "end", "why", "sent")

    def __init__(self, sock, begin):
        self.sock, self.begin = sock, begin
        self.end = None
        self.why = None  # it failed
        self.sent = False


class Doors:
    """Opens a connection every `pause_s`, whatever became of those before; says a word, hears it, closes.

    In a thread of its own between start() and close()."""

    WORD = b"knock, knock"
    PATIENCE_S = 5.0
    OPEN_MAX = 400

    def __init__(self, host, targets, pause_s=0.02):
        self._host, self._targets, self._pause_s = host, targets, pause_s
        self._selector = selectors.DefaultSelector()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._attempts = []
        self._open = set()

    def start(self):
        self._thread.start()
        return self

    def close(self):
        self._stop.set()
        self._thread.join(10)
        return self

    def count(self):
        return sum(1 for one in list(self._attempts) if one.end and not one.why)

    def since(self, moment):
        """What became of the attempts that began after `moment` (time.monotonic())."""
        those = [one for one in list(self._attempts) if one.begin >= moment]
        good = [one for one in those if one.end and not one.why]
        bad = [one for one in those if one.why]
        reasons = {}
        for one in bad:
            reasons[one.why] = reasons.get(one.why, 0) + 1
        return {"good": len(good), "bad": len(bad), "reasons": reasons,
                "first_good_s": min((one.end for one in good), default=float("inf")) - moment,
                "last_bad_s": max((one.begin - moment for one in bad), default=0.0),
                "last_slow_s": max((one.begin - moment for one in good
                                    if one.end - one.begin > SLOW_S), default=0.0),
                "slowest_s": max((one.end - one.begin for one in good), default=0.0)}

    def _run(self):
        due = time.monotonic()
        number = 0
        while not self._stop.is_set() or self._open:
            now = time.monotonic()
            if now >= due and not self._stop.is_set() and len(self._open) < self.OPEN_MAX:
                self._begin(self._targets[number % len(self._targets)])
                number += 1
                due = max(due + self._pause_s, now - 1)
            for key, _ in self._selector.select(max(0.0, min(due - now, 0.05))):
                self._serve(key.data)
            for one in [one for one in self._open if now - one.begin > self.PATIENCE_S]:
                self._end(one, "no answer in 5 s")

    def _begin(self, target):
        kind = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        one = _Attempt(self._host.socket(kind), time.monotonic())
        one.sock.setblocking(False)
        one.sock.connect_ex(target)
        self._attempts.append(one)
        self._open.add(one)
        self._selector.register(one.sock, selectors.EVENT_WRITE, one)

    def _serve(self, one):
        try:
            if not one.sent:
                error = one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error:
                    raise OSError(error, os.strerror(error))
                one.sock.send(self.WORD)
                one.sent = True
                self._selector.modify(one.sock, selectors.EVENT_READ, one)
                return
            heard = one.sock.recv(100)
            self._end(one, None if heard == self.WORD else f"heard {heard[:20]!r}")
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(one, errno.errorcode.get(error.errno, str(error)))

    def _end(self, one, why):
        one.end = time.monotonic()
        one.why = why
        self._open.discard(one)
        self._selector.unregister(one.sock)
        one.sock.close()
