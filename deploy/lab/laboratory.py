"""The laboratory itself: a small data centre of network namespaces on this host.

    c1 c2 c3 c4            clients (c3's link has an MTU of 1400, c4 sends no super-packets)
         |
        lab-r              the router: a veth to everybody, and the segment of the management network
         |
      n1    n2             network nodes: n1 has the IPv4 addresses of the services, n2 those of IPv6
         |
     p1  p2  p3            proxy nodes, behind SAN channels and at the end of tunnels
         |
    a1  a2  a3  a4         application nodes: two echo, two are web servers
    x1  x2                 ordinary servers behind NAT (x2's link has an MTU of 1300)
    e1  e2  e3             etcd

Host K has 10.66.K.2 and fd66:K::2 of its own on its link to the router, its data path 10.66.K.3 and
fd66:K::3; on the management network, which is also the SAN over tcp, it has 10.67.0.K.
"""

import json
import os
import shutil
import signal
import tempfile

import paths
from harness import admin, etcd, netns, programs, settings, wait
from harness.pattern import Pattern
from harness.process import Program

NODE_PORT = 9478
HOSTS = {**{f"n{i}": 10 + i for i in (1, 2)}, **{f"p{i}": 20 + i for i in (1, 2, 3)},
         **{f"a{i}": 30 + i for i in (1, 2, 3, 4)}, **{f"e{i}": 40 + i for i in (1, 2, 3)},
         **{f"c{i}": 50 + i for i in (1, 2, 3, 4)}, **{f"x{i}": 60 + i for i in (1, 2)}}
CLIENTS, PROXIES, NODES = ("c1", "c2", "c3", "c4"), ("p1", "p2", "p3"), ("n1", "n2")
MTU = {"p2": 9000, "c3": 1400, "x2": 1300}
OURS = {4: "10.77.0.100", 6: "fd77::100"}  # the nodes' own: source of tunnels and of NAT
WAYS = {"channel": 10, "ip4": 21, "ip6": 22, "gue": 23, "nat": 30}  # and the last part of its address
TUNNELS = ("ip4", "ip6", "gue")


def vip(way, family):
    return f"10.77.0.{WAYS[way]}" if family == 4 else f"fd77::{WAYS[way]}"


