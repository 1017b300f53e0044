"""A lab: the namespaces, the proxy node and the application nodes of one test.

tun:    the client's namespace holds the TUN device; proxynode runs in there as well.
packet: client namespace -- veth -- proxy namespace; proxynode has its own addresses on the
        segment, the proxy's kernel has none.
channel: as tun, but the device belongs to a plain network node, which sends the packets to
        proxynode over a SAN channel.
"""

import os
import shutil
import signal
import socket
import tempfile

from . import admin, fabrics, netns, programs, settings, wait
from .process import Program

V4 = "10.77.0.10"
V6 = "fd77::10"
TOPOLOGIES = ("tun", "packet")

_open_labs = []


def close_all():
    for one in list(_open_labs):
        one.close()


def service_address(family, port):
    return f"{V4}:{port}" if family == 4 else f"[{V6}]:{port}"


class Lab:
    def __init__(self, topology, label, config=None, services=(), fabric=None, keys=None,
                 kinds=("shm",), proxy_env=None):
        """`config`: sections or keys merged into the configuration; `services`: policies; `keys`:
        {name: secret} that the proxy has, see key(); `kinds`: of fabrics, the first is the one that
        nodes use by default; `fabric`: keys of their sections; `proxy_env`: of the proxy alone."""
        self.topology = topology
        self.log_dir = os.path.join(settings.log_dir, label)
        os.makedirs(self.log_dir, exist_ok=True)
        # Unix socket paths are short: they live apart from the logs.
        self.run_dir = tempfile.mkdtemp(prefix="sane2e-")
        self.kinds = kinds
        self._proxy_env = proxy_env
        self.proxy_address = fabrics.address(kinds[0], self.run_dir)
        config = dict(config or {})
        if "verbs" in kinds:
            config["proxy"] = {"ingress_pool_bytes": 64 << 20, **config.get("proxy", {})}
        if keys:
            config["key"] = [{"name": name, "file": self.write_key(name, secret)}
                             for name, secret in keys.items()]
        self.programs = []
        self.proxy = None
        self.netnode = None
        self.packets_address = config.get("interface", {}).get(
            "listen", programs.channel_address(self.run_dir))
        self._starts = 0
        self._counts = {}
        _open_labs.append(self)
        self.client = netns.Own() if "verbs" in kinds else netns.Namespace("c")
        on_segment = topology in ("packet", "xdp")
        self.proxy_ns = netns.Namespace("p") if on_segment else self.client
        if on_segment:
            self._make_segment()
        sections = [fabrics.section(kind, self.run_dir, fabric or {}) for kind in kinds]
        self.config = programs.proxy_config(topology, sections, config, services, self.run_dir)
        self.config_path = os.path.join(self.log_dir, "proxynode.toml")

    def write_key(self, name, secret, label="proxy"):
        """A key file; the proxy's, or what somebody else takes for it."""
        path = os.path.join(self.run_dir, f"{label}-{name}.key")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secret + "\n")
        return path

    def key(self, name):
        """NAME:FILE of one of the proxy's keys."""
        return f"{name}:{self.run_dir}/proxy-{name}.key"

    def _make_segment(self):
        self.client.ip("link", "add", "eth0", "type", "veth", "peer", "name", "san0",
                       "netns", self.proxy_ns.name)
        self._set_up_segment()

    def _set_up_segment(self):
        self.proxy_ns.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        self.client.ip("address", "add", "10.88.0.2/24", "dev", "eth0")
        self.client.ip("address", "add", "fd88::2/64", "dev", "eth0", "nodad")
        self.client.ip("link", "set", "eth0", "up")
        self.proxy_ns.ip("link", "set", "san0", "up")
        self.client.ip("route", "add", "10.77.0.0/24", "via", "10.88.0.1")
        self.client.ip("-6", "route", "add", "fd77::/64", "via", "fd88::1")

    # --- programs

    def _label(self, base):
        self._counts[base] = self._counts.get(base, 0) + 1
        return base if self._counts[base] == 1 else f"{base}-{self._counts[base]}"

    def start(self, base, argv, namespace=None, env=None, uid=None):
        program = Program(self._label(base), argv, self.log_dir, namespace, env, uid)
        self.programs.append(program)
        return program

    def start_proxy(self, wait_ready=True):
        with open(self.config_path, "w") as file:
            file.write(self.config)
        self.proxy = self.start("proxynode", [programs.path("proxynode"), "--config",
                                              self.config_path], self.proxy_ns,
                                self._proxy_env)
        if wait_ready:
            wait.until(lambda: self.healthy() or not self.proxy.alive(),
                       lambda: f"/healthz answers\n{self.proxy.log()[-3000:]}")
            if not self.proxy.alive():
                raise AssertionError(f"proxynode ended with {self.proxy.exit_code}:\n"
                                     f"{self.proxy.log()[-3000:]}")
            if self.topology == "channel" and self.netnode is None:
                self.start_netnode()
        return self.proxy

    def start_netnode(self):
        """The plain network node, and waits until the proxy has it."""
        proxies = [self.packets_address]
        argv = [programs.test_path("plain_netnode"), "--tun", "san0"]
        for address in programs.TUN_ADDRESSES:
            argv += ["--address", address]
        for address in proxies:
            argv += ["--proxy", address]
        self.netnode = self.start("netnode", argv, self.client)
        wait.until(lambda: self.network_nodes() or not self.netnode.alive(),
                   lambda: f"the network node connects\n{self.netnode.log()[-2000:]}")
        assert self.netnode.alive(), self.netnode.log()[-2000:]
        return self.netnode

    def network_nodes(self):
        return [node for node in self.status()["network_nodes"] if node["connected"]]

    def start_httpd(self, port=80, family=4, root=None, name=None, extra=(), joined=True,
                    kind=None):
        argv = programs.httpd_argv(*self._way(kind, service_address(family, port)), root, extra)
        return self._start_node(name or "httpd", argv, family, port, joined, kind)

    def start_echo(self, mode="echo", port=7, family=4, name=None, extra=(), joined=True,
                   kind=None, **how):
        argv = programs.echo_argv(mode, *self._way(kind, service_address(family, port)), extra)
        return self._start_node(name or "echo-" + mode, argv, family, port, joined, kind, **how)

    def _way(self, kind, service):
        """How a node gets to the proxy over a fabric of this kind, and what it serves."""
        kind = kind or self.kinds[0]
        return [fabrics.address(kind, self.run_dir), *fabrics.node_words(kind)], service

    def _start_node(self, base, argv, family, port, joined, kind, **how):
        before = self.node_count(port, family) if joined else 0
        over_shm = (kind or self.kinds[0]) == "shm"
        program = self.start(base, argv, None if over_shm else self.proxy_ns, **how)
        program.service = service_address(family, port)
        if joined:
            wait.until(lambda: self.node_count(port, family) > before or not program.alive(),
                       lambda: f"{program.label} joins {program.service}\n{program.log()[-2000:]}")
            if not program.alive():
                raise AssertionError(f"{program.label} ended with {program.exit_code}:\n"
                                     f"{program.log()[-3000:]}")
        return program

    # --- looking at the proxy

    def http_admin(self, path):
        return admin.get(self.proxy_ns, path)

    def healthy(self):
        try:
            return self.http_admin("/healthz")[0] == 200
        except OSError:
            return False

    def status(self):
        return admin.status(self.proxy_ns)

    def metrics(self):
        return admin.metrics(self.proxy_ns)

    def node_count(self, port, family=4):
        return admin.node_count(self.status(), service_address(family, port))

    def shares(self, port, family=4):
        """{label of a program: its connections of this service}."""
        labels = {program.pid: program.label for program in self.programs}
        return {labels.get(node["pid"]): node["connections"]
                for node in admin.nodes(self.status(), service_address(family, port))}

    def open_connections(self):
        return admin.open_connections(self.status())

    # --- clients

    def connect(self, port, family=4, timeout_s=20, receive_buffer=None, send_buffer=None,
                prepare=None):
        """`prepare`: called with the socket before it connects."""
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        sock = self.client.socket(kind)
        try:
            if receive_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if send_buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
            if prepare:
                prepare(sock)
            sock.settimeout(timeout_s * settings.slowness)
            sock.connect((V4 if family == 4 else V6, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def run(self, *argv, timeout_s=120, **options):
        return self.client.run(*argv, timeout_s=timeout_s * settings.slowness, **options)

    def url(self, path, port=80, family=4):
        return f"http://{service_address(family, port)}{path}"

    def curl(self, *words, timeout_s=120, **options):
        timeout_s *= settings.slowness
        return self.client.run("curl", "-sS", "--max-time", timeout_s, *words,
                               timeout_s=timeout_s + 10, **options)

    # --- the end

    def assert_healthy(self):
        """What holds after every test: alive, nothing broken, everything given back."""
        assert self.proxy is not None and self.proxy.alive(), \
            f"proxynode ended with {self.proxy and self.proxy.exit_code}:\n{self.tail()}"
        self.assert_not_broken()

        def leak():
            return admin.not_given_back(self.status())
        try:
            wait.until(lambda: not leak(), "", timeout_s=30)
        except wait.NotReached:
            raise AssertionError(f"not given back at the end: {leak()}\n{self.tail()}") from None

    def assert_clean_stop(self):
        """SIGTERM ends every program that still runs with 0 and without a complaint (a leak, say)."""
        running = [p for p in self.programs if p.alive() and p is not self.proxy]
        for program in running + [self.proxy] if self.proxy.alive() else running:
            program.signal(signal.SIGTERM)
            code = program.wait()
            assert code == 0, f"{program.label} ended with {code}:\n{program.log()[-2000:]}"
        self.assert_not_broken()

    def assert_not_broken(self):
        for program in self.programs:
            line = program.broken()
            assert not line, f"{program.label} says: {line}"

    def tail(self, bytes_max=1500):
        return "\n".join(f"--- {p.label} ({'running' if p.alive() else p.exit_code})\n"
                         f"{p.log()[-bytes_max:]}" for p in self.programs)

    def close(self):
        if self not in _open_labs:
            return
        _open_labs.remove(self)
        for program in self.programs:
            program.kill()
        self.client.remove()
        if self.proxy_ns is not self.client:
            self.proxy_ns.remove()
        shutil.rmtree(self.run_dir, ignore_errors=True)
