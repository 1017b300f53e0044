"""Workers: one proxy node of several processes, each with flows and endpoints of its own."""

import json
import os
import signal
import socket

from harness import admin, case, etcd, load, wait

CONNECTIONS = 64


class Workers:
    def two(self, **options):
        config = {"proxy": {"workers": 2, **options.pop("proxy", {})}}
        one = self.lab(config=config, **options)
        self.assertEqual(sorted(admin.workers(one.status())), [0, 1])
        return one

    def with_load(self, one, connections=CONNECTIONS):
        busy = load.EchoLoad(one, port=7, connections=connections, family=self.family)
        self.addCleanup(busy.close)
        busy.start()
        wait.until(lambda: busy.all_progressed([0] * connections), "the load runs")
        return busy

    def start_echo(self, one, **how):
        node = one.start_echo(family=self.family, **how)
        wait.until(lambda: one.node_count(7, self.family) % 2 == 0, "it joins at both workers")
        return node

    def workers_of(self, one):
        """{client's port: worker}"""
        rows = json.loads(one.http_admin("/connections?limit=1000")[1])["connections"]
        return {int(row["client"].rpartition(":")[2]): row["worker"] for row in rows
                if row["state"] == "ESTABLISHED"}

    def sanctl(self, one, *words):
        done = etcd.plain(one.proxy_ns, *words, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def echoes(self, one):
        with one.connect(7, self.family) as sock:
            sock.sendall(b"new")
            self.assertEqual(sock.recv(3, socket.MSG_WAITALL), b"new")

    def test_a_killed_worker_takes_its_own_connections_along_and_is_back(self):
        one = self.two()
        self.start_echo(one)
        busy = self.with_load(one)
        ports = {conn.sock.getsockname()[1]: conn for conn in busy.connections}
        where = self.workers_of(one)
        self.assertEqual(set(where), set(ports))
        victims = {port for port, worker in where.items() if worker == 1}
        self.assertGreater(len(victims), 0)
        self.assertLess(len(victims), CONNECTIONS)
        first = admin.workers(one.status())
        os.kill(first[1]["pid"], signal.SIGKILL)
        wait.until(lambda: admin.workers(one.status())[1]["restarts"] == 1, "it is started again")
        wait.until(lambda: one.healthy() and one.node_count(7, self.family) == 2,
                   "the node has joined there again")
        busy.push_on()
        wait.until(lambda: len(busy.lost) == len(victims), "its connections end")
        self.assertEqual({ports_of(ports, conn) for conn in busy.lost}, victims)
        marks = busy.marks()
        wait.until(lambda: busy.all_progressed(marks, 262144), "the others go on")
        after = admin.workers(one.status())
        self.assertEqual(after[0]["pid"], first[0]["pid"])
        self.assertNotEqual(after[1]["pid"], first[1]["pid"])
        again = self.with_load(one, 16)
        self.assertEqual({worker for port, worker in self.workers_of(one).items()
                          if port not in ports}, {0, 1})
        again.finish()
        busy.finish()
        self.assertEqual(len(busy.lost), len(victims))
        self.assertEqual(busy.wrong + again.wrong, [])

    def test_metrics_and_status_are_the_sum_and_each(self):
        one = self.two()
        self.start_echo(one)
        socks = [self.socket(one, 7) for _ in range(24)]
        for sock in socks:
            sock.sendall(b"x" * 100)
            self.assertEqual(len(sock.recv(100, socket.MSG_WAITALL)), 100)
        values = one.metrics()
        for series in ("sanproxy_tcp_accepted_total",
                       'sanproxy_payload_bytes_total{direction="to_application"}',
                       'sanproxy_tcp_connections{state="ESTABLISHED"}'):
            each = [values[series.replace("{", f'{{worker="{worker}",') if "{" in series
                           else f'{series}{{worker="{worker}"}}'] for worker in (0, 1)]
            self.assertEqual(values[series], sum(each), series)
        self.assertEqual(values["sanproxy_tcp_accepted_total"], 24)
        self.assertEqual([values[f'sanproxy_worker_up{{worker="{i}"}}'] for i in (0, 1)], [1, 1])
        state = one.status()
        self.assertEqual(one.open_connections(), 24)
        self.assertEqual(sum(w["connections"]["open"] for w in state["workers"]), 24)
        self.assertEqual(sum(m["connections"] for m in
                             admin.nodes(state, admin_address(self.family))), 24)
        # sanctl shows the sum alone, and each application node once.
        nodes = self.sanctl(one, "nodes", "--kind", "appnode")
        self.assertEqual([node["connections"] for node in nodes], [24])
        self.assertEqual([row["members"] for row in self.sanctl(one, "services")], [1])
        top = self.sanctl(one, "top", "--count", 1, "--interval", 0.1)
        self.assertEqual([node["connections"] for node in top], [24])
        # One that does not answer for a while takes nothing from the sum, as if it had started again.
        pid = state["workers"][1]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            stalled = one.metrics()
        finally:
            os.kill(pid, signal.SIGCONT)
        self.assertEqual(stalled["sanproxy_tcp_accepted_total"], 24)
        # What is configured is for the host: the workers share it.
        self.assertEqual(state["tcp_memory"]["max_bytes"], 1 << 30)

    def test_outgoing_connections_come_back_to_the_worker_that_opened_them(self):
        one = self.two()
        self.start_echo(one)  # outgoing connections take an address that is served
        listener = one.client.socket()
        self.addCleanup(listener.close)
        host = "10.77.0.1" if one.topology == "tun" else "10.88.0.2"
        listener.bind((host, 5000))
        listener.listen(16)
        listener.settimeout(10)
        # Through either worker, and what comes back must come to the same one.
        for number in range(8):
            one.start_echo(mode="connect", family=self.family, name=f"opens-{number}",
                           joined=False, extra=["--remote", f"{host}:5000"])
        for number in range(8):
            sock, _ = listener.accept()
            self.addCleanup(sock.close)
            sock.settimeout(10)
            sock.sendall(b"to whom %d" % number)
            self.assertEqual(sock.recv(9, socket.MSG_WAITALL), b"to whom %d" % number)

    def test_sigterm_lets_the_connections_of_all_workers_finish(self):
        one = self.two(proxy={"drain_ms": 20000})
        self.start_echo(one)
        busy = self.with_load(one, 16)
        one.proxy.signal(signal.SIGTERM)
        wait.until(lambda: not one.healthy(), "the node drains")
        marks = busy.marks()
        wait.until(lambda: busy.all_progressed(marks, 262144), "open connections go on")
        busy.finish()
        self.assertEqual(busy.lost, [])
        self.assertEqual(one.proxy.wait(), 0)
        one.assert_not_broken()
        one.assert_healthy = lambda: None  # the proxy has ended, as it should

    def test_a_signal_to_the_process_group_reaches_workers_through_the_supervisor_alone(self):
        """Else Ctrl-C tells them twice, and the second time ends the drain."""
        one = self.two()
        groups = {os.getpgid(worker["pid"]) for worker in admin.workers(one.status()).values()}
        self.assertNotIn(os.getpgid(one.proxy.pid), groups)

    def test_sighup_to_all_of_them_ends_no_worker(self):
        """As by pkill: the supervisor alone says that nothing is read again."""
        one = self.two()
        self.start_echo(one)
        workers = [worker["pid"] for worker in admin.workers(one.status()).values()]
        for pid in (*workers, one.proxy.pid):
            os.kill(pid, signal.SIGHUP)
        one.proxy.wait_log("nothing is read again")
        for _ in range(8):
            self.echoes(one)
        self.assertEqual(workers, [w["pid"] for w in admin.workers(one.status()).values()])

    def test_a_worker_that_hangs_is_ended_and_started_again(self):
        one = self.two(proxy={"worker_timeout_ms": 1500})
        self.start_echo(one)
        os.kill(admin.workers(one.status())[0]["pid"], signal.SIGSTOP)
        wait.until(lambda: one.metrics()['sanproxy_worker_restarts_total{worker="0"}'] == 1,
                   "it is started again", 30)
        wait.until(lambda: one.healthy() and one.node_count(7, self.family) == 2,
                   "the node has joined there again")
        for _ in range(8):
            self.echoes(one)

    def test_workers_end_when_their_supervisor_is_killed(self):
        one = self.two()
        self.start_echo(one)
        pids = [w["pid"] for w in admin.workers(one.status()).values()]
        one.proxy.kill()
        wait.until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "they end")
        one.programs.remove(one.proxy)
        one.start_proxy()
        wait.until(lambda: one.node_count(7, self.family) == 2, "the node has joined again")
        self.echoes(one)


def ports_of(ports, conn):
    return next(port for port, other in ports.items() if other is conn)


def admin_address(family):
    return "10.77.0.10:7" if family == 4 else "[fd77::10]:7"


globals().update(case.over(Workers, families=(4,), network=("tcp",)))
