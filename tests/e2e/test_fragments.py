"""Clients whose packets are cut on the way: directly, and through network nodes."""

import json
import threading
import unittest

from harness import admin, case, lab, netnode_lab, wait
from harness.far_client import FarClient
from harness.netnode_lab import NetnodeLab
from harness.pattern import Pattern

BYTES = Pattern("fragments")
WHOLE = "sanproxy_datagrams_put_together_total"
CONNECTIONS = 16  # of which one worker has all once in 2^15 times
CUT_BY_RELAY = {"fragment": 552, "reorder": 0.05, "reorder_us": 500, "duplicate": 0.02}


def echo(test, sock, total):
    """Every byte there and back."""
    def send():
        for chunk in BYTES.chunks(total):
            sock.sendall(chunk)
    sender = threading.Thread(target=send)
    sender.start()
    offset = 0
    while offset < total:
        piece = sock.recv(1 << 16)
        test.assertTrue(piece, f"ended after {offset} bytes")
        test.assertEqual(piece, BYTES.slice(offset, len(piece)))
        offset += len(piece)
    sender.join()


def dropped(metrics, reason):
    return metrics[f'sanproxy_packets_dropped_total{{reason="{reason}"}}']


def ended(one):
    """The far client answers the last FIN: whoever ends it before leaves a connection without a peer."""
    wait.until(lambda: one.open_connections() == 0, "the connections end")


class Direct:
    """Whatever driver the packets come by."""

    def far(self, one, relayed=None):
        far = FarClient(one.client, one.log_dir, relayed)
        self.addCleanup(far.close)
        return far

    def check(self, one, far, addresses, total):
        for address in addresses:
            with far.connect(address, 7) as sock:
                before = one.metrics()[WHOLE]
                echo(self, sock, total)
                # A segment is longer than an MTU, but perhaps for the last of a burst.
                self.assertGreater(one.metrics()[WHOLE] - before, total / 1460 / 2)
        ended(one)
        metrics = one.metrics()
        # Not "fragment_overlap": an id may be that of a packet of which a part was lost.
        for reason in ("fragment_tiny", "fragment_malformed", "fragment_not_tcp"):
            self.assertEqual(dropped(metrics, reason), 0, reason)

    def test_packets_that_a_router_cuts_arrive_whole(self):
        one = self.lab()
        one.start_echo(port=7)
        for mtu in (576, 1280):
            far = self.far(one)
            far.let_router_cut(mtu)
            self.check(one, far, [lab.V4], 2_000_000)
            far.close()

    def test_fragments_out_of_order_and_repeated_arrive_whole(self):
        one = self.lab()
        for family in (4, 6):
            one.start_echo(port=7, family=family)
        far = self.far(one, CUT_BY_RELAY)
        self.check(one, far, [lab.V4, lab.V6], 1_000_000)


class SeveralWorkers:
    """Steering sends all fragments of a client to one worker, and its connections to all."""

    def test_connections_of_every_worker_get_what_came_in_fragments(self):
        one = self.lab(config={"proxy": {"workers": 2}})
        for family in (4, 6):
            one.start_echo(port=7, family=family)
            wait.until(lambda: one.node_count(7, family) % 2 == 0, "it joins at both workers")
        far = FarClient(one.client, one.log_dir, CUT_BY_RELAY)
        self.addCleanup(far.close)
        for address in (lab.V4, lab.V6):
            before = one.metrics()
            socks = [far.connect(address, 7) for _ in range(CONNECTIONS)]
            for sock in socks:
                self.addCleanup(sock.close)
            rows = json.loads(one.http_admin("/connections?limit=1000")[1])["connections"]
            self.assertEqual({row["worker"] for row in rows}, {0, 1})
            for sock in socks:
                echo(self, sock, 40_000)
                sock.close()
            after = one.metrics()
            whole, passed_on = (after[name] - before[name]
                                for name in (WHOLE, "sanproxy_handed_over_total"))
            self.assertGreater(whole, CONNECTIONS * 40_000 / 1460 / 2)
            self.assertGreater(passed_on, 0)
            self.assertLess(passed_on, whole)
        ended(one)


    def test_a_routers_errors_reach_the_connections_of_every_worker(self):
        """They come from its own address, all to one worker."""
        one = self.lab(config={"proxy": {"workers": 2}})
        one.start_echo(port=7)
        wait.until(lambda: one.node_count(7) == 2, "it joins at both workers")
        far = FarClient(one.client, one.log_dir)
        self.addCleanup(far.close)
        far.let_router_say_too_big(1000)
        for _ in range(CONNECTIONS):
            with far.connect(lab.V4, 7) as sock:
                echo(self, sock, 40_000)
        ended(one)
        metrics = one.metrics()
        for worker in (0, 1):
            self.assertGreater(metrics[f'sanproxy_path_mtu_lowered_total{{worker="{worker}"}}'], 0)
        self.assertGreater(metrics["sanproxy_handed_over_total"], 0)


class ThroughNetworkNodes(unittest.TestCase):
    def check(self, add):
        one = NetnodeLab(".".join(self.id().split(".")[-2:]))
        self.addCleanup(one.close)
        for name in ("first", "second"):
            add(one, name)
        one.start_node()
        for name in ("first", "second"):
            one.wait_state(name, "up")

        def whole():
            return sum(admin.metrics(one.far[name])[WHOLE] for name in ("first", "second"))
        far = FarClient(one.client, one.log_dir)
        self.addCleanup(far.close)
        far.let_router_cut(576)
        for _ in range(3):  # to either proxy
            with far.connect(netnode_lab.VIP[4], 7) as sock:
                before = whole()
                echo(self, sock, 500_000)
                self.assertGreater(whole() - before, 500_000 / 1460 / 2)
        far.close()
        far = FarClient(one.client, one.log_dir, CUT_BY_RELAY)
        self.addCleanup(far.close)
        for family in (4, 6):
            with far.connect(netnode_lab.VIP[family], 7) as sock:
                before = whole()
                echo(self, sock, 500_000)
                self.assertGreater(whole() - before, 500_000 / 1460 / 2)
        one.assert_clean_stop()

    def test_fragments_arrive_whole_over_channels(self):
        self.check(lambda one, name: one.add_channel(name))

    def test_fragments_arrive_whole_through_ip_tunnels(self):
        self.check(lambda one, name: one.add_tunnel(name, 4, tunnel="ip"))

    def test_fragments_arrive_whole_through_gue_tunnels_over_ipv6(self):
        self.check(lambda one, name: one.add_tunnel(name, 6, tunnel="gue"))


globals().update(case.over(Direct, topologies=("tun", "packet", "channel"), families=(4,)))
globals().update(case.over(SeveralWorkers, families=(4,)))
globals().update(case.over(Direct, topologies=("xdp",), families=(4,)))
