"""sanctl against nodes that answer what a test says: what it makes of others' faults, and of its own words."""

import json
import os
import subprocess
import time
import unittest

from harness import etcd, fake_node, lab, netns, programs, settings

STATUS = "/status"


class SanctlTest(unittest.TestCase):
    """A namespace, and fake nodes in it."""

    def setUp(self):
        self.namespace = netns.Namespace("s")
        self.addCleanup(self.namespace.remove)

    def node(self, pages, **where):
        one = fake_node.FakeNode(self.namespace, pages, **where)
        self.addCleanup(one.close)
        return one

    def run_it(self, *words, code=0, env=None):
        """The answer: stdout, or stderr where it must fail."""
        argv = self.namespace.argv(etcd.sanctl_argv(*words))
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60 * settings.slowness,
                              check=False, env={**os.environ, **(env or {})})
        self.assertEqual(done.returncode, code, f"{words}\n{done.stdout}{done.stderr}")
        return done.stderr if code else done.stdout


class OneNode(SanctlTest):
    def looks(self, *answers):
        """Answers of a proxy to the looks of `sanctl drain pa`; the last holds."""
        left = list(answers)
        pages = {"/drain": {"ok": True}}
        pages[STATUS] = lambda: left.pop(0) if len(left) > 1 else left[0]
        return self.node(pages)

    def draining(self, connections):
        return fake_node.proxy_status("pa", state="draining" if connections else "drained",
                                      connections={"open": connections})

    def test_a_proxy_that_does_not_answer_now_and_then_is_not_taken_for_gone(self):
        self.looks(self.draining(3), self.draining(3), (503, "the worker does not answer"), None,
                   "no JSON", self.draining(2), self.draining(0))
        text = self.run_it("drain", "pa")
        self.assertIn("2 connections left", text)
        self.assertIn("pa is empty", text)

    def test_the_wait_for_a_proxy_that_does_not_answer_ends_with_its_time(self):
        self.looks(self.draining(3), (503, "the worker does not answer"))
        text = self.run_it("drain", "pa", "--timeout", 0.5, code=3)
        self.assertIn("not known how many connections are left", text)
        self.assertIn("the worker does not answer", text)

    def test_a_proxy_that_has_ended_is_gone(self):
        def look():
            if len(node.asked) > 3:
                node.close()  # nobody listens from here on
            return self.draining(3)
        node = self.node({STATUS: look, "/drain": {"ok": True}})
        self.assertIn("pa is gone", self.run_it("drain", "pa"))

    def test_an_application_node_that_has_gone_can_be_undrained(self):
        node = self.node({STATUS: fake_node.proxy_status("pa", drained_nodes=["webx"]),
                          "/nodes/webx/undrain": {"ok": True}})
        self.assertIn("appnode webx takes new", self.run_it("undrain", "webx"))
        self.assertIn(("POST", "/nodes/webx/undrain"), node.asked)
        self.assertIn('no node "weby"', self.run_it("undrain", "weby", code=2))

    def test_a_network_node_tells_of_what_it_has_and_of_nothing_else(self):
        self.node({STATUS: {"name": "n1", "state": "running", "sessions": 3,
                            "proxies": [{"name": "pa", "state": "up", "sessions": 3}],
                            "services": [{"address": "10.0.0.1:80", "protocol": "tcp", "proxies": []},
                                         {"address": "10.0.0.1:53", "protocol": "udp",
                                          "proxies": ["pb"]}]},
                   "/metrics": "sanproxy_netnode_draining 0\n"})
        self.assertIn("services  2\n", self.run_it("status"))
        rows = {row["address"]: row for row in json.loads(self.run_it("services", "--json"))}
        self.assertEqual(rows["10.0.0.1:80"]["proxies"], ["pa"])
        self.assertEqual(rows["10.0.0.1:53/udp"]["proxies"], ["pb"])
        self.assertIsNone(rows["10.0.0.1:80"]["connections"])
        self.assertRegex(self.run_it("services"), r"10.0.0.1:80 +- +- +- +- +- +- +pa\n")
        for command in ("connections", "top"):
            self.assertIn("is a network node's", self.run_it(command, code=2))

    def test_answers_that_make_no_sense_are_no_errors(self):
        self.node({STATUS: fake_node.proxy_status("pa", cluster={"connected": "no"}),
                   "/connections": {"total": "many", "connections": {"a": 1}}})
        self.run_it("status")
        self.assertIn("0 of 0", self.run_it("connections"))


