#!/usr/bin/python3
"""Runs the end-to-end tests: real programs, real clients, in network namespaces of their own.

One line a test with its time, then one line "N passed, N failed, N skipped".
"""

import argparse
import atexit
import os
import shutil
import signal
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)

from harness import lab, netns, settings  # noqa: E402


class TookTooLong(Exception):
    pass


class LineResult(unittest.TestResult):
    """Prints each test as it ends."""

    def __init__(self):
        super().__init__()
        self.passed = 0
        self._start = 0.0

    def startTest(self, test):
        super().startTest(test)
        self._start = time.monotonic()
        signal.alarm(settings.test_timeout_s)

    def stopTest(self, test):
        signal.alarm(0)
        super().stopTest(test)

    def _line(self, verdict, test, note=""):
        words = test.id().split(".") if hasattr(test, "id") else [str(test)]
        name = ".".join(words[-3:])
        elapsed = time.monotonic() - self._start
        print(f"{verdict:4} {elapsed:7.2f} s  {name}{'  ' + note if note else ''}", flush=True)

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

    def _report(self, verdict, test, text):
        self._line(verdict, test)
        print("     | " + text.rstrip().replace("\n", "\n     | "), flush=True)


def each(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from each(item)
        else:
            yield item


def on_alarm(_number, _frame):
    raise TookTooLong(f"the test took more than {settings.test_timeout_s} s")


def on_signal(number, _frame):
    sys.exit(128 + number)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="run only tests whose name contains one of these")
    parser.add_argument("--bin", default=os.path.join(ROOT, "build", "release", "bin"),
                        metavar="DIR", help="where the programs are (default: %(default)s)")
    parser.add_argument("--rogue", metavar="FILE",
                        help="the rogue_node program (default: found beside or below --bin)")
    parser.add_argument("--quick", action="store_true", help="smaller amounts; a few minutes")
    parser.add_argument("--keep", action="store_true", help="leave logs in place also on success")
    parser.add_argument("--list", action="store_true", help="only list the tests")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="run everything N times")
    return parser.parse_args()


def main():
    options = arguments()
    settings.bin_dir = os.path.abspath(options.bin)
    settings.quick = options.quick
    settings.rogue = options.rogue
    suite = unittest.defaultTestLoader.discover(HERE, pattern="test_*.py", top_level_dir=HERE)
    tests = [test for test in each(suite)
             if not options.names or any(name in test.id() for name in options.names)]
    if options.list:
        for test in tests:
            print(test.id())
        return 0
    if os.geteuid() != 0:
        print("the end-to-end tests make network namespaces and need root", file=sys.stderr)
        return 2
    settings.log_dir = tempfile.mkdtemp(prefix=f"sanproxy-e2e-{os.getpid()}-")
    atexit.register(lab.close_all)
    signal.signal(signal.SIGALRM, on_alarm)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    netns.remove_stale()
    result = LineResult()
    for _ in range(options.repeat):
        unittest.TestSuite(tests).run(result)
        tests = [test for test in each(unittest.defaultTestLoader.discover(
            HERE, pattern="test_*.py", top_level_dir=HERE))
            if not options.names or any(name in test.id() for name in options.names)]
    failed = len(result.failures) + len(result.errors)
    if failed or options.keep:
        print(f"logs are in {settings.log_dir}")
    else:
        shutil.rmtree(settings.log_dir, ignore_errors=True)
    print(f"{result.passed} passed, {failed} failed, {len(result.skipped)} skipped", flush=True)
    return 1 if failed or not result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main())
