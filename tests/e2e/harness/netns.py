"""Network namespaces: every packet of a test, or of the laboratory (deploy/lab), stays inside ones that
carry our process id."""

import ctypes
import os
import socket
import subprocess
import threading

PREFIX = "sane2e"  # the laboratory has its own
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd):
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, "setns: " + os.strerror(error))


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


def _remove(of):
    """Removes the namespaces of processes that `of` says yes to."""
    for line in ip("netns", "list", check=False).stdout.splitlines():
        parts = line.split()[0].split("-") if line.strip() else []
        if len(parts) == 3 and parts[0] == PREFIX and parts[1].isdigit() and of(int(parts[1])):
            ip("netns", "delete", line.split()[0], check=False)


def remove_stale():
    """Removes namespaces whose test run is gone (killed before it could clean up)."""
    _remove(lambda pid: not os.path.exists(f"/proc/{pid}"))


def remove_own():
    """Removes whatever is left of this process: also what a signal interrupted while it was made."""
    _remove(lambda pid: pid == os.getpid())


class Namespace:
    """One network namespace with its loopback up. Programs and sockets can be made inside it."""

    _count = 0
    _lock = threading.Lock()

    def __init__(self, label, numbered=True):
        """`numbered`: several may have one label; else it is the last part of the name."""
        with Namespace._lock:
            Namespace._count += 1
            self.name = f"{PREFIX}-{os.getpid()}-{label}{Namespace._count if numbered else ''}"
        ip("netns", "add", self.name)
        self._fd = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        self.ip("link", "set", "lo", "up")
        # The host may default to BBR; reno is the one that every namespace may choose.
        self.sysctl("net.ipv4.tcp_congestion_control", "reno")
        self.sysctl("net.ipv6.conf.all.accept_dad", "0")
        self.sysctl("net.ipv6.conf.default.accept_dad", "0")

    def ip(self, *words, check=True):
        result = ip("-n", self.name, *words, check=False)
        if check and result.returncode != 0:
            raise RuntimeError(f"ip {' '.join(words)}: {result.stderr.strip()}")
        return result

    def sysctl(self, key, value):
        subprocess.run(self.argv(["sysctl", "-q", "-w", f"{key}={value}"]), check=True,
                       capture_output=True)

    def argv(self, argv):
        """The command line that runs `argv` inside; the process id stays the same (exec)."""
        return ["ip", "netns", "exec", self.name, *map(str, argv)]

    def run(self, *argv, timeout_s=120, **options):
        options.setdefault("capture_output", True)
        return subprocess.run(self.argv(argv), timeout=timeout_s, **options)

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0):
        """A socket that lives inside for good, whichever thread uses it later."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _setns(self._fd)
            try:
                return socket.socket(family, kind, protocol)
            finally:
                _setns(own)
        finally:
            os.close(own)

    def remove(self):
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            ip("netns", "delete", self.name, check=False)


class Own:
    """The namespace that we are in, with the interface of Namespace: in the guest, whose RDMA
    device exists in one namespace only."""

    name = "own"

    def ip(self, *words, check=True):
        return ip(*words, check=check)

    def sysctl(self, key, value):
        subprocess.run(["sysctl", "-q", "-w", f"{key}={value}"], check=True, capture_output=True)

    def argv(self, argv):
        return [str(word) for word in argv]

    def run(self, *argv, timeout_s=120, **options):
        options.setdefault("capture_output", True)
        return subprocess.run(self.argv(argv), timeout=timeout_s, **options)

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0):
        return socket.socket(family, kind, protocol)

    def remove(self):
        pass
