"""Programs from outside: --help, --version, --check, the admin endpoint, signals."""

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile

from harness import admin, case, netns, programs, wait
from harness.process import Program

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GOOD = programs.proxy_config("tun", [{"listen": "shm:/tmp/sane2e-check.sock", "trust": "isolated"}],
                             {}, [])

# (what is wrong, text to replace, replacement, what the message must contain)
BAD = [
    ("an unknown key", "mtu = 1500", "mtu = 1500\nmut = 1", ["mut"]),
    ("an unknown key in [proxy]", "[proxy]", "[proxy]\ncolour = 1", ["colour"]),
    ("an unknown section", "[admin]", "[surprise]\nx = 1\n[admin]", ["surprise"]),
    ("a wrong type", "mtu = 1500", 'mtu = "big"', ["mtu", "integer"]),
    ("a text where a list belongs", 'addresses = ["10.77.0.1/24", "fd77::1/64"]',
     'addresses = "10.77.0.1/24"', ["addresses"]),
    ("an unknown driver", 'driver = "tun"', 'driver = "carrier-pigeon"', ["driver", "packet"]),
    ("an impossible MTU", "mtu = 1500", "mtu = 12", ["mtu"]),
    ("a negative number", "max_connections = 20000", "max_connections = -1", ["max_connections"]),
    ("an impossible prefix", "10.77.0.1/24", "10.77.0.1/99", ["10.77.0.1/99"]),
    ("an impossible address", "fd77::1/64", "fd77::zz/64", ["fd77::zz/64"]),
    ("an unknown trust", 'trust = "isolated"', 'trust = "blind"', ["trust", "shared"]),
    ("an unknown fabric", "shm:/tmp/sane2e-check.sock", "pipe:/tmp/x", ["pipe"]),
    ("no interface name", 'name = "san0"\n', "", ["name"]),
    ("an impossible service address", "[admin]",
     '[[service]]\naddress = "10.77.0.10"\n[admin]', ["address"]),
    ("an unknown balance", "[admin]",
     '[[service]]\naddress = "10.77.0.10:80"\nbalance = "magic"\n[admin]', ["balance", "round-robin"]),
    ("an unknown binding", "[admin]",
     '[[service]]\naddress = "10.77.0.10:80"\nbinding = "loose"\n[admin]', ["binding", "delayed"]),
    ("an impossible admin address", "127.0.0.1:9477", "127.0.0.1:99999", ["listen"]),
    ("what is not TOML", "[admin]", "[admin", []),
]

PROGRAMS = ["proxynode", "netnode", "appnode-httpd", "appnode-echo"]


def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=20)


