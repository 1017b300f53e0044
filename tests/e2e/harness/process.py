"""Programs under test: started with their output in a file, stopped by process id."""

import ctypes
import os
import re
import signal
import subprocess

from . import settings, wait

_libc = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
# What no program may ever say, however it was treated.
BROKEN = re.compile(r"CHECK failed|invariant|Assertion|AddressSanitizer|runtime error:|"
                    r"LeakSanitizer|terminate called|\[critical\]", re.IGNORECASE)


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Program:
    """One running program."""

    def __init__(self, label, argv, log_dir, namespace=None, env=None, uid=None):
        self.label = label
        self.argv = [str(word) for word in argv]
        self.log_path = os.path.join(log_dir, label + ".log")
        full = namespace.argv(self.argv) if namespace else self.argv
        self._log = open(self.log_path, "ab")
        self._log_start = self._log.tell()  # an earlier one of this name may have written before
        self._popen = subprocess.Popen(full, stdin=subprocess.DEVNULL, stdout=self._log,
                                       stderr=subprocess.STDOUT, preexec_fn=_die_with_parent, user=uid,
                                       env={**os.environ, **(env or {})})
        self.pid = self._popen.pid
        self._stopped = False

    def alive(self):
        return self._popen.poll() is None

    @property
    def exit_code(self):
        return self._popen.poll()

    def log(self):
        with open(self.log_path, "r", errors="replace") as file:
            file.seek(self._log_start)
            return file.read()

    def wait_log(self, text, timeout_s=20):
        wait.until(lambda: text in self.log() or not self.alive(),
                   f"{self.label} logs {text!r}", timeout_s)
        if text not in self.log():
            raise AssertionError(f"{self.label} ended with {self.exit_code} before it logged "
                                 f"{text!r}:\n{self.log()[-2000:]}")

    def signal(self, number):
        if self.alive():
            os.kill(self.pid, number)
            self._stopped = (number == signal.SIGSTOP) or (self._stopped
                                                           and number != signal.SIGCONT)

    def wait(self, timeout_s=20):
        try:
            return self._popen.wait(timeout_s * settings.slowness)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.label} did not end within {timeout_s} s") from None

    def stop(self, timeout_s=20):
        """SIGTERM, then SIGKILL when it does not help. Returns the exit code."""
        if self.alive():
            if self._stopped:
                self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self._popen.wait(timeout_s * settings.slowness)
            except subprocess.TimeoutExpired:
                self.kill()
        self._log.close()
        return self.exit_code

    def kill(self):
        if self.alive():
            self._popen.kill()
            self._popen.wait()
        return self.exit_code

    def rss_bytes(self):
        """Resident memory without files and shared memory that others own as well."""
        with open(f"/proc/{self.pid}/status") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        return 0

    def broken(self):
        """The first line that shows a broken invariant, or None."""
        for line in self.log().splitlines():
            if BROKEN.search(line):
                return line
        return None
