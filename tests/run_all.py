#!/usr/bin/python3
"""Runs suites of tests and closes with one line: "N passed, N failed, N skipped".

unit: the GoogleTest programs, through ctest; asan: the same under ASan and UBSan; e2e: real
programs in network namespaces; vm: RDMA, in guests under QEMU; lint: format, static checks, layers.
A skipped test is named with its reason; under CI=true it counts as failed.

Tests of real programs often wait, and the guests of vm keep little more than one core busy. With
--beside, lint and the build of the sanitizers' preset take what all these leave, at the lowest
priority, and are reported after vm.
"""

import argparse
import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import traceback
import unittest
import xml.etree.ElementTree

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
CLOSING_LINE = re.compile(r"^(\d+) passed, (\d+) failed, (\d+) skipped$")


class Tally:
    def __init__(self):
        self.passed = 0
        self.failed = []    # names
        self.skipped = []   # (name, reason)


def step(text):
    print(f"\n== {text}", flush=True)


def gtest_cases(folder, program, tally):
    """Adds the cases of one program's report. False if there is none: it crashed or is no
    GoogleTest program."""
    path = os.path.join(folder, program + ".json")
    try:
        with open(path) as file:
            suites = json.load(file)["testsuites"]
    except (OSError, ValueError):
        return False
    for suite in suites:
        for case in suite["testsuite"]:
            name = f"{program}: {suite['name']}.{case['name']}"
            if case.get("status") == "NOTRUN":
                continue
            if case.get("result") == "SKIPPED":
                reason = case.get("skipped", [{}])[0].get("message", "").strip()
                tally.skipped.append((name, reason.split("\n")[-1] or "no reason given"))
            elif case.get("failures"):
                tally.failed.append(name)
            else:
                tally.passed += 1
    return True


def ctest_names(build):
    listing = subprocess.run(["ctest", "--test-dir", build, "-N"], capture_output=True, text=True,
                             check=False).stdout
    return re.findall(r"^ *Test +#\d+: (.+)$", listing, re.MULTILINE)


def run_unit(preset, text, tally):
    build = os.path.join(ROOT, "build", preset)
    names = ctest_names(build)
    step(f"{len(names)} unit test programs ({preset})")
    if not names:
        tally.failed.append(f"{preset}: ctest knows no tests in {build}")
        return
    with tempfile.TemporaryDirectory(prefix="sanproxy-tests-") as folder:
        environment = dict(os.environ, GTEST_OUTPUT=f"json:{folder}/",
                           ASAN_OPTIONS="detect_stack_use_after_return=1:strict_string_checks=1",
                           UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1")
        report = os.path.join(folder, "ctest.xml")
        # One more than there are processors: some wait for the kernel to make and remove namespaces.
        argv = ["ctest", "--test-dir", build, "-j", str(1 + os.cpu_count()), "--output-on-failure",
                "--no-tests=error", "--output-junit", report]
        if text and any(text in name for name in names):
            argv += ["-R", re.escape(text)]
        elif text:
            environment["GTEST_FILTER"] = f"*{text}*"
        status = subprocess.run(argv, env=environment, check=False).returncode
        count_ctest(report, folder, status, preset, tally)


def count_ctest(report, folder, status, preset, tally):
    failed_before = len(tally.failed)
    try:
        cases = list(xml.etree.ElementTree.parse(report).getroot().iter("testcase"))
    except (OSError, xml.etree.ElementTree.ParseError):
        cases = []
    for case in cases:
        name, result = case.get("name"), case.get("status")
        counted = gtest_cases(folder, name, tally)
        if result == "fail" and not any(f.startswith(name + ": ") for f in
                                        tally.failed[failed_before:]):
            tally.failed.append(f"{name} ({preset}): crashed, ran out of time or failed at exit")
        elif not counted and result == "run":
            tally.passed += 1
        elif not counted and result in ("notrun", "disabled"):
            tally.failed.append(f"{name} ({preset}): did not run")
    if status != 0 and len(tally.failed) == failed_before:
        tally.failed.append(f"{preset}: ctest ended with {status}")


def run_programs(suite, title, text, tally):
    """A suite with a run.py of its own that prints a line a test (line_result.py)."""
    step(title)
    argv = [sys.executable, os.path.join(HERE, suite, "run.py")] + ([text] if text else [])
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, errors="replace")
    failed, skipped, closing = [], [], None
    for line in process.stdout:
        print(line, end="", flush=True)
        words = re.match(r"(FAIL|skip) +[\d.]+ s  (\S+) *(.*)", line)
        if words:
            (failed if words[1] == "FAIL" else skipped).append((words[2], words[3]))
        closing = CLOSING_LINE.match(line.strip()) or closing
    status = process.wait()
    if closing:
        tally.passed += int(closing[1])
    tally.failed += [f"{suite}: {name}" for name, _ in failed]
    tally.skipped += [(f"{suite}: {name}", reason) for name, reason in skipped]
    nothing_matched = text and closing and closing[0].startswith("0 passed, 0 failed")
    if status != 0 and not failed and not nothing_matched:
        tally.failed.append(f"{suite}: the run ended with {status}")


