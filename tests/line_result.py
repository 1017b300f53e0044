"""How the suites of real programs report: one line a test with its time, as it ends. run_all.py
reads these lines."""

import signal
import sys
import time
import unittest


class TookTooLong(Exception):
    pass


class LineResult(unittest.TestResult):
    """Prints each test as it ends; interrupts one that takes longer than `test_timeout_s`."""

    def __init__(self, test_timeout_s):
        super().__init__()
        self.passed = 0
        self._test_timeout_s = test_timeout_s
        self._start = 0.0
        signal.signal(signal.SIGALRM, self._on_alarm)

    def startTest(self, test):
        super().startTest(test)
        self._start = time.monotonic()
        signal.alarm(self._test_timeout_s)

    def stopTest(self, test):
        signal.alarm(0)
        super().stopTest(test)

    def addSuccess(self, test):
        self.passed += 1
        self._line("ok", test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._report("FAIL", test, self.failures[-1][1])

    def addError(self, test, err):
        super().addError(test, err)
        self._report("FAIL", test, self.errors[-1][1])

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            text = self._exc_info_to_string(err, test)
            self._report("FAIL", test, f"{subtest._subDescription()}\n{text}")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self._line("skip", test, reason)

    def failed(self):
        return len(self.failures) + len(self.errors)

    def closing_line(self):
        return f"{self.passed} passed, {self.failed()} failed, {len(self.skipped)} skipped"

    def _on_alarm(self, _number, _frame):
        raise TookTooLong(f"the test took more than {self._test_timeout_s} s")

    def _line(self, verdict, test, note="", text=""):
        words = test.id().split(".") if hasattr(test, "id") else [str(test)]
        name = ".".join(words[-3:])
        elapsed = time.monotonic() - self._start
        line = f"{verdict:4} {elapsed:7.2f} s  {name}{'  ' + note if note else ''}\n{text}"
        sys.stdout.write(line)  # in one piece: other processes may print their own
        sys.stdout.flush()

    def _report(self, verdict, test, text):
        self._line(verdict, test, text="     | " + text.rstrip().replace("\n", "\n     | ") + "\n")


def each(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from each(item)
        else:
            yield item
