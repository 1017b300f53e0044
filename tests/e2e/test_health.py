"""Whom a proxy gives new connections: heartbeats, and requests of its own."""

import json
import os
import signal

from harness import admin, case, lab, netns, programs, settings, wait
from harness.pattern import Pattern

BYTES = Pattern("health")
HEARTBEAT = {"interval_ms": 100, "timeout_ms": 150 * settings.slowness, "fall": 2}


def ask(sock, text=b"hello"):
    sock.sendall(text)
    got = b""
    while len(got) < len(text):
        piece = sock.recv(len(text) - len(got))
        assert piece, "an end instead of an answer"
        got += piece
    return got


class Heartbeats:
    def test_a_stopped_node_gets_nothing_new_loses_nothing_and_returns(self):
        one = self.lab(config={"heartbeat": HEARTBEAT})
        frozen = one.start_echo(name="frozen")
        old = self.socket(one, 7)
        self.assertEqual(ask(old), b"hello")
        one.start_echo(name="other")
        frozen.signal(signal.SIGSTOP)
        wait.until(lambda: sorted(self.health_of(one)) == ["down", "up"], "one node is down")
        old.sendall(BYTES.slice(0, 100_000))
        for _ in range(6):
            self.assertEqual(ask(self.socket(one, 7)), b"hello")
        self.assertEqual(one.shares(7), {"frozen": 1, "other": 6})
        self.assertEqual(one.metrics()['sanproxy_health_down{what="node"}'], 1)
        shown = one.run(programs.path("sanctl"), "nodes", "--kind", "appnode", "--json",
                        "--admin", f"127.0.0.1:{admin.PORT}")
        states = sorted(row["state"] for row in json.loads(shown.stdout))
        self.assertEqual(states, ["down", "running"])
        frozen.signal(signal.SIGCONT)
        wait.until(lambda: self.health_of(one) == ["up", "up"], "it answers again")
        old.settimeout(20)
        got = b""
        while len(got) < 100_000:
            got += old.recv(65536)
        self.assertEqual(got, BYTES.slice(0, 100_000))
        new = [self.socket(one, 7) for _ in range(4)]
        self.assertEqual([ask(sock) for sock in new], [b"hello"] * 4)
        self.assertEqual(one.shares(7), {"frozen": 3, "other": 8})

    def health_of(self, one):
        return [node["health"] for node in one.status()["nodes"] if not node["dead"]]


class DeadAfter(case.LabTest):
    kind = "tcp"

    def test_a_node_that_is_silent_for_too_long_loses_its_channel_and_comes_back(self):
        one = self.lab(config={"heartbeat": HEARTBEAT},
                       fabric={"dead_after_ms": 1000 * settings.slowness})
        frozen = one.start_echo()
        old = self.socket(one, 7)
        self.assertEqual(ask(old), b"hello")
        frozen.signal(signal.SIGSTOP)
        with self.assertRaises(ConnectionResetError):
            while old.recv(1):
                pass
        self.assertEqual(one.metrics()['sanproxy_channels_total{event="timed_out"}'], 1)
        wait.until(lambda: one.node_count(7) == 0, "its service is gone")
        frozen.signal(signal.SIGCONT)
        wait.until(lambda: one.node_count(7) == 1, "it has joined again")
        self.assertEqual(ask(self.socket(one, 7)), b"hello")


class TwoWays:
    """Another host, as the network has it: two ways between a lab's proxy and a namespace, through
    bridges of a third one. A way that is cut says nothing to either end."""

    here, there = "10.66.0.1", "10.66.0.2"

    def __init__(self, test, near):
        self.near, self.far, self.middle = near, netns.Namespace("f"), netns.Namespace("m")
        test.addCleanup(self.middle.remove)
        test.addCleanup(self.far.remove)
        for way in "ab":
            self.middle.ip("link", "add", "bridge-" + way, "type", "bridge")
            self.middle.ip("link", "set", "bridge-" + way, "up")
            for name, end in (("near", self.near), ("far", self.far)):
                end.ip("link", "add", "way-" + way, "type", "veth", "peer", "name",
                       f"{name}-{way}", "netns", self.middle.name)
                end.ip("link", "set", "way-" + way, "up")
                self.middle.ip("link", "set", f"{name}-{way}", "master", "bridge-" + way, "up")
        self.near.ip("address", "add", self.here + "/32", "dev", "lo")
        self.far.ip("address", "add", self.there + "/32", "dev", "lo")
        self.go("a")

    def go(self, way):
        for end, own, other in ((self.near, self.here, self.there),
                                (self.far, self.there, self.here)):
            end.ip("route", "replace", other, "dev", "way-" + way, "src", own)

    def set(self, way, state):
        self.middle.ip("link", "set", "bridge-" + way, state)


