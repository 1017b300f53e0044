"""Faults: whoever survives loses no byte, whoever does not is told so."""

import signal
import socket
import time

from harness import case, load, programs, wait
from harness.pattern import Pattern

BYTES = Pattern("faults")


class Faults:
    def with_load(self, one, connections=64):
        busy = load.EchoLoad(one, port=7, connections=connections, family=self.family)
        self.addCleanup(busy.close)
        busy.start()
        wait.until(lambda: busy.all_progressed([0] * connections), "the load runs")
        return busy

    def test_kill_of_an_application_node_resets_its_connections_and_no_other(self):
        one = self.lab()
        nodes = [one.start_echo(family=self.family, name=f"node-{i}") for i in range(2)]
        busy = self.with_load(one)
        nodes[0].kill()
        wait.until(lambda: busy.lost, "its connections end")
        wait.until(lambda: one.node_count(7, self.family) == 1, "the node is gone")
        marks = busy.marks()
        wait.until(lambda: busy.all_progressed(marks, 262144), "the others go on")
        self.assertEqual(len(busy.lost), 32)
        self.assertEqual({c.lost for c in busy.lost}, {"ConnectionResetError"})
        with one.connect(7, self.family) as sock:  # and new ones go to the survivor
            sock.sendall(b"new")
            self.assertEqual(sock.recv(3), b"new")
        busy.finish()
        self.assertEqual(len(busy.lost), 32)

    def test_kill_of_the_last_node_resets_its_connections_and_closes_the_port(self):
        one = self.lab()
        node = one.start_echo(family=self.family)
        busy = self.with_load(one, 16)
        node.kill()
        wait.until(lambda: len(busy.lost) == 16, "its connections end")
        self.assertEqual({c.lost for c in busy.lost}, {"ConnectionResetError"})
        wait.until(lambda: one.node_count(7, self.family) == 0, "the node is gone")
        with self.assertRaises(ConnectionRefusedError):
            one.connect(7, self.family)

    def test_nodes_that_die_and_come_back_under_new_connections_harm_nobody_else(self):
        one = self.lab()
        one.start_echo(family=self.family)
        stays = [self.connected(one) for _ in range(8)]
        for _ in range(5):
            node = one.start_echo(family=self.family)
            some = [self.connected(one) for _ in range(20)]
            node.kill()
            wait.until(lambda: one.node_count(7, self.family) == 1, "the node is gone")
            ended = 0
            for sock in some:
                try:
                    sock.sendall(b"still there?")
                    ended += sock.recv(12) != b"still there?"
                except OSError:
                    ended += 1
                sock.close()
            self.assertGreater(ended, 0)
        for sock in stays:
            sock.sendall(b"stayed")
            self.assertEqual(sock.recv(6), b"stayed")

    def connected(self, one):
        sock = self.socket(one, 7)
        sock.sendall(b"x")
        self.assertEqual(sock.recv(1), b"x")
        return sock

    def test_a_killed_proxy_is_back_with_its_nodes_joined_again(self):
        one = self.lab()
        for index in range(2):
            one.start_echo(family=self.family, name=f"node-{index}")
        busy = self.with_load(one)
        one.proxy.kill()
        one.programs.remove(one.proxy)
        started = time.monotonic()
        one.start_proxy(wait_ready=False)

        def served():
            try:
                with one.connect(7, self.family, timeout_s=0.5) as sock:
                    sock.sendall(b"again")
                    return sock.recv(5) == b"again"
            except OSError:
                return False
        wait.until(served, "a new connection is served", timeout_s=20, pause_s=0.005)
        print(f"     new connections work {time.monotonic() - started:.3f} s after the restart")
        wait.until(lambda: one.node_count(7, self.family) == 2, "both nodes joined again")
        busy.push_on()
        wait.until(lambda: len(busy.lost) == 64, "every client of the old proxy is told", 60)
        self.assertEqual(busy.wrong, [])
        again = self.with_load(one)
        marks = again.marks()
        wait.until(lambda: again.all_progressed(marks, 65536), "the new load runs")
        again.finish()
        self.assertEqual(again.lost, [])

    def test_leave_under_load_lets_open_connections_finish(self):
        one = self.lab()
        stays = one.start_echo(family=self.family, name="stays")
        leaves = one.start_echo(family=self.family, name="leaves", extra=["--drain-ms", "60000"])
        busy = self.with_load(one)
        leaves.signal(signal.SIGTERM)
        wait.until(lambda: one.node_count(7, self.family) == 1, "the node has left")
        marks = busy.marks()
        wait.until(lambda: busy.all_progressed(marks, 65536), "every connection goes on")
        busy.finish()
        self.assertEqual(busy.lost, [])
        self.assertEqual(leaves.wait(), 0)
        self.assertTrue(stays.alive())

    def test_the_last_node_may_leave_under_load_and_its_connections_finish(self):
        one = self.lab()
        leaves = one.start_echo(family=self.family, extra=["--drain-ms", "60000"])
        busy = self.with_load(one, 16)
        leaves.signal(signal.SIGTERM)
        wait.until(lambda: one.node_count(7, self.family) == 0, "the node has left")
        marks = busy.marks()
        wait.until(lambda: busy.all_progressed(marks, 65536), "every connection goes on")
        busy.finish()
        self.assertEqual(busy.lost, [])
        self.assertEqual(leaves.wait(), 0)

    def test_clients_whose_requests_wait_when_their_node_leaves_are_served(self):
        one = self.lab()
        node = one.start_echo(family=self.family, extra=["--drain-ms", "60000"])
        node.signal(signal.SIGSTOP)
        socks = []
        for _ in range(1500):  # more than there are credits for
            socks.append(one.connect(7, self.family))
            self.addCleanup(socks[-1].close)
            socks[-1].sendall(b"hello")
        node.signal(signal.SIGTERM)
        node.signal(signal.SIGCONT)
        for sock in socks:
            self.assertEqual(sock.recv(5), b"hello")
            sock.close()
        self.assertEqual(node.wait(), 0)

    def test_pools_of_the_smallest_size_slow_everybody_down_and_harm_nobody(self):
        one = self.lab(config=programs.tiny_pools())
        one.start_echo(family=self.family)
        busy = self.with_load(one)
        marks = busy.marks()
        wait.until(lambda: busy.all_progressed(marks, 1 << 20), "every connection goes on")
        busy.finish()
        self.assertEqual(busy.lost, [])

    def limited(self, action):
        one = self.lab(config=programs.connection_limit(8, action))
        one.start_echo(family=self.family)
        sockets = [self.socket(one, 7) for _ in range(8)]
        for sock in sockets:
            sock.sendall(b"x")
            self.assertEqual(sock.recv(1), b"x")
        return one, sockets

    def still_served(self, one, sockets):
        for sock in sockets:
            sock.sendall(b"y")
            self.assertEqual(sock.recv(1), b"y")
        sockets[0].close()
        wait.until(lambda: one.open_connections() == 7, "a place is free")
        sock = self.socket(one, 7)
        sock.sendall(b"z")
        self.assertEqual(sock.recv(1), b"z")

    def test_beyond_the_connection_limit_a_client_is_refused_with_reset(self):
        one, sockets = self.limited("reset")
        for _ in range(3):
            with self.assertRaises((ConnectionRefusedError, ConnectionResetError)):
                with one.connect(7, self.family) as extra:
                    extra.sendall(b"x")
                    if not extra.recv(1):
                        raise AssertionError("an orderly end instead of a reset")
        self.assertGreaterEqual(programs.refused_count(one.metrics()), 3)
        self.still_served(one, sockets)

    def test_beyond_the_connection_limit_a_syn_is_left_unanswered(self):
        one, sockets = self.limited("drop")
        with self.assertRaises(socket.timeout):
            one.connect(7, self.family, timeout_s=1.5)
        self.assertGreaterEqual(programs.refused_count(one.metrics()), 1)
        self.still_served(one, sockets)

    def test_sigterm_lets_open_connections_finish(self):
        one = self.lab(config=programs.drain(20))
        node = one.start_echo(family=self.family)
        busy = self.with_load(one, 16)
        one.proxy.signal(signal.SIGTERM)
        wait.until(lambda: self.refused(one), "new connections are refused")
        marks = busy.marks()
        wait.until(lambda: busy.all_progressed(marks, 262144), "open connections go on")
        self.assertTrue(one.proxy.alive())
        busy.finish()
        self.assertEqual(busy.lost, [])
        self.assertEqual(one.proxy.wait(), 0)
        self.assertTrue(node.alive())
        self.not_healthy_at_end(one)

    def test_sigterm_ends_at_the_configured_time_whoever_is_still_there(self):
        one = self.lab(config=programs.drain(1))
        one.start_echo(family=self.family)
        sock = self.socket(one, 7)
        sock.sendall(b"x")
        self.assertEqual(sock.recv(1), b"x")
        one.proxy.signal(signal.SIGTERM)
        with self.assertRaises(ConnectionResetError):
            if sock.recv(1) == b"":
                raise AssertionError("an orderly end instead of a reset")
        self.assertEqual(one.proxy.wait(), 0)
        self.not_healthy_at_end(one)

    def test_a_client_that_reads_nothing_is_told_of_the_end(self):
        one = self.lab(config=programs.drain(1))
        one.start_httpd(family=self.family)
        sock = one.connect(80, self.family, receive_buffer=4096)
        self.addCleanup(sock.close)
        sock.sendall(b"GET /bytes/10000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        probes = "sanproxy_tcp_retransmits_total"
        before = one.metrics()[probes]
        wait.until(lambda: one.metrics()[probes] > before, "its closed window is probed again")
        one.proxy.signal(signal.SIGTERM)
        self.assertEqual(one.proxy.wait(), 0)
        with self.assertRaises(ConnectionResetError):
            while sock.recv(65536):
                pass
        self.not_healthy_at_end(one)

    def test_new_connections_are_taken_until_the_grace_is_over(self):
        config = {"proxy": {"drain_grace_ms": 500_000, "drain_ms": 500_000}}
        one = self.lab(config=config)
        one.start_echo(family=self.family)
        one.proxy.signal(signal.SIGTERM)
        wait.until(lambda: one.http_admin("/healthz")[0] == 503, "whoever looks sends nobody")
        sock = self.socket(one, 7)
        sock.sendall(b"x")
        self.assertEqual(sock.recv(1), b"x")
        # A second one, later: what follows at once would be the same one, said twice.
        wait.until(lambda: one.proxy.signal(signal.SIGTERM) or not one.proxy.alive(), "it ends")
        self.assertEqual(one.proxy.wait(), 0)
        self.not_healthy_at_end(one)

    def test_a_signal_that_is_said_twice_at_once_is_one(self):
        """As by timeout(1), which tells the program and then its process group."""
        one = self.lab(config=programs.drain(60))
        node = one.start_echo(family=self.family, extra=["--drain-ms", "60000"])
        busy = self.with_load(one, 16)
        for program in (node, one.proxy):
            program.signal(signal.SIGSTOP)
            program.signal(signal.SIGTERM)
            program.signal(signal.SIGINT)
            program.signal(signal.SIGCONT)
        wait.until(lambda: self.refused(one), "new connections are refused")
        marks = busy.marks()
        wait.until(lambda: busy.all_progressed(marks, 262144), "open connections go on")
        busy.finish()
        self.assertEqual(busy.lost, [])
        self.assertEqual(node.wait(), 0)
        self.assertEqual(one.proxy.wait(), 0)
        self.not_healthy_at_end(one)

    def test_sighup_ends_nothing(self):
        """Who takes it for a wish to read the configuration again is told that it is not."""
        one = self.lab()
        one.start_echo(family=self.family)
        sock = self.socket(one, 7)
        one.proxy.signal(signal.SIGHUP)
        one.proxy.wait_log("nothing is read again")
        sock.sendall(b"x")
        self.assertEqual(sock.recv(1), b"x")

    def refused(self, one):
        try:
            with one.connect(7, self.family, timeout_s=0.5) as sock:
                sock.sendall(b"?")
                return sock.recv(1) == b""
        except OSError:
            return True

    @staticmethod
    def not_healthy_at_end(one):
        one.assert_not_broken()
        one.assert_healthy = lambda: None  # the proxy has ended, as it should


class SmallerMtu(case.LabTest):
    topology = "packet"

    def test_connections_outlive_an_mtu_that_is_made_smaller(self):
        one = self.lab()
        one.start_echo()
        # What the client sends fits in any case; what it says of itself stays as it was.
        one.client.ip("route", "change", "10.77.0.0/24", "via", "10.88.0.1", "mtu", "1000",
                      "advmss", "1460")
        with one.connect(7) as sock:
            def exchange(size):
                sock.sendall(BYTES.slice(0, size))
                got = b""
                while len(got) < size:
                    got += sock.recv(1 << 16)
                self.assertEqual(got, bytes(BYTES.slice(0, size)))
            exchange(1400)
            one.proxy_ns.ip("link", "set", "san0", "mtu", "1300")
            exchange(1400)
            exchange(1_000_000)
        self.assertEqual(one.status()["interfaces"][0]["mtu"], 1300)
        self.assertEqual(one.metrics()["sanproxy_path_mtu_lowered_total"], 1)


globals().update(case.over(Faults, families=(4,), shared=True, network=("tcp", "tls", "verbs")))
