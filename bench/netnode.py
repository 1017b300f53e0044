"""A network node in front: what it costs against a proxy that is attached directly.

Channel: the TUN device is the node's, packets go on to proxynode over shared memory; against
proxynode with the TUN device itself. NAT: the node stands between clients and HAProxy, on a host of
its own by AF_XDP or by TUN, or beside HAProxy on its host; against HAProxy at the end of a veth pair.
Packets: AF_XDP against AF_PACKET, without anything behind them. All of it on one machine, so that the
node's own work takes processor time from everybody else: these are the figures of the worst case.
"""

import json
import os
import subprocess

import report
import sides
from lab import BenchError
from works import WORKS

CHANNEL_BARS = {"http": 0.8, "download": 0.85, "upload": 0.85}
NAT_BARS = {"http": 0.8}
NAT_WAYS = ("beside", "xdp", "tun")
NS_PER_PACKET_BARS = {"steer_packets/1000": 60, "steer_packets/1000000": 100}
MAGLEV_BUILD_MS_MAX = 5

_NODE = """\
[node]
name = "bench"

[nat]
addresses = ["{translated}"]

[admin]
listen = "127.0.0.1:9478"
"""
_INTERFACE = """
[[interface]]
driver = "{driver}"
name = "{name}"
addresses = ["{address}"]
"""
_SERVICE = """
[[service]]
address = "{address}"
"""
_PROXY = """
[[proxy]]
name = "bench"
mode = "{mode}"
address = "{address}"
"""
_CHANNEL_PROXY = """\
[proxy]
name = "bench"
max_connections = 100_000

[[interface]]
driver = "channel"
listen = "shm:{folder}/packets.sock"

[[fabric]]
listen = "shm:{folder}/isolated.sock"

[admin]
listen = "127.0.0.1:9477"
"""


def _start_node(lab, namespace, folder, translated, interfaces, services, mode, address):
    """`translated`: the address that servers see; `interfaces`: driver, name and address of each."""
    path = os.path.join(folder, "netnode.toml")
    with open(path, "w") as file:
        file.write(_NODE.format(translated=translated))
        for driver, name, own in interfaces:
            file.write(_INTERFACE.format(driver=driver, name=name, address=own))
        for service in services:
            file.write(_SERVICE.format(address=service))
        file.write(_PROXY.format(mode=mode, address=address))
    label = f"netnode-{os.path.basename(folder)}"
    node = lab.start(namespace, [lab.program("netnode"), "--config", path], label)
    node.daemon = True
    return node


def make_channel_side(lab):
    client = lab.namespace("nc")
    folder = os.path.join(lab.folder, "channel")
    os.mkdir(folder)
    config = os.path.join(folder, "proxynode.toml")
    with open(config, "w") as file:
        file.write(_CHANNEL_PROXY.format(folder=folder))
    side = sides.Side("channel", client)
    side.proxy = lab.start(client, [lab.program("proxynode"), "--config", config],
                           "proxynode-channel")
    side.proxy.daemon = True
    net = "10.80.0"
    for function in sides.FUNCTIONS:
        address = f"{net}.10:{sides.port_of(function)}"
        side.addresses[function] = address
        side.apps[function] = lab.start(
            client, sides.app_argv(lab, function) + ["--proxy", f"shm:{folder}/isolated.sock",
                                                     "--service", address],
            f"app-channel-{function}")
        side.apps[function].daemon = True
    side.node = _start_node(lab, client, folder, f"{net}.100", [("tun", "nn0", f"{net}.1/24")],
                            side.addresses.values(), "channel", f"shm:{folder}/packets.sock")
    lab.wait_serving(client, "http", side.addresses["http"])
    return side


def make_nat_sides(lab):
    """HAProxy directly, and behind a node by each of NAT_WAYS: the same HAProxy and servers.
    beside: the node is on HAProxy's host, with AF_XDP on its link to the clients, and reaches HAProxy
    through a TUN device. xdp: it has a veth pair to its clients and one to HAProxy, as it would have
    two network cards, with AF_XDP on both. tun: its host is the clients' and forwards what it sends
    to HAProxy."""
    direct = next(side for side in sides.make_peers(lab) if side.name == "haproxy copy")
    ways = [_nat_side(lab, direct, way, 81 + 2 * i) for i, way in enumerate(NAT_WAYS)]
    return direct, *ways


