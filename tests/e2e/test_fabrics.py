"""Several fabrics on one proxy, the parameters of links, TLS, and what is copied on the way."""

import hashlib
import os
import re
import shutil
import signal
import socket

from harness import case, fabrics, programs, wait
from harness.pattern import Pattern

BYTES = Pattern("fabrics")


def ask(sock, text=b"hello"):
    sock.sendall(text)
    got = b""
    while len(got) < len(text):
        piece = sock.recv(len(text) - len(got))
        if not piece:
            raise AssertionError("end instead of an answer")
        got += piece
    return got


def node_of(state, program):
    """The proxy's account of a node that the test has started."""
    return next(node for node in state["nodes"] if node["name"].endswith(f":{program.pid}"))


class SeveralFabrics(case.LabTest):
    def test_nodes_of_one_service_come_over_shm_tcp_and_tls_at_once(self):
        one = self.lab(kinds=("shm", "tcp", "tls"),
                       services=[{"address": "10.77.0.10:7", "balance": "round-robin"}])
        nodes = {kind: one.start_echo(name="over-" + kind, kind=kind) for kind in one.kinds}
        sockets = [self.socket(one, 7) for _ in range(12)]
        for sock in sockets:
            self.assertEqual(ask(sock), b"hello")
        self.assertEqual(one.shares(7), {"over-shm": 4, "over-tcp": 4, "over-tls": 4})
        state = one.status()
        self.assertEqual(node_of(state, nodes["shm"])["fabric"], "shm")
        self.assertEqual(node_of(state, nodes["shm"])["pid"], nodes["shm"].pid)
        self.assertEqual(node_of(state, nodes["tcp"])["fabric"], "tcp")
        self.assertIn("127.0.0.1", node_of(state, nodes["tcp"])["peer"])
        self.assertEqual(node_of(state, nodes["tcp"])["certificate"], "")
        self.assertEqual(node_of(state, nodes["tls"])["certificate"], "node")
        metrics = one.metrics()
        self.assertEqual(metrics['sanproxy_nodes{fabric="shm"}'], 1)
        self.assertEqual(metrics['sanproxy_nodes{fabric="tcp"}'], 2)
        channels = [value for name, value in metrics.items()
                    if name.startswith("sanproxy_fabric_events_total") and "channels" in name]
        self.assertEqual(channels, [1, 1], "of tcp and of tcp with TLS")
        nodes["tcp"].kill()
        wait.until(lambda: one.node_count(7) == 2, "one node is gone")
        ended = 0
        for sock in sockets:
            try:
                ended += ask(sock) != b"hello"
            except (OSError, AssertionError):
                ended += 1
        self.assertEqual(ended, 4)

    def test_a_node_may_use_several_proxies_over_different_fabrics(self):
        one = self.lab(kinds=("shm", "tcp"))
        shm, tcp = (fabrics.address(kind, one.run_dir) for kind in one.kinds)
        node = one.start("both", programs.echo_argv("echo", [shm, "--proxy", tcp], "10.77.0.10:7",
                                                    []), one.proxy_ns)
        wait.until(lambda: one.node_count(7) == 2, "it has joined over both")
        for _ in range(4):
            with one.connect(7) as sock:
                self.assertEqual(ask(sock), b"hello")
        self.assertEqual(node.stop(), 0)

    def test_more_nodes_than_a_fabric_takes_are_refused_and_the_others_served(self):
        one = self.lab(kinds=("tcp",), fabric={"max_nodes": 2})
        for index in range(2):
            one.start_echo(name=f"n{index}")
        third = one.start_echo(name="third", joined=False)
        one.proxy.wait_log("max_nodes of the fabric")
        self.assertEqual(ask(self.socket(one, 7)), b"hello")
        self.assertEqual(one.node_count(7), 2)
        self.assertTrue(third.alive())

    def test_a_proxy_told_to_use_rdma_where_there_is_none_says_so_and_does_not_start(self):
        one = self.lab()
        config = one.config.replace(fabrics.address("shm", one.run_dir), "verbs://127.0.0.1:7471")
        path = os.path.join(one.log_dir, "verbs.toml")
        with open(path, "w") as file:
            file.write(config.replace('trust = "isolated"\n', "").replace("9477", "9478")
                       .replace('"san0"', '"san1"').replace("10.77.0.1/24", "10.78.0.1/24")
                       .replace("fd77::1/64", "fd78::1/64"))
        second = one.start("rdma", [programs.path("proxynode"), "--config", path], one.proxy_ns)
        self.assertEqual(second.wait(), 1)
        self.assertRegex(second.log(), r"verbs://127.0.0.1:7471: .*RDMA")


