"""Network nodes: client packets reach the proxy over a SAN channel, and its answers the clients."""

import socket
import zlib

from harness import case, wait
from harness.pattern import Pattern

BYTES = Pattern("channel")


def upload(test, sock, size):
    """Sends so much, and compares what the node makes of it."""
    checksum = 1
    for chunk in BYTES.chunks(size):
        checksum = zlib.adler32(chunk, checksum)
        sock.sendall(chunk)
    sock.shutdown(socket.SHUT_WR)
    answer = b""
    while piece := sock.recv(100):
        answer += piece
    test.assertEqual(answer, b"%d %d\n" % (size, checksum))


class Channels:
    topology = "channel"

    def test_downloads_and_uploads_are_whole_and_stay_super_packets(self):
        one = self.lab()
        one.start_httpd(family=self.family)
        one.start_echo(mode="digest", family=self.family)
        got = one.curl(one.url("/bytes/20000000", family=self.family), "-o", "/dev/null", "-w",
                       "%{http_code} %{size_download}", text=True)
        self.assertEqual(got.stdout, "200 20000000", got.stderr)
        # The network node read the payload where the application had put it.
        # Copied are the answer's head, which lay in the stack's own memory, and a segment of up to
        # 1,024 bytes where the client's window ended so: nothing near one super-packet.
        self.assertLess(self.total(one, "bytes_copied_total", "network_node"), 10_000)
        self.assertGreater(self.total(one, "interface_payload_lent_total"), 19_000_000)
        upload(self, self.socket(one, 7), 20_000_000)
        (node,) = one.network_nodes()
        # Both ways far fewer packets than an MTU of 1500 would make.
        self.assertLess(node["packets_in"], node["bytes_in"] / 3000)
        self.assertLess(node["packets_out"], node["bytes_out"] / 3000)

    def test_many_connections_at_once_get_their_own_bytes(self):
        one = self.lab()
        one.start_echo(family=self.family)
        socks = [self.socket(one, 7) for _ in range(100)]
        for i, sock in enumerate(socks):
            sock.sendall(BYTES.slice(i * 1000, 1000))
        for i, sock in enumerate(socks):
            data = b""
            while len(data) < 1000:
                data += sock.recv(1000)
            self.assertEqual(data, BYTES.slice(i * 1000, 1000))

    def test_connections_outlive_their_network_node(self):
        one = self.lab()
        one.start_echo(family=self.family)
        sock = self.socket(one, 7)
        sock.sendall(b"before")
        self.assertEqual(sock.recv(100), b"before")
        one.netnode.kill()
        wait.until(lambda: not one.network_nodes(), "the proxy notices")
        sock.sendall(b"after")  # the kernel repeats it until the device is there again
        one.start_netnode()
        self.assertEqual(sock.recv(100), b"after")

    def test_a_refused_port_is_refused_and_a_drained_proxy_says_so(self):
        one = self.lab()
        one.start_echo(family=self.family)
        with self.assertRaises(ConnectionRefusedError):
            one.connect(8, self.family)
        self.assertEqual(self.drops(one), 0)

    def drops(self, one):
        return self.total(one, "network_nodes_total", "breached")

    @staticmethod
    def total(one, name, label=""):
        return sum(value for full, value in one.metrics().items()
                   if full.startswith(f"sanproxy_{name}") and label in full)


globals().update(case.over(Channels, topologies=("channel",), shared=True))


class ChannelsOverTcp(case.LabTest):
    topology = "channel"

    def test_network_nodes_reach_a_proxy_over_tcp_and_bytes_are_not_copied_for_its_nodes(self):
        address = "tcp://127.0.0.1:7470"
        one = self.lab(config={"interface": {"listen": address, "allow": ["any"]}},
                       kinds=("tcp",), fabric={})
        one.start_echo(mode="digest")
        upload(self, self.socket(one, 7), 5_000_000)


class UnknownFlows(case.LabTest):
    topology = "channel"

    def test_a_segment_of_a_flow_that_nobody_knows_is_reset_in_the_end(self):
        one = self.lab()
        one.start_echo()
        sock = self.socket(one, 7)
        sock.sendall(b"x")
        self.assertEqual(sock.recv(1), b"x")
        one.proxy.kill()
        one.start_proxy()
        wait.until(one.network_nodes, "the network node connects again")
        sock.sendall(b"y")
        with self.assertRaises(ConnectionResetError):
            sock.recv(1)
