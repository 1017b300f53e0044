"""Who may join: by user, by key, and how often."""

import os
import shutil
import signal

from harness import case, fabrics, lab, programs, wait

SECRET = "what the web servers and the proxy know"


class Access:
    def address(self, port=7):
        return lab.service_address(self.family, port)

    def guarded(self, *allow, **options):
        return self.lab(services=[{"address": self.address(), "allow": list(allow)}], **options)

    def start(self, one, name, joined=True, **how):
        return one.start_echo(family=self.family, name=name, joined=joined, **how)

    def assert_served_by(self, one, *labels):
        for _ in labels:
            sock = self.socket(one, 7)
            sock.sendall(b"hello")
            self.assertEqual(sock.recv(16), b"hello")
        self.assertEqual(sorted(one.shares(7, self.family)), sorted(labels))

    def test_the_named_user_may_join_and_another_may_not(self):
        one = self.guarded("uid:33", "uid:4711")
        # Another user reaches neither our build folder nor, so far, the socket.
        os.chmod(one.run_dir, 0o711)
        program = shutil.copy(programs.path("appnode-echo"), one.run_dir)
        os.chmod(program, 0o755)

        def start_as(uid, name):
            argv = [program] + programs.echo_argv("echo", [one.proxy_address], self.address(), [])[1:]
            return one.start(name, argv, uid=uid)
        root = start_as(0, "root")
        nobody = start_as(65534, "nobody")
        for node in (root, nobody):
            node.wait_log(f"not permitted to join {self.address()}")
        start_as(33, "www")
        wait.until(lambda: one.node_count(7, self.family) == 1, "the named user has joined")
        self.assert_served_by(one, "www")
        # Whoever was refused asks again after a pause.
        self.assertGreaterEqual(
            one.metrics()['sanproxy_joins_refused_total{reason="not_permitted"}'], 2)

    def test_who_has_the_key_may_join(self):
        one = self.guarded("key:web", keys={"web": SECRET, "db": "what only data bases know"})
        self.start(one, "option", extra=["--key", one.key("web")])
        self.start(one, "environment", env={"SANPROXY_KEY": one.key("db") + "," + one.key("web")})
        self.assert_served_by(one, "option", "environment")
        keys = {node["name"].split(":")[0]: node["keys"] for node in one.status()["nodes"]}
        self.assertEqual(set(map(tuple, keys.values())) - {("web",), ("db", "web")}, set())
        self.assertEqual(one.metrics()['sanproxy_authentications_total{result="proven"}'], 3)

    def test_who_has_another_key_or_none_may_not(self):
        one = self.guarded("key:web", keys={"web": SECRET, "db": "what only data bases know"})
        none = self.start(one, "none", joined=False)
        none.wait_log(f"not permitted to join {self.address()}")
        other = self.start(one, "other", joined=False, extra=["--key", one.key("db")])
        other.wait_log(f"not permitted to join {self.address()}")
        self.assertNotIn("refused key", other.log())
        wrong_file = one.write_key("web", "what somebody made up", label="wrong")
        wrong = self.start(one, "wrong", joined=False, extra=["--key", f"web:{wrong_file}"])
        wrong.wait_log("the proxy refused key 'web': not_permitted")
        wrong.wait_log(f"not permitted to join {self.address()}")
        self.assertEqual(one.node_count(7, self.family), 0)
        metrics = one.metrics()
        self.assertEqual(metrics['sanproxy_authentications_total{result="not_permitted"}'], 1)
        self.assertGreaterEqual(metrics['sanproxy_joins_refused_total{reason="not_permitted"}'], 3)
        with self.assertRaises(ConnectionRefusedError):
            one.connect(7, self.family)
        for log in (one.proxy.log(), none.log(), other.log(), wrong.log()):
            for secret in (SECRET, "made up", "data bases"):
                self.assertNotIn(secret, log)

    def test_over_a_network_nobody_may_join_who_is_not_named(self):
        one = self.lab(kinds=("tcp",), fabric={"allow": []}, keys={"web": SECRET},
                       services=[{"address": self.address(), "allow": ["key:web"]}])
        self.start(one, "without", joined=False).wait_log("not permitted to join")
        self.start(one, "with", extra=["--key", one.key("web")])
        self.assert_served_by(one, "with")
        elsewhere = one.start_echo(port=8, family=self.family, joined=False,
                                   extra=["--key", one.key("web")])
        elsewhere.wait_log("not permitted to join")

    def test_the_named_certificate_may_join_and_another_of_the_same_authority_may_not(self):
        one = self.guarded("cert:node", kinds=("tls",))
        stranger = one.start("stranger", programs.echo_argv(
            "echo", [one.proxy_address, *fabrics.node_words("tls", "stranger")], self.address(), []),
            one.proxy_ns)
        stranger.wait_log(f"not permitted to join {self.address()}")
        self.start(one, "node")
        self.assert_served_by(one, "node")
        certificates = {node["certificate"] for node in one.status()["nodes"]}
        self.assertEqual(certificates, {"node", "stranger"})

    def test_the_fabrics_list_decides_for_services_without_one(self):
        one = self.lab(fabric={"trust": self.trust, "allow": ["key:web"]}, keys={"web": SECRET})
        self.start(one, "without", joined=False).wait_log("not permitted")
        self.start(one, "with", extra=["--key", one.key("web")])
        self.assert_served_by(one, "with")

    def test_keys_are_proven_again_to_a_proxy_that_comes_back(self):
        one = self.guarded("key:web", keys={"web": SECRET})
        node = self.start(one, "node", extra=["--key", one.key("web")])
        one.proxy.signal(signal.SIGKILL)
        wait.until(lambda: not one.proxy.alive(), "the proxy is dead")
        one.start_proxy()
        wait.until(lambda: one.node_count(7, self.family) == 1, "the node has joined again")
        self.assertTrue(node.alive())
        self.assert_served_by(one, "node")


class JoinRate:
    def test_joins_beyond_the_rate_are_made_later(self):
        one = self.lab(config={"limits": {"joins_per_s": 1, "joins_burst": 1}})
        nodes = [one.start_echo(family=self.family, name=f"n{i}", joined=False) for i in range(3)]
        wait.until(lambda: one.node_count(7, self.family) == 3, "all have joined in the end", 60)
        self.assertTrue(any("limit_reached" in node.log() for node in nodes))
        self.assertGreaterEqual(one.metrics()['sanproxy_joins_refused_total{reason="limit_reached"}'],
                                1)


globals().update(case.over(Access, topologies=("tun",)))
globals().update(case.over(JoinRate, topologies=("tun",), network=("tcp", "verbs")))
