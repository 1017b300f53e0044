"""A cluster in etcd: registration, configuration while running, drains, and etcd that goes away."""

import json
import os
import re
import signal
import threading

from harness import case, etcd, lab, programs, wait

SERVICE = lab.service_address(4, 7)
ENTRY = f"services/{SERVICE}"


class ClusterTest(case.LabTest):
    members = 1

    def cluster(self, proxy=None, **cluster):
        """A lab whose proxy is in a cluster, and its etcd."""
        label = ".".join(self.id().split(".")[-2:])
        urls = [f"http://127.0.0.1:{etcd.CLIENT_PORT + i}" for i in range(self.members)]
        section = {"etcd": urls, "ttl_s": 2, "timeout_ms": 1000, "drain_grace_ms": 100, **cluster}
        one = lab.Lab("tun", label, config={"cluster": section, "proxy": {"name": "p1", **(proxy or {})}})
        self.addCleanup(one.close)
        store = etcd.Etcd(one, self.members)
        store.start()
        one.start_proxy()
        self.addCleanup(self._check_at_end, one, self._failures())
        self.addCleanup(lambda: [member.kill() for member in store.members])
        return one, store

    def service(self, one):
        return lab.admin.service(one.status(), SERVICE)

    def wait_balance(self, one, balance):
        wait.until(lambda: self.service(one)["balance"] == balance,
                   lambda: f"balance {balance}: {self.service(one)}\n{one.proxy.log()[-1500:]}")

    def echoes(self, sock, text=b"hello"):
        sock.sendall(text)
        # With a time-out, MSG_WAITALL does not wait.
        back = b""
        while len(back) < len(text):
            piece = sock.recv(len(text) - len(back))
            self.assertTrue(piece, "the connection has ended")
            back += piece
        self.assertEqual(back, text)

    def nodes(self, store, kind):
        return {node["name"]: node for node in store.sanctl("nodes", "--kind", kind)}


