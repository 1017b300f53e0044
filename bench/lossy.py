"""Downloads and uploads over links that lose: against the same client and link with a kernel's TCP behind it.

client -- lossy_relay -- proxynode, and client -- lossy_relay -- server: all Ethernet, with offloads off,
so that every segment meets its own fate. In one round both sides have the same seed, and the relay
begins anew for each. The kernel uses the congestion control that its namespace was given.
"""

import dataclasses
import os
import signal
import time

import report
import sides
from lab import BenchError, run
from works import WORKS, Work

SECONDS = 4.0   # of one measurement, by default: windows of long paths take some to open
_READY_S = 10


@dataclasses.dataclass(frozen=True)
class Link:
    name: str
    round_trip_ms: float
    faults: dict   # of the way that the bytes go, see tests/e2e/lossy_relay.cc


def _bound(mbit_per_s, queue_bytes):
    return {"rate": mbit_per_s * 125_000, "queue": queue_bytes}


LINKS = (
    Link("2 ms, 0.1 %", 2, {"loss": 0.001}),
    Link("20 ms, 0.1 %", 20, {"loss": 0.001}),
    Link("20 ms, 1 %", 20, {"loss": 0.01}),
    Link("20 ms, 3 %", 20, {"loss": 0.03}),
    Link("20 ms, 0.2 % in fives", 20, {"loss": 0.002, "burst": 5}),
    Link("100 ms, 0.1 %", 100, {"loss": 0.001}),
    Link("100 ms, 1 %", 100, {"loss": 0.01}),
    Link("20 ms, 20 Mbit/s, queue of 30 KB", 20, _bound(20, 30_000)),
    Link("20 ms, 100 Mbit/s, queue of 200 KB", 20, _bound(100, 200_000)),
)

_SHORT_PATH = "/bytes/30000"
_SHORT = Work("answers", "http", "http", {"connections": 1, "path": _SHORT_PATH}, "req/s", "requests",
              "per_second", "request", {})
_SHORT_LINK = Link("20 ms, 2 %", 20, {"loss": 0.02})


class _Path:
    """One side behind a relay of its own."""

    def __init__(self, lab, label, net):
        self.lab = lab
        self.client = lab.namespace(f"l{label}c")
        self.home = lab.namespace(f"l{label}h")
        self.between = lab.namespace(f"l{label}r")
        self.label = label
        for left, right, end, name in (("left", "c0", self.client, "c0"),
                                       ("right", "san0", self.home, "san0")):
            lab.veth(self.between, left, end, right)
            run(["ip", "netns", "exec", end, "ethtool", "-K", name, "tx", "off", "tso", "off", "gso",
                 "off"])
        lab.ip(self.client, "address", "add", f"{net}.1/24", "dev", "c0")
        self.side = None
        self._relay = None

    def start_relay(self, seed, link, upload=False):
        ways = [{"delay_us": int(link.round_trip_ms * 500)} for _ in range(2)]
        ways[0 if upload else 1].update(link.faults)

        def words(faults):
            return ",".join(f"{key}={value:g}" for key, value in faults.items())
        label = f"relay-{self.label}"
        program = os.path.join(self.lab.bin_dir, "..", "tests", "lossy_relay")
        if not os.access(program, os.X_OK):
            raise BenchError(f"{program} is missing: run ./run build")
        before = len(self.lab.log_tail(label, 1_000_000))
        self._relay = self.lab.start(self.between, [
            program, "--a", "left", "--b", "right", "--seed", str(seed), "--a-to-b",
            words(ways[0]), "--b-to-a", words(ways[1])], label)
        deadline = time.monotonic() + _READY_S
        while "ready" not in self.lab.log_tail(label, 1_000_000)[before:]:
            if self._relay.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"{label}: {self.lab.log_tail(label)}")
            time.sleep(0.01)

    def stop_relay(self):
        self.lab.stop(self._relay)


def _make_ours(lab):
    path = _Path(lab, "o", "10.83.0")
    path.start_relay(1, Link("", 0, {}))
    path.side = sides.start_ours(lab, "packet", path.client, path.home, "10.83.0", label="lossy")[0]
    path.stop_relay()
    return path


def _make_kernel(lab):
    path = _Path(lab, "k", "10.84.0")
    lab.ip(path.home, "address", "add", "10.84.0.2/24", "dev", "san0")
    path.side = sides.Side("no proxy", path.client)
    for port, function in ((8001, "http"), (8002, "source"), (8003, "sink")):
        path.side.apps[function] = lab.start(
            path.home, [lab.program("bench_server"), "--mode", function, "--listen",
                        f"0.0.0.0:{port}"], f"server-lossy-{function}")
        path.side.apps[function].daemon = True
        path.side.addresses[function] = f"10.84.0.2:{port}"
    return path


def _measure_once(bench, work, link, path, seed):
    path.start_relay(seed, link, work.mode == "upload")
    try:
        # Nothing is judged but speed; a warm-up opens the windows.
        result = bench.lab.load(path.client, work.mode, path.side.addresses[work.function],
                                seconds=bench.arguments.seconds, warmup=1,
                                timeout_s=bench.arguments.seconds + 60, **work.flags)
    finally:
        path.stop_relay()
    return result[work.speed] * (1000 if work.per == "GB" else 1)


def _compare(bench, work, link, paths):
    name = f"lossy-{work.name} {link.name}"
    if not bench.wanted(name):
        return
    unit = "Mbit/s" if work.per == "GB" else work.unit
    found = {path.side.name: [] for path in paths}
    for number in range(bench.arguments.rounds):
        for path in paths:
            value = _measure_once(bench, work, link, path, number + 1)
            found[path.side.name].append(value)
            bench.progress(f"{name}  {path.side.name}", number, value, unit)
    ours, kernel = found.values()
    bench.rows.append(report.make_row(name, unit, ours,
                                      f"no proxy ({bench.lab.congestion_control})", kernel))


def measure(bench):
    """All rows of `--lossy`."""
    paths = (_make_ours(bench.lab), _make_kernel(bench.lab))
    for name in ("download", "upload"):
        work = next(one for one in WORKS if one.name == name)
        for link in LINKS:
            _compare(bench, work, link, paths)
    _compare(bench, _SHORT, _SHORT_LINK, paths)