class AnotherHost(case.LabTest):
    kind = "tcp"

    def setUp(self):
        self.one = self.lab(config={"heartbeat": HEARTBEAT},
                            fabric={"listen": "tcp://0.0.0.0:7471",
                                    "dead_after_ms": 1000 * settings.slowness})
        self.ways = TwoWays(self, self.one.proxy_ns)
        self.one.start_echo()
        self.one.start("echo-far", programs.echo_argv(
            "echo", [f"tcp://{self.ways.here}:7471"], lab.service_address(4, 8), ()),
            self.ways.far)
        self.until_there(1)

    def until_there(self, count):
        wait.until(lambda: self.one.node_count(8) == count, f"{count} nodes on the other host")

    def test_a_change_of_the_route_harms_no_connection(self):
        sock = self.socket(self.one, 8)
        self.assertEqual(ask(sock), b"hello")
        self.ways.go("b")
        self.ways.set("a", "down")
        sent = BYTES.slice(0, 50_000)
        self.assertEqual(ask(sock, sent), sent)
        self.assertEqual(self.one.metrics()['sanproxy_channels_total{event="timed_out"}'], 0)

    def test_a_host_that_vanishes_loses_its_connections_alone_and_comes_back(self):
        there, here = self.socket(self.one, 8), self.socket(self.one, 7)
        self.assertEqual((ask(there), ask(here)), (b"hello", b"hello"))
        self.ways.set("a", "down")
        with self.assertRaises(ConnectionResetError):
            while there.recv(1):
                pass
        self.assertEqual(self.one.metrics()['sanproxy_channels_total{event="timed_out"}'], 1)
        self.until_there(0)
        with self.assertRaises(ConnectionRefusedError):
            self.socket(self.one, 8)
        self.assertEqual((ask(here), ask(self.socket(self.one, 7))), (b"hello", b"hello"))
        self.ways.set("a", "up")
        self.until_there(1)
        self.assertEqual((ask(self.socket(self.one, 8)), ask(here)), (b"hello", b"hello"))


class HealthChecks(case.LabTest):
    def test_a_member_whose_check_fails_gets_nothing_until_it_is_well(self):
        request = "GET /healthz HTTP/1.0\r\n\r\n"
        one = self.lab(services=[{"address": lab.service_address(4, 80),
                                  "health": {"request": request, "expect": "200", "fall": 2,
                                             "interval_ms": 100, "timeout_ms": 5000}}])
        roots = [os.path.join(one.run_dir, name) for name in ("a", "b")]
        for root in roots:
            os.makedirs(root)
            self.be_well(root)
            with open(os.path.join(root, "name"), "w") as file:
                file.write(os.path.basename(root))
            one.start_httpd(root=root, name=os.path.basename(root))
        wait.until(lambda: self.healths(one) == ["up", "up"], "both are well")
        self.assertEqual({self.name(one) for _ in range(4)}, {"a", "b"})
        os.unlink(os.path.join(roots[0], "healthz"))
        wait.until(lambda: "down" in self.healths(one), "one of them is not")
        self.assertEqual({self.name(one) for _ in range(4)}, {"b"})
        self.be_well(roots[0])
        wait.until(lambda: self.healths(one) == ["up", "up"], "it is well again")
        self.assertEqual({self.name(one) for _ in range(4)}, {"a", "b"})

    @staticmethod
    def be_well(root):
        with open(os.path.join(root, "healthz"), "w") as file:
            file.write("ok")

    @staticmethod
    def healths(one):
        return [member["health"] for member in one.status()["services"][0]["members"]]

    @staticmethod
    def name(one):
        return one.curl("-s", one.url("/name")).stdout.decode()


globals().update(case.over(Heartbeats, topologies=("tun",), families=(4,),
                           network=("tcp", "verbs")))
if settings.in_guest:
    del AnotherHost, DeadAfter, HealthChecks