class Cluster(ClusterTest):
    def test_nodes_register_are_configured_and_expire(self):
        one, store = self.cluster()
        one.start_echo()
        wait.until(lambda: any(SERVICE in n["services"]
                               for n in self.nodes(store, "appnode").values()),
                   lambda: f"the application node is registered: {store.keys()}")
        self.assertEqual(self.nodes(store, "proxy")["p1"]["state"], "running")
        self.assertIn("node/proxy/p1", store.keys("node/"))

        # Configuration, applied while connections are open.
        sock = self.socket(one, 7)
        self.echoes(sock)
        first = store.sanctl("config", "set", ENTRY, json.dumps({"balance": "least-connections"}),
                             "--message", "first")
        self.assertEqual(first["version"], 1)
        self.wait_balance(one, "least-connections")
        self.assertEqual(store.sanctl("config", "set", ENTRY, '{"balance": "weighted"}')["version"],
                         2)
        self.wait_balance(one, "weighted")
        self.echoes(sock)

        # Refused before anything is written; refused by who was slower.
        self.assertIn("expected one of", store.sanctl("config", "set", ENTRY,
                                                      '{"balance": "magic"}', code=2))
        self.assertIn("version 2", store.sanctl("config", "set", ENTRY, "{}", "--expect", 1,
                                                code=4))

        # Wrong by hand: the last good value stays, and the proxy names the key.
        store.ctl("put", etcd.ROOT + "config/service/" + SERVICE, '{"balance": "by hand"}')
        wait.until(lambda: one.status()["cluster"]["refused"], "the value is refused")
        self.assertEqual(list(one.status()["cluster"]["refused"]), ["config/service/" + SERVICE])
        self.assertIn("by hand", one.proxy.log())
        self.assertEqual(self.service(one)["balance"], "weighted")
        self.assertEqual(one.metrics()['sanproxy_cluster_refused_total{reason="value"}'], 1)
        self.assertEqual(len(store.sanctl("config", "diff")), 2)

        # And back.
        self.assertEqual(store.sanctl("config", "rollback", 1)["version"], 3)
        self.wait_balance(one, "least-connections")
        self.assertEqual(one.status()["cluster"]["refused"], {})
        self.assertEqual([v["version"] for v in store.sanctl("config", "history")], [3, 2, 1])
        store.sanctl("config", "set", ENTRY, "--delete")
        self.wait_balance(one, "round-robin")

        # The end of the process is the end of its keys, when the lease has run out.
        sock.close()
        wait.until(lambda: one.open_connections() == 0, "the connection is over")
        one.proxy.kill()
        wait.until(lambda: not store.keys("node/"), lambda: f"expired: {store.keys()}")
        one.start_proxy()
        wait.until(lambda: any(SERVICE in n["services"]
                               for n in self.nodes(store, "appnode").values()), "all are back")

    def test_health_and_heartbeats_are_what_the_cluster_says(self):
        one, store = self.cluster()
        one.start_echo()
        health = lambda: [member["health"] for member in self.service(one)["members"]]
        ask = {"request": "hello\n", "expect": "hello", "interval_ms": 100, "fall": 1, "rise": 1}
        store.sanctl("config", "set", ENTRY, json.dumps({"health": {**ask, "expect": "goodbye"}}))
        wait.until(lambda: health() == ["down"], "an echo says no goodbye")
        store.sanctl("config", "set", ENTRY, json.dumps({"health": ask}))
        wait.until(lambda: health() == ["up"], "but what was said")
        self.assertIn("health.request", store.sanctl("config", "set", ENTRY, '{"health": {}}',
                                                     code=2))
        beats = 'sanproxy_heartbeats_total{event="asked"}'
        store.sanctl("config", "set", "cluster/heartbeat", '{"interval_ms": 20}')
        before = one.metrics()[beats]
        wait.until(lambda: one.metrics()[beats] > before + 50, "heartbeats are quicker")
        self.assertEqual(store.sanctl("config", "get")["cluster"]["heartbeat"], {"interval_ms": 20})
        store.sanctl("config", "set", "cluster/heartbeat", "--delete")

    def test_an_allow_list_of_the_cluster_ends_memberships_and_connections_go_on(self):
        one, store = self.cluster()
        one.start_echo()
        sock = self.socket(one, 7)
        self.echoes(sock)
        store.sanctl("config", "set", ENTRY, '{"allow": ["uid:4242"]}')
        wait.until(lambda: self.service(one) is None, "nobody may serve it any more")
        self.echoes(sock)
        self.assertEqual(one.metrics()["sanproxy_expelled_total"], 1)
        store.sanctl("config", "set", ENTRY, '{"allow": ["any"]}')
        wait.until(lambda: self.service(one) is not None, "who was taken out is back by itself",
                   timeout_s=40)
        with one.connect(7) as again:
            self.echoes(again)

    def test_drained_nodes_keep_their_connections_and_get_no_new_ones(self):
        one, store = self.cluster()
        echo = one.start_echo()
        name = one.status()["nodes"][0]["name"]
        sock = self.socket(one, 7)
        self.echoes(sock)
        store.sanctl("drain", name, "--no-wait")
        wait.until(lambda: one.status()["drained_nodes"] == [name], "the proxy knows")
        with one.connect(7) as refused:
            refused.sendall(b"x")
            with self.assertRaises(ConnectionResetError):
                refused.recv(1)
        self.echoes(sock)
        self.assertIn("1 connections are left", store.sanctl("drain", name, "--timeout", 0.5,
                                                             code=3))
        self.assertEqual(self.nodes(store, "appnode")[name]["state"], "draining")
        store.sanctl("undrain", name)
        wait.until(lambda: one.status()["drained_nodes"] == [], "the proxy knows")
        with one.connect(7) as taken:
            self.echoes(taken)

        # The proxy: its listeners close after the grace time, open connections go on.
        waiting = threading.Thread(target=lambda: done.append(store.sanctl("drain", "p1")))
        done = []
        waiting.start()
        wait.until(lambda: not self.service(one)["listening"], "it listens no more")
        with self.assertRaises(ConnectionRefusedError):
            one.connect(7)
        self.echoes(sock)
        self.assertEqual(one.http_admin("/healthz")[0], 503)
        self.assertEqual(one.status()["state"], "draining")
        self.assertEqual(done, [])
        sock.close()
        waiting.join(30)
        self.assertEqual(done, [{"node": "p1", "kind": "proxy", "drained": True, "gone": False}])
        self.assertTrue(echo.alive())
        store.sanctl("undrain", "p1")
        wait.until(lambda: self.service(one)["listening"], "it listens again")
        with one.connect(7) as taken:
            self.echoes(taken)

    def test_what_a_drained_node_has_left_is_told_though_others_have_as_many_more(self):
        one, store = self.cluster()
        one.start_echo(name="old")
        name = one.status()["nodes"][0]["name"]
        sock = self.socket(one, 7)
        self.echoes(sock)
        one.start_echo(name="new")

        def told():
            records = [json.loads(store.ctl("get", "--print-value-only", etcd.ROOT + key))
                       for key in store.keys("node/appnode/")]
            return [(r["state"], r["connections"]) for r in records if r["name"] == name]
        store.sanctl("drain", name, "--no-wait")
        wait.until(lambda: told() == [("draining", 1)], lambda: f"it is drained: {told()}")
        other = self.socket(one, 7)
        self.echoes(other)
        sock.close()
        wait.until(lambda: told() == [("drained", 0)], lambda: f"it is empty: {told()}")
        self.echoes(other)

    def test_without_etcd_everything_goes_on_and_it_is_caught_up_with_later(self):
        one, store = self.cluster()
        one.start_echo()
        store.sanctl("config", "set", ENTRY, '{"balance": "weighted"}')
        self.wait_balance(one, "weighted")
        sock = self.socket(one, 7)
        self.echoes(sock)
        store.members[0].kill()
        wait.until(lambda: not one.status()["cluster"]["connected"], "etcd is lost")
        for _ in range(50):
            self.echoes(sock, b"x" * 10_000)
            with one.connect(7) as fresh:
                self.echoes(fresh)
        late = one.start_echo(name="late")
        self.assertEqual(self.service(one)["balance"], "weighted")
        self.assertEqual(one.metrics()["sanproxy_cluster_connected"], 0)
        store.members[0].start()
        store.wait_healthy()
        # What happened meanwhile, history and all, is gone from etcd when the proxy comes back.
        store.ctl("put", etcd.ROOT + "config/service/" + SERVICE, '{"balance": "round-robin"}')
        revision = json.loads(store.ctl("get", "x", "-w", "json"))["header"]["revision"]
        store.ctl("compact", str(revision))
        self.wait_balance(one, "round-robin")
        wait.until(lambda: len(self.nodes(store, "appnode")) == 2, "who came meanwhile is registered")
        self.echoes(sock)
        self.assertTrue(late.alive())