class LinkParameters(case.LabTest):
    ASKED = "window=1MiB,streams=4,congestion=reno,quality=cbr,rate=400Mbit,burst=256KiB,dscp=10"

    def test_what_a_node_asks_of_its_link_is_in_force_and_shown(self):
        one = self.lab(kinds=("tcp",))
        node = one.start_echo(extra=["--link", self.ASKED])
        link = node_of(one.status(), node)["link"]
        self.assertEqual({"streams": link["streams"], "congestion": link["congestion"],
                          "quality": link["quality"], "rate": link["rate"], "burst": link["burst"],
                          "dscp": link["dscp"]},
                         {"streams": 4, "congestion": "reno", "quality": "cbr",
                          "rate": 50_000_000, "burst": 262144, "dscp": 10})
        self.assertGreaterEqual(link["window"], 1 << 20)
        info = [name for name in one.metrics() if name.startswith("sanproxy_node_info")]
        self.assertEqual(len(info), 1)
        self.assertIn("streams=4", info[0])
        self.assertEqual(ask(self.socket(one, 7), bytes(BYTES.slice(0, 300_000))),
                         BYTES.slice(0, 300_000))

    # What is asked for: what /status shows, and what the kernel says of both ends' sockets.
    EACH = {
        "quality=vbr,rate=400Mbit,peak=800Mbit,burst=128KiB,priority=3,dscp=12":
            ({"quality": "vbr", "rate": 50_000_000, "peak": 100_000_000, "burst": 131072,
              "priority": 3, "dscp": 12}, r"tos:0x30 .*pacing_rate \d+bps/800000000bps"),
        "quality=abr,rate=100Mbit":
            ({"quality": "abr", "rate": 12_500_000}, r"pacing_rate \d+bps/100000000bps"),
        "quality=ubr": ({"quality": "ubr", "dscp": 1, "priority": 1}, r"tos:0x4 "),
        "window=1MiB,skip_slow_start": ({"skip_slow_start": True}, r"cwnd:\d+ "),
    }

    def test_each_quality_of_service_is_in_force_at_both_ends_and_shown(self):
        one = self.lab(kinds=("tcp",))
        # Where slow start comes back after a pause, skipping it is refused.
        one.proxy_ns.sysctl("net.ipv4.tcp_slow_start_after_idle", "0")
        for number, (asked, (shown, kernel)) in enumerate(self.EACH.items()):
            with self.subTest(asked):
                node = one.start_echo(name=f"n{number}", extra=["--link", asked])
                link = node_of(one.status(), node)["link"]
                self.assertEqual({name: link.get(name) for name in shown}, shown)
                with one.connect(7) as sock:
                    self.assertEqual(ask(sock), b"hello")
                said = one.proxy_ns.run("ss", "-tinHO", "--tos", "state", "established", text=True)
                ends = [line for line in said.stdout.splitlines()
                        if re.search(r"127\.0\.0\.1:\d+ +127\.0\.0\.1", line)]
                self.assertEqual(len(ends), 2, said.stdout)
                for end in ends:
                    self.assertRegex(end, kernel)
                    if "skip_slow_start" in shown:
                        mss, segments = (int(re.search(rf" {what}:(\d+)", end)[1])
                                         for what in ("mss", "cwnd"))
                        self.assertGreaterEqual(mss * segments, 1 << 20)
                self.assertEqual(node.stop(), 0)
                wait.until(lambda: one.node_count(7) == 0, "it has left")

    def test_the_environment_stands_in_for_the_command_line(self):
        one = self.lab(kinds=("tcp",))
        argv = programs.echo_argv("echo", [one.proxy_address], "10.77.0.10:7", [])
        node = one.start("echo", argv, one.proxy_ns, env={"SANPROXY_LINK": "streams=2"})
        wait.until(lambda: one.node_count(7) == 1, "it has joined")
        self.assertEqual(node_of(one.status(), node)["link"]["streams"], 2)

    def refused(self, words, env=None, kinds=("tcp",)):
        one = self.lab(kinds=kinds)
        argv = programs.echo_argv("echo", [one.proxy_address], "10.77.0.10:7", words)
        node = one.start("refused", argv, one.proxy_ns, env=env)
        return one, node

    def test_an_impossible_value_is_refused_by_name_at_the_start(self):
        one, node = self.refused(["--link", "window=-1"])
        self.assertNotEqual(node.wait(), 0)
        self.assertIn("link parameter window", node.log())
        one, node = self.refused([], {"SANPROXY_LINK": "quality=best"})
        self.assertNotEqual(node.wait(), 0)
        self.assertIn("link parameter quality", node.log())

    def test_what_a_link_cannot_honour_is_refused_by_name_when_it_joins(self):
        for asked, name, kind in (("congestion=nosuchcc", "congestion", "tcp"),
                                  ("queue_pairs=2", "queue_pairs", "tcp"),
                                  ("streams=17", "streams", "tcp"),  # beyond the proxy's limit
                                  # Slow start would be back after the first pause.
                                  ("window=1MiB,skip_slow_start", "skip_slow_start", "tcp"),
                                  ("window=4MiB", "window", "shm"),
                                  ("quality=ubr", "quality", "shm")):
            with self.subTest(asked):
                one, node = self.refused(["--link", asked], kinds=(kind,))
                node.wait_log(name)
                self.assertEqual(one.node_count(7), 0)
                self.assertEqual(node.stop(), 0)