def at(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Laboratory:
    """`configured`: the network nodes' files name services and proxies, and all ways of forwarding are
    there; else the nodes find them in etcd. `fabric`: shm or tcp, for channels and applications."""

    def __init__(self, label, configured=True, fabric="shm", faketime=(),
                 page_bytes=20_000_000):
        netns.PREFIX = "sanlab"
        netns.remove_stale()
        self.configured, self.fabric = configured, fabric
        self.page_bytes = page_bytes  # of what the web servers have to download
        self.faketime = faketime  # names of hosts whose programs have a wall clock of their own
        self.log_dir = os.path.join(settings.log_dir, label)
        os.makedirs(self.log_dir, exist_ok=True)
        self.run_dir = tempfile.mkdtemp(prefix="sanlab-")
        self.hosts = {}
        self.programs = {}  # of each host, the one that runs now
        self.all_programs = []
        self.router = None
        self.etcd = None

    # --- wires

    def build(self, proxies=PROXIES):
        self.router = netns.Namespace("r", numbered=False)
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.router.sysctl(key, "1")
        for key in ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.default.rp_filter"):
            self.router.sysctl(key, "0")
        self.router.ip("link", "add", "mgmt", "type", "bridge")
        self.router.ip("address", "add", "10.67.0.1/24", "dev", "mgmt")
        self.router.ip("link", "set", "mgmt", "up")
        for name, number in HOSTS.items():
            if self.configured or not name.startswith("x"):
                self._add_host(name, number)
        self.hosts["c4"].run("ethtool", "-K", "eth0", "tso", "off", "gso", "off")
        self.route(4, "n1")
        self.route(6, "n2")
        self._write_pages()
        self.etcd = etcd.Etcd(self, places=[(self.hosts[e], self.mgmt(e)) for e in ("e1", "e2", "e3")])
        self.etcd.start()
        for name in proxies:
            self.start_proxy(name)
        for name in ("a1", "a2", "a3", "a4"):
            self.start_application(name)
        if self.configured:
            for name in ("x1", "x2"):
                self.start_plain(name)
        for name in NODES:
            self.start_node(name)
        self.wait_ready(proxies)

    @staticmethod
    def mgmt(name):
        return f"10.67.0.{HOSTS[name]}"

    def _add_host(self, name, number):
        host = self.hosts[name] = netns.Namespace(name, numbered=False)
        mtu = str(MTU.get(name, 1500))
        self._veth(name, "eth0", name, mtu)
        self._veth(name, "eth1", f"{name}m", "1500")
        self.router.ip("link", "set", f"{name}m", "master", "mgmt")
        host.ip("address", "add", f"{self.mgmt(name)}/24", "dev", "eth1")
        for where, device, part in ((self.router, name, 1), (host, "eth0", 2)):
            where.ip("address", "add", f"10.66.{number}.{part}/24", "dev", device)
            where.ip("address", "add", f"fd66:{number}::{part}/64", "dev", device, "nodad")
        advertised = []
        if name.startswith("x"):  # claims more than its link takes: somebody has to tell its clients
            advertised = ["advmss", "1440"]
        host.ip("route", "add", "default", "via", f"10.66.{number}.1", *advertised)
        host.ip("-6", "route", "add", "default", "via", f"fd66:{number}::1", *advertised)

    def _veth(self, name, inside, outside, mtu):
        host = self.hosts[name]
        self.router.ip("link", "add", outside, "mtu", mtu, "type", "veth", "peer", "name", inside,
                       "mtu", mtu, "netns", host.name)
        self.router.ip("link", "set", outside, "up")
        host.ip("link", "set", inside, "up")

    def route(self, family, node):
        """The router sends one family's services to a node, as BGP would."""
        number = HOSTS[node]
        if family == 4:
            self.router.ip("route", "replace", "10.77.0.0/24", "via", f"10.66.{number}.3")
        else:
            self.router.ip("-6", "route", "replace", "fd77::/64", "via", f"fd66:{number}::3")

    def cut(self, *names):
        """Off the management network, etcd with it; their own traffic goes on."""
        for name in names:
            self.router.ip("link", "set", f"{name}m", "down")

    def mend(self, *names):
        for name in names:
            self.router.ip("link", "set", f"{name}m", "up")

    # --- programs

    def start(self, label, argv, namespace=None, env=None):
        program = Program(label, argv, self.log_dir, namespace, env)
        self.all_programs.append(program)
        return program

    def _run(self, name, argv):
        env = None
        if name in self.faketime:
            self.set_clock(name, "+0s")
            env = self.clock_of(name)
        program = self.programs[name] = self.start(name, argv, self.hosts[name], env)
        return program

    def clock_of(self, name):
        return {"LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
                "FAKETIME_TIMESTAMP_FILE": self.clock_file(name), "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def clock_file(self, name):
        return os.path.join(self.run_dir, name + ".clock")

    def set_clock(self, name, offset):
        """The wall clock of a host's programs, such as "+3600s" from now on."""
        with open(self.clock_file(name), "w") as file:
            file.write(offset + "\n")

    def _config(self, name, text):
        path = os.path.join(self.log_dir, name + ".toml")
        with open(path, "w") as file:
            file.write(text)
        return path

    def _cluster(self, **keys):
        return programs.toml_section("[cluster]", {"etcd": self.etcd.urls, "ttl_s": 3,
                                                   "timeout_ms": 1000, **keys})

    def _address(self, proxy, what, port):
        """Where a proxy listens for network nodes ("net") or applications ("app")."""
        if self.fabric == "shm":
            return f"shm:{self.run_dir}/{proxy}-{what}.sock"
        return f"tcp://{self.mgmt(proxy)}:{port}"

    def start_proxy(self, name, drained=False):
        number = HOSTS[name]
        anybody = {} if self.fabric == "shm" else {"allow": ["any"]}
        text = programs.toml_section("[proxy]", {
            "name": name, "id": number - 20, "workers": 1, "max_connections": 50_000,
            "drain_ms": 2000})
        text += programs.toml_section("[[interface]]", {
            "driver": "channel", "listen": self._address(name, "net", 7472), **anybody})
        if self.configured:
            text += programs.toml_section("[[interface]]", {
                "driver": "packet", "name": "eth0", "mtu": MTU.get(name, 1500),
                "addresses": [f"10.66.{number}.3/24", f"fd66:{number}::3/64"],
                "gateways": [f"10.66.{number}.1", f"fd66:{number}::1"],
                "decapsulate_from": list(OURS.values())})
        text += programs.toml_section("[[fabric]]", {"listen": self._address(name, "app", 7471),
                                                     "allow": ["any"]})
        text += programs.toml_section("[admin]", {"listen": f"{self.mgmt(name)}:{admin.PORT}",
                                                  "changes_from": ["10.67.0.0/24"]})
        text += self._cluster(drain_grace_ms=500)
        argv = [programs.path("proxynode"), "--config", self._config(name, text)]
        program = self._run(name, argv)
        if drained:  # and says so at /healthz
            program.wait_log("is ready")
        else:
            self.wait_healthy(name)
        return program

    def start_node(self, name, drained=False):
        number = HOSTS[name]
        text = programs.toml_section("[node]", {"name": name, "drain_ms": 500})
        text += programs.toml_section("[[interface]]", {
            "driver": "packet", "name": "eth0",
            "addresses": [f"10.66.{number}.3/24", f"fd66:{number}::3/64"],
            "gateways": [f"10.66.{number}.1", f"fd66:{number}::1"]})
        if self.configured:
            text += self._services_and_proxies()
        text += programs.toml_section("[admin]", {"listen": f"{self.mgmt(name)}:{NODE_PORT}",
                                                  "changes_from": ["10.67.0.0/24"]})
        text += self._cluster()
        program = self._run(name, [programs.path("netnode"), "--config", self._config(name, text)])
        if drained:  # and says so at /healthz
            program.wait_log("is ready")
        else:
            self.wait_healthy(name)
        return program

    def _services_and_proxies(self):
        ours = list(OURS.values())
        text = programs.toml_section("[nat]", {"addresses": ours})
        text += programs.toml_section("[tunnel]", {"addresses": ours})
        for proxy in PROXIES:
            text += programs.toml_section("[[proxy]]", {
                "name": proxy, "id": HOSTS[proxy] - 20, "mode": "channel",
                "address": self._address(proxy, "net", 7472)})
        for proxy in PROXIES:
            for kind in TUNNELS:
                number = HOSTS[proxy]
                text += programs.toml_section("[[proxy]]", {
                    "name": f"{proxy}-{kind}", "node": proxy, "mode": "tunnel",
                    "tunnel": "gue" if kind == "gue" else "ip",
                    "address": f"fd66:{number}::3" if kind == "ip6" else f"10.66.{number}.3"})
        for server in ("x1", "x2"):
            text += programs.toml_section("[[proxy]]", {
                "name": server, "mode": "nat", "probe": "tcp",
                "probe_address": f"10.66.{HOSTS[server]}.2:80",
                "addresses": [f"10.66.{HOSTS[server]}.2", f"fd66:{HOSTS[server]}::2"]})
        for way in WAYS:
            those = {"channel": PROXIES, "nat": ("x1", "x2")}.get(way) or [f"{p}-{way}"
                                                                           for p in PROXIES]
            for family in (4, 6):
                for port in (7, 80):
                    text += programs.toml_section("[[service]]", {
                        "address": at(vip(way, family), port), "proxies": those})
        return text

    def start_application(self, name):
        echo = name in ("a1", "a2")
        argv = [programs.path("appnode-echo" if echo else "appnode-httpd")]
        for proxy in PROXIES:
            argv += ["--proxy", self._address(proxy, "app", 7471)]
        for way in ("channel", *TUNNELS) if self.configured else ("channel",):
            for family in (4, 6):
                argv += ["--service", at(vip(way, family), 7 if echo else 80)]
        return self._run(name, argv + ([] if echo else ["--root", f"{self.run_dir}/pages"]))

    def start_plain(self, name):
        server = os.path.join(paths.ROOT, "tests", "e2e", "harness", "plain_server.py")
        return self._run(name, ["/usr/bin/python3", server, name])

    def _write_pages(self):
        os.mkdir(f"{self.run_dir}/pages")
        Pattern("plain server").write_file(f"{self.run_dir}/pages/bytes-{self.page_bytes}",
                                           self.page_bytes)
        with open(f"{self.run_dir}/pages/index.html", "w") as file:
            file.write("<!doctype html><title>sanproxy</title><h1>It works</h1>\n")

    # --- looking

    def _admin(self, name):
        return {"host": self.mgmt(name), "port": NODE_PORT if name.startswith("n") else admin.PORT}

    def get(self, name, path):
        return admin.get(self.hosts[name], path, **self._admin(name))

    def status(self, name):
        return admin.status(self.hosts[name], **self._admin(name))

    def metrics(self, name):
        return admin.metrics(self.hosts[name], **self._admin(name))

    def healthy(self, name):
        try:
            return self.get(name, "/healthz")[0] == 200
        except OSError:
            return False

    def wait_healthy(self, name):
        program = self.programs[name]
        wait.until(lambda: self.healthy(name) or not program.alive(),
                   lambda: f"{name} is well\n{program.log()[-2000:]}")
        if not program.alive():
            raise AssertionError(f"{name} ended with {program.exit_code}:\n{program.log()[-3000:]}")

    def proxies_of(self, node):
        return {one["name"]: one for one in self.status(node)["proxies"]}

    def wait_ready(self, proxies=PROXIES):
        """All services are joined at all proxies, and all proxies are up at both nodes."""
        services = 2 * 2 * (1 + len(TUNNELS) if self.configured else 1)

        def joined(name):
            found = self.status(name)["services"]
            return len(found) == services and all(len(one["members"]) == 2 for one in found)
        for name in proxies:
            wait.until(lambda n=name: joined(n),
                       lambda n=name: f"{n} has all services: {self.status(n)['services']}")
        for node in NODES:
            self.wait_steered(node, {name: "up" for name in proxies})

    def wait_steered(self, node, states, timeout_s=20):
        """Until a node's view of these proxies is this, and it knows services."""
        def view():
            found = self.status(node)
            of = {one["name"]: one["state"] for one in found["proxies"]}
            return len(found["services"]) >= 4 and all(of.get(k) == v for k, v in states.items())
        wait.until(view, lambda: f"{node} sees {states}: {self.proxies_of(node)}\n"
                   f"{self.programs[node].log()[-1500:]}", timeout_s)

    def sanctl(self, *words, **how):
        return self.etcd.sanctl(*words, **how)

    def broken(self):
        """Lines that no program may ever say."""
        return [f"{one.label}: {line}" for one in self.all_programs if (line := one.broken())]

    def close(self):
        for program in self.all_programs:
            program.signal(signal.SIGCONT)
            program.kill()
        for host in [*self.hosts.values(), *([self.router] if self.router else [])]:
            host.remove()
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def describe(self):
        """What is where, as text for people."""
        enter = f"ip netns exec {self.hosts['c1'].name}"
        lines = [__doc__.split("\n", 1)[1].rstrip(), ""]
        lines += ["Services (echo on port 7, HTTP on port 80):"]
        for way in WAYS if self.configured else ("channel",):
            lines.append(f"   {way:8} {vip(way, 4):12} {vip(way, 6)}")
        lines += ["", "Admin endpoints:"]
        for name in PROXIES + NODES:
            lines.append(f"   {name}  http://{self.mgmt(name)}:{self._admin(name)['port']}/status")
        lines += ["", "etcd: " + ",".join(self.etcd.urls),
                  f"Logs and configuration files: {self.log_dir}", "",
                  "In another terminal, as root:",
                  f"   {enter} bash                       # a client; the other hosts likewise",
                  f"   {enter} curl http://{vip('channel', 4)}/",
                  f"   {enter} {programs.path('sanctl')} status --etcd {self.etcd.urls[0]}",
                  f"   {enter} {programs.path('sanctl')} drain p2 --no-wait --etcd {self.etcd.urls[0]}",
                  f"   kill -9 {self.programs['p3'].pid}            # p3"]
        return "\n".join(lines)

    def as_json(self):
        return {"hosts": {name: {"namespace": host.name, "management": self.mgmt(name),
                                 "pid": self.programs[name].pid if name in self.programs else None}
                          for name, host in self.hosts.items()},
                "admin": {name: at(self.mgmt(name), self._admin(name)["port"])
                          for name in PROXIES + NODES},
                "services": {way: [vip(way, 4), vip(way, 6)] for way in WAYS},
                "etcd": self.etcd.urls, "logs": self.log_dir}

    def environment(self):
        """For a command in a client's namespace."""
        return {**os.environ, "SANPROXY_ETCD": ",".join(self.etcd.urls),
                "PATH": settings.bin_dir + os.pathsep + os.environ.get("PATH", ""),
                "SANPROXY_LAB": json.dumps({way: [vip(way, 4), vip(way, 6)] for way in WAYS})}