class CommandLine(SanctlTest):
    def test_the_command_line_stands_before_the_environment(self):
        self.node({STATUS: fake_node.proxy_status("pa")}, port=9001)
        self.node({STATUS: fake_node.proxy_status("pb")}, port=9002)

        def nodes(*words, code=0, **env):
            return self.run_it("nodes", *words, code=code,
                               env={"SANPROXY_" + name: value for name, value in env.items()})
        nowhere = "http://127.0.0.1:1,http://127.0.0.1:2"
        self.assertIn("pa", nodes(ADMIN="127.0.0.1:9001"))
        self.assertIn("pb", nodes("--admin", "127.0.0.1:9002", ADMIN="127.0.0.1:9001"))
        self.assertIn("pb", nodes("--admin", "127.0.0.1:9002", ETCD=nowhere))
        self.assertIn("etcd: ", nodes(ADMIN="127.0.0.1:9001", ETCD=nowhere, code=1))
        self.assertIn("excludes", nodes("--admin", "127.0.0.1:9001", "--etcd", nowhere, code=2))
        self.assertIn("--cluster", nodes(CLUSTER="no good", code=2))
        for name in ("ADMIN", "ETCD", "CLUSTER"):
            self.assertIn("SANPROXY_" + name, self.run_it("--help"))

    def test_what_makes_no_sense_is_refused(self):
        url = "http://127.0.0.1:1"
        for words, part in (
                (("top", "--interval", "nan"), "not a number"),
                (("drain", "pa", "--timeout", "nan"), "not a number"),
                (("status", "--prefix", "sanproxy"), "--prefix"),
                (("config", "diff", "--to", 3), "--from"),
                (("config", "diff", "all.json", "--from", 3), "excludes"),
                (("config", "set", "proxies/px", "{}", "--delete"), "excludes")):
            self.assertIn(part, self.run_it(*words, code=2, env={"SANPROXY_ETCD": url}), words)

    def test_an_address_of_etcd_leaves_the_next_word_alone(self):
        for words in (("drain", "--etcd", "http://127.0.0.1:1", "p2"),
                      ("--etcd", "http://127.0.0.1:1,http://127.0.0.1:2", "drain", "p2"),
                      ("--etcd", "http://127.0.0.1:1", "--etcd", "http://127.0.0.1:2", "drain", "p2")):
            self.assertIn("etcd: http://127.0.0.1:", self.run_it(*words, code=1), words)


class Completion(unittest.TestCase):
    # As each shell calls the function when somebody presses Tab behind the words.
    SHELLS = {
        "bash": 'source <("$0" completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _sanctl\n'
                'printf "%s\\n" "${COMPREPLY[@]}"',
        "zsh": 'compdef() { :; }; source <("$0" completion zsh)\n'
               'words=("$@"); CURRENT=$#; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
               'compgen -o default -F _sanctl -- "${words[CURRENT]}"',
    }

    def offered(self, shell, *words):
        argv = [shell, *(["-f"] if shell == "zsh" else ["--norc"]), "-c", self.SHELLS[shell],
                programs.path("sanctl"), "sanctl", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False,
                              timeout=60 * settings.slowness)
        self.assertEqual(done.stderr, "", argv)
        return done.stdout.split()

    def test_it_offers_what_may_follow_in_both_shells(self):
        for shell in self.SHELLS:
            for words, some in ((("",), {"status", "config", "--etcd", "--help"}),
                                (("config", "set", ""), {"--dry-run", "--etcd", "--cluster", "--json"}),
                                (("--json", "config", ""), {"get", "set", "--etcd"}),
                                (("completion", ""), {"bash", "zsh"}),
                                (("drain", "status", ""), {"--timeout", "--no-wait"}),
                                (("drain", "--kind", ""), {"proxy", "netnode", "appnode"})):
                with self.subTest(shell=shell, words=words):
                    offered = self.offered(shell, *words)
                    self.assertLessEqual(some, set(offered))
                    self.assertEqual(len(offered), len(set(offered)), offered)
            self.assertEqual(sorted(self.offered(shell, "drain", "--kind", "")),
                             ["appnode", "netnode", "proxy"])


