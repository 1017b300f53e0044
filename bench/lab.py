"""The laboratory of the benchmark: network namespaces, processes, load runs.

Everything made here carries our process id and is removed in close(), also after Ctrl-C; what a
killed run left behind is removed at the next start.
"""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

PREFIX = "sanbench"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class BenchError(Exception):
    """Something that the person at the terminal can act on."""


def run(argv, check=True):
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if check and result.returncode != 0:
        raise BenchError(f"{' '.join(argv)}: {result.stderr.strip()}")
    return result.stdout


def _die_with_parent():
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C is for the harness, which then ends its processes in order.
    os.setpgid(0, 0)


class Lab:
    def __init__(self, bin_dir):
        self.bin_dir = os.path.abspath(bin_dir)
        self.folder = tempfile.mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-")
        self._processes = []
        self._namespaces = []
        self._remove_stale()

    @staticmethod
    def _remove_stale():
        for line in run(["ip", "netns", "list"], check=False).splitlines():
            parts = line.split()[0].split("-") if line.strip() else []
            if len(parts) == 3 and parts[0] == PREFIX and parts[1].isdigit():
                if not os.path.exists(f"/proc/{parts[1]}"):
                    run(["ip", "netns", "delete", line.split()[0]], check=False)

    def close(self):
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in self._namespaces:
            run(["ip", "netns", "delete", name], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._processes, self._namespaces = [], []

    # --- namespaces
    def namespace(self, label):
        name = f"{PREFIX}-{os.getpid()}-{label}"
        self._namespaces.append(name)  # before it is there: a signal may come in between
        run(["ip", "netns", "add", name])
        self.ip(name, "link", "set", "lo", "up")
        self.congestion_control = self._set_congestion_control(name)
        for key, value in (("net.ipv4.ip_local_port_range", "1024 65535"),
                           ("net.ipv4.tcp_tw_reuse", "1"),
                           ("net.ipv4.tcp_max_tw_buckets", "262144"),
                           ("net.ipv4.tcp_max_syn_backlog", "8192")):
            self._sysctl(name, key, value)
        return name

    @staticmethod
    def _sysctl(namespace, key, value):
        run(["ip", "netns", "exec", namespace, "sysctl", "-q", "-w", f"{key}={value}"])

    def _set_congestion_control(self, namespace):
        """Cubic, or reno where the kernel keeps a namespace from choosing cubic."""
        for name in ("cubic", "reno"):
            try:
                self._sysctl(namespace, "net.ipv4.tcp_congestion_control", name)
                return name
            except BenchError:
                continue
        raise BenchError("neither cubic nor reno can be chosen in a network namespace")

    @staticmethod
    def ip(namespace, *words, check=True):
        return run(["ip", "-n", namespace, *words], check=check)

    def veth(self, left, left_name, right, right_name, mtu=1500):
        self.ip(left, "link", "add", left_name, "mtu", str(mtu), "type", "veth",
                "peer", "name", right_name, "mtu", str(mtu), "netns", right)
        self.ip(left, "link", "set", left_name, "up")
        self.ip(right, "link", "set", right_name, "up")

    def allow_forwarding(self, namespace):
        self._sysctl(namespace, "net.ipv4.ip_forward", "1")

    # --- processes
    def program(self, name):
        path = os.path.join(self.bin_dir, name)
        if not os.access(path, os.X_OK):
            raise BenchError(f"{path} is missing: run ./run build")
        return path

    def start(self, namespace, argv, label, **options):
        """Starts a process inside; its pid is the program's own (ip netns exec replaces itself)."""
        log = open(os.path.join(self.folder, f"{label}.log"), "ab")
        options.setdefault("stdout", log)
        process = subprocess.Popen(["ip", "netns", "exec", namespace, *argv], stderr=log,
                                   preexec_fn=_die_with_parent, **options)
        log.close()
        process.label = label
        self._processes.append(process)
        return process

    def stop(self, process):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process in self._processes:
            self._processes.remove(process)

    def log_tail(self, label, lines=12):
        try:
            with open(os.path.join(self.folder, f"{label}.log"), errors="replace") as file:
                return "".join(file.readlines()[-lines:])
        except OSError:
            return ""

    def check_alive(self):
        for process in self._processes:
            if process.poll() is not None and getattr(process, "daemon", False):
                raise BenchError(f"{process.label} ended with {process.returncode}:\n"
                                 + self.log_tail(process.label))

    # --- loads
    def client_argv(self, mode, target, **flags):
        argv = [self.program("bench_client"), "--mode", mode, "--target", target]
        for key, value in flags.items():
            name = "--" + key.replace("_", "-")
            if value is True:
                argv.append(name)
            elif isinstance(value, (list, tuple)):
                for item in value:
                    argv += [name, str(item)]
            elif value is not None:
                argv += [name, str(value)]
        return argv

    def load(self, namespace, mode, target, timeout_s=60, **flags):
        argv = ["ip", "netns", "exec", namespace, *self.client_argv(mode, target, **flags)]
        try:
            result = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s,
                                    preexec_fn=_die_with_parent, check=False)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{mode} to {target}: no end after {timeout_s} s") from error
        if result.returncode != 0:
            self.check_alive()
            raise BenchError(f"{mode} to {target}: {result.stderr.strip()}")
        return json.loads(result.stdout.splitlines()[-1])

    def wait_serving(self, namespace, mode, target, limit_s=15):
        """Until a short load of this mode gets through."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                return self.load(namespace, mode, target, timeout_s=5, seconds=0.01, warmup=0)
            except BenchError:
                self.check_alive()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def rss_bytes(pid):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0
