"""Scenario: each way of forwarding, over IPv4 and IPv6, under load, with links of several MTUs."""

import hashlib
import socket
import time

import paths  # noqa: F401
from crowd import Crowd
from harness import settings, wait
from harness.load import EchoLoad
from harness.pattern import Pattern
from laboratory import CLIENTS, NODES, TUNNELS, WAYS, at, vip

SERVED = Pattern("plain server")
CHUNK = {"chunk_bytes": 16384, "in_flight_bytes": 65536}


class From:
    """What EchoLoad wants of a lab: connections of one client through one way."""

    def __init__(self, laboratory, client, way):
        self._host, self._way = laboratory.hosts[client], way

    def connect(self, port, family):
        sock = self._host.socket(socket.AF_INET if family == 4 else socket.AF_INET6)
        try:
            sock.settimeout(20 * settings.slowness)
            sock.connect((vip(self._way, family), port))
        except BaseException:
            sock.close()
            raise
        return sock


def _download(laboratory, client, way, family):
    size = laboratory.page_bytes
    path = f"bytes/{size}" if way == "nat" else f"bytes-{size}"
    got = laboratory.hosts[client].run("curl", "-sS", "-g", "--max-time", 60,
                                       f"http://{at(vip(way, family), 80)}/{path}", timeout_s=70)
    if got.returncode != 0:
        raise AssertionError(f"{client} downloads over {way}, IPv{family}: {got.stderr.decode()}")
    if hashlib.sha256(got.stdout).hexdigest() != SERVED.sha256(size):
        raise AssertionError(f"{client} over {way}, IPv{family}: wrong bytes, {len(got.stdout)} of them")
    return len(got.stdout)


def _load(laboratory, way, family, connections, bytes_each):
    """Every client at a time; the bytes that came back verified."""
    loads = []
    try:
        for client in CLIENTS:
            loads.append(EchoLoad(From(laboratory, client, way), connections=connections,
                                  family=family, **CHUNK))
        for load in loads:
            load.start()
        for client, load in zip(CLIENTS, loads):
            wait.until(lambda one=load: one.all_progressed([0] * connections, bytes_each) or one.lost,
                       lambda c=client, one=load: f"{c} over {way}, IPv{family}: each of "
                       f"{connections} connections echoes {bytes_each} bytes; got {one.marks()}",
                       timeout_s=60)
        for client, load in zip(CLIENTS, loads):
            load.finish()
            if load.lost:
                raise AssertionError(f"{client} over {way}, IPv{family}: lost "
                                     f"{[one.lost for one in load.lost]}")
        return sum(load.bytes_verified for load in loads)
    finally:
        for load in loads:
            load.close()


def _echo(sock, text):
    sock.sendall(text)
    got = b""
    while len(got) < len(text):
        piece = sock.recv(len(text) - len(got))
        if not piece:
            return False
        got += piece
    return got == text


def _sessions(laboratory, client="c1", each=8):
    """Connections by every way, and what they are for people."""
    out = []
    for way in WAYS:
        for family in (4, 6):
            for _ in range(each):
                out.append((f"{way}, IPv{family}", From(laboratory, client, way).connect(7, family)))
    return out


def _check(sessions, what):
    for name, sock in sessions:
        if not _echo(sock, what.encode()):
            raise AssertionError(f"{name}: {what}: the connection ended, or its bytes are wrong")


def _drain(report, laboratory):
    """A proxy and an ordinary server are drained: by every way old sessions stay, new ones go elsewhere."""
    first = _sessions(laboratory)
    later = []
    try:
        _check(first, "before")
        # x1 stands in the network nodes' files alone.
        laboratory.sanctl("drain", "p1", "--no-wait")
        laboratory.sanctl("drain", "x1", "--kind", "proxy", "--no-wait")
        names = ["p1", *(f"p1-{kind}" for kind in TUNNELS), "x1"]
        for node in NODES:
            laboratory.wait_steered(node, {name: "draining" for name in names})
        time.sleep(1)  # longer than drain_grace_ms: the proxy's listeners are closed
        accepted = laboratory.metrics("p1")["sanproxy_tcp_accepted_total"]

        def at_x1():
            return sum(laboratory.proxies_of(node)["x1"]["sessions"] for node in NODES)
        before = at_x1()
        later = _sessions(laboratory)
        _check(later, "new ones, while it drains")
        _check(first, "old ones, while it drains")
        took = laboratory.metrics("p1")["sanproxy_tcp_accepted_total"] - accepted
        if took or at_x1() > before:
            raise AssertionError(f"drained, p1 took {took} new connections, x1 {at_x1() - before}")
        laboratory.sanctl("undrain", "p1")
        laboratory.sanctl("undrain", "x1", "--kind", "proxy")
        for node in NODES:
            laboratory.wait_steered(node, {name: "up" for name in names})
        _check(first + later, "afterwards")
        report.step("drain", f"p1 and x1 drained: {len(first)} connections by every way went on, "
                    f"{len(later)} new ones went elsewhere, none failed")
    finally:
        for _, sock in first + later:
            sock.close()


