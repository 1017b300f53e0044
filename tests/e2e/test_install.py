"""What `cmake --install` puts in place: it is found, complete, and enough to build and serve with."""

import os
import re
import subprocess
import tempfile

from harness import case, fabrics, lab, settings, wait

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# One that another project has for a library that it found.
PROJECT = """\
cmake_minimum_required(VERSION 3.25)
project(upper CXX)
find_package(sanproxy REQUIRED)
add_executable(upper upper.cc)
target_link_libraries(upper PRIVATE sanproxy::appnode)
"""


def run(*argv, **options):
    got = subprocess.run(argv, capture_output=True, text=True, timeout=120, **options)
    if got.returncode != 0:
        raise AssertionError(f"{' '.join(argv)}:\n{got.stdout}{got.stderr}")
    return got.stdout


def first_program_of_the_document():
    with open(os.path.join(ROOT, "docs/application_library.md")) as file:
        return re.search(r"```cpp\n(.*?)```", file.read(), re.DOTALL)[1]


class Install(case.LabTest):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="sane2e-install-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.prefix = os.path.join(folder.name, "usr")
        run("cmake", "--install", os.path.dirname(settings.bin_dir), "--prefix", self.prefix)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def found(self, name):
        """The one installed file of this name."""
        paths = [os.path.join(at, name) for at, _, names in os.walk(self.prefix) if name in names]
        self.assertEqual(len(paths), 1, f"{name}: {paths}")
        return paths[0]

    def write(self, name, text):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w") as file:
            file.write(text)

    def test_programs_units_samples_and_documents_are_there(self):
        for name in ("proxynode", "netnode", "sanctl", "appnode-httpd", "appnode-echo"):
            got = run(self.found(name), "--version")
            self.assertRegex(got, r"\d+\.\d+\.\d+")
        for name in ("sanproxy-proxynode.service", "sanproxy-health", "bird.conf",
                     "application_library.md"):
            self.found(name)

    def test_the_document_s_first_program_is_built_with_pkg_config_and_serves(self):
        one = self.lab()
        text = first_program_of_the_document()
        for ours, theirs in (("shm:/run/sanproxy/proxy.sock", fabrics.address("shm", one.run_dir)),
                             ("10.77.0.10:7", lab.service_address(4, 7))):
            self.assertIn(ours, text)
            text = text.replace(ours, theirs)
        self.write("made/upper.cc", text)
        packages = os.path.dirname(self.found("sanproxy-appnode.pc"))
        flags = run("pkg-config", "--cflags", "--libs", "sanproxy-appnode",
                    env={**os.environ, "PKG_CONFIG_PATH": packages}).split()
        program = self.path("made/upper")
        run("g++", "-std=c++20", "-Wall", "-Werror", self.path("made/upper.cc"), *flags, "-o",
            program)
        node = one.start("upper", [program])
        wait.until(lambda: one.node_count(7) == 1 or not node.alive(),
                   lambda: f"it joins\n{node.log()[-2000:]}")
        with one.connect(7) as client:
            client.sendall(b"what is a proxy?")
            got = b""
            while len(got) < 16:
                piece = client.recv(16 - len(got))
                self.assertTrue(piece, "the end instead of an answer")
                got += piece
        self.assertEqual(got, b"WHAT IS A PROXY?")
        node.kill()

    def test_it_is_built_with_find_package(self):
        self.write("found/CMakeLists.txt", PROJECT)
        self.write("found/upper.cc", first_program_of_the_document())
        at = os.path.dirname(self.found("sanproxy-config.cmake"))
        run("cmake", "-S", self.path("found"), "-B", self.path("found/build"),
            f"-Dsanproxy_DIR={at}")
        run("cmake", "--build", self.path("found/build"))
        self.assertTrue(os.access(self.path("found/build/upper"), os.X_OK))
