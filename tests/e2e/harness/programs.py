"""Command lines and configuration of the programs: the only place that knows their options."""

import json
import os

from . import settings
from .admin import PORT


def path(name):
    return os.path.join(settings.bin_dir, name)


def toml_value(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items()) + " }"
    return json.dumps(str(value))


def toml_section(header, values):
    return header + "\n" + "".join(f"{k} = {toml_value(v)}\n" for k, v in values.items()) + "\n"


TUN_ADDRESSES = ["10.77.0.1/24", "fd77::1/64"]


def channel_address(run_dir, name="net"):
    return f"shm:{run_dir}/{name}.sock"


def proxy_config(topology, fabrics, config, services, run_dir="/nowhere"):
    """`fabrics`: [[fabric]] sections; `config`: {"proxy": {...}, "interface": {...}, "any other
    section": {...} or [{...}, ...]}."""
    config = dict(config)
    segment = ["10.88.0.1/24", "fd88::1/64"]
    own = {"tun": TUN_ADDRESSES, "packet": segment, "xdp": segment}
    proxy = {"name": "proxy-e2e", "max_connections": 20000, "workers": 1,
             **config.pop("proxy", {})}
    interface = {"driver": topology, "name": "san0", "mtu": 1500}
    if topology == "channel":
        interface["listen"] = channel_address(run_dir)
    else:
        interface["addresses"] = own[topology]
    interface.update(config.pop("interface", {}))
    text = toml_section("[proxy]", proxy)
    text += toml_section("[[interface]]", interface)
    for one in fabrics:
        text += toml_section("[[fabric]]", one)
    for one in services:
        text += toml_section("[[service]]", one)
    text += toml_section("[admin]", {"listen": f"127.0.0.1:{PORT}", **config.pop("admin", {})})
    for name, values in config.items():
        many = isinstance(values, (list, tuple))
        for one in values if many else [values]:
            text += toml_section(f"[[{name}]]" if many else f"[{name}]", one)
    return text


def test_path(name):
    """A program that only tests need: below the build folder of --bin, or in --bin itself."""
    beside = os.path.join(settings.bin_dir, "..", "tests", name)
    return beside if os.path.exists(beside) else path(name)


def _node(program, way, service, extra):
    """`way`: the proxy's address, and what else its fabric needs to be told."""
    return [program, "--proxy", *way, "--service", service, *extra]


def httpd_argv(way, service, root, extra):
    argv = _node(path("appnode-httpd"), way, service, extra)
    return argv + (["--root", root] if root else [])


def echo_argv(mode, way, service, extra):
    if mode == "stall":
        return _node(path("appnode-echo"), way, service, ["--stall", *extra])
    if mode in ("echo", "sink", "source"):
        return _node(path("appnode-echo"), way, service, ["--mode", mode, *extra])
    return _node(test_path("probe_node"), way, service, ["--mode", mode, *extra])


# Configuration that single tests need.

def tiny_pools():
    """The smallest that the configuration takes."""
    return {"proxy": {"ingress_pool_bytes": 8 << 20, "egress_pool_bytes": 65536,
                      "channel_region_bytes": 1 << 20, "max_tx_records": 1024,
                      "receive_window_bytes": 65536, "send_window_bytes": 65536}}


def connection_limit(count, action):
    return {"proxy": {"max_connections": count, "at_max_connections": action}}


def drain(seconds):
    return {"proxy": {"drain_ms": int(seconds * 1000)}}


def refused_count(metrics):
    """SYNs refused or dropped because of the connection limit."""
    return metrics['sanproxy_tcp_refused_total{reason="max_connections"}']
