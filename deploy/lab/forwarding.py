"""Scenario: each way of forwarding, over IPv4 and IPv6, under load, with links of several MTUs."""

import hashlib
import socket
import time

import paths  # noqa: F401
from harness import settings, wait
from harness.load import EchoLoad
from harness.pattern import Pattern
from laboratory import CLIENTS, NODES, WAYS, at, vip

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
        counts = {}
        for node in NODES:
            for name, value in laboratory.metrics(node).items():
                counts[name] = counts.get(name, 0) + value
        told = counts.get("sanproxy_netnode_packet_too_big_total", 0)
        report.figures(ways=5, families=2, megabytes_verified=round(total / 1e6), told_too_big=told)
        report.closing(f"5 ways, IPv4 and IPv6, MTU 1300 to 9000: {total / 1e6:,.0f} MB verified, none "
                       f"wrong; {told:.0f} packets were told to be smaller")