class LintResult(unittest.TextTestResult):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.passed = 0

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1


def run_lint(text, tally):
    step("lint: format, static checks, layers")
    suite = unittest.defaultTestLoader.discover(os.path.join(HERE, "lint"), pattern="*_test.py")
    if text:
        suite = unittest.TestSuite(t for t in flatten(suite) if text in t.id())
    runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=LintResult)
    result = runner.run(suite)
    tally.passed += result.passed
    tally.failed += [f"lint: {test.id()}" for test, _ in result.failures + result.errors]
    tally.skipped += [(f"lint: {test.id()}", reason) for test, reason in result.skipped]


def flatten(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flatten(item)
        else:
            yield item


class Beside:
    """Functions of a Tally in a process of their own, one after the other, at the lowest priority.
    What they print comes out in one piece, when they are joined."""

    def __init__(self, functions):
        self._output = tempfile.TemporaryFile("w+")
        self._result = tempfile.TemporaryFile()
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            self._run(functions)

    def _run(self, functions):
        status = 1
        try:
            os.setsid()
            os.nice(19)
            with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as file:
                file.write("19")    # sessions share the processor before processes do
            os.dup2(self._output.fileno(), 1)
            os.dup2(self._output.fileno(), 2)
            tally = Tally()
            for function in functions:
                function(tally)
            pickle.dump(tally, self._result)
            self._result.flush()
            status = 0
        except Exception:  # pylint: disable=broad-except
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def join(self, tally):
        os.waitpid(self._pid, 0)
        self._pid = None
        self._output.seek(0)
        print(self._output.read(), end="", flush=True)
        self._result.seek(0)
        try:
            done = pickle.load(self._result)
        except EOFError:
            tally.failed.append("what ran beside the guests has ended early")
            return
        tally.passed += done.passed
        tally.failed += done.failed
        tally.skipped += done.skipped

    def end(self):
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGTERM)
            os.waitpid(self._pid, 0)


def build_asan(tally):
    argv = [os.path.join(ROOT, "run"), "build", "--preset", "asan", "--target", "unit_tests"]
    if subprocess.run(argv, check=False).returncode != 0:
        tally.failed.append("asan: it does not build")


def start_beside(options):
    step("beside what follows: building for the sanitizers, lint")
    functions = [build_asan] if "asan" in options.suites else []
    if "lint" in options.suites:
        functions.append(lambda own: run_lint(options.filter, own))
    return Beside(functions)


def run_suite(suite, options, tally):
    if suite == "unit":
        run_unit("release", options.filter, tally)
    elif suite == "asan":
        run_unit("asan", options.filter, tally)
    elif suite == "e2e":
        run_programs("e2e", "end-to-end tests", options.filter, tally)
    elif suite == "vm":
        run_programs("vm", "tests in soft-RoCE guests", options.filter, tally)
    else:
        run_lint(options.filter, tally)


def run_suites(options, tally):
    if not options.beside:
        for suite in options.suites:
            run_suite(suite, options, tally)
        return
    beside = start_beside(options)
    try:
        for suite in options.suites:
            if suite not in ("lint", "asan"):
                run_suite(suite, options, tally)
        beside.join(tally)
    finally:
        beside.end()
    if "asan" in options.suites:
        run_suite("asan", options, tally)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--filter", help="only tests whose name contains this")
    parser.add_argument("--beside", action="store_true",
                        help="lint, and the build for asan, while the other suites run")
    parser.add_argument("suites", nargs="+", choices=("unit", "asan", "e2e", "vm", "lint"))
    options = parser.parse_args()
    tally = Tally()
    run_suites(options, tally)
    print()
    for name, reason in tally.skipped:
        print(f"skipped: {name}: {reason}")
    for name in tally.failed:
        print(f"FAILED: {name}")
    total = tally.passed + len(tally.failed) + len(tally.skipped)
    if total == 0:
        print(f"no test's name contains {options.filter!r}")
    if tally.skipped and os.environ.get("CI") == "true":
        print("skipped tests count as failures here (CI=true)")
    print(f"{tally.passed} passed, {len(tally.failed)} failed, {len(tally.skipped)} skipped")
    bad = tally.failed or total == 0 or (tally.skipped and os.environ.get("CI") == "true")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