def _nat_side(lab, direct, way, number):
    net, behind = f"10.{number}.0", f"10.{number + 1}.0"
    client = lab.namespace(f"n{way[0]}c")
    host = direct.client_namespace.replace("-pc", "-ph")
    target, translated = f"{behind}.2", f"{net}.100"
    if way == "beside":
        namespace = host
        interfaces = [("xdp", "nb0", f"{net}.1/24"), ("tun", "nb2", f"{behind}.2/24")]
        translated = f"{behind}.100"
    elif way == "xdp":
        namespace = lab.namespace("nxn")
        interfaces = [("xdp", "nb0", f"{net}.1/24"), ("xdp", "nb2", f"{behind}.1/24")]
    else:
        namespace = client
        interfaces = [("tun", "nb0", f"{net}.1/24")]
    if way != "tun":
        lab.veth(client, "nb1", namespace, "nb0")
        lab.ip(client, "address", "add", f"{net}.2/24", "dev", "nb1")
    if way != "beside":
        _wire_haproxy(lab, namespace, host, way, net, behind)
    folder = os.path.join(lab.folder, f"nat-{way}")
    os.mkdir(folder)
    port = direct.addresses["http"].rpartition(":")[2]
    side = sides.Side(f"nat {way}", client)
    side.addresses = {"http": f"{net}.10:{port}"}
    side.proxy, side.apps = direct.proxy, direct.apps
    side.node = _start_node(lab, namespace, folder, translated, interfaces,
                            side.addresses.values(), "nat", target)
    lab.wait_serving(client, "http", side.addresses["http"])
    return side


def _wire_haproxy(lab, namespace, host, way, net, behind):
    """A veth pair from the node's host to HAProxy's. Of xdp the node has its address there."""
    here, there = ("nb2", "h-xdp") if way == "xdp" else ("nb3", "h-tun")
    lab.veth(namespace, here, host, there)
    if way == "tun":
        lab.ip(namespace, "address", "add", f"{behind}.1/24", "dev", here)
        lab.allow_forwarding(namespace)
    lab.ip(host, "address", "add", f"{behind}.2/24", "dev", there)
    lab.ip(host, "route", "add", f"{net}.0/24", "via", f"{behind}.1")


def _compare(bench, name, works, direct, through, bars):
    for work in works:
        if not bench.wanted(f"netnode-{name}-{work.name}"):
            continue
        name_of_work = f"netnode-{name}-{work.name}"
        without, behind = ([turn["speed"] for turn in turns] for turns in
                           bench.in_turns(name_of_work, work, (direct, through)))
        bench.rows.append(report.make_row(name_of_work, work.unit, behind,
                                          f"{direct.name} directly", without,
                                          at_least=bars[work.name]))


def _micro(bench):
    argv = [bench.lab.program("netnode_microbench"), "--benchmark_format=json",
            "--benchmark_min_time=0.5", "--benchmark_repetitions=3"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    if result.returncode != 0:
        raise BenchError(f"netnode_microbench: {result.stderr.strip()[-400:]}")
    found = {}
    for one in json.loads(result.stdout)["benchmarks"]:
        if one.get("run_type") == "aggregate":
            continue
        per_item = one["items_per_second"] if "items_per_second" in one else None
        value, unit = (1e9 / per_item, "ns") if per_item else (one["cpu_time"], one["time_unit"])
        found.setdefault(one["name"], (unit, []))[1].append(value)
    for name, (unit, values) in found.items():
        bar = NS_PER_PACKET_BARS.get(name)
        if name.startswith("maglev_build"):
            bar = MAGLEV_BUILD_MS_MAX
        bench.rows.append(report.make_row(f"netnode-micro {name}", unit, values, at_most=bar))


def _packets(bench):
    """Small packets a second through the drivers of a veth, by themselves."""
    samples = {"xdp": [], "packet": []}
    for number in range(bench.arguments.rounds):
        for driver, found in samples.items():
            argv = [bench.lab.program("packet_bench"), "--driver", driver,
                    "--seconds", str(bench.arguments.seconds)]
            result = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
            if result.returncode != 0:
                raise BenchError(f"packet_bench: {result.stderr.strip()[-400:]}")
            found.append(json.loads(result.stdout.splitlines()[-1]))
            bench.progress(f"netnode-packets  {driver}, received", number, found[-1]["in_per_s"],
                           "packets/s")
    mode = samples["xdp"][0]["mode"]
    for figure, text, unit in (("in_per_s", "received", "packets/s"),
                               ("in_ns", "received, CPU", "CPU-ns/packet"),
                               ("out_per_s", "sent", "packets/s"),
                               ("out_ns", "sent, CPU", "CPU-ns/packet")):
        ours, peer = ([one[figure] for one in samples[driver]] for driver in ("xdp", "packet"))
        bench.rows.append(report.make_row(f"netnode-packets AF_XDP ({mode}) {text}", unit, ours,
                                          "AF_PACKET", peer))


def measure(bench):
    """All rows of `--netnode`."""
    if bench.wanted("netnode-micro"):
        _micro(bench)
    if bench.wanted("netnode-packets"):
        _packets(bench)
    by_name = {work.name: work for work in WORKS}
    channel = [by_name[name] for name in CHANNEL_BARS]
    if any(bench.wanted(f"netnode-channel-{work.name}") for work in channel):
        _compare(bench, "channel", channel, bench.ours("tun")[0], make_channel_side(bench.lab),
                 CHANNEL_BARS)
    if any(bench.wanted(f"netnode-nat-{way}-http") for way in NAT_WAYS):
        direct, *ways = make_nat_sides(bench.lab)
        for way, through in zip(NAT_WAYS, ways):
            _compare(bench, f"nat-{way}", [by_name["http"]], direct, through, NAT_BARS)
