"""Many open connections: what they cost when nothing moves on them, and when anything may.

The descriptors of one process are limited, so the connections are spread over several holders and
several client addresses.
"""

import json
import subprocess

from lab import BenchError, rss_bytes
from works import REQUEST_PATH

HOLDERS = 3
ACTIVE_PER_HOLDER = 21
LOAD_CONNECTIONS = 64
FEW = 10            # the baseline of "idle"
FEW_RANDOM = 100    # the baseline of "random": it needs more connections than requests under way
FLAT = 1.25
IDLE_BYTES_MAX = 1024
# How many the peers are asked to hold: a process may have 20,000 descriptors, and HAProxy reserves
# two for each of its maxconn connections (sides.py), two and a half where it splices.
PEER_COUNTS = {"no proxy": 10_000, "haproxy copy": 7_000}


class Holders:
    """Processes that hold `count` connections, each of which has had one request."""

    def __init__(self, lab, side, count, mode, seconds, warmup):
        self._lab = lab
        self._processes = []
        each = -(-count // HOLDERS)
        for i in range(HOLDERS):
            mine = min(each, count - i * each)
            if mine <= 0:
                break
            flags = {"connections": mine, "path": REQUEST_PATH, "wait_go": True,
                     "source": side.sources[i:] + side.sources[:i], "watch": side.pids("http")}
            if mode == "random":
                flags.update(active=ACTIVE_PER_HOLDER, seconds=seconds, warmup=warmup)
            argv = lab.client_argv(mode, side.addresses["http"], **flags)
            self._processes.append(lab.start(side.client_namespace, argv, f"holder-{i}",
                                             stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             text=True))
        for process in self._processes:
            if process.stdout.readline().strip() != "READY":
                raise BenchError("a holder could not open its connections:\n"
                                 + lab.log_tail(process.label))

    def go(self):
        """Runs the load of all holders at once; returns their results."""
        for process in self._processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        results = []
        for process in self._processes:
            text = process.stdout.readline()
            if not text:
                raise BenchError("a holder failed:\n" + self._lab.log_tail(process.label))
            results.append(json.loads(text))
        return results

    def close(self):
        for process in self._processes:
            self._lab.stop(process)


def _figures(side, results, key="requests"):
    """Request rate and CPU µs per request (proxy, application) of results taken at one time."""
    requests = max(sum(r[key] for r in results), 1)
    out = {"speed": sum(r["per_second"] for r in results)}
    for name, index in (("proxy_cpu", 0), ("app_cpu", 1)):
        if index == 0 and side.proxy is None:
            continue
        seconds = sum(side.cpu(r, "http")[index] for r in results) / len(results)
        out[name] = seconds / requests * 1e6
    return out


def measure(lab, side, counts, rounds, seconds, warmup, progress):
    """Returns ({("idle"|"random", count): [figures per round]}, bytes per idle connection)."""
    samples = {}
    memory = []
    for number in range(rounds):
        few_rss = None
        for count in [FEW, *counts]:
            holders = Holders(lab, side, count, "idle" if count == FEW else "random",
                              seconds, warmup)
            rss = rss_bytes(side.proxy.pid)
            if count == FEW:
                few_rss = rss
            elif count == counts[-1] and number == 0:
                memory.append((rss - few_rss) / (count - FEW))
            result = lab.load(side.client_namespace, "http", side.addresses["http"],
                              connections=LOAD_CONNECTIONS, path=REQUEST_PATH, seconds=seconds,
                              warmup=warmup, watch=side.pids("http"))
            found = _figures(side, [result])
            samples.setdefault(("idle", count), []).append(found)
            progress(f"{side.name} {count} idle", number, found["speed"], "req/s")
            if count != FEW:
                _random(side, holders, count, samples, number, progress)
            holders.close()
        holders = Holders(lab, side, FEW_RANDOM, "random", seconds, warmup)
        _random(side, holders, FEW_RANDOM, samples, number, progress)
        holders.close()
    return samples, max(memory)


def measure_peer(lab, side, count, rounds, seconds, warmup, progress):
    """Random activity alone, over few and over `count` connections: {("random", n): figures}."""
    samples = {}
    for number in range(rounds):
        for connections in (FEW_RANDOM, count):
            holders = Holders(lab, side, connections, "random", seconds, warmup)
            _random(side, holders, connections, samples, number, progress)
            holders.close()
    return samples


def _packets(side):
    return [side.counted("interface_packets_total", f'direction="{way}"') for way in ("in", "out")]


def _random(side, holders, count, samples, number, progress):
    ours = side.home is not None
    before = _packets(side) if ours else None
    found = _figures(side, holders.go())
    if ours:
        # Each answer is one packet. What is more than one for it is the client's kernel
        # acknowledging it before there is another request to do that.
        received, sent = (now - then for now, then in zip(_packets(side), before))
        found["packets"] = received / max(sent, 1)
    samples.setdefault(("random", count), []).append(found)
    progress(f"{side.name} random over {count}", number, found["speed"], "req/s")