class Discovery(ClusterTest):
    def second_proxy(self, one):
        """The configuration of another proxy of the cluster, beside the first."""
        path = one.config_path.replace("proxynode.toml", "second.toml")
        text = one.config
        for old, new in (('"p1"', '"p2"'), ('"san0"', '"san1"'), ("10.77.0.1/24", "10.78.0.1/24"),
                         ("fd77::1/64", "fd78::1/64"), (":9477", ":9478"),
                         ("proxy.sock", "second.sock")):
            self.assertIn(old, text)
            text = text.replace(old, new)
        with open(path, "w") as file:
            file.write(text)
        return path

    def joined(self, store):
        """The proxies that an application node serves."""
        return sorted(node["proxy"] for node in store.sanctl("nodes", "--kind", "appnode")
                      if SERVICE in node["services"])

    def test_an_application_finds_all_proxies_by_one_address_and_follows_them(self):
        one, store = self.cluster()
        path = self.second_proxy(one)
        cluster = f"etcd://127.0.0.1:1,127.0.0.1:{etcd.CLIENT_PORT}/default"
        argv = programs.echo_argv("echo", [cluster], SERVICE, [])
        app = one.start("echo-found", argv, one.proxy_ns)
        wait.until(lambda: self.joined(store) == ["p1"], lambda: f"p1 is found\n{app.log()}")
        sock = self.socket(one, 7)
        self.echoes(sock)

        start = lambda: one.start("second", [programs.path("proxynode"), "--config", path],
                                  one.proxy_ns)
        second = start()
        wait.until(lambda: self.joined(store) == ["p1", "p2"],
                   lambda: f"p2 is found\n{app.log()}\n{second.log()}")
        self.assertEqual(second.stop(), 0)
        wait.until(lambda: self.joined(store) == ["p1"], "p2 is gone")
        self.echoes(sock)

        # Who is not in etcd keeps the channels it has; etcd is no part of the way.
        store.members[0].kill()
        for _ in range(20):
            with one.connect(7) as fresh:
                self.echoes(fresh)
        self.echoes(sock)
        second = start()
        second.wait_log("is ready")
        store.members[0].start()
        store.wait_healthy()
        wait.until(lambda: self.joined(store) == ["p1", "p2"],
                   lambda: f"p2 is found again\n{app.log()}\n{second.log()}")
        self.echoes(sock)


