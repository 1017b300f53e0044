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
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)
sys.path.insert(1, os.path.dirname(HERE))

from harness import lab, netns, settings  # noqa: E402
from line_result import LineResult, each  # noqa: E402


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
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    netns.remove_stale()
    result = LineResult(settings.test_timeout_s)
    for _ in range(options.repeat):
        unittest.TestSuite(tests).run(result)
        tests = [test for test in each(unittest.defaultTestLoader.discover(
            HERE, pattern="test_*.py", top_level_dir=HERE))
            if not options.names or any(name in test.id() for name in options.names)]
    if result.failed() or options.keep:
        print(f"logs are in {settings.log_dir}")
    else:
        shutil.rmtree(settings.log_dir, ignore_errors=True)
    print(result.closing_line(), flush=True)
    return 1 if result.failed() or not result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main())
