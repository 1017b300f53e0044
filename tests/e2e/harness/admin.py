"""The proxy's admin endpoint, and the only place that knows the shape of /status."""

import json
import re
import socket

from . import settings

PORT = 9477


def get(namespace, path, timeout_s=10 * settings.slowness, port=PORT, method="GET", host="127.0.0.1"):
    """(status, body) of a request to the admin endpoint inside `namespace`."""
    with namespace.socket(socket.AF_INET) as sock:
        sock.settimeout(timeout_s)
        sock.connect((host, port))
        sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\n"
                     "Content-Type: application/json\r\n"
                     "Connection: close\r\n\r\n".encode())
        data = b""
        while True:
            piece = sock.recv(65536)
            if not piece:
                break
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


_BUSY = "the worker does not answer"
_ASKED_MAX = 10


def page(namespace, path, port=PORT, host="127.0.0.1"):
    """As get(), but asks again for as long as a worker is too busy to answer within its two seconds, as
    it may be on an emulated processor."""
    for _ in range(_ASKED_MAX):
        code, body = get(namespace, path, port=port, host=host)
        if code != 503 or _BUSY not in body:
            break
    return code, body


def status(namespace, port=PORT, host="127.0.0.1"):
    code, body = page(namespace, "/status", port, host)
    if code != 200:
        raise AssertionError(f"/status answered {code}: {body[:500]}")
    return json.loads(body)


_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^}]*\})? ([-+0-9.eE]+|NaN|[+-]Inf)$")


def metrics(namespace, port=PORT, host="127.0.0.1"):
    """{'name' or 'name{label="x"}': value}; every line must be well-formed."""
    code, body = page(namespace, "/metrics", port, host)
    if code != 200:
        raise AssertionError(f"/metrics answered {code}")
    values = {}
    for line in body.splitlines():
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.match(line)
        if not match:
            raise AssertionError(f"not a Prometheus sample: {line!r}")
        values[match.group(1) + (match.group(2) or "")] = float(match.group(3))
    return values


def service(state, address):
    return next((s for s in state["services"] if s["address"] == address), None)


def nodes(state, address):
    """The members of a service, each with name and process id of its node."""
    found = service(state, address)
    known = {_key(node): node for node in state["nodes"]}
    return [{**member, "name": known[_key(member)]["name"], "pid": _pid(known[_key(member)])}
            for member in (found["members"] if found else [])]


def _key(node):
    """With several workers each counts its nodes by itself."""
    return node.get("worker"), node["node"]


def _pid(node):
    """The process of a node: the kernel tells it of those on shm, the others say it in their name."""
    return node["pid"] if node["pid"] > 0 else int(node["name"].rpartition(":")[2])


def node_count(state, address):
    return len(nodes(state, address))


def workers(state):
    """{index: state} of the workers; empty where there is one alone."""
    return {one["worker"]: one for one in state.get("workers", [])}


def open_connections(state):
    return state["connections"]["open"]


def not_given_back(state):
    """What is still held although nobody is connected; empty when everything came back."""
    held = {}
    for name in ("open", "bound"):
        if state["connections"][name] != 0:
            held[name + "_connections"] = state["connections"]
    for name, pool in state["pools"].items():
        if pool["received"] != 0 or pool["free"] + pool["posted"] != pool["slots"]:
            held[name] = pool
    if state["tx_records"] != 0:
        held["tx_records"] = state["tx_records"]
    for node in state["nodes"]:
        if node["dead"] or node["connections"] or node["region_chunks_free"] != node["region_chunks"]:
            held["node " + node["name"]] = node
    return held
