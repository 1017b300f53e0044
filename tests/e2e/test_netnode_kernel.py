"""Established sessions behind the NAT that the kernel carries: by every driver, and as if it did not."""

import signal

from harness import programs, wait
from harness.load import EchoLoad
from harness.netnode_test import NetnodeTest

GATEWAYS = {"gateways": ["10.88.0.2", "fd88::2"]}
QUICK_PROBE = {"probe": "tcp", "probe_interval_ms": 50, "probe_timeout_ms": 500, "probe_fall": 2}
KERNEL = 'sanproxy_netnode_kernel_packets_total{direction="%s"}'
FLOWS = 'sanproxy_netnode_kernel_flows_total{result="%s"}'


class InKernel(NetnodeTest):
    def node(self, driver="tun", nat=None, **keys):
        one = self.lab(driver)
        one.add_plain("plain", **keys)
        one.start_node(interface={} if driver == "tun" else GATEWAYS,
                       nat={"in_kernel": "yes", **(nat or {})})
        return one

    def carried(self, one):
        return [one.metrics()[KERNEL % way] for way in ("to_proxy", "to_client")]

    def wait_carried(self, one, packets=200):
        before = self.carried(one)
        wait.until(lambda: all(now >= then + packets
                               for now, then in zip(self.carried(one), before)),
                   lambda: f"the kernel carries on: {self.carried(one)}")

    def check_carries(self, driver):
        one = self.node(driver)
        for family in (4, 6):
            before = self.carried(one)
            self.check_download(one, family)
            load = self.load(one, 8, family).start()
            wait.until(lambda load=load: load.all_progressed([0] * 8, 500_000), "all echo")
            self.assertTrue(all(now > then for now, then in zip(self.carried(one), before)))
            load.finish()
            self.assertEqual(load.lost, [])
        metrics = one.metrics()
        self.assertGreaterEqual(metrics[FLOWS % "taken"], 2 * 18)
        self.assertEqual(metrics[FLOWS % "refused"], 0)
        self.assertEqual(metrics["sanproxy_netnode_kernel_dropped_total"], 0)
        one.assert_clean_stop()

    def test_by_tun(self):
        self.check_carries("tun")

    def test_by_packet_sockets(self):
        self.check_carries("packet")

    def test_by_xdp(self):
        self.check_carries("xdp")

    def test_a_checksum_that_was_left_to_a_device_is_right_when_one_completes_it(self):
        # From veth to veth nobody ever does.
        for driver in ("tun", "packet", "xdp"):
            with self.subTest(driver):
                one = self.lab(driver)
                one.add_plain("plain")
                where, device = (one.client, "v1") if driver == "tun" else (one.here, "nn0")
                where.run("ethtool", "-K", device, "tx", "off", check=True)
                one.start_node(interface={} if driver == "tun" else GATEWAYS,
                               nat={"in_kernel": "yes"})
                for family in (4, 6):
                    load = self.load(one, 4, family).start()
                    self.wait_carried(one)
                    marks = load.marks()
                    wait.until(lambda load=load, marks=marks: load.all_progressed(marks, 500_000),
                               "all go on")
                    load.finish()
                    self.assertEqual(load.lost, [])
                one.assert_clean_stop()

    def test_connections_go_on_while_the_node_stands_still(self):
        one = self.node()
        load = self.load(one, 8, 4).start()
        self.wait_carried(one)
        one.node.signal(signal.SIGSTOP)
        self.addCleanup(one.node.signal, signal.SIGCONT)
        marks = load.marks()
        wait.until(lambda: load.all_progressed(marks, 500_000), "all go on")
        one.node.signal(signal.SIGCONT)
        load.finish()
        self.assertEqual(load.lost, [])
        one.assert_clean_stop()

    def test_clients_of_a_server_that_is_gone_are_told_so(self):
        one = self.lab()
        for number, name in enumerate(("first", "second"), 1):
            one.add_plain(name, probe_address=f"10.66.{number}.2:80", **QUICK_PROBE)
        one.start_node(nat={"in_kernel": "yes"})
        for name in ("first", "second"):
            one.wait_state(name, "up")
        load = self.load(one, 20, 4).start()
        self.wait_carried(one)
        sessions = one.proxy("first")["sessions"]
        self.assertTrue(0 < sessions < 20)
        one.far["first"].ip("link", "set", "eth0", "down")
        one.wait_state("first", "down")
        load.push_on()
        wait.until(lambda: len(load.lost) == sessions, "the other server resets them")
        marks = load.marks()
        wait.until(lambda: load.all_progressed(marks, 100_000), "its own go on")
        load.finish()
        self.assertEqual(len(load.lost), sessions)

    def test_a_neighbour_that_has_another_address_on_its_link_is_followed(self):
        for driver in ("packet", "xdp"):
            with self.subTest(driver):
                one = self.node(driver)
                load = self.load(one, 8, 4).start()
                self.wait_carried(one)
                one.client.ip("link", "set", "eth0", "address", "02:00:00:00:77:01")
                one.client.ip("neigh", "flush", "dev", "eth0")
                marks = load.marks()
                wait.until(lambda load=load, marks=marks: load.all_progressed(marks, 100_000),
                           "all go on", timeout_s=30)
                self.wait_carried(one)
                load.finish()
                self.assertEqual(load.lost, [])
                one.assert_clean_stop()

    def test_frames_whose_headers_the_sender_left_in_two_pieces_are_carried(self):
        # So does a packet socket with a packet of more than a page that says nothing of its headers.
        one = self.lab("packet")
        for where, device in ((one.client, "eth0"), (one.here, "nn0")):
            where.ip("link", "set", device, "mtu", "9000")
        one.add_proxynode_beside("first", 9000)
        one.start_node(interface={**GATEWAYS, "mtu": 9000}, nat={"in_kernel": "yes"})
        for family in (4, 6):
            load = EchoLoad(one, connections=2, family=family, chunk_bytes=6000,
                            in_flight_bytes=6000)
            self.addCleanup(load.close)
            load.start()
            self.wait_carried(one)
            load.finish()
            self.assertEqual(load.lost, [])
        one.assert_clean_stop()

    def test_a_smaller_mtu_behind_the_node_is_told_to_who_sends_too_much(self):
        one = self.node(mtu=1400)
        load = self.load(one, 4, 4).start()
        self.wait_carried(one)
        wait.until(lambda: load.all_progressed([0] * 4, 1_000_000), "all go on")
        load.finish()
        self.assertEqual(load.lost, [])
        one.assert_clean_stop()

    def test_what_the_file_does_not_want_is_not_done(self):
        one = self.node(nat={"in_kernel": "no"})
        self.check_download(one, 4, 1_000_000)
        self.assertNotIn(KERNEL % "to_client", one.metrics())
        self.assertIn('"nat_in_kernel": false', one.get("/status")[1])
        one.assert_clean_stop()

    def test_what_cannot_be_is_said_before_the_start(self):
        one = self.lab("tap")
        one.add_plain("plain")
        path = one.write_config(nat={"in_kernel": "yes"})
        got = one.here.run(programs.path("netnode"), "--check", "--config", path)
        self.assertEqual(got.returncode, 2)
        self.assertIn(b'[nat].in_kernel: interface "nn0" has driver "tap"', got.stderr)
        path = one.write_config(nat={"in_kernel": "yes", "established_s": 39})
        got = one.here.run(programs.path("netnode"), "--check", "--config", path)
        self.assertIn(b"established_s is below 40", got.stderr)
