"""AF_XDP on a veth, end to end: curl through a proxy node, and through a network node in front of one."""

import hashlib
import json
import os
import unittest

from harness import case, settings, wait
from harness.load import EchoLoad
from harness.netnode_lab import NetnodeLab

BYTES = 5_000_000


@unittest.skipIf(settings.in_guest, "the guest is for RDMA")
class ProxyNode(case.LabTest):
    topology = "xdp"

    def test_curl_gets_and_puts_verified_bytes_over_ipv4_and_ipv6(self):
        one = self.lab()
        path = os.path.join(one.run_dir, "file")
        data = os.urandom(BYTES)
        with open(path, "wb") as file:
            file.write(data)
        for family in (4, 6):
            one.start_httpd(family=family, root=one.run_dir)
            got = one.curl("-s", one.url("/file", family=family))
            self.assertEqual(got.returncode, 0, got.stderr)
            self.assertEqual(hashlib.sha256(got.stdout).digest(), hashlib.sha256(data).digest())
            one.start_echo(family=family)
            load = EchoLoad(one, connections=4, family=family)
            self.addCleanup(load.close)
            load.start()
            wait.until(lambda load=load: load.all_progressed([0] * 4, 500_000), "all echo")
            load.finish()
            self.assertEqual(load.lost, [])
        interface = one.status()["interfaces"][0]
        self.assertEqual(interface["driver"], "xdp")
        self.assertIn("copy", interface["mode"])


@unittest.skipIf(settings.in_guest, "the guest is for RDMA")
class NetworkNode(unittest.TestCase):
    def lab(self):
        one = NetnodeLab(".".join(self.id().split(".")[-2:]), driver="xdp")
        self.addCleanup(one.close)
        return one

    def test_curl_gets_verified_bytes_through_a_channel(self):
        one = self.lab()
        one.add_channel("p1")
        one.start_node()
        one.wait_state("p1", "up")
        self.check_carries(one)

    def test_curl_gets_verified_bytes_through_nat(self):
        one = self.lab()
        one.add_plain("plain")
        one.start_node(interface={"gateways": ["10.88.0.2", "fd88::2"]}, nat={"in_kernel": "no"})
        self.check_carries(one)

    def check_carries(self, one):
        for family in (4, 6):
            got = one.curl(one.url(f"/bytes/{BYTES}", family))
            self.assertEqual(got.returncode, 0, got.stderr)
            self.assertEqual(len(got.stdout), BYTES)
            load = EchoLoad(one, connections=4, family=family)
            self.addCleanup(load.close)
            load.start()
            wait.until(lambda load=load: load.all_progressed([0] * 4, 500_000), "all echo")
            load.finish()
            self.assertEqual(load.lost, [])
        interface = json.loads(one.get("/status")[1])["interfaces"][0]
        self.assertEqual(interface["driver"], "xdp")
        # All of it went on from the frames that it came in: no buffer of the node's was wanted.
        metrics = one.metrics()
        self.assertEqual(metrics["sanproxy_netnode_buffers_free_min"],
                         metrics["sanproxy_netnode_buffers"])
        one.assert_clean_stop()