class Workers(ClusterTest):
    def test_every_worker_of_a_member_is_found_configured_and_drained(self):
        one, store = self.cluster(proxy={"workers": 2})
        cluster = f"etcd://127.0.0.1:{etcd.CLIENT_PORT}/default"
        app = one.start("echo-found", programs.echo_argv("echo", [cluster], SERVICE, []),
                        one.proxy_ns)
        wait.until(lambda: one.node_count(7) == 2, lambda: f"both workers are joined\n{app.log()}")
        self.assertEqual(set(store.keys("node/proxy/")), {"node/proxy/p1", "node/proxy/p1.w1"})
        self.assertEqual(list(self.nodes(store, "proxy")), ["p1"])
        store.sanctl("config", "set", ENTRY, '{"balance": "weighted"}')
        self.wait_balance(one, "weighted")

        # Each worker has some of these.
        socks = [self.socket(one, 7) for _ in range(16)]
        for sock in socks:
            self.echoes(sock)
        store.sanctl("drain", "p1", "--no-wait")
        wait.until(lambda: one.http_admin("/healthz")[0] == 503, "it is drained")

        def refused():
            for _ in range(16):
                try:
                    one.connect(7).close()
                    return False
                except ConnectionRefusedError:
                    pass
            return True
        wait.until(refused, "no worker listens")
        for sock in socks:
            self.echoes(sock)
        self.assertIn("connections are left", store.sanctl("drain", "p1", "--timeout", 0.5,
                                                              code=3))
        for sock in socks:
            sock.close()
        self.assertTrue(store.sanctl("drain", "p1")["drained"])
        self.assertEqual(one.status()["state"], "drained")
        store.sanctl("undrain", "p1")
        wait.until(lambda: one.status()["state"] == "running"
                   and one.http_admin("/healthz")[0] == 200, "it takes connections again")
        with one.connect(7) as taken:
            self.echoes(taken)


