#!/usr/bin/python3
"""Runs the tests in soft-RoCE guests: the guest itself, RDMA's own tools, and our GoogleTest
programs that need RDMA (sanproxy_test(... GUEST ...)).

One line a test with its time, then one line "N passed, N failed, N skipped". Guests are booted
when the first test asks, and shared. A machine that cannot run them skips, with the reason.
"""

import argparse
import os
import signal
import sys
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, os.path.dirname(HERE), os.path.join(ROOT, "deploy/vm")]

import guests  # noqa: E402
import settings  # noqa: E402
from line_result import LineResult, each  # noqa: E402


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="run only tests whose name contains one of these")
    parser.add_argument("--build", default=os.path.join(ROOT, "build/release"), metavar="DIR",
                        help="where our programs were built (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="only list the tests")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="run everything N times")
    parser.add_argument("--verbose", action="store_true", help="say what the guests do")
    return parser.parse_args()


def selected(names):
    """Those of one guest first, then those of two, then those that start their own: so each kind
    boots once."""
    suite = unittest.defaultTestLoader.discover(HERE, pattern="test_*.py", top_level_dir=HERE)
    chosen = [test for test in each(suite)
              if not names or any(name in test.id() for name in names)]
    return sorted(chosen, key=lambda test: 0 if isinstance(test, guests.GuestCase)
                  else 1 if isinstance(test, guests.PairCase) else 2)


def main():
    options = arguments()
    settings.build_dir = os.path.realpath(options.build)
    settings.verbose = options.verbose
    settings.test_ids = {test.id() for test in selected(options.names)}
    if options.list:
        print("\n".join(sorted(settings.test_ids)))
        return 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    result = LineResult(settings.test_timeout_s)
    try:
        for _ in range(options.repeat):
            unittest.TestSuite(selected(options.names)).run(result)
    finally:
        guests.close_all()
    print(result.closing_line(), flush=True)
    return 1 if result.failed() or not result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main())
