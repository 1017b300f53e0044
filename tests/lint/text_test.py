"""Things that must not be left in the tree, and what every file owes its reader."""

import re
import unittest

from source_files import CODE, text_of, tracked

SCRIPTS = (".py", ".sh", ".cmake", "CMakeLists.txt", "/run")
LINES_MAX = 500
TEST_LINES_MAX = 700  # tables of cases are long and read quickly
# Written in pieces, or this file would find itself.
LEFTOVER = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(wo" r"rk|ho" r"me|Us" r"ers|ro" r"ot)/\w")


class Text(unittest.TestCase):
    def find(self, pattern, names):
        found = []
        for name in names:
            for number, line in enumerate(text_of(name).split("\n"), 1):
                if pattern.search(line):
                    found.append(f"{name}:{number}: {line.strip()[:100]}")
        return found

    def test_nothing_says_that_it_is_unfinished(self):
        self.assertEqual(self.find(LEFTOVER, tracked(*CODE, *SCRIPTS, ".md", ".toml", "run")), [])

    def test_no_path_of_a_single_machine_is_written_down(self):
        self.assertEqual(self.find(MACHINE_PATH, tracked(*CODE, *SCRIPTS, ".md", ".toml", "run")),
                         [])

    def test_the_build_rules_hold_inside_another_project_too(self):
        # With add_subdirectory() that variable names the other project's folder, not ours.
        self.assertEqual(self.find(re.compile(r"\bCMAKE_SOURCE_DIR\b"),
                                   [name for name in tracked("CMakeLists.txt", ".cmake")
                                    if not name.startswith("tests/")]), [])

    def test_headers_have_a_guard_and_open_with_a_comment(self):
        wrong = [name for name in tracked(".h") if "/port/" not in name
                 and ("#pragma once" not in text_of(name) or not text_of(name).startswith("//"))]
        self.assertEqual(wrong, [])

    def test_no_source_file_is_too_long_to_read(self):
        long = [f"{name}: {text_of(name).count(chr(10))} lines" for name in tracked(*CODE, ".py")
                if text_of(name).count("\n") >
                (TEST_LINES_MAX if name.startswith("tests/") else LINES_MAX)]
        self.assertEqual(long, [])

    def test_text_ends_with_one_newline_and_has_no_trailing_space(self):
        wrong = []
        for name in tracked(*CODE, *SCRIPTS, ".md", ".toml"):
            text = text_of(name)
            if text and (not text.endswith("\n") or text.endswith("\n\n")):
                wrong.append(f"{name}: end of file")
            if re.search(r"[ \t]+$", text, re.MULTILINE):
                wrong.append(f"{name}: space at the end of a line")
        self.assertEqual(wrong, [])


if __name__ == "__main__":
    unittest.main()
