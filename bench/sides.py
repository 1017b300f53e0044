"""The sides that are compared. Each serves the same functions (http, echo, source, sink) and names
the processes whose CPU time counts as its proxy's and its application's."""

import os

from lab import BenchError, run

FUNCTIONS = ("http", "echo", "source", "sink")


class Side:
    def __init__(self, name, client_namespace):
        self.name = name
        self.client_namespace = client_namespace
        self.home = None      # the namespace of our own proxy
        self.addresses = {}   # function -> "IP:PORT"
        self.apps = {}        # function -> process
        self.proxy = None     # process
        self.workers = []     # process ids, where the proxy has several
        self.sources = []     # further addresses of the client, for many connections

    def pids(self, function):
        return [p.pid for p in (self.proxy, self.apps.get(function)) if p is not None] \
            + self.workers

    def counted(self, *parts):
        """The sum of the proxy's counters whose names, labels included, have all these parts."""
        text = run(["ip", "netns", "exec", self.home, "curl", "-s", "--max-time", "5",
                    "http://127.0.0.1:9477/metrics"])
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        found = [float(value) for name, _, value in lines if all(part in name for part in parts)]
        if not found:
            raise BenchError(f"the proxy's /metrics has no {' '.join(parts)}")
        return sum(found)

    def cpu(self, result, function):
        """CPU seconds of (proxy, application) in a load's result."""
        seconds = result["cpu_s"]
        proxy = sum(seconds[str(pid)] for pid in (self.proxy.pid, *self.workers)) \
            if self.proxy else None
        return proxy, seconds[str(self.apps[function].pid)]


# HAProxy as it comes with each way of moving bytes. "splice" always splices; "splice-auto" lets its
# heuristic decide, which on these loads hardly ever does.
HAPROXY = {"haproxy splice": "  option splice-request\n  option splice-response",
           "haproxy splice-auto": "  option splice-auto",
           "haproxy copy": ""}
_SERVER_PORT = 8001   # of the first function; HAProxy's variants follow, 100 apart


def _peer_port(variant, function):
    return _SERVER_PORT + 100 * variant + FUNCTIONS.index(function)


_HAPROXY_CONFIG = """\
global
  nbthread 1
  maxconn 7500
defaults
  mode tcp
  maxconn 7500
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option tcp-smart-accept
  option tcp-smart-connect
{splice}
"""

_HAPROXY_LISTEN = """
listen {name}
  bind 0.0.0.0:{port}
  server app 127.0.0.1:{server_port}
"""


def make_peers(lab):
    """The server alone and HAProxy's variants in front of it: client -veth- peers."""
    client = lab.namespace("pc")
    host = lab.namespace("ph")
    lab.veth(client, "c0", host, "h0")
    lab.ip(client, "address", "add", "10.78.0.1/24", "dev", "c0")
    lab.ip(host, "address", "add", "10.78.0.2/24", "dev", "h0")
    servers = {}
    for function in FUNCTIONS:
        argv = [lab.program("bench_server"), "--mode", function,
                "--listen", f"0.0.0.0:{_peer_port(0, function)}"]
        servers[function] = lab.start(host, argv, f"server-{function}")
        servers[function].daemon = True
    sides = []
    for variant, name in enumerate(("no proxy", *HAPROXY)):
        side = Side(name, client)
        side.apps = servers
        side.addresses = {f: f"10.78.0.2:{_peer_port(variant, f)}" for f in FUNCTIONS}
        if name in HAPROXY:
            side.proxy = _start_haproxy(lab, host, name, variant)
        sides.append(side)
    for side in sides:
        lab.wait_serving(client, "http", side.addresses["http"])
    for i in range(CLIENT_SOURCES):
        lab.ip(client, "address", "add", f"10.78.0.{101 + i}/24", "dev", "c0")
        for side in sides:
            side.sources.append(f"10.78.0.{101 + i}")
    return sides


def _start_haproxy(lab, namespace, name, variant):
    label = name.replace(" ", "-")
    path = os.path.join(lab.folder, f"{label}.cfg")
    with open(path, "w") as file:
        file.write(_HAPROXY_CONFIG.format(splice=HAPROXY[name]))
        for function in FUNCTIONS:
            file.write(_HAPROXY_LISTEN.format(name=function, port=_peer_port(variant, function),
                                              server_port=_peer_port(0, function)))
    process = lab.start(namespace, ["haproxy", "-db", "-f", path], label)
    process.daemon = True
    return process


_OUR_CONFIG = """\
[proxy]
name = "bench"
max_connections = 100_000
workers = {workers}

[[interface]]
driver = "{driver}"
name = "san0"
mtu = 1500
addresses = ["{address}"]

[[fabric]]
listen = "shm:{folder}/isolated.sock"
trust = "isolated"

[[fabric]]
listen = "shm:{folder}/shared.sock"
trust = "shared"

[admin]
listen = "127.0.0.1:9477"
"""

_OUR_PORTS = {"http": 80, "echo": 7, "source": 19, "sink": 9}
_SHARED_PORT_OFFSET = 1000
CLIENT_SOURCES = 4


def make_ours(lab, driver, workers=1, label=""):
    """Returns (isolated, shared): two ways into one proxy node, over a TUN device in the client's
    namespace or over a veth pair whose far end is the proxy's."""
    client = lab.namespace(("t" if driver == "tun" else "kc") + label)
    home = client if driver == "tun" else lab.namespace("kp" + label)
    net = "10.77.0" if driver == "tun" else "10.79.0"
    if driver == "packet":
        lab.veth(client, "c0", home, "san0")
        lab.ip(client, "address", "add", f"{net}.1/24", "dev", "c0")
    return start_ours(lab, driver, client, home, net, workers, label)


def start_ours(lab, driver, client, home, net, workers=1, label=""):
    """The processes of make_ours(), where client and network are there."""
    folder = os.path.join(lab.folder, driver + label)
    os.mkdir(folder)
    config = os.path.join(folder, "proxynode.toml")
    own = f"{net}.1/24" if driver == "tun" else f"{net}.2/24"
    with open(config, "w") as file:
        file.write(_OUR_CONFIG.format(driver=driver, address=own, folder=folder, workers=workers))
    proxy = lab.start(home, [lab.program("proxynode"), "--config", config],
                      f"proxynode-{driver}{label}")
    proxy.daemon = True
    sides = []
    for trust in ("isolated", "shared"):
        side = Side(driver if trust == "isolated" else f"{driver} shared", client)
        side.proxy = proxy
        side.home = home
        offset = 0 if trust == "isolated" else _SHARED_PORT_OFFSET
        for function in FUNCTIONS:
            address = f"{net}.10:{_OUR_PORTS[function] + offset}"
            argv = app_argv(lab, function) + ["--proxy", f"shm:{folder}/{trust}.sock",
                                               "--service", address]
            side.apps[function] = lab.start(home, argv, f"app-{driver}{label}-{trust}-{function}")
            side.apps[function].daemon = True
            side.addresses[function] = address
        sides.append(side)
    device = "san0" if driver == "tun" else "c0"
    for side in sides:
        lab.wait_serving(client, "http", side.addresses["http"])
        side.workers = children_of(proxy.pid)
    for i in range(CLIENT_SOURCES):
        lab.ip(client, "address", "add", f"{net}.{101 + i}/24", "dev", device)
        sides[0].sources.append(f"{net}.{101 + i}")
    return sides


def port_of(function):
    return _OUR_PORTS[function]


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


def app_argv(lab, function):
    if function == "http":
        return [lab.program("appnode-httpd")]
    return [lab.program("appnode-echo"), "--mode", function]
