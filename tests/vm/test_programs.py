"""Our own GoogleTest programs that need RDMA: each runs once in the guest, and each of its cases
is a test here."""

import os
import subprocess
import unittest
import xml.etree.ElementTree

import settings
from guests import GuestCase, text_of

program_timeout_s = 280


def cases_of(path):
    """Names as GoogleTest's filter takes them."""
    listing = subprocess.run([path, "--gtest_list_tests"], capture_output=True, text=True,
                             check=True).stdout
    names, suite = [], ""
    for line in listing.splitlines():
        word = line.split("#")[0].rstrip()
        if line.startswith(" "):
            names.append(suite + word.strip())
        elif word.endswith("."):
            suite = word
    return names


def run_program(test, path, names):
    """Runs the named cases; returns name -> (verdict, text) out of GoogleTest's report."""
    report = os.path.join(test.guest.share, f"{os.path.basename(path)}-{os.getpid()}.xml")
    result = test.guest.run([path], timeout_s=program_timeout_s, env={
        "GTEST_OUTPUT": "xml:" + report, "GTEST_FILTER": ":".join(names)})
    try:
        root = xml.etree.ElementTree.parse(report).getroot()
        os.remove(report)
    except (OSError, xml.etree.ElementTree.ParseError):
        root = None
    if root is None:
        test.fail(f"it ended with {result.status} and without a report; it printed:\n"
                  + text_of(result)[-4000:])
    cases = {f"{case.get('classname')}.{case.get('name')}": verdict(case)
             for case in root.iter("testcase")}
    if result.status and not any(word == "failed" for word, _ in cases.values()):
        test.fail(f"no case failed, and yet it ended with {result.status}:\n"
                  + text_of(result)[-4000:])
    return cases


def verdict(case):
    failures = [element.get("message") for element in case.iter("failure")]
    if failures:
        return "failed", "\n".join(failures)
    skipped = case.find("skipped")
    if skipped is not None:
        return "skipped", (skipped.get("message") or "").strip().split("\n")[-1]
    return ("passed" if case.get("status") == "run" else "not run"), ""


def program_class(path, names):
    class Program(GuestCase):
        cases = None

        def judge(self, name):
            cls = type(self)
            if cls.cases is None:
                cls.cases = {}
                chosen = [n for n in names if f"{__name__}.{cls.__name__}.test_{n}"
                          in settings.test_ids]
                cls.cases = run_program(self, path, chosen)
            word, text = cls.cases.get(name, ("not run", ""))
            if word == "skipped":
                self.skipTest(text or "no reason given")
            if word == "not run":
                self.fail("it was not run: the program did not get that far")
            if word == "failed":
                self.fail(text)

    for name in names:
        setattr(Program, "test_" + name, lambda self, name=name: self.judge(name))
    Program.__name__ = Program.__qualname__ = os.path.basename(path)
    return Program


def load_tests(loader, _standard_tests, _pattern):
    suite = unittest.TestSuite()
    folder = os.path.join(settings.build_dir, "guest_tests")
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            suite.addTests(loader.loadTestsFromTestCase(program_class(path, cases_of(path))))
    return suite