class VerbsLinks:
    def test_what_a_node_asks_of_its_link_is_in_force_and_shown(self):
        one = self.lab()
        for asked, shown in (
                ("queue_pairs=2,window=1MiB,quality=vbr,rate=400Mbit,peak=800Mbit,burst=128KiB,"
                 "dscp=26",
                 {"queue_pairs": 2, "window": 1 << 20, "quality": "vbr", "rate": 50_000_000,
                  "peak": 100_000_000, "burst": 131072, "dscp": 26, "traffic_class": 104}),
                ("quality=abr,rate=100Mbit,service_level=3,traffic_class=8",
                 {"quality": "abr", "rate": 12_500_000, "service_level": 3, "traffic_class": 8}),
                ("quality=ubr", {"quality": "ubr", "traffic_class": 4})):
            with self.subTest(asked):
                node = one.start_echo(extra=["--link", asked])
                link = node_of(one.status(), node)["link"]
                self.assertEqual({name: link.get(name) for name in shown}, shown)
                with one.connect(7) as sock:
                    self.assertEqual(ask(sock), b"hello")
                self.assertEqual(node.stop(), 0)
                wait.until(lambda: one.node_count(7) == 0, "it has left")

    def test_what_a_link_cannot_honour_is_refused_by_name_when_it_joins(self):
        one = self.lab(fabric={"max_queue_pairs": 4})
        for number, (name, asked) in enumerate((
                ("streams", "streams=2"), ("priority", "priority=3"),
                ("congestion", "congestion=reno"), ("queue_pairs", "queue_pairs=5"),
                ("skip_slow_start", "window=1MiB,skip_slow_start"))):
            with self.subTest(asked):
                node = one.start_echo(name=f"n{number}", extra=["--link", asked], joined=False)
                node.wait_log(f"link parameter {name}")
                self.assertEqual(one.node_count(7), 0)
                self.assertEqual(node.stop(), 0)


class Tls(case.LabTest):
    def test_a_node_without_a_certificate_or_with_a_foreign_one_gets_nowhere(self):
        one = self.lab(kinds=("tls",))
        service = "10.77.0.10:7"
        foreign = fabrics.certificate("node", authority="other")
        ours = fabrics.certificate("node")
        strangers = {
            "plain": [],
            "foreign": ["--tls-certificate", foreign.certificate, "--tls-key", foreign.key,
                        "--tls-ca", ours.ca],
            "distrustful": ["--tls-certificate", ours.certificate, "--tls-key", ours.key,
                            "--tls-ca", foreign.ca],
            "other-proxy": [*fabrics.node_words("tls"), "--tls-proxy-name", "another"],
        }
        for name, words in strangers.items():
            argv = programs.echo_argv("echo", [one.proxy_address, *words], service, [])
            program = one.start(name, argv, one.proxy_ns)
            program.wait_log(one.proxy_address + ":")  # why not
            self.assertEqual(one.status()["nodes"], [], name)
            program.stop()
        argv = programs.echo_argv("echo", [one.proxy_address, *fabrics.node_words("tls"),
                                           "--tls-proxy-name", "proxy"], service, [])
        one.start("good", argv, one.proxy_ns)
        wait.until(lambda: one.node_count(7) == 1, "the right one has joined")
        self.assertEqual(ask(self.socket(one, 7)), b"hello")

    def test_files_that_cannot_be_read_end_the_proxy_with_a_reason(self):
        one = self.lab(kinds=("tls",))
        path = os.path.join(one.log_dir, "nokey.toml")
        with open(path, "w") as file:
            file.write(one.config.replace(fabrics.certificate("proxy").key, "/nonexistent/k.key"))
        one.proxy.stop()
        second = one.start("nokey", [programs.path("proxynode"), "--config", path], one.proxy_ns)
        self.assertEqual(second.wait(), 1)
        self.assertRegex(second.log(), "key")
        one.assert_healthy = one.assert_not_broken