class Cluster(SanctlTest):
    """Fake nodes that are registered in an etcd."""

    def setUp(self):
        one = lab.Lab("tun", ".".join(self.id().split(".")[-2:]))
        self.addCleanup(one.close)
        self.namespace = one.proxy_ns
        self.store = etcd.Etcd(one)
        self.store.start()
        self.addCleanup(self.store.members[0].kill)

    def register(self, name, admin, **more):
        self.store.ctl("put", f"{etcd.ROOT}node/proxy/{name}", json.dumps({"admin": admin, **more}))

    def proxy(self, name, port, **pages):
        pages = {STATUS: fake_node.proxy_status(name), "/metrics": "sanproxy_connections_bound 1\n",
                 **{"/" + path: page for path, page in pages.items()}}
        one = self.node(pages, port=port)
        self.register(name, one.address)
        return one

    def connections(self, *words, code=0):
        return self.store.sanctl("connections", *words, code=code)

    def top(self):
        rows = self.run_it("top", "--count", 1, "--interval", 0.05, "--json", "--etcd",
                           self.store.urls[0])
        return {row["node"]: row for row in json.loads(rows)}

    def test_an_endpoint_that_leads_to_somebody_else_is_not_asked(self):
        row = {"client": "10.1.1.1:5", "local": "10.0.0.1:80", "state": "ESTABLISHED"}
        self.proxy("pa", 9001, connections={"total": 1, "connections": [row]})
        self.register("pb", "127.0.0.1:9001")  # its own, on another host
        found = self.connections()
        self.assertEqual((found["total"], len(found["connections"])), (1, 1))
        self.assertEqual(list(found["unreachable"]), ["pb"])
        self.assertIn("another node's", found["unreachable"]["pb"])
        rows = self.top()
        self.assertEqual(rows["pa"]["connections"], 1)
        self.assertIn("another node's", rows["pb"]["error"])

    def test_one_that_is_wrong_hides_nothing_of_the_others(self):
        row = {"client": "10.1.1.1:5", "local": "10.0.0.1:80", "state": "ESTABLISHED"}
        self.register("bad", "hosta:9477")
        self.proxy("old", 9001, connections=(400, "what is node?"))
        good = self.proxy("pa", 9002, connections={"total": 1, "connections": [row]})
        found = self.connections()
        self.assertEqual(found["connections"], [{**row, "proxy": "pa"}])
        self.assertEqual(set(found["unreachable"]), {"bad", "old"})
        # What all of them refuse was wrong on the command line.
        good.pages["/connections"] = (400, "client is IP")
        self.assertIn("client is IP", self.connections("--client", "x", code=2))

    def test_who_is_drained_twice_must_be_said(self):
        self.proxy("pa", 9001)
        for kind in ("appnode", "proxy"):
            self.store.ctl("put", f"{etcd.ROOT}drain/{kind}/pa", "{}")
        self.assertIn("--kind", self.store.sanctl("undrain", "pa", code=2))
        self.assertEqual(len(self.store.keys("drain/")), 2)
        self.store.sanctl("undrain", "pa", "--kind", "appnode")
        self.assertEqual(self.store.keys("drain/"), ["drain/proxy/pa"])
        self.store.sanctl("undrain", "pa")
        self.assertEqual(self.store.keys("drain/"), [])

    def test_nobody_waits_for_dead_hosts_one_after_the_other(self):
        self.namespace.ip("link", "add", "d0", "type", "veth", "peer", "name", "d1")
        self.namespace.ip("address", "add", "10.9.0.1/24", "dev", "d0")
        self.namespace.ip("link", "set", "d0", "arp", "off", "up")
        self.namespace.ip("link", "set", "d1", "up")
        for i in range(16):  # nobody is there: one by one it is half a minute and more
            self.register(f"dead{i}", f"10.9.0.{i + 2}:9477")
        self.proxy("pa", 9001)
        other = self.proxy("pb", 9002)
        begin = time.monotonic()
        self.assertEqual(len(self.store.sanctl("nodes")), 18)
        other.asked.clear()
        self.assertIn("0 connections are left", self.store.sanctl("drain", "pa", "--timeout", 1, code=3))
        self.assertLess(time.monotonic() - begin, 15 * settings.slowness)
        # While it waits it asks the one that is meant, and nobody else.
        self.assertEqual(len(other.asked), 1)

    def test_a_number_that_nobody_has_told_is_not_said(self):
        self.register("pa", "")
        text = self.run_it("drain", "pa", "--timeout", 0.5, "--etcd", self.store.urls[0], code=3)
        self.assertIn("not known how many connections are left", text)
        self.register("pa", "", state="draining", connections=8)
        self.assertIn("8 connections are left",
                      self.store.sanctl("drain", "pa", "--timeout", 0.5, code=3))

    def test_a_proxy_that_has_lost_etcd_is_not_taken_for_gone(self):
        for kind, name in (("proxy", "pa"), ("appnode", "web")):
            left = []
            looks = iter([8, 8, 8, (503, "the worker does not answer"), None, 8])

            def status():
                left.append(next(looks, 0))
                if len(left) == 2:  # its lease has run out
                    self.store.ctl("del", etcd.ROOT + "node/proxy/pa")
                if not isinstance(left[-1], int):
                    return left[-1]
                return fake_node.proxy_status(
                    "pa", state="draining" if left[-1] else "drained", connections={"open": left[-1]},
                    nodes=[{"node": 0, "name": "web:1", "connections": left[-1], "drained": True}])
            with self.subTest(kind=kind):
                node = self.proxy("pa", 9001, status=status)
                done = self.store.sanctl("drain", name)
                self.assertEqual((done["kind"], done["gone"], left[-1]), (kind, False, 0))
                node.close()

    def test_a_node_that_is_registered_no_more_and_does_not_answer_is_gone(self):
        def status():
            if len(node.asked) == 3:
                self.store.ctl("del", etcd.ROOT + "node/proxy/pa")
                node.close()
            return fake_node.proxy_status("pa", state="draining", connections={"open": 8})
        node = self.proxy("pa", 9001, status=status)
        self.assertTrue(self.store.sanctl("drain", "pa")["gone"])

    def test_a_network_node_of_a_proxys_name_hides_nothing_of_the_proxy(self):
        node = self.node({STATUS: {"name": "pa", "state": "running", "sessions": 0}}, port=9001)
        self.store.ctl("put", etcd.ROOT + "node/netnode/pa", json.dumps({"admin": node.address}))
        self.register("pa", "127.0.0.1:1")
        self.store.ctl("put", etcd.ROOT + "node/appnode/pa/0",
                       json.dumps({"name": "web", "services": ["10.0.0.1:80"]}))
        found = self.store.sanctl("status")
        self.assertEqual([(row["address"], row["members"]) for row in found["services"]],
                         [("10.0.0.1:80", 1)])
        self.assertEqual((list(found["status"]), list(found["unreachable"])), (["pa"], ["pa"]))
        self.proxy("pa", 9002)
        self.assertEqual(set(self.store.sanctl("status")["status"]), {"pa", "proxy/pa"})

    def test_a_network_node_with_a_name_like_a_workers_is_waited_for(self):
        node = self.node({STATUS: {"name": "pa.w1", "state": "draining", "sessions": 8}}, port=9001)
        self.store.ctl("put", etcd.ROOT + "node/netnode/pa.w1", json.dumps({"admin": node.address}))
        self.assertIn("8 connections are left",
                      self.store.sanctl("drain", "pa.w1", "--timeout", 0.5, code=3))

    def test_what_somebody_has_written_moves_no_cursor(self):
        self.register("pa", "127.0.0.1:1")
        self.store.ctl("put", etcd.ROOT + "node/appnode/pa/0", json.dumps(
            {"name": "a\x1b[31m", "services": ["\x1b[2J"], "state": "drained"}))
        where = ("--etcd", self.store.urls[0])
        self.assertIn(r"! \x1b[2J: no application", self.run_it("status", *where))
        text = self.run_it("nodes", *where) + self.run_it("drain", "nobody", *where, code=2)
        self.assertIn(r"appnode a\x1b[31m", text)
        self.assertNotIn("\x1b", text)

    def test_a_name_of_any_bytes_is_drained_and_told_of(self):
        done = self.store.sanctl("drain", "\udcff", "--kind", "appnode", "--no-wait")
        self.assertEqual((done["kind"], self.store.keys("drain/")), ("appnode", ["drain/appnode/%FF"]))
        self.assertEqual(self.store.sanctl("undrain", "\udcff")["kind"], "appnode")

    def test_an_answer_that_cannot_be_written_is_an_error(self):
        self.proxy("pa", 9001)
        for words in (("config", "get"), ("top", "--interval", 0.05)):
            argv = self.namespace.argv(etcd.sanctl_argv(*words, "--etcd", self.store.urls[0]))
            with open("/dev/full", "w") as full:
                done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
                                      timeout=60 * settings.slowness)
            self.assertEqual(done.returncode, 1, words)
            self.assertIn("No space left", done.stderr)

    def test_an_application_node_is_waited_for_where_it_was_seen(self):
        # It may have joined a moment ago, and stand in etcd nowhere yet.
        node = {"node": 0, "name": "web:1", "fabric": "shm", "connections": 2, "drained": True}
        looks = iter([2, 2, 1])

        def status():
            return fake_node.proxy_status("pa", nodes=[{**node, "connections": next(looks, 0)}])
        self.proxy("pa", 9001, status=status)
        other = self.proxy("pb", 9002)
        done = self.store.sanctl("drain", "web")
        self.assertEqual((done["kind"], done["gone"]), ("appnode", False))
        self.assertIsNone(next(looks, None))
        self.assertEqual(len(other.asked), 1)