class NetworkNode(ClusterTest):
    def test_a_network_node_finds_services_and_proxies_and_hears_of_drains(self):
        one, store = self.cluster()
        # A proxy that gets its packets from network nodes, and a node whose file names neither
        # services nor proxies.
        proxy = one.config.replace('"p1"', '"p2"').replace("proxy.sock", "second.sock")
        proxy = proxy.replace(":9477", ":9478")
        proxy = re.sub(r"\[\[interface\]\].*?(?=\[\[)", programs.toml_section("[[interface]]", {
            "driver": "channel", "listen": f"shm:{one.run_dir}/packets.sock"}), proxy, flags=re.S)
        node = (programs.toml_section("[node]", {"name": "n1", "maglev_entries": 5003,
                                                 "drain_quiet_ms": 200})
                + programs.toml_section("[[interface]]", {"driver": "tun", "name": "nn0",
                                                          "addresses": ["10.79.0.1/24"]})
                + programs.toml_section("[admin]", {"listen": "127.0.0.1:9479"})
                + re.search(r"\[cluster\].*?(?=\n\n|$)", one.config, re.S)[0] + "\n")
        started = {}
        for name, text in (("p2", proxy), ("n1", node.replace("drain_grace_ms = 100\n", ""))):
            with open(os.path.join(one.run_dir, name + ".toml"), "w") as file:
                file.write(text)
            started[name] = one.start(name, [programs.path("netnode" if name == "n1" else "proxynode"),
                                             "--config", file.name], one.proxy_ns)
            started[name].wait_log("is ready")
        proxy_node = started["p2"]
        echo = one.start("echo-steered", programs.echo_argv("echo", [f"shm:{one.run_dir}/second.sock"],
                                                     "10.79.0.10:7",
                                                            ["--drain-ms", "60000"]))

        def steered():
            try:
                code, body = lab.admin.get(one.proxy_ns, "/status", port=9479)
            except OSError:
                return "not there yet"
            status = json.loads(body) if code == 200 else {"services": [], "proxies": []}
            return ([s["address"] for s in status["services"]],
                    {p["name"]: p["state"] for p in status["proxies"]})
        wait.until(lambda: steered() == (["10.79.0.10:7"], {"p2": "up"}),
                   lambda: f"found: {steered()}\n{one.tail()}")
        sock = one.client.socket()
        self.addCleanup(sock.close)
        sock.settimeout(20)
        sock.connect(("10.79.0.10", 7))
        self.echoes(sock)
        self.assertEqual(self.nodes(store, "netnode")["n1"]["state"], "running")
        store.sanctl("drain", "p2", "--no-wait")
        wait.until(lambda: steered()[1] == {"p2": "draining"}, lambda: f"drained: {steered()}")
        self.echoes(sock)
        store.sanctl("undrain", "p2")
        wait.until(lambda: steered()[1] == {"p2": "up"}, lambda: f"up again: {steered()}")

        # Its own drain: who announces addresses hears of it, packets go on.
        healthz = lambda: lab.admin.get(one.proxy_ns, "/healthz", port=9479)[0]
        self.assertEqual(healthz(), 200)
        store.sanctl("drain", "n1", "--kind", "netnode", "--no-wait")
        wait.until(lambda: healthz() == 503, "it asks for its routes to be withdrawn")
        self.echoes(sock)
        done = store.sanctl("drain", "n1", "--kind", "netnode")
        self.assertEqual(done, {"node": "n1", "kind": "netnode", "drained": True, "gone": False})
        self.echoes(sock)
        store.sanctl("undrain", "n1", "--kind", "netnode")
        wait.until(lambda: healthz() == 200, "it takes sessions again")

        # What left the cluster is dropped; what only etcd has lost is not.
        store.members[0].kill()
        self.echoes(sock)
        store.members[0].start()
        store.wait_healthy()
        wait.until(lambda: "node/proxy/p2" in store.keys("node/"), "p2 is registered again")
        self.assertEqual(steered(), (["10.79.0.10:7"], {"p2": "up"}))
        self.echoes(sock)

        # Whom the last application node leaves in order has its packets carried on until it has ended.
        echo.signal(signal.SIGTERM)
        wait.until(lambda: [json.loads(store.ctl("get", "--print-value-only", etcd.ROOT + key))["services"]
                            for key in store.keys("node/appnode/p2")] == [[]],
                   "the cluster knows that nobody serves it any more")
        store.ctl("put", etcd.ROOT + "config/service/10.79.0.11:7", "{}")  # seen after that
        wait.until(lambda: "10.79.0.11:7" in steered()[0], lambda: f"a later change is seen: {steered()}")
        self.assertIn("10.79.0.10:7", steered()[0])
        self.echoes(sock)
        with one.client.socket() as late:  # not silence
            late.settimeout(20)
            self.assertRaises(ConnectionRefusedError, late.connect, ("10.79.0.10", 7))
        store.ctl("del", etcd.ROOT + "config/service/10.79.0.11:7")
        sock.close()
        self.assertEqual(echo.wait(), 0)
        wait.until(lambda: steered() == ([], {"p2": "up"}), lambda: f"left: {steered()}")
        self.assertEqual(proxy_node.stop(), 0)
        wait.until(lambda: steered() == ([], {}), lambda: f"left: {steered()}")


    def test_a_network_node_that_has_heard_nothing_of_its_cluster_is_not_announced(self):
        one, store = self.cluster()
        store.members[0].kill()
        path = os.path.join(one.run_dir, "n1.toml")
        with open(path, "w") as file:
            file.write(programs.toml_section("[node]", {"name": "n1", "maglev_entries": 5003})
                       + programs.toml_section("[[interface]]", {"driver": "tun", "name": "nn0",
                                                                 "addresses": ["10.79.0.1/24"]})
                       + programs.toml_section("[admin]", {"listen": "127.0.0.1:9479"})
                       + programs.toml_section("[cluster]", {"etcd": store.urls}))
        one.start("n1", [programs.path("netnode"), "--config", path], one.proxy_ns).wait_log("is ready")
        healthz = lambda: lab.admin.get(one.proxy_ns, "/healthz", port=9479)
        self.assertEqual(healthz(), (503, "the cluster has told nothing yet\n"))
        store.members[0].start()
        store.wait_healthy()
        wait.until(lambda: healthz() == (200, "ok\n"), lambda: f"it has heard: {healthz()}")


class ThreeMembers(ClusterTest):
    members = 3

    def test_one_member_of_three_may_go(self):
        one, store = self.cluster()
        one.start_echo()
        wait.until(lambda: one.status()["cluster"]["connected"], "the proxy has found etcd")
        endpoint = one.status()["cluster"]["endpoint"]
        dead = next(m for m in store.members if m.url == endpoint)
        dead.kill()
        store.wait_healthy([m for m in store.members if m is not dead])
        store.sanctl("config", "set", ENTRY, '{"balance": "weighted"}')
        self.wait_balance(one, "weighted")
        self.assertNotEqual(one.status()["cluster"]["endpoint"], endpoint)
        self.assertIn("node/proxy/p1", store.keys("node/"))


