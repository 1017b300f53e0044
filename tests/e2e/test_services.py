"""Services: joining, leaving, sharing out connections, binding, refusing."""

import signal
import socket

from harness import case, lab, syn, wait
from harness.pattern import Pattern

BYTES = Pattern("services")


def ask(sock, text=b"hello"):
    sock.sendall(text)
    got = b""
    while len(got) < len(text):
        piece = sock.recv(len(text) - len(got))
        if not piece:
            raise AssertionError("end instead of an answer")
        got += piece
    return got


class Services:
    def address(self, port=7):
        return lab.service_address(self.family, port)

    def shares(self, one, port=7):
        return one.shares(port, self.family)

    def open(self, one, count, port=7):
        sockets = []
        for _ in range(count):
            sock = self.socket(one, port)
            self.assertEqual(ask(sock), b"hello")
            sockets.append(sock)
        return sockets

    def policy(self, **values):
        return {"address": self.address(), **values}

    def test_a_service_appears_with_the_first_join_and_is_closed_after_the_last_leave(self):
        one = self.lab()
        if self.topology == "tun":  # on a segment, an address that never was served has no ARP
            with self.assertRaises(ConnectionRefusedError):
                one.connect(7, self.family)
        first = one.start_echo(family=self.family, name="first")
        second = one.start_echo(family=self.family, name="second")
        with one.connect(7, self.family) as sock:
            self.assertEqual(ask(sock), b"hello")
        self.assertEqual(first.stop(), 0)
        wait.until(lambda: one.node_count(7, self.family) == 1, "the first has left")
        with one.connect(7, self.family) as sock:
            self.assertEqual(ask(sock), b"hello")
        self.assertEqual(second.stop(), 0)
        wait.until(lambda: one.node_count(7, self.family) == 0, "the second has left")
        with self.assertRaises(ConnectionRefusedError):
            one.connect(7, self.family)

    def test_round_robin_gives_every_node_the_same_number(self):
        one = self.lab(services=[self.policy(balance="round-robin")])
        for index in range(4):
            one.start_echo(family=self.family, name=f"n{index}")
        sockets = self.open(one, 40)
        self.assertEqual(self.shares(one), {f"n{i}": 10 for i in range(4)})
        self.assertEqual(len(sockets), 40)

    def test_weights_decide_the_shares(self):
        one = self.lab(services=[self.policy(balance="weighted")])
        one.start_echo(family=self.family, name="light", extra=["--weight", "1"])
        one.start_echo(family=self.family, name="heavy", extra=["--weight", "3"])
        self.open(one, 40)
        self.assertEqual(self.shares(one), {"light": 10, "heavy": 30})

    def test_least_connections_fills_up_whoever_has_fewest(self):
        one = self.lab(services=[self.policy(balance="least-connections")])
        one.start_echo(family=self.family, name="early")
        self.open(one, 12)
        one.start_echo(family=self.family, name="late")
        self.open(one, 12)
        self.assertEqual(self.shares(one), {"early": 12, "late": 12})

    def test_a_rejecting_node_makes_the_client_see_a_reset(self):
        one = self.lab()
        one.start_echo(mode="reject", family=self.family)
        for _ in range(5):
            with self.assertRaises((ConnectionResetError, ConnectionRefusedError)):
                with one.connect(7, self.family) as sock:
                    sock.sendall(b"x")
                    if sock.recv(1) == b"":
                        raise AssertionError("an orderly end instead of a reset")

    def test_delayed_binding_asks_the_application_only_when_data_comes(self):
        one = self.lab(services=[self.policy(binding="delayed")])
        one.start_echo(family=self.family, name="node")
        silent = [self.socket(one, 7) for _ in range(10)]
        wait.until(lambda: one.open_connections() == 10, "the proxy has ten connections")
        self.assertEqual(self.shares(one), {"node": 0})
        self.assertEqual(ask(silent[0]), b"hello")
        self.assertEqual(self.shares(one), {"node": 1})

    def test_immediate_binding_asks_the_application_at_once(self):
        one = self.lab(services=[self.policy(binding="immediate")])
        one.start_echo(family=self.family, name="node")
        for _ in range(10):
            self.socket(one, 7)
        wait.until(lambda: self.shares(one) == {"node": 10}, "the node has ten connections")

    def test_a_node_gets_no_more_connections_than_it_asked_for(self):
        one = self.lab()
        one.start_echo(family=self.family, name="small", extra=["--max-connections", "2"])
        one.start_echo(family=self.family, name="large")
        self.open(one, 10)
        self.assertEqual(self.shares(one), {"small": 2, "large": 8})

    def test_when_every_node_is_full_a_client_is_reset(self):
        one = self.lab()
        one.start_echo(family=self.family, extra=["--max-connections", "2"])
        full = self.open(one, 2)
        with self.assertRaises((ConnectionResetError, ConnectionRefusedError)):
            with one.connect(7, self.family) as sock:
                sock.sendall(b"x")
                if sock.recv(1) == b"":
                    raise AssertionError("an orderly end instead of a reset")
        full[0].close()
        wait.until(lambda: one.open_connections() == 1, "a place is free")
        self.open(one, 1)

    def test_a_node_that_policy_does_not_allow_may_not_join(self):
        one = self.lab(services=[self.policy(allow=["uid:4711"])])
        node = one.start_echo(family=self.family, joined=False)
        node.wait_log("not_permitted")
        one.start_echo(port=8, family=self.family)  # other services are open to it
        with self.assertRaises(ConnectionRefusedError):
            one.connect(7, self.family)

    def test_shutdown_service_ends_the_service_for_everybody(self):
        one = self.lab()
        one.start_echo(family=self.family, name="one")
        two = one.start_echo(mode="shutdown", family=self.family, name="two")
        two.signal(signal.SIGTERM)
        wait.until(lambda: one.node_count(7, self.family) == 0, "the service is gone")
        with self.assertRaises(ConnectionRefusedError):
            one.connect(7, self.family)

    def test_an_application_opens_an_outgoing_connection(self):
        self.check_outgoing("connect")

    def test_a_blocking_application_opens_an_outgoing_connection(self):
        self.assertEqual(self.check_outgoing("connect-blocking").wait(), 0)

    def check_outgoing(self, mode):
        one = self.lab()
        listener = one.client.socket(socket.AF_INET if self.family == 4 else socket.AF_INET6)
        self.addCleanup(listener.close)
        remote = {("tun", 4): "10.77.0.1", ("tun", 6): "fd77::1",
                  ("packet", 4): "10.88.0.2", ("packet", 6): "fd88::2"}[(self.topology,
                                                                         self.family)]
        listener.bind((remote, 5555))
        listener.listen(8)
        listener.settimeout(20)
        target = f"{remote}:5555" if self.family == 4 else f"[{remote}]:5555"
        node = one.start_echo(mode=mode, family=self.family, extra=["--remote", target])
        server, _ = listener.accept()
        self.addCleanup(server.close)
        server.settimeout(20)
        for offset in range(0, 1 << 20, 65536):
            server.sendall(BYTES.slice(offset, 65536))
            got = b""
            while len(got) < 65536:
                piece = server.recv(65536 - len(got))
                self.assertTrue(piece, "ended early")
                got += piece
            self.assertEqual(got, BYTES.slice(offset, 65536))
        server.shutdown(socket.SHUT_WR)
        self.assertEqual(server.recv(1), b"")
        return node

    def test_an_outgoing_connection_to_where_no_route_leads_is_told_so(self):
        if self.topology != "tun":  # there the client's host is the router
            return
        one = self.lab()
        one.client.sysctl("net.ipv4.ip_forward", "1")
        one.client.sysctl("net.ipv6.conf.all.forwarding", "1")
        network, target = {4: ("203.0.113.0/24", "203.0.113.9:9"),
                           6: ("2001:db8::/64", "[2001:db8::9]:9")}[self.family]
        one.client.run("ip", f"-{self.family}", "route", "add", "unreachable", network)
        node = one.start_echo(mode="connect-blocking", family=self.family, joined=False,
                              extra=["--remote", target])
        self.assertEqual(node.wait(), 2)
        node.wait_log("unreachable")

    def test_services_on_many_ports_and_both_families_do_not_mix(self):
        one = self.lab()
        ports = range(7001, 7009)
        for port in ports:
            one.start_echo(port=port, family=self.family, name=f"p{port}")
        sockets = [self.socket(one, port) for port in ports for _ in range(3)]
        for index, sock in enumerate(sockets):
            self.assertEqual(ask(sock, b"m%d" % index), b"m%d" % index)
        for port in ports:
            self.assertEqual(self.shares(one, port), {f"p{port}": 3})


class SynFlood:
    # A raw IPv6 socket cannot forge its source, so this one is for IPv4 alone.
    open, shares = Services.open, Services.shares

    def test_a_flood_of_syns_costs_the_application_nothing(self):
        one = self.lab()
        one.start_echo(name="node")
        busy = self.open(one, 1)[0]
        syn.flood(one.client, "10.88.0." if self.topology == "packet" else "10.77.0.",
                  lab.V4, 7, 20_000)
        self.assertEqual(ask(busy), b"hello")
        self.assertEqual(self.shares(one), {"node": 1})
        self.assertTrue(one.healthy())
        busy.close()
        one.proxy.kill()  # the half-open ones would take long to time out
        one.assert_healthy = one.assert_not_broken


globals().update(case.over(Services, network=("tcp", "verbs")))
globals().update(case.over(SynFlood, families=(4,)))
