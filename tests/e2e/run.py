#!/usr/bin/python3
"""Runs the end-to-end tests: real programs, real clients, in network namespaces of their own.

One line a test with its time, then one line "N passed, N failed, N skipped".
"""

import argparse
import atexit
import multiprocessing
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

DEFAULT_JOBS = 1 if settings.in_guest else min(2, os.cpu_count() or 1)


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
    parser.add_argument("--jobs", type=int, default=DEFAULT_JOBS, metavar="N",
                        help="tests at a time (default: %(default)s); those that compare rates "
                             "run by themselves")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="run everything N times")
    return parser.parse_args()


def main():
    options = arguments()
    settings.bin_dir = os.path.abspath(options.bin)
    settings.quick = options.quick
    settings.rogue = options.rogue
    if options.list:
        for test in matching(options.names):
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
    others = Counts()
    for _ in range(options.repeat):
        tests = matching(options.names)
        beside = [] if options.jobs < 2 else [t for t in tests if not getattr(t, "alone", False)]
        others.add(run_beside(beside, options.jobs))
        unittest.TestSuite(t for t in tests if t not in beside).run(result)
    others.add(Counts(result.passed, result.failed(), len(result.skipped)))
    if others.failed or options.keep:
        print(f"logs are in {settings.log_dir}")
    else:
        shutil.rmtree(settings.log_dir, ignore_errors=True)
    print(f"{others.passed} passed, {others.failed} failed, {others.skipped} skipped", flush=True)
    return 1 if others.failed or not others.total() else 0


class Counts:
    def __init__(self, passed=0, failed=0, skipped=0):
        self.passed, self.failed, self.skipped = passed, failed, skipped

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def total(self):
        return self.passed + self.failed + self.skipped


def matching(names):
    suite = unittest.defaultTestLoader.discover(HERE, pattern="test_*.py", top_level_dir=HERE)
    return [test for test in each(suite) if not names or any(name in test.id() for name in names)]


def run_beside(tests, jobs):
    """Runs `tests` in `jobs` processes, each of which takes the next test when it has done one.
    Namespaces and logs bear the process id and the test's name, so none meets another's."""
    counts = Counts()
    if not tests:
        return counts
    context = multiprocessing.get_context("fork")
    following, results = context.Value("i", 0), context.SimpleQueue()
    workers = [context.Process(target=work, args=(tests, following, results)) for _ in range(jobs)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    for worker in workers:
        if worker.exitcode == 0:
            counts.add(Counts(*results.get()))
        else:
            print(f"a process that runs tests ended with {worker.exitcode}", flush=True)
            counts.add(Counts(failed=1))
    return counts


def work(tests, following, results):
    result = LineResult(settings.test_timeout_s)
    try:
        while True:
            with following.get_lock():
                index = following.value
                following.value += 1
            if index >= len(tests):
                break
            unittest.TestSuite([tests[index]]).run(result)
        results.put((result.passed, result.failed(), len(result.skipped)))
    finally:
        lab.close_all()  # multiprocessing leaves by os._exit(): no atexit


if __name__ == "__main__":
    sys.exit(main())
