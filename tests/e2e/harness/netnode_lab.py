"""A lab with a network node: clients and the node in one namespace, proxies in others.

The client's namespace holds the node's TUN device: what clients send to a service goes in there, and
so does what proxies send to the node's own addresses. Each proxy has a namespace of its own at the
end of a veth, or, reached over a channel, none at all.
"""

import json
import os
import shutil
import signal
import socket
import tempfile

from . import admin, netns, programs, settings, wait
from .process import Program

NODE_PORT = 9478
VIP = {4: "10.77.0.10", 6: "fd77::10"}
NAT = ["10.77.0.100", "fd77::100"]
HERE = os.path.dirname(os.path.abspath(__file__))


class NetnodeLab:
    def __init__(self, label, driver="tun"):
        """`driver`: of the node's interface; with "packet" and "xdp" the node has a namespace of its own,
        and a veth to the clients'."""
        self.log_dir = os.path.join(settings.log_dir, label)
        os.makedirs(self.log_dir, exist_ok=True)
        self.run_dir = tempfile.mkdtemp(prefix="sane2e-")
        self.client = netns.Namespace("n")
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.client.sysctl(key, "1")
        self.driver = driver
        self.here = self.client  # where the node runs
        if driver != "tun":
            self.here = self._make_segment()
        self.far = {}  # label of a proxy: its namespace
        self.proxies = []
        self.programs = []
        self.node = None
        self._starts = 0

    def _make_segment(self):
        here = netns.Namespace("x")
        self.client.ip("link", "add", "eth0", "type", "veth", "peer", "name", "nn0", "netns",
                       here.name)
        here.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        self.client.ip("address", "add", "10.88.0.2/24", "dev", "eth0")
        self.client.ip("address", "add", "fd88::2/64", "dev", "eth0", "nodad")
        self.client.ip("link", "set", "eth0", "up")
        here.ip("link", "set", "nn0", "up")
        self.client.ip("route", "add", "10.77.0.0/24", "via", "10.88.0.1")
        self.client.ip("-6", "route", "add", "fd77::/64", "via", "fd88::1")
        return here

    # --- what a proxy may be

    def wire(self, name, mtu=1500, kernel=True):
        """A namespace at the end of a veth: 10.66.N.2 and fd66:N::2, which its kernel has or not."""
        number = len(self.far) + 1
        far = self.far[name] = netns.Namespace(name)
        self.client.ip("link", "add", f"v{number}", "mtu", str(mtu), "type", "veth", "peer", "name",
                       "eth0", "mtu", str(mtu), "netns", far.name)
        if not kernel:
            far.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        for where, device, host in ((self.client, f"v{number}", 1), (far, "eth0", 2)):
            if kernel or host == 1:
                where.ip("address", "add", f"10.66.{number}.{host}/24", "dev", device)
                where.ip("address", "add", f"fd66:{number}::{host}/64", "dev", device, "nodad")
            where.ip("link", "set", device, "up")
        if not kernel:
            return [f"10.66.{number}.2", f"fd66:{number}::2"]
        far.ip("route", "add", "default", "via", f"10.66.{number}.1")
        far.ip("-6", "route", "add", "default", "via", f"fd66:{number}::1")
        return [f"10.66.{number}.2", f"fd66:{number}::2"]

    def start(self, label, argv, namespace=None, env=None):
        program = Program(label, argv, self.log_dir, namespace, env)
        self.programs.append(program)
        return program

    def start_plain(self, name):
        server = self.start(f"plain-{name}", ["/usr/bin/python3", f"{HERE}/plain_server.py", name],
                            self.far[name])
        server.wait_log("serving")
        return server

    def add_plain(self, name, mtu=1500, **keys):
        """An ordinary server behind the NAT."""
        addresses = self.wire(name, mtu)
        self.proxies.append({"name": name, "mode": "nat", "addresses": addresses, **keys})
        return self.start_plain(name)

    def add_plain_here(self, name):
        """An ordinary server on the node's own host, at the host's addresses on the TUN device."""
        self.far[name] = self.here
        addresses = [one.partition("/")[0] for one in self._addresses()]
        self.proxies.append({"name": name, "mode": "nat", "addresses": addresses})
        return self.start_plain(name)

    def start_proxynode(self, name, sections, id_):
        """A proxynode of ours, in a namespace of its own, with an application node behind it."""
        text = programs.toml_section("[proxy]", {"name": name, "id": id_, "drain_ms": 100,
                                                 "max_connections": 5000})
        for one in sections:
            text += programs.toml_section("[[interface]]", one)
        text += programs.toml_section("[[fabric]]", {"listen": f"shm:{self.run_dir}/{name}.sock"})
        text += programs.toml_section("[admin]", {"listen": f"127.0.0.1:{admin.PORT}"})
        path = os.path.join(self.log_dir, f"{name}.toml")
        with open(path, "w") as file:
            file.write(text)
        proxy = self.start(name, [programs.path("proxynode"), "--config", path], self.far[name])
        proxy.wait_log("is ready")
        for vip in ("10.77.0.10", "[fd77::10]"):
            for program, port in (("echo", 7), ("httpd", 80)):
                self.start(f"{program}-{name}-{vip[1:3]}", [
                    programs.path(f"appnode-{program}"), "--proxy",
                    f"shm:{self.run_dir}/{name}.sock", "--service", f"{vip}:{port}"])
        wait.until(lambda: len(admin.status(self.far[name])["services"]) == 4,
                   lambda: f"the services of {name} are there\n{proxy.log()[-2000:]}")
        return proxy

    def add_channel(self, name, mtu=1500, **keys):
        """A proxynode that gets its packets over a channel."""
        self.far[name] = netns.Namespace(name)
        address = f"shm:{self.run_dir}/{name}-packets.sock"
        self.proxies.append({"name": name, "mode": "channel", "address": address,
                             "id": len(self.far), **keys})
        return self.start_proxynode(name, [{"driver": "channel", "listen": address, "mtu": mtu}],
                                    len(self.far))

    def add_tunnel(self, name, family, mtu=1500, **keys):
        """A proxynode at the end of a tunnel, which answers clients directly."""
        addresses = self.wire(name, mtu, kernel=False)
        number = len(self.far)
        self.proxies.append({"name": name, "mode": "tunnel", "id": number,
                             "address": addresses[0 if family == 4 else 1], **keys})
        return self.start_proxynode(name, [{
            "driver": "packet", "name": "eth0", "addresses": [addresses[0] + "/24",
                                                             addresses[1] + "/64"],
            "gateways": [f"10.66.{number}.1", f"fd66:{number}::1"], "mtu": mtu,
            "decapsulate_from": NAT}], number)

    def add_proxynode_beside(self, name, mtu):
        """A proxynode behind the NAT, on the segment of node and clients, by a packet socket."""
        self.far[name] = self.client
        self.proxies.append({"name": name, "mode": "nat", "addresses": ["10.88.0.3", "fd88::3"]})
        proxy = self.start_proxynode(name, [{"driver": "packet", "name": "eth0", "mtu": mtu,
                                             "addresses": ["10.88.0.3/24", "fd88::3/64"]}], 1)
        for label, address in (("4", "10.88.0.3"), ("6", "[fd88::3]")):
            self.start(f"echo-{name}-{label}", [
                programs.path("appnode-echo"), "--proxy", f"shm:{self.run_dir}/{name}.sock",
                "--service", f"{address}:7"])
        wait.until(lambda: len(admin.status(self.client)["services"]) == 6,
                   lambda: f"all services of {name} are there\n{proxy.log()[-2000:]}")
        return proxy

    # --- the node

    def write_config(self, node=None, interface=None, nat=None):
        text = programs.toml_section("[node]", {"name": "netnode-e2e", "maglev_entries": 5003,
                                                "drain_ms": 100, **(node or {})})
        text += programs.toml_section("[[interface]]", {
            "driver": self.driver, "name": "nn0", "addresses": self._addresses(),
            **(interface or {})})
        text += programs.toml_section("[nat]", {"addresses": NAT, "max_sessions": 10_000,
                                                **(nat or {})})
        text += programs.toml_section("[tunnel]", {"addresses": NAT})
        text += programs.toml_section("[admin]", {"listen": f"127.0.0.1:{NODE_PORT}"})
        for vip in ("10.77.0.10", "[fd77::10]"):
            for port, protocol in ((7, "tcp"), (7, "udp"), (80, "tcp")):
                if protocol == "udp" and all(one["mode"] == "channel" for one in self.proxies):
                    continue
                text += programs.toml_section("[[service]]", {"address": f"{vip}:{port}",
                                                              "protocol": protocol})
        for proxy in self.proxies:
            text += programs.toml_section("[[proxy]]", proxy)
        path = os.path.join(self.log_dir, "netnode.toml")
        with open(path, "w") as file:
            file.write(text)
        return path

    def _addresses(self):
        if self.driver != "tun":
            return ["10.88.0.1/24", "fd88::1/64"]
        return ["10.77.0.1/24", "fd77::1/64"]

    def start_node(self, env=None, **config):
        self._starts += 1
        argv = [programs.path("netnode"), "--config", self.write_config(**config)]
        self.node = self.start(f"netnode-{self._starts}", argv, self.here, env)
        wait.until(lambda: self.healthy() or not self.node.alive(),
                   lambda: f"netnode answers\n{self.node.log()[-2000:]}")
        if not self.node.alive():
            raise AssertionError(f"netnode ended with {self.node.exit_code}:\n"
                                 f"{self.node.log()[-2000:]}")
        return self.node

    def get(self, path, method="GET"):
        return admin.get(self.here, path, port=NODE_PORT, method=method)

    def healthy(self):
        try:
            return self.get("/healthz")[0] == 200
        except OSError:
            return False

    def post(self, path):
        code, body = self.get(path, "POST")
        if code != 200:
            raise AssertionError(f"POST {path}: {code} {body}")
        return json.loads(body)

    def proxy(self, name):
        """Of the node's status; an empty one when it knows none of that name (yet)."""
        state = json.loads(self.get("/status")[1])
        return next((one for one in state["proxies"] if one["name"] == name), {})

    def metrics(self):
        return admin.metrics(self.here, port=NODE_PORT)

    def wait_state(self, name, state):
        wait.until(lambda: self.proxy(name).get("state") == state,
                   lambda: f"{name} is {state}: {self.proxy(name)}\n{self.node.log()[-2000:]}")

    # --- clients

    def connect(self, port, family=4, timeout_s=20):
        sock = self.client.socket(socket.AF_INET if family == 4 else socket.AF_INET6)
        try:
            sock.settimeout(timeout_s * settings.slowness)
            sock.connect((VIP[family], port))
        except BaseException:
            sock.close()
            raise
        return sock

    def url(self, path, family):
        return f"http://{VIP[4] if family == 4 else '[' + VIP[6] + ']'}{path}"

    def curl(self, *words):
        return self.client.run("curl", "-sS", "--max-time", 60 * settings.slowness, *words,
                               timeout_s=70 * settings.slowness)

    def assert_clean_stop(self):
        for program in self.programs:
            line = program.broken()
            assert not line, f"{program.label} says: {line}"
        self.node.signal(signal.SIGTERM)
        code = self.node.wait()
        assert code == 0, f"netnode ended with {code}:\n{self.node.log()[-2000:]}"

    def close(self):
        for program in self.programs:
            program.kill()
        for one in self.far.values():
            if one not in (self.here, self.client):
                one.remove()
        if self.here is not self.client:
            self.here.remove()
        self.client.remove()
        shutil.rmtree(self.run_dir, ignore_errors=True)
