"""clang-format and clang-tidy over the C++ sources."""

import concurrent.futures
import hashlib
import json
import os
import shutil
import subprocess
import unittest

from source_files import ROOT, text_of, tracked

BUILD = os.path.join(ROOT, "build/release")
STAMPS = os.path.join(ROOT, "build/tidy")
TIDY_TIMEOUT_S = 300


class Clang(unittest.TestCase):
    def test_the_format_is_that_of_clang_format(self):
        names = [n for n in tracked(".cc", ".h")]
        result = subprocess.run(["clang-format-14", "--dry-run", "-Werror", *names], cwd=ROOT,
                                capture_output=True, text=True, check=False)
        files = sorted({line.split(":")[0] for line in result.stderr.splitlines()
                        if ": error:" in line})
        self.assertEqual(files, [], "run ./run fmt with these files")

    def test_clang_tidy_finds_nothing(self):
        """A file is checked again when it, a header of the tree or the checks have changed."""
        self.assertTrue(shutil.which("clang-tidy-14"), "clang-tidy-14 is not installed")
        with open(os.path.join(BUILD, "compile_commands.json")) as file:
            commands = {os.path.relpath(c["file"], ROOT): c["command"] for c in json.load(file)}
        sources = [n for n in tracked(".cc") if n in commands and not n.startswith("tests/")]
        headers = "".join(text_of(n) for n in tracked(".h")) + text_of(".clang-tidy")
        os.makedirs(STAMPS, exist_ok=True)
        wrong = []
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, text in zip(sources, pool.map(lambda n: tidy(n, headers), sources)):
                if text:
                    wrong.append(f"{name}:\n{text}")
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))


def tidy(name, headers):
    digest = hashlib.sha256((name + text_of(name) + headers).encode()).hexdigest()
    stamp = os.path.join(STAMPS, digest)
    if os.path.exists(stamp):
        return ""
    result = subprocess.run(["clang-tidy-14", "--quiet", "-p", BUILD, name], cwd=ROOT,
                            capture_output=True, text=True, timeout=TIDY_TIMEOUT_S, check=False)
    if result.returncode != 0:
        return result.stdout.strip() or result.stderr.strip()
    with open(stamp, "w"):
        pass
    return ""


if __name__ == "__main__":
    unittest.main()