class Copies:
    """No payload above the inline limit is copied by the proxy, in either direction."""

    def copied(self, one):
        """{reason: bytes}"""
        return {name.split('"')[1]: value for name, value in one.metrics().items()
                if name.startswith("sanproxy_bytes_copied_total")}

    def assert_none_copied(self, one, before):
        copied = {reason: value - before[reason] for reason, value in self.copied(one).items()}
        # A head, a tail or an answer that is small goes inline; a payload above that limit never.
        self.assertLessEqual(copied.pop("inline"), 4096)
        self.assertEqual(copied, {"isolation": 0, "pressure": 0, "stack": 0, "network_node": 0})

    def test_downloads_are_not_copied(self):
        one = self.lab()
        root = os.path.join(one.log_dir, "root")
        os.makedirs(root)
        self.addCleanup(shutil.rmtree, root, True)
        size = 32 << 20 if self.kind != "verbs" else 8 << 20
        BYTES.write_file(os.path.join(root, "big.bin"), size)
        one.start_httpd(port=80, family=self.family, root=root)
        one.curl(one.url("/hello", 80, self.family))
        before = self.copied(one)
        got = one.curl(one.url("/big.bin", 80, self.family))
        self.assertEqual((got.returncode, got.stderr), (0, b""))
        self.assertEqual(hashlib.sha256(got.stdout).hexdigest(), BYTES.sha256(size))
        self.assert_none_copied(one, before)

    def test_uploads_are_not_copied(self):
        one = self.lab()
        one.start_echo(mode="digest", family=self.family)
        sock = self.socket(one, 7)
        before = self.copied(one)
        size = 32 << 20 if self.kind != "verbs" else 8 << 20
        for chunk in BYTES.chunks(size):
            sock.sendall(chunk)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(100):
            answer += piece
        self.assertEqual(int(answer.split()[0]), size)
        self.assert_none_copied(one, before)


class BrokenQueuePairs:
    """The device loses a channel's queue pair: as bad as a death of the other side, and no worse."""

    def setUp(self):
        self.breaks = {"LD_PRELOAD": programs.test_path("queue_pair_breaker.so")}

    def open_connections(self, one, count):
        sockets = [self.socket(one, 7) for _ in range(count)]
        for sock in sockets:
            self.assertEqual(ask(sock, bytes(BYTES.slice(0, 20_000))), BYTES.slice(0, 20_000))
        return sockets

    def assert_reset(self, sock):
        with self.assertRaises(ConnectionResetError):
            if sock.recv(1) == b"":
                raise AssertionError("an orderly end instead of a reset")

    def assert_served(self, one, labels):
        """Connections go to all of these nodes."""
        wait.until(lambda: one.node_count(7) == len(labels), "all nodes have joined")
        sockets = self.open_connections(one, 2 * len(labels))
        self.assertEqual(set(one.shares(7)), labels)
        for sock in sockets:
            sock.close()

    def test_a_node_without_its_queue_pair_loses_its_connections_alone_and_joins_again(self):
        one = self.lab(services=[{"address": "10.77.0.10:7", "balance": "round-robin"}])
        broken = one.start_echo(name="broken", env=self.breaks)
        one.start_echo(name="whole")
        sockets = self.open_connections(one, 8)
        self.assertEqual(one.shares(7), {"broken": 4, "whole": 4})
        broken.signal(signal.SIGUSR1)
        wait.until(lambda: one.open_connections() == 4, "its connections end")
        kept = 0
        for sock in sockets:
            try:
                kept += ask(sock) == b"hello"
            except ConnectionResetError:
                pass
        self.assertEqual(kept, 4)
        self.assert_served(one, {"broken", "whole"})

    def test_a_proxy_without_its_queue_pairs_resets_their_connections_and_takes_its_nodes_back(self):
        one = self.lab(services=[{"address": "10.77.0.10:7", "balance": "round-robin"}],
                       proxy_env=self.breaks)
        for name in ("first", "second"):
            one.start_echo(name=name)
        sockets = self.open_connections(one, 8)
        one.proxy.signal(signal.SIGUSR1)
        for sock in sockets:
            self.assert_reset(sock)
        self.assert_served(one, {"first", "second"})


globals().update(case.over(VerbsLinks, topologies=(), network=("verbs",)))
globals().update(case.over(BrokenQueuePairs, topologies=(), network=("verbs",)))
globals().update(case.over(Copies, topologies=(), network=("tcp", "verbs")))