class OneNode(case.LabTest):
    """sanctl without etcd, against one admin endpoint."""

    def sanctl(self, one, *words, code=0):
        done = etcd.plain(one.proxy_ns, *words)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done.stderr if code else done.stdout

    def test_sanctl_tells_of_one_node_and_steers_it(self):
        one = self.lab()
        one.start_echo()
        sock = self.socket(one, 7)
        sock.sendall(b"hello")
        self.assertEqual(sock.recv(5), b"hello")
        self.assertIn("1 running", self.sanctl(one, "status"))
        self.assertIn(SERVICE, self.sanctl(one, "services"))
        name = one.status()["nodes"][0]["name"]
        self.assertIn(name, self.sanctl(one, "nodes"))
        client = f"{sock.getsockname()[0]}:{sock.getsockname()[1]}"
        for words, count in ((("--client", client), 1), (("--service", SERVICE), 1),
                             (("--node", name), 1), (("--node", name.split(":")[0]), 1),
                             (("--state", "established"), 1), (("--state", "LISTEN"), 0),
                             (("--client", "10.1.1.1"), 0)):
            found = json.loads(self.sanctl(one, "connections", *words, "--json"))
            self.assertEqual(found["total"], count, words)
        top = self.sanctl(one, "top", "--count", 2, "--interval", 0.1, "--json").splitlines()
        self.assertEqual(len(top), 2)
        self.assertEqual(json.loads(top[-1])[0]["connections"], 1)

        self.sanctl(one, "drain", name, "--no-wait")
        self.assertTrue(one.status()["nodes"][0]["drained"])
        self.assertIn("connections are left", self.sanctl(one, "drain", name, "--timeout", 0.4,
                                                          code=3))
        self.sanctl(one, "undrain", name)
        self.assertFalse(one.status()["nodes"][0]["drained"])
        program = name.split(":")[0]
        self.sanctl(one, "drain", program, "--no-wait")
        self.assertTrue(one.status()["nodes"][0]["drained"])
        self.assertIn(f'drained as "{program}"', self.sanctl(one, "undrain", name, code=1))
        self.sanctl(one, "undrain", program)
        self.assertFalse(one.status()["nodes"][0]["drained"])
        self.sanctl(one, "drain", "proxy-e2e", "--no-wait")
        with self.assertRaises(ConnectionRefusedError):
            one.connect(7)
        sock.close()
        self.assertIn("is empty", self.sanctl(one, "drain", "proxy-e2e"))
        self.assertEqual(one.status()["state"], "drained")
        self.sanctl(one, "undrain", "proxy-e2e")
        one.connect(7).close()

    def test_mistakes_get_clear_errors(self):
        one = self.lab()
        for words, code, part in (
                (("drain", "nobody"), 2, 'there is no node "nobody"'),
                (("config", "get"), 2, "--etcd"),
                (("connections", "--state", "OPEN"), 2, "state is"),
                (("connections", "--client", "here"), 2, "client is IP"),
                (("connections", "--service", "web"), 2, "service is IP:PORT"),
                (("nodes", "--admin", "127.0.0.1:1"), 1, "is the node running"),
                (("nodes", "--admin", "here"), 2, "not IP:PORT"),
                (("nodes", "--etcd", "127.0.0.1:2379"), 2, "http://HOST:PORT"),
                (("nodes", "--etcd", "http://127.0.0.1:99999"), 2, "http://HOST:PORT"),
                (("config", "set", "/tmp", "--etcd", "http://127.0.0.1:1"), 2,
                 "/tmp cannot be read, or is empty"),
                (("nodes", "--etcd", "http://127.0.0.1:1"), 1, "etcd: http://127.0.0.1:1"),
                (("nodez",), 2, "nodez")):
            self.assertIn(part, self.sanctl(one, *words, code=code), words)
        for words in ((), ("drain",), ("config", "set")):
            self.assertIn("Example: sanctl", self.sanctl(one, *words, "--help"))
        for shell in ("bash", "zsh"):
            self.assertIn("--no-wait", self.sanctl(one, "completion", shell))

    def test_changes_come_from_loopback_and_not_from_a_web_page(self):
        one = self.lab()
        for header, status in (("", "403"), ("Content-Type: text/plain\r\n", "403"),
                               ("Content-Type: application/json\r\n", "200")):
            with one.proxy_ns.socket() as sock:
                sock.connect(("127.0.0.1", 9477))
                sock.sendall(f"POST /undrain HTTP/1.1\r\nHost: a\r\n{header}Content-Length: 0\r\n"
                             "Connection: close\r\n\r\n".encode())
                answer = b""
                while piece := sock.recv(4096):
                    answer += piece
            self.assertEqual(answer.split()[1].decode(), status, header)