# Of those translated by NAT: a node that has forgotten them finds all but the few whose preferred port was
# taken (docs/netnode.md, NAT): so many of all, and where they are few it may always be one.
NAT_BROKEN_MAX = 0.01


def _all_well(kept, translated, expected, what):
    """A message over every connection. (Longest silence in seconds, those broken behind NAT.)"""
    found = kept.verify(), translated.verify()
    wrong = sum(one["wrong"] for one in found)
    silent = sum(one["silent"] for one in found)
    broken = [before - one["open"] for before, one in zip(expected, found)]
    if wrong or silent or broken[0] or broken[1] > max(1, NAT_BROKEN_MAX * expected[1]):
        raise AssertionError(f"{what}: {broken[0]} of {expected[0]} connections broken {found[0]['lost']}, "
                             f"{broken[1]} of {expected[1]} by NAT {found[1]['lost']}, {silent} silent, "
                             f"{wrong} with wrong bytes")
    return max(one["silence_s"] for one in found), broken[1]


def _nodes_go(report, laboratory, connections):
    """A network node is restarted, killed, taken over from and comes back: by every way all goes on."""
    hosts = [laboratory.hosts[client] for client in CLIENTS]
    kept, translated = Crowd(hosts), Crowd(hosts)
    share = max(len(CLIENTS), connections // (2 * len(WAYS)))
    worst = 0

    def begin():
        laboratory.start_node("n1")
        laboratory.wait_steered("n1", {name: "up" for name in ("p1", "p2", "p3", "x1", "x2")})

    def restart():
        laboratory.programs["n1"].stop()
        begin()

    def fail_over():
        laboratory.programs["n1"].kill()
        laboratory.route(4, "n2")

    def back():
        begin()
        laboratory.route(4, "n1")

    def die():
        laboratory.programs["n1"].kill()
        begin()
    try:
        expected = [0, 0]
        for way in WAYS:
            for family in (4, 6):
                crowd, place = (translated, 1) if way == "nat" else (kept, 0)
                expected[place] = crowd.open([(vip(way, family), 7)], share)["open"]
        _all_well(kept, translated, expected, "at first")
        for crowd in (kept, translated):
            crowd.beat(1.0)
        for what, act in (("restarted", restart), ("killed, the other takes over", fail_over),
                          ("back", back), ("killed and started anew", die)):
            for crowd in (kept, translated):
                crowd.stats()
            act()
            silence_s, lost = _all_well(kept, translated, expected, f"a network node is {what}")
            expected[1] -= lost
            worst = max(worst, silence_s)
            report.step(f"a network node is {what}", f"0 of {expected[0]:,} broken by channels and tunnels, "
                        f"{lost} of {expected[1] + lost:,} by NAT, longest silence {silence_s * 1e3:.0f} ms")
    finally:
        kept.close()
        translated.close()
    return sum(expected), worst


def run(report, options):
    with report.laboratory("forwarding", fabric=options.fabric,
                           page_bytes=options.page_bytes) as laboratory:
        connections = max(1, min(16, options.connections // 100))
        total = 0
        for way in WAYS:
            for family in (4, 6):
                begin = time.monotonic()
                echoed = _load(laboratory, way, family, connections, options.bytes_each)
                seconds = time.monotonic() - begin
                downloaded = sum(_download(laboratory, client, way, family) for client in CLIENTS)
                report.step(f"{way}, IPv{family}",
                            f"{4 * connections} connections echoed {echoed / 1e6:,.0f} MB at "
                            f"{echoed * 8e-6 / seconds:,.0f} Mbit/s; 4 downloads of "
                            f"{laboratory.page_bytes / 1e6:.0f} MB")
                total += echoed + downloaded
        _drain(report, laboratory)
        held, silence_s = _nodes_go(report, laboratory, min(options.connections, 2_000))
        counts = {}
        for node in NODES:
            for name, value in laboratory.metrics(node).items():
                counts[name] = counts.get(name, 0) + value
        told = counts.get("sanproxy_netnode_packet_too_big_total", 0)
        report.figures(ways=5, families=2, megabytes_verified=round(total / 1e6), told_too_big=told,
                       held=held, longest_silence_ms=round(silence_s * 1e3))
        report.closing(f"5 ways, IPv4 and IPv6, MTU 1300 to 9000: {total / 1e6:,.0f} MB verified, none "
                       f"wrong; {told:.0f} packets were told to be smaller; {held:,} connections held "
                       f"while a network node was restarted, killed and taken over from")
