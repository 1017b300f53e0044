"""What holds over the restart of a worker, and what ends a node."""

import os
import signal
import socket

from harness import admin, case, wait


class WorkerRestarts:
    def two(self, **options):
        return self.lab(config={"proxy": {"workers": 2}}, **options)

    def start_echo(self, one, **how):
        node = one.start_echo(family=self.family, **how)
        wait.until(lambda: one.node_count(7, self.family) % 2 == 0, "it joins at both workers")
        return node

    def post(self, one, path):
        self.assertEqual(admin.get(one.proxy_ns, path, method="POST")[0], 200)

    def kill_worker(self, one, index, members):
        before = admin.workers(one.status())[index]
        os.kill(before["pid"], signal.SIGKILL)
        wait.until(lambda: admin.workers(one.status())[index]["restarts"] == before["restarts"] + 1
                   and one.node_count(7, self.family) == members, "it is back, and its nodes")

    def test_drained_nodes_stay_so(self):
        one = self.two()
        for name in ("old", "new"):
            self.start_echo(one, extra=["--name", name])
        self.post(one, "/nodes/old/drain")
        self.kill_worker(one, 1, 4)
        socks = [self.socket(one, 7) for _ in range(24)]
        for sock in socks:
            sock.sendall(b"x")
            self.assertEqual(sock.recv(1), b"x")
        shares = {}
        for node in admin.nodes(one.status(), "10.77.0.10:7"):  # of each worker
            shares[node["name"]] = shares.get(node["name"], 0) + node["connections"]
        self.assertEqual(shares, {"old": 0, "new": 24})
        self.post(one, "/nodes/old/undrain")
        self.kill_worker(one, 0, 4)
        self.assertEqual(one.status()["drained_nodes"], [])

    def test_a_drained_proxy_stays_so(self):
        one = self.two()
        self.start_echo(one)
        self.post(one, "/drain")
        wait.until(lambda: one.status()["state"] == "drained", "it is drained")
        self.kill_worker(one, 1, 2)
        wait.until(lambda: one.status()["state"] == "drained", "it is so again")
        for _ in range(16):
            with self.assertRaises(ConnectionRefusedError):
                one.connect(7, self.family, prepare=lambda sock: sock.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_SYNCNT, 6))
        self.post(one, "/undrain")
        wait.until(one.healthy, "it serves")
        self.kill_worker(one, 0, 2)
        self.assertEqual(one.status()["state"], "running")
        self.socket(one, 7).sendall(b"x")

    def test_what_a_worker_carried_out_late_holds_as_well(self):
        one = self.two()
        self.start_echo(one)
        slow = admin.workers(one.status())[1]["pid"]
        os.kill(slow, signal.SIGSTOP)
        self.assertEqual(admin.get(one.proxy_ns, "/drain", method="POST")[0], 503)
        os.kill(slow, signal.SIGCONT)
        wait.until(lambda: one.status()["state"] == "drained", "both are drained")
        self.kill_worker(one, 1, 2)
        wait.until(lambda: one.status()["state"] == "drained", "it is so again")
        self.post(one, "/undrain")
        wait.until(one.healthy, "it serves")

    def test_new_clients_wait_for_the_worker_that_follows(self):
        one = self.two()
        self.start_echo(one)
        for index in (1, 0):
            before = admin.workers(one.status())[index]["restarts"]
            os.kill(admin.workers(one.status())[index]["pid"], signal.SIGKILL)
            served = 0
            while served < 64 or admin.workers(one.status())[index]["restarts"] == before:
                with one.connect(7, self.family) as sock:  # refused by nobody
                    sock.sendall(b"new")
                    try:
                        served += len(sock.recv(3, socket.MSG_WAITALL)) == 3
                    except ConnectionResetError:
                        pass  # established by the worker that was killed
            wait.until(lambda: one.node_count(7, self.family) == 2, "its node is back")

    def test_packets_with_extension_headers_find_their_worker(self):
        one = self.two()
        one.start_echo(family=6)
        wait.until(lambda: one.node_count(7, 6) == 2, "it joins at both workers")
        for number in range(16):
            sock = self.socket(one, 7, family=6)
            # Destination options: padding alone.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
            sock.sendall(b"to whom %02d" % number)
            self.assertEqual(sock.recv(10, socket.MSG_WAITALL), b"to whom %02d" % number)
        self.assertGreater(one.metrics()["sanproxy_handed_over_total"], 0)

    def test_a_node_whose_device_is_removed_says_so_and_ends(self):
        for workers in (1, 2):
            one = self.lab(config={"proxy": {"workers": workers}})
            one.start_echo(family=self.family)
            wait.until(lambda: one.node_count(7, self.family) == workers, "it joins")
            one.proxy_ns.run("ip", "link", "delete", "san0")
            self.assertEqual(one.proxy.wait(), 1)
            self.assertIn("interface san0 has been removed", one.proxy.log())
            one.assert_healthy = lambda: None  # the proxy has ended, as it should


class SecondNode:
    """A device of several queues takes more of them from anybody."""

    def test_a_second_node_on_the_same_device_changes_nothing(self):
        one = self.lab(config={"proxy": {"workers": 2}})
        one.start_echo()
        wait.until(lambda: one.node_count(7) == 2, "it joins at both workers")
        socks = [self.socket(one, 7) for _ in range(24)]
        first = one.proxy
        second = one.start_proxy(wait_ready=False)
        self.assertEqual(second.wait(), 1)
        one.proxy = first
        one.programs.remove(second)
        self.assertIn("another process has it open", second.log())
        for sock in [*socks, *[self.socket(one, 7) for _ in range(8)]]:
            sock.sendall(b"x")
            self.assertEqual(sock.recv(1), b"x")


globals().update(case.over(WorkerRestarts, families=(4,)))
globals().update(case.over(SecondNode, topologies=("tun",), families=(4,)))
