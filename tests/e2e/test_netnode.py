"""The network node in front of servers that know nothing of us (NAT), and what it does for all."""

import signal
import socket
import struct

from harness import settings, wait
from harness.netnode_lab import VIP
from harness.netnode_test import SERVED, NetnodeTest

UDP_SEGMENT = 103  # a socket option


class Nat(NetnodeTest):
    def two_servers_under_load(self):
        one = self.lab()
        one.add_plain("first")
        one.add_plain("second")
        one.start_node()
        load = self.load(one, 20, 4).start()
        wait.until(lambda: load.all_progressed([0] * 20, 10_000), "all go")
        return one, load

    def start_again(self, one, load):
        one.start_node()
        load.push_on()  # a killed node knows sessions again when their clients speak
        marks = load.marks()
        wait.until(lambda: load.all_progressed(marks, 50_000), "all go on", timeout_s=30)

    def check_served(self, one):
        for family in (4, 6):
            self.check_download(one, family)
            load = self.load(one, 8, family).start()
            wait.until(lambda: load.all_progressed([0] * 8, 200_000), "all echo")
            load.finish()
            self.assertEqual(load.lost, [])

    def test_an_ordinary_server_serves_clients_over_ipv4_and_ipv6(self):
        one = self.lab()
        one.add_plain("plain")
        one.start_node()
        self.check_served(one)
        self.assertGreaterEqual(one.metrics()['sanproxy_netnode_nat_sessions_total{event="created"}'],
                                18)
        one.assert_clean_stop()

    def test_a_server_on_the_nodes_own_host_is_reached_at_the_hosts_address(self):
        one = self.lab()
        one.add_plain_here("beside")
        one.start_node()
        self.check_served(one)
        one.assert_clean_stop()

    def test_servers_come_and_go_without_a_broken_connection(self):
        one = self.lab()
        one.add_plain("first")
        one.add_plain("second")
        one.start_node()
        loads = [self.load(one, 20, family).start() for family in (4, 6)]
        self.assertGreater(min(one.proxy(name)["sessions"] for name in ("first", "second")), 0)
        told = one.post("/drain/first")
        self.assertEqual((told["state"], told["empty"]), ("draining", False))
        later = [self.load(one, 20, family).start() for family in (4, 6)]
        marks = [(load, load.marks()) for load in loads + later]
        wait.until(lambda: all(load.all_progressed(mark, 50_000) for load, mark in marks), "all go on")
        for _ in range(5):
            got = one.curl(one.url("/name", 4))
            self.assertEqual(got.stdout, b"second")
        self.assertEqual(one.post("/undrain/first")["state"], "up")
        for load in loads + later:
            load.finish()
            self.assertEqual(load.lost, [])
        one.assert_clean_stop()

    def test_connections_outlive_a_restart_of_the_node(self):
        one, load = self.two_servers_under_load()
        one.node.kill()
        self.start_again(one, load)
        load.finish()
        self.assertEqual(load.lost, [])
        one.assert_clean_stop()

    def test_after_an_orderly_restart_servers_may_speak_first(self):
        one = self.lab()
        one.add_plain("first")
        nat = {"state_file": f"{one.run_dir}/nat"}
        one.start_node(nat=nat)
        server = one.far["first"].socket()
        self.addCleanup(server.close)
        server.bind(("0.0.0.0", 7070))
        server.listen(16)
        one.proxies[0]["addresses"] = ["10.66.1.2:7070", "fd66:1::2"]
        one.write_config(nat=nat)
        one.node.signal(signal.SIGHUP)
        wait.until(lambda: "10.66.1.2:7070" in one.proxy("first")["addresses"], "it is taken over")
        pairs = []
        for _ in range(16):
            client = one.connect(7)
            far, _ = server.accept()
            client.sendall(b"request")
            self.assertEqual(far.recv(7), b"request")
            pairs.append((client, far))
        one.node.signal(signal.SIGTERM)
        self.assertEqual(one.node.wait(), 0)
        one.start_node(nat=nat)
        for client, far in pairs:
            far.sendall(b"answer")
            self.assertEqual(client.recv(6), b"answer")
            client.close()
            far.close()
        one.assert_clean_stop()

    def test_a_server_that_drains_in_the_file_keeps_its_connections_over_a_restart(self):
        one, load = self.two_servers_under_load()
        one.node.kill()
        one.proxies[0]["draining"] = True
        self.start_again(one, load)
        self.assertEqual(one.curl(one.url("/name", 4)).stdout, b"second")
        self.assertGreater(one.proxy("first")["sessions"], 0)
        load.finish()
        self.assertEqual(load.lost, [])
        one.assert_clean_stop()

    def test_servers_are_added_and_drained_by_the_file_and_a_reload(self):
        one = self.lab()
        one.add_plain("first")
        one.add_plain("second")
        second = one.proxies.pop()
        one.start_node()
        load = self.load(one, 20, 4).start()
        one.proxies.append(second)
        self.reload(one)
        one.wait_state("second", "up")
        one.proxies[0]["draining"] = True
        self.reload(one)
        one.wait_state("first", "draining")
        self.assertEqual(one.get("/undrain/first", "POST")[0], 409)  # it still drains
        self.assertEqual(one.curl(one.url("/name", 4)).stdout, b"second")
        one.proxies[0]["mode"] = "no such mode"
        self.reload(one)
        one.node.wait_log("all stays as it was")
        marks = load.marks()
        wait.until(lambda: load.all_progressed(marks, 50_000), "all go on")
        self.assertEqual(one.proxy("first")["state"], "draining")
        load.finish()
        self.assertEqual(load.lost, [])
        one.assert_clean_stop()

    def reload(self, one):
        one.write_config()
        one.node.signal(signal.SIGHUP)

    def test_a_node_whose_device_is_removed_says_so_and_ends(self):
        one = self.lab()
        one.add_plain("first")
        one.start_node()
        one.here.ip("link", "delete", "nn0")
        self.assertEqual(one.node.wait(), 1)
        self.assertIn("interface nn0 has been removed", one.node.log())

    def test_after_a_signal_ended_sessions_are_not_waited_for(self):
        one = self.lab()
        one.add_channel("first")
        one.start_node(node={"drain_ms": 600_000, "drain_quiet_ms": 200})
        one.wait_state("first", "up")
        with one.connect(7) as sock:
            sock.sendall(b"x")
            self.assertEqual(sock.recv(1), b"x")
        self.assertGreater(one.proxy("first")["sessions"], 0)
        one.assert_clean_stop()

    def test_a_signal_that_is_said_twice_at_once_is_one(self):
        one = self.lab()
        one.add_plain("plain")
        one.start_node(node={"drain_ms": 600_000, "drain_quiet_ms": 200})
        load = self.load(one, 8, 4).start()
        wait.until(lambda: load.all_progressed([0] * 8, 10_000), "all go")
        for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
            one.node.signal(number)
        wait.until(lambda: one.get("/healthz")[0] == 503, "its routes are to go")
        marks = load.marks()
        wait.until(lambda: load.all_progressed(marks, 10_000), "sessions go on")
        load.finish()
        self.assertEqual(load.lost, [])
        # Translated sessions are kept for a while: a second signal, later, waits for none of them.
        wait.until(lambda: one.node.signal(signal.SIGTERM) or not one.node.alive(), "it ends")
        self.assertEqual(one.node.wait(), 0)

    def test_a_node_without_a_proxy_that_is_well_says_so(self):
        one = self.lab()
        first = one.add_plain("first", probe="tcp", probe_address="10.66.1.2:80",
                              probe_interval_ms=50, probe_fall=2)
        one.start_node(node={"no_proxy_ms": 100})
        one.wait_state("first", "up")
        first.kill()
        wait.until(lambda: one.get("/healthz") == (503, "no proxy is up\n"), "it says so")
        self.assertEqual(one.proxy("first")["last_error"], "Connection refused")
        self.assertEqual(one.metrics()["sanproxy_netnode_no_proxy"], 1)
        one.start_plain("first")
        wait.until(one.healthy, "it is well again")
        one.assert_clean_stop()

    def test_a_server_that_does_not_answer_gets_no_new_connections(self):
        one = self.lab()
        probe = {"probe": "http", "probe_path": "/name", "probe_interval_ms": 50, "probe_fall": 2}
        first = one.add_plain("first", probe_address="10.66.1.2:80", **probe)
        one.add_plain("second", probe_address="10.66.2.2:80", **probe)
        one.start_node()
        one.wait_state("first", "up")
        one.wait_state("second", "up")
        first.kill()
        one.wait_state("first", "down")
        for _ in range(8):
            self.assertEqual(one.curl(one.url("/name", 4)).stdout, b"second")
        one.start_plain("first")
        one.wait_state("first", "up")
        one.assert_clean_stop()

    def test_a_server_that_says_that_it_drains_keeps_its_sessions_and_gets_no_new_ones(self):
        one = self.lab()
        probe = {"probe": "http", "probe_path": "/healthz", "probe_interval_ms": 50}
        for number, name in ((1, "first"), (2, "second")):
            one.add_plain(name, probe_address=f"10.66.{number}.2:80", **probe)
        one.start_node()
        for name in ("first", "second"):
            one.wait_state(name, "up")
        load = self.load(one, 20, 4).start()
        wait.until(lambda: load.all_progressed([0] * 20, 10_000), "all go")
        self.assertGreater(one.proxy("first")["sessions"], 0)

        def say(what):
            got = one.far["first"].run("curl", "-sS", "http://10.66.1.2/" + what)
            self.assertEqual(got.stdout, b"first", got.stderr)
        say("drain")
        one.wait_state("first", "draining")
        for _ in range(8):
            self.assertEqual(one.curl(one.url("/name", 4)).stdout, b"second")
        marks = load.marks()
        wait.until(lambda: load.all_progressed(marks, 20_000), "all go on")
        say("undrain")
        one.wait_state("first", "up")
        load.finish()
        self.assertEqual(load.lost, [])
        one.assert_clean_stop()

    def test_a_smaller_mtu_behind_the_node_is_told_to_the_client(self):
        one = self.lab()
        one.add_plain("plain", mtu=1300)
        # The server's own MSS would say it all: let it claim more than its link takes.
        for words in (("route", "change", "default", "via", "10.66.1.1", "advmss", "1460"),
                      ("-6", "route", "change", "default", "via", "fd66:1::1", "advmss", "1440")):
            one.far["plain"].ip(*words)
        one.start_node()
        for family in (4, 6):
            load = self.load(one, 4, family).start()
            wait.until(lambda: load.all_progressed([0] * 4, 500_000), "all echo", timeout_s=30)
            load.finish()
            self.assertEqual(load.lost, [])
            self.check_download(one, family, 5_000_000)
        self.assertGreater(one.metrics()["sanproxy_netnode_icmp_errors_total"], 0)
        one.assert_clean_stop()

    def test_fragments_follow_their_first_one(self):
        one = self.lab()
        one.add_plain("first")
        one.add_plain("second")
        one.start_node()
        for family, kind in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            for size in (100, 5000, 30_000):
                with one.client.socket(kind, socket.SOCK_DGRAM) as sock:
                    sock.settimeout(10 * settings.slowness)
                    payload = bytes(SERVED.slice(size, size))
                    sock.sendto(payload, (VIP[family], 7))
                    self.assertEqual(sock.recv(65536), payload)
        one.assert_clean_stop()

    def test_systemd_is_told_that_the_node_is_ready_alive_and_stopping(self):
        one = self.lab()
        one.add_plain("plain")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(f"{one.run_dir}/notify.sock")
            manager.settimeout(20 * settings.slowness)
            one.start_node(env={"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "200000"})
            self.assertEqual(manager.recv(100), b"READY=1")
            for _ in range(3):
                self.assertEqual(manager.recv(100), b"WATCHDOG=1")
            one.assert_clean_stop()
            said = b"WATCHDOG=1"
            while said == b"WATCHDOG=1":
                said = manager.recv(100)
            self.assertEqual(said, b"STOPPING=1")

    def test_services_answer_pings_and_what_is_no_service_is_counted(self):
        one = self.lab()
        one.add_plain("plain")
        one.start_node()
        for family in (4, 6):
            kind = socket.AF_INET if family == 4 else socket.AF_INET6
            protocol = socket.IPPROTO_ICMP if family == 4 else socket.IPPROTO_ICMPV6
            with one.client.socket(kind, socket.SOCK_RAW, protocol) as sock:
                sock.settimeout(10 * settings.slowness)
                request = bytes([8 if family == 4 else 128, 0, 0, 0, 0, 1, 0, 1]) + b"hello!"
                if family == 4:  # the kernel does it for IPv6
                    words = sum(struct.unpack("!7H", request))
                    request = request[:2] + struct.pack("!H", 0xffff ^ (words % 0xffff)) + request[4:]
                sock.sendto(request, (VIP[family], 0))
                while True:
                    answer = sock.recv(1500)[20 if family == 4 else 0:]
                    if answer[0] == (0 if family == 4 else 129):
                        break
                self.assertEqual(answer[4:], request[4:])
            with one.client.socket(kind, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"nobody", (VIP[family], 9))
        name = 'sanproxy_netnode_packets_dropped_total{reason="no_service"}'
        wait.until(lambda: one.metrics()[name] == 2, "both are counted")
        one.assert_clean_stop()


class PacketSocket(NetnodeTest):
    """A node beside its host's kernel, by AF_PACKET."""

    GATEWAYS = {"gateways": ["10.88.0.2", "fd88::2"]}

    def test_datagrams_that_are_sent_as_one_super_packet_arrive(self):
        one = self.lab("packet")
        one.add_plain("plain")
        one.start_node(interface=self.GATEWAYS)
        for family, kind in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            with one.client.socket(kind, socket.SOCK_DGRAM) as sock:
                sock.settimeout(10 * settings.slowness)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
                sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1200)
                for count in (1, 3, 50):
                    payload = bytes(SERVED.slice(count, 1200 * count - 7))
                    sock.sendto(payload, (VIP[family], 7))
                    got = [sock.recv(65536) for _ in range(count)]
                    self.assertEqual([len(one) for one in got], [1200] * (count - 1) + [1193])
                    self.assertEqual(b"".join(got), payload)
        labels = 'interface="nn0",reason="metadata"'
        self.assertEqual(one.metrics()[f"sanproxy_netnode_rx_refused_total{{{labels}}}"], 0)
        one.assert_clean_stop()

    def test_the_nodes_own_addresses_are_answered_for_when_no_service_is_at_them_any_more(self):
        one = self.lab("packet")
        one.add_plain("plain")
        one.start_node(interface=self.GATEWAYS)
        own = ["10.88.0.1:80", "[fd88::1]:80", "10.77.0.10:81"]

        def reload(addresses):
            path = one.write_config(interface=self.GATEWAYS)
            with open(path, "a") as file:
                for address in addresses:
                    file.write(f'[[service]]\naddress = "{address}"\n')
            one.node.signal(signal.SIGHUP)
            wait.until(lambda: (own[2] in one.get("/status")[1]) == (addresses != []), "it is read")

        reload(own)
        got = one.curl("http://10.88.0.1/name")
        self.assertEqual(got.stdout, b"plain", got.stderr)
        reload([])
        one.client.ip("neigh", "flush", "dev", "eth0")  # clients' packets come by these addresses
        for family in (4, 6):
            self.check_download(one, family, 100_000)
        one.assert_clean_stop()

    def test_what_the_interface_loses_is_counted_by_reason(self):
        one = self.lab("packet")
        one.proxies.append({"name": "nobody", "mode": "nat",
                            "addresses": ["10.88.0.9", "fd88::9"]})
        one.start_node()

        def dropped(reason):
            labels = f'interface="nn0",reason="{reason}"'
            return one.metrics()[f"sanproxy_netnode_tx_dropped_total{{{labels}}}"]

        with one.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(20):
                sock.sendto(b"anybody?", (VIP[4], 7))
        wait.until(lambda: dropped("unresolved") >= 12, "those beyond the eight that wait")
        self.assertEqual((dropped("error"), dropped("device_full")), (0, 0))
        one.here.ip("link", "set", "nn0", "down")
        wait.until(lambda: dropped("error") > 0, "a question for the neighbour is refused")
        one.assert_clean_stop()