class Programs(case.LabTest):
    def check(self, text):
        """(exit code, output, path) of --check over a file with this text."""
        with tempfile.NamedTemporaryFile("w", suffix=".toml", prefix="sane2e-") as file:
            file.write(text)
            file.flush()
            got = run(programs.path("proxynode"), "--config", file.name, "--check")
            return got.returncode, got.stdout + got.stderr, file.name

    def test_help_and_version_of_every_program(self):
        for name in PROGRAMS:
            with self.subTest(name):
                got = run(programs.path(name), "--help")
                self.assertEqual(got.returncode, 0)
                self.assertIn("--version", got.stdout)
                got = run(programs.path(name), "--version")
                self.assertEqual(got.returncode, 0)
                self.assertRegex(got.stdout, r"\d+\.\d+\.\d+")

    def test_a_wrong_command_line_ends_every_program_with_2(self):
        for name in PROGRAMS:
            daemon = name in ("proxynode", "netnode")
            needed = ["--config", "x.toml"] if daemon else []
            lines = [[*needed, "--no-such-option"]]
            if daemon:
                lines += [[], ["--config"]]
            else:
                lines += [["--drain-ms", "-1"]]
            if name == "appnode-echo":
                lines += [["--bytes", "-1"], ["--bytes", "18446744073709551616"]]
            for words in lines:
                with self.subTest([name, *words]):
                    got = run(programs.path(name), *words)
                    self.assertEqual(got.returncode, 2)
                    self.assertIn((words or ["--config"])[-1], got.stdout + got.stderr)
                    self.assertLess(len(got.stdout + got.stderr), 200, "a range that can be read")

    def test_an_unknown_log_level_is_an_error_of_an_application_node(self):
        for name in ("appnode-httpd", "appnode-echo"):
            with self.subTest(name):
                got = run(programs.path(name), "--log", "loud")
                self.assertNotEqual(got.returncode, 0)
                self.assertIn("loud", got.stdout + got.stderr)

    def test_check_accepts_a_good_file(self):
        code, output, _ = self.check(GOOD)
        self.assertEqual(code, 0, output)

    def test_check_rejects_what_is_wrong_with_file_line_and_expectation(self):
        for what, old, new, words in BAD:
            with self.subTest(what):
                self.assertIn(old, GOOD)
                text = GOOD.replace(old, new, 1)
                code, output, path = self.check(text)
                self.assertNotEqual(code, 0, f"accepted: {text}")
                self.assertRegex(output, re.escape(path) + r":\d+", "file and line")
                for word in words:
                    self.assertIn(word, output)

    def test_the_bench_refuses_what_would_measure_nothing(self):
        bench = [sys.executable, os.path.join(ROOT, "bench/bench.py")]
        for words, text in ((["--only", "htpt-tun"], "no such row"), (["--seconds", "0"], "no time"),
                            (["--rounds", "-1"], "no rounds"),
                            (["--json", "/nonexistent/rows.json"], "no file can be made")):
            with self.subTest(words):
                got = run("env", "SANPROXY_CHECK_OPTIONS=1", *bench, *words)
                self.assertEqual(got.returncode, 2)
                self.assertIn(text, got.stderr)
        for name in run(*bench, "--list").stdout.split():
            with self.subTest(name):
                self.assertEqual(run("env", "SANPROXY_CHECK_OPTIONS=1", *bench, "--only", name,
                                     "--only", "*-packet").returncode, 0)

    def test_the_demo_sees_the_devices_of_its_network_namespace(self):
        """Also where /sys is that of another one, as behind nsenter or unshare."""
        ask = "import demo; print(demo.free_device())"
        got = run("unshare", "-n", "sh", "-c", "ip link add san0 type veth peer name san1 && "
                  f"PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={ROOT}/deploy {sys.executable} -c '{ask}'")
        self.assertEqual((got.stdout, got.stderr), ("san2\n", ""))

    def test_check_names_the_right_line(self):
        line = GOOD.splitlines().index("mtu = 1500") + 1
        _, output, path = self.check(GOOD.replace("mtu = 1500", "mtu = 1500.5"))
        self.assertIn(f"{path}:{line}", output)

    def test_check_names_the_file_of_what_does_not_do_for_so_many_workers(self):
        code, output, path = self.check(GOOD.replace("workers = 1", "workers = 2").replace(
            'driver = "tun"', 'driver = "tap"'))
        self.assertNotEqual(code, 0)
        self.assertIn(f"{path}: [proxy].workers", output)

    def test_a_missing_file_is_an_error(self):
        got = run(programs.path("proxynode"), "--config", "/nonexistent/x.toml", "--check")
        self.assertNotEqual(got.returncode, 0)
        self.assertIn("/nonexistent/x.toml", got.stdout + got.stderr)

    def test_an_interface_that_does_not_exist_ends_the_proxy_with_a_reason(self):
        space = netns.Namespace("x")
        self.addCleanup(space.remove)
        with tempfile.TemporaryDirectory(prefix="sane2e-") as folder:
            path = os.path.join(folder, "proxy.toml")
            with open(path, "w") as file:
                file.write(programs.proxy_config("packet", [{"listen": f"shm:{folder}/p.sock"}],
                                                 {"interface": {"name": "nosuch0"}}, []))
            got = space.run(programs.path("proxynode"), "--config", path, timeout_s=20, text=True)
            self.assertNotEqual(got.returncode, 0)
            self.assertIn("nosuch0", got.stdout + got.stderr)

    def test_the_admin_endpoint_answers_what_it_is_asked(self):
        one = self.lab()
        one.start_echo(name="admin-node")
        with one.connect(7) as sock:
            sock.sendall(b"x")
            self.assertEqual(sock.recv(1), b"x")
            self.assertEqual(one.http_admin("/healthz")[0], 200)
            state = one.status()
            self.assertEqual(admin.open_connections(state), 1)
            self.assertEqual(admin.node_count(state, "10.77.0.10:7"), 1)
            self.assertEqual(one.shares(7), {"admin-node": 1})
            values = one.metrics()
            self.assertTrue(values)
            self.assertTrue(all(name.startswith("sanproxy_") for name in values), list(values)[:5])
            self.assertEqual(one.http_admin("/nothing")[0], 404)

    def test_the_admin_endpoint_survives_strange_clients(self):
        one = self.lab()
        for request in [b"", b"\r\n\r\n", b"GET", b"GET /status\r\n\r\n", b"\0" * 4096,
                        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
                        b"POST /status HTTP/1.1\r\nContent-Length: 5\r\n\r\n12345",
                        b"GET /status HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n"]:
            with one.proxy_ns.socket() as sock:
                sock.settimeout(10)
                sock.connect(("127.0.0.1", admin.PORT))
                try:
                    sock.sendall(request)
                    sock.shutdown(1)
                    while sock.recv(65536):
                        pass
                except (ConnectionResetError, BrokenPipeError):
                    pass
                except OSError as error:  # cut off before we could end our side
                    self.assertEqual(error.errno, errno.ENOTCONN)
        idle = []
        for _ in range(100):
            sock = one.proxy_ns.socket()
            self.addCleanup(sock.close)
            sock.settimeout(10)
            sock.connect(("127.0.0.1", admin.PORT))
            idle.append(sock)
        for sock in idle:
            sock.close()
        wait.until(one.healthy, "the endpoint still answers")

    def test_sigterm_and_sigint_end_every_program_with_zero(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            one = self.lab()
            nodes = [one.start_httpd(port=80), one.start_echo(port=7)]
            for node in nodes:
                node.signal(number)
                self.assertEqual(node.wait(), 0, node.label)
            one.proxy.signal(number)
            self.assertEqual(one.proxy.wait(), 0)
            one.assert_not_broken()
            one.assert_healthy = lambda: None
            one.close()

    def test_an_application_node_waits_for_a_proxy_that_is_not_there_yet(self):
        with tempfile.TemporaryDirectory(prefix="sane2e-") as folder:
            node = Program("early", programs.echo_argv("echo", [f"shm:{folder}/proxy.sock"],
                                                       "10.77.0.10:7", []), folder)
            self.addCleanup(node.kill)
            node.wait_log("nobody listens there")
            wait.stays(node.alive, "the node waits", 0.5)
            self.assertEqual(node.stop(), 0)

    def test_a_second_proxy_on_the_same_address_is_refused(self):
        one = self.lab()
        second = one.start("second", [programs.path("proxynode"), "--config", one.config_path],
                           one.proxy_ns)
        self.assertNotEqual(second.wait(), 0)
        self.assertTrue(one.healthy())


class Browser(case.LabTest):
    def test_chromium_shows_a_page(self):
        import shutil
        import unittest
        if not shutil.which("chromium"):
            raise unittest.SkipTest("chromium is not installed")
        one = self.lab()
        root = os.path.join(one.log_dir, "root")
        os.makedirs(root)
        with open(os.path.join(root, "index.html"), "w") as file:
            file.write("<html><head><title>t</title><script src='a.js'></script></head>"
                       "<body><p id=x>before</p><script>show()</script></body></html>")
        with open(os.path.join(root, "a.js"), "w") as file:
            file.write("function show(){document.getElementById('x').textContent='it '+'works'}")
        one.start_httpd(port=80, root=root)
        with tempfile.TemporaryDirectory(prefix="sane2e-") as profile:
            got = one.run("chromium", "--headless", "--no-sandbox", "--disable-gpu",
                          "--disable-dev-shm-usage", f"--user-data-dir={profile}", "--dump-dom",
                          one.url("/index.html"), timeout_s=90)
        self.assertIn("it works", got.stdout.decode(), got.stderr.decode()[-2000:])
