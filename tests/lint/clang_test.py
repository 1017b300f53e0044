"""clang-format and clang-tidy over the C++ sources."""

import concurrent.futures
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import unittest

from source_files import ROOT, text_of, tracked

BUILD = os.path.join(ROOT, "build/release")
TIDY = os.path.join(ROOT, "build/tidy")
TIDY_TIMEOUT_S = 1800  # beside the guests it gets only what they leave
TOGETHER_MAX = 12
HEADERS = r"/(lwproto|netnode|proxynode|appnode-lib|bench)/.*\.(h|cc)$"


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
        commands = compile_flags()
        self.assertTrue(commands, f"there are no commands in {BUILD}")
        shared = "".join(text_of(n) for n in tracked(".h")) + text_of(".clang-tidy")
        os.makedirs(TIDY, exist_ok=True)
        alone = apart()
        changed, stamps = {}, {}
        for name in tracked(".cc"):
            if name in commands and not name.startswith("tests/"):
                digest = hashlib.sha256((name + text_of(name) + shared).encode()).hexdigest()
                stamps[name] = os.path.join(TIDY, digest)
                if not os.path.exists(stamps[name]):
                    target, flags = commands[name]
                    key = (name if name in alone else target, tuple(flags))
                    changed.setdefault(key, []).append(name)
        groups = [(names[i:i + TOGETHER_MAX], list(flags)) for (_, flags), names in changed.items()
                  for i in range(0, len(names), TOGETHER_MAX)]
        groups.sort(key=lambda group: -len(group[0]))
        wrong = []
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for (names, _), text in zip(groups, pool.map(lambda g: check(*g), groups)):
                if text:
                    wrong.append(text)
                    continue
                for name in names:
                    with open(stamps[name], "w"):
                        pass
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))


def compile_flags():
    """Each file's target and flags, also of files that the build compiles several in one."""
    with open(os.path.join(BUILD, "compile_commands.json")) as file:
        entries = json.load(file)
    flags = {}
    for entry in entries:
        words, path = shlex.split(entry["command"]), entry["file"]
        # Not the precompiled header, which is GCC's.
        chosen = [w for w in words if re.match("-[DIW]|-std=", w) and w != "-Winvalid-pch"]
        chosen += [word for at, word in enumerate(words) if words[max(0, at - 1)] == "-isystem"
                   for word in ("-isystem", word)]
        target = re.search(r"CMakeFiles/([^/ ]+)\.dir/", entry["command"])[1]
        paths = [path]
        if "/Unity/" in path:
            with open(path) as file:
                paths = re.findall(r'#include "(.+)"', file.read())
        for one in paths:
            flags.setdefault(os.path.relpath(one, ROOT), (target, chosen))
    return flags


def apart():
    """Files that are not to be read together with others (cmake/sanproxy.cmake), or that a folder's
    own checks hold for."""
    found = {name for config in tracked(".clang-tidy") if os.path.dirname(config)
             for name in tracked(".cc") if name.startswith(os.path.dirname(config) + "/")}
    for name in tracked("CMakeLists.txt"):
        for files in re.findall(r"^sanproxy_apart\(([^)]*)\)", text_of(name), re.MULTILINE):
            found |= {os.path.join(os.path.dirname(name), one) for one in files.split()}
    return found


def check(names, flags):
    """What clang-tidy says about these files. Most of its time goes into the headers, so the files
    of a target are read as one. Where that finds something, if only that names clash, each is
    checked by itself, and what that finds is what counts."""
    if len(names) > 1:
        # By this name the analyzer follows functions of the files inside as if they were its own.
        digest = hashlib.sha256("".join(names).encode()).hexdigest()[:16]
        together = os.path.join(TIDY, f"UnifiedSource-{digest}.cc")
        with open(together, "w") as file:
            file.writelines(f'#include "{os.path.join(ROOT, name)}"  // NOLINT\n' for name in names)
        found = tidy(together, flags)
        if not found:
            return ""
        if "[clang-diagnostic-error]" in found:
            print("checked one by one, which takes several times as long: " + next(
                line for line in found.splitlines() if "[clang-diagnostic-error]" in line))
    return "\n".join(filter(None, (tidy(os.path.join(ROOT, name), flags) for name in names)))


def tidy(path, flags):
    result = subprocess.run(["clang-tidy-14", "--quiet", f"--header-filter={HEADERS}", path, "--",
                             *flags], cwd=ROOT,
                            capture_output=True, text=True, timeout=TIDY_TIMEOUT_S, check=False)
    if result.returncode == 0:
        return ""
    return result.stdout.strip() or result.stderr.strip()


if __name__ == "__main__":
    unittest.main()
