"""The network node in front of proxies of ours: channels and tunnels, bytes verified."""

from harness import admin, wait
from harness.netnode_test import SERVED, NetnodeTest


class OfOurOwn(NetnodeTest):
    """What holds for proxynode behind a network node, whichever way packets get there."""

    def check_all(self, one):
        for family in (4, 6):
            load = self.load(one, 8, family).start()
            wait.until(lambda: load.all_progressed([0] * 8, 200_000), "all echo", timeout_s=30)
            load.finish()
            self.assertEqual(load.lost, [])
            got = one.curl(one.url("/bytes/20000000", family), "-o", "/dev/null", "-w",
                           "%{http_code} %{size_download}")
            self.assertEqual(got.stdout, b"200 20000000", got.stderr)


class Channel(OfOurOwn):
    def test_packets_reach_a_proxy_over_a_channel_and_its_answers_the_clients(self):
        one = self.lab()
        one.add_channel("near")
        one.start_node()
        one.wait_state("near", "up")
        self.check_all(one)
        one.assert_clean_stop()

    def test_proxies_and_nodes_come_and_go_without_a_broken_connection(self):
        one = self.lab()
        one.add_channel("first")
        one.add_channel("second")
        one.start_node()
        for name in ("first", "second"):
            one.wait_state(name, "up")
        loads = [self.load(one, 30, family).start() for family in (4, 6)]

        def all_go_on(what):
            marks = [(load, load.marks()) for load in loads]
            wait.until(lambda: all(load.all_progressed(mark, 20_000) for load, mark in marks), what,
                       timeout_s=40)
            self.assertEqual([load.lost for load in loads], [[], []], what)

        all_go_on("at first")
        one.post("/drain/first")
        all_go_on("while one drains")
        one.node.kill()
        one.start_node()  # has seen nothing of them, and takes new sessions to both
        for name in ("first", "second"):
            one.wait_state(name, "up")
        all_go_on("after a restart of the node")
        self.assertGreater(one.metrics()['sanproxy_netnode_steered_total{by="session_tag"}'], 0)
        one.add_channel("third")
        one.node.kill()
        one.start_node()  # now Maglev alone would send a third of them elsewhere
        one.wait_state("third", "up")
        all_go_on("with a third proxy")
        for load in loads:
            load.finish()
            self.assertEqual(load.lost, [])
        one.assert_clean_stop()

    def test_a_killed_proxy_takes_only_its_own_connections_along(self):
        one = self.lab()
        first = one.add_channel("first")
        one.add_channel("second")
        one.start_node()
        for name in ("first", "second"):
            one.wait_state(name, "up")
        load = self.load(one, 30, 4).start()
        wait.until(lambda: load.all_progressed([0] * 30, 10_000), "all go")
        of_first = one.proxy("first")["sessions"]
        self.assertGreater(of_first, 0)
        first.kill()
        one.wait_state("first", "down")
        ended = 'sanproxy_netnode_link_events_total{proxy="first",event="ended"}'
        self.assertEqual(one.metrics()[ended], 1)
        later = self.load(one, 10, 4).start()
        wait.until(lambda: later.all_progressed([0] * 10, 10_000), "new ones go")
        load.push_on()
        wait.until(lambda: len(load.lost) == of_first, "the others' clients are told", timeout_s=30)
        marks = load.marks()
        wait.until(lambda: load.all_progressed(marks, 10_000), "the rest goes on")
        self.assertEqual(len(load.lost), of_first)
        later.finish()
        one.assert_clean_stop()


class Tunnel(OfOurOwn):
    def tunnel(self, family, kind, mtu=1500):
        one = self.lab()
        one.add_tunnel("far", family, mtu, tunnel=kind)
        one.start_node()
        self.check_all(one)
        return one

    def test_ip_in_ipv4_reaches_a_proxy_that_answers_directly(self):
        self.tunnel(4, "ip").assert_clean_stop()

    def test_ip_in_ipv6_reaches_a_proxy_that_answers_directly(self):
        self.tunnel(6, "ip").assert_clean_stop()

    def test_gue_reaches_a_proxy_that_answers_directly(self):
        self.tunnel(4, "gue").assert_clean_stop()

    def test_a_path_that_is_narrower_than_the_nodes_interface_is_gone_by(self):
        for family, far in ((4, "10.66.1.2/32"), (6, "fd66:1::2/128")):
            with self.subTest(family=family):
                one = self.lab()
                one.add_tunnel("far", family, tunnel="ip")
                one.client.ip("-6" if family == 6 else "-4", "route", "replace", far, "dev", "v1",
                              "mtu", "lock", "1400")
                one.start_node()
                load = self.load(one, 4, 4).start()
                wait.until(lambda: load.all_progressed([0] * 4, 100_000), "all go on")
                load.finish()
                self.assertEqual(load.lost, [])
                one.assert_clean_stop()
                one.close()

    def test_ipv6_clients_get_through_a_path_that_is_narrower_than_ipv6_promises_them(self):
        for family, kind in ((4, "gue"), (6, "ip")):
            with self.subTest(family=family):
                one = self.lab()
                one.add_tunnel("far", family, 1300, tunnel=kind)
                one.start_node()
                # Segments as they are on a wire: of 1280 bytes, and never less, whatever a client is told.
                one.client.run("ethtool", "-K", "nn0", "tso", "off", "gso", "off")
                load = self.load(one, 4, 6).start()
                wait.until(lambda: load.all_progressed([0] * 4, 200_000), "all go on")
                load.finish()
                self.assertEqual(load.lost, [])
                one.assert_clean_stop()
                one.close()

    def test_segments_that_a_kernel_merges_inside_the_tunnel_are_taken(self):
        one = self.lab()
        one.add_tunnel("far", 4, tunnel="ip")
        far = one.far["far"]
        far.run("ethtool", "-K", "eth0", "gro", "on", check=True)
        # A veth merges what its other end cannot send uncut; held back for longer, so that much is.
        one.client.run("ethtool", "-K", "v1", "tso", "off", check=True)
        far.run("sh", "-c", "cd /sys/class/net/eth0 && echo 1000000 > gro_flush_timeout && "
                "echo 10 > napi_defer_hard_irqs", check=True)
        one.start_node()
        self.check_all(one)
        dropped = {name: count for name, count in admin.metrics(far).items()
                   if count != 0 and ('reason="checksum"' in name or 'reason="metadata"' in name)}
        self.assertEqual(dropped, {})
        one.assert_clean_stop()

    def test_packets_that_do_not_fit_the_tunnel_are_made_to_fit(self):
        one = self.lab()
        one.add_tunnel("far", 4, tunnel="gue")
        one.start_node()
        # Plain packets of a whole MTU: the client has to be told what fits.
        one.client.run("ethtool", "-K", "nn0", "tso", "off", "gso", "off")
        with one.connect(7) as sock:
            sock.sendall(SERVED.slice(0, 200_000))
            got = b""
            while len(got) < 200_000:
                got += sock.recv(65536)
            self.assertEqual(got, bytes(SERVED.slice(0, 200_000)))
        one.assert_clean_stop()
