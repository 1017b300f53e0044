#!/usr/bin/python3
"""Measures sanproxy side by side with HAProxy and with no proxy at all.

Every work runs on all sides in turn, round after round, so that what the machine does in between
falls on all of them. Method and results: docs/benchmarks.md.
"""

import argparse
import dataclasses
import fnmatch
import json
import os
import signal
import statistics
import subprocess
import sys
import time

import fabrics
import idle
import lossy
import netnode
import report
import sides
from lab import BenchError, Lab
from works import REQUEST_PATH, WORKS, cpu_unit, run_once

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DRIVERS = ("tun", "packet")
SUFFIX_OF_FIGURE = {"speed": "", "proxy_cpu": " proxy CPU", "packets": " packets"}
MICRO_PROGRAMS = ("sanproxy_microbench",)
IDLE_COUNTS = (1_000, 10_000, 50_000)
REQUEST_TURNS_IN_ROUND = 4   # of in_turns()


def processors(text):
    """"0,2-3" as a set."""
    out = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise argparse.ArgumentTypeError(f"{text!r} is no list of processors such as 0 or 0,2-3")
        out.update(range(int(first), int(last or first) + 1))
    if not out <= os.sched_getaffinity(0):
        raise argparse.ArgumentTypeError(f"{text}: this host has "
                                         f"{sorted(os.sched_getaffinity(0))}")
    return out


def parse_arguments():
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("--bin", default=os.path.join(ROOT, "build/release/bin"),
                        help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 s, fewer rows")
    parser.add_argument("--only", action="append", metavar="NAME",
                        help="rows whose name starts with NAME or matches the pattern NAME: "
                             "http-tun, download, '*-packet', idle, random, copied, micro; repeat")
    parser.add_argument("--seconds", type=float, help="of one measurement (2)")
    parser.add_argument("--warmup", type=float, default=0.4, help="seconds before each (0.4)")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (5)")
    parser.add_argument("--peers-only", action="store_true",
                        help="only HAProxy and no proxy: checks the harness itself")
    parser.add_argument("--no-peers", action="store_true", help="only ours: for quick tuning")
    parser.add_argument("--docs", action="store_true",
                        help="write table and plot into docs/benchmarks.md and .svg")
    parser.add_argument("--cpus", metavar="LIST", type=processors,
                        help="run everything on these processors only, e.g. 0; with --docs this "
                             "writes the second table of the document")
    parser.add_argument("--netnode", action="store_true",
                        help="the rows of network nodes and workers, and no others; with --docs "
                             "this writes their table")
    parser.add_argument("--lossy", action="store_true",
                        help="transfers over links that lose, against a kernel's TCP, and no other "
                             "rows; with --docs this writes their table")
    parser.add_argument("--fabric", choices=fabrics.KINDS,
                        help="a fabric by itself against the raw tools: verbs (in the guest), tcp "
                             "(over loopback), or wan (tcp over a long link, in the guest); with "
                             "--docs this writes that fabric's table")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    arguments = parser.parse_args()
    if arguments.docs and arguments.only:
        parser.error("--docs writes whole tables: not with --only")
    if arguments.lossy and arguments.seconds is None:
        arguments.seconds = lossy.SECONDS
    if arguments.seconds is None:
        arguments.seconds = 1.0 if arguments.quick or arguments.fabric else 2.0
    if arguments.rounds is None:
        arguments.rounds = 3 if arguments.quick else 5
    check_arguments(parser, arguments)
    return arguments


def row_names():
    return ([f"{w.name}-{d}" for w in WORKS for d in DRIVERS]
            + [f"{n}-{d}" for n in ("idle", "random", "copied") for d in DRIVERS]
            + ["random-peers", "micro"]
            + [f"netnode-channel-{name}" for name in netnode.CHANNEL_BARS]
            + [f"netnode-nat-{way}-http" for way in netnode.NAT_WAYS]
            + ["netnode-packets", "netnode-micro"]
            + [f"workers-{d}" for d in DRIVERS])


def chosen(name, only):
    return name == only or name.startswith(only + "-") or fnmatch.fnmatch(name, only)


def check_arguments(parser, arguments):
    if not arguments.lossy and not arguments.fabric:
        for only in arguments.only or ():
            if not any(chosen(name, only) for name in row_names()):
                parser.error(f"--only {only}: there is no such row: see --list")
    if arguments.seconds <= 0 or arguments.rounds < 1 or arguments.warmup < 0:
        parser.error("nothing is measured in no time, or no rounds")
    if arguments.json and not os.access(os.path.dirname(arguments.json) or ".", os.W_OK):
        parser.error(f"--json {arguments.json}: no file can be made there")


class Bench:
    def __init__(self, arguments, lab):
        self.arguments = arguments
        self.lab = lab
        self.rows = []
        self._sides = {}
        self._start = time.monotonic()

    def wanted(self, name):
        only = self.arguments.only
        return not only or any(chosen(name, o) for o in only)

    def drivers(self, name):
        if self.arguments.peers_only:
            return []
        return [d for d in DRIVERS if self.wanted(f"{name}-{d}")]

    def progress(self, what, round_number, value, unit):
        print(f"[{time.monotonic() - self._start:6.1f} s] round "
              f"{round_number + 1}/{self.arguments.rounds}  {what:34} "
              f"{report.number(value):>10} {unit}", flush=True)

    def peers(self):
        if "peers" not in self._sides:
            self._sides["peers"] = sides.make_peers(self.lab)
        return self._sides["peers"]

    def ours(self, driver):
        if driver not in self._sides:
            self._sides[driver] = sides.make_ours(self.lab, driver)
        return self._sides[driver]

    # --- works that run on all sides
    def run_work(self, work):
        drivers = self.drivers(work.name)
        if not drivers and not (self.arguments.peers_only and self.wanted(work.name)):
            return
        taking_part = [] if self.arguments.no_peers else [
            side for side in self.peers() if side.name not in work.without]
        taking_part += [self.ours(d)[1 if work.shared else 0] for d in drivers]
        self.check_same_replies(work, taking_part)
        samples = {side.name: [] for side in taking_part}
        for number in range(self.arguments.rounds):
            for side in taking_part:
                found = run_once(self.lab, work, side, self.arguments.seconds,
                                 self.arguments.warmup)
                samples[side.name].append(found)
                self.progress(f"{work.name}  {side.name}", number, found["speed"], work.unit)
        for driver in drivers:
            self.add_rows(work, driver, samples)
        if self.arguments.peers_only:
            self.add_peer_rows(work, samples)

    def check_same_replies(self, work, taking_part):
        """The sides must do the same work: as many bytes in every reply."""
        if work.function != "http":
            return
        lengths = {side.name: self.lab.load(side.client_namespace, "http",
                                            side.addresses["http"], path=REQUEST_PATH,
                                            seconds=0.01, warmup=0)["reply_bytes"]
                   for side in taking_part}
        if len(set(lengths.values())) > 1:
            raise BenchError(f"replies differ in length: {lengths}")

    @staticmethod
    def series(samples, name, figure):
        return [one[figure] for one in samples[name]] if name in samples else None

    def best_haproxy(self, samples, figure, lower_is_better):
        """The variant of HAProxy that has the best median for this figure: its name and values."""
        found = [(name, self.series(samples, name, figure)) for name in sides.HAPROXY
                 if name in samples]
        if not found:
            return "haproxy", None
        return (min if lower_is_better else max)(found, key=lambda one: statistics.median(one[1]))

    def add_rows(self, work, driver, samples):
        name = f"{work.name}-{driver}"
        ours = driver + (" shared" if work.shared else "")
        bars = work.bars[driver]

        def add(suffix, figure, unit, lower, **bar):
            self.rows.append(report.make_row(
                name + suffix, unit, self.series(samples, ours, figure),
                *self.best_haproxy(samples, figure, lower), **bar))

        if work.lower_is_better:
            add(" p50", "speed", work.unit, True, at_most=bars.speed)
            add(" p99", "p99", work.unit, True, at_most=bars.speed)
        else:
            add("", "speed", work.unit, False, at_least=bars.speed)
        self.rows.append(report.make_row(
            name + " (no proxy)", work.unit, self.series(samples, ours, "speed"), "no proxy",
            self.series(samples, "no proxy", "speed")))
        if not work.without:
            for suffix, figure, unit, bar in (
                    ("", "speed", work.unit, {"at_least": bars.speed}),
                    (" proxy CPU", "proxy_cpu", cpu_unit(work), {"at_most": bars.proxy_cpu})):
                self.rows.append(report.make_row(
                    f"{name} (splice-auto){suffix}", unit, self.series(samples, ours, figure),
                    "haproxy splice-auto", self.series(samples, "haproxy splice-auto", figure),
                    **bar))
        add(" application CPU", "app_cpu", cpu_unit(work), True, at_most=bars.app_cpu)
        add(" proxy CPU", "proxy_cpu", cpu_unit(work), True, at_most=bars.proxy_cpu)

    def add_peer_rows(self, work, samples):
        for name in samples:
            for figure in samples[name][0]:
                self.rows.append(report.make_row(
                    f"{work.name} {name} {figure}",
                    cpu_unit(work) if figure.endswith("cpu") else work.unit,
                    self.series(samples, name, figure)))

    # --- many connections
    def run_idle(self):
        for driver in DRIVERS:
            names = [f"{kind}-{driver}" for kind in ("idle", "random")]
            if self.arguments.peers_only or not any(map(self.wanted, names)):
                continue
            if driver != "tun" and (self.arguments.quick or not self.arguments.only):
                continue  # the same code behind another driver: on demand only
            counts = IDLE_COUNTS[:2] if self.arguments.quick else IDLE_COUNTS
            side = self.ours(driver)[0]
            samples, idle_bytes = idle.measure(self.lab, side, counts,
                                               min(self.arguments.rounds, 3),
                                               self.arguments.seconds, self.arguments.warmup,
                                               self.progress)
            for kind, few in (("idle", idle.FEW), ("random", idle.FEW_RANDOM)):
                self.add_idle_rows(f"{kind}-{driver}", kind, few, counts, samples)
            self.rows.append(report.make_row(f"idle-{driver} memory", "bytes/connection",
                                             [idle_bytes], at_most=idle.IDLE_BYTES_MAX))
        if not self.arguments.no_peers and self.wanted("random-peers"):
            self.run_random_peers()

    def run_random_peers(self):
        """What random activity costs without us: it is the client's kernel that pays most."""
        for side in self.peers():
            count = idle.PEER_COUNTS.get(side.name)
            if count is None:
                continue
            samples = idle.measure_peer(self.lab, side, count, min(self.arguments.rounds, 3),
                                        self.arguments.seconds, self.arguments.warmup,
                                        self.progress)
            self.add_idle_rows(f"random ({side.name})", "random", idle.FEW_RANDOM, [count],
                               samples, judged=False)

    def add_idle_rows(self, name, kind, few, counts, samples, judged=True):
        base = samples[(kind, few)]
        for count in counts:
            for figure, unit, bar in (("speed", "req/s", {"at_least": 1 / idle.FLAT}),
                                      ("proxy_cpu", "CPU-us/request", {"at_most": idle.FLAT}),
                                      ("packets", "received/sent", {})):
                if figure not in base[0]:
                    continue
                self.rows.append(report.make_row(
                    f"{name} {count:,}{SUFFIX_OF_FIGURE[figure]}", unit,
                    [one[figure] for one in samples[(kind, count)]],
                    f"{few} connections", [one[figure] for one in base],
                    **(bar if judged else {})))

    # --- sides that are near to each other
    def in_turns(self, name, work, taking_part):
        """The figures of each side, a list for each, one for a turn. What the machine does in
        between lasts for seconds, so the sides take short turns, neighbours in time are compared,
        and who goes first alternates. Bulk has one long turn a round: its windows have to open."""
        turns = 1 if work.per == "GB" else REQUEST_TURNS_IN_ROUND
        found = [[] for _ in taking_part]
        order = list(range(len(taking_part)))
        for number in range(self.arguments.rounds):
            for _ in range(turns):
                for i in order:
                    found[i].append(run_once(self.lab, work, taking_part[i],
                                             self.arguments.seconds / turns,
                                             self.arguments.warmup / min(turns, 2)))
                order.reverse()
            for side, figures in zip(taking_part, found):
                latest = [one["speed"] for one in figures[-turns:]]
                self.progress(f"{name}  {side.name}", number, statistics.median(latest), work.unit)
        return found

    # --- the same proxy node with one worker and with two
    def run_workers(self):
        http = next(one for one in WORKS if one.name == "http")
        # A client of one thread is busier than one worker. A second one would take the processor from
        # that client, and be compared with a worker that has no rival: as many threads as processors.
        threads = len(os.sched_getaffinity(0))
        work = dataclasses.replace(http, flags={**http.flags, "threads": threads})
        for driver in DRIVERS:
            name = f"workers-{driver}"
            if self.arguments.peers_only or not self.wanted(name):
                continue
            pair = [sides.make_ours(self.lab, driver, count, f"w{count}")[0] for count in (1, 2)]
            for side, text in zip(pair, ("1 worker", "2 workers")):
                side.name = text
            one, two = self.in_turns(name, work, pair)
            for figure, suffix, unit, bar in (("speed", "", work.unit, {}),
                                              ("proxy_cpu", " proxy CPU", cpu_unit(work),
                                               {"at_most": 1.1}),
                                              ("app_cpu", " application CPU", cpu_unit(work), {}),
                                              ("all_cpu", " CPU of all and the client",
                                               cpu_unit(work), {})):
                self.rows.append(report.make_row(
                    f"{name} 2{suffix}", unit, [turn[figure] for turn in two], "1 worker",
                    [turn[figure] for turn in one], **bar))

    # --- copies of payload bytes, as the proxy counts them
    def run_copied(self):
        for driver in DRIVERS:
            if self.arguments.peers_only or not self.wanted(f"copied-{driver}"):
                continue
            isolated, shared = self.ours(driver)
            for label, side, function, mode in (("download", isolated, "source", "download"),
                                                ("upload", isolated, "sink", "upload"),
                                                ("upload-shared", shared, "sink", "upload")):
                before = side.counted("bytes_copied")
                result = self.lab.load(side.client_namespace, mode, side.addresses[function],
                                       seconds=self.arguments.seconds, warmup=0,
                                       watch=side.pids(function))
                copied = side.counted("bytes_copied") - before
                limit = 1.02 if label == "upload" else 0.02
                self.rows.append(report.make_row(
                    f"copied-{driver} {label}", "bytes copied/byte",
                    [copied / result["bytes"]], at_most=limit))
                self.progress(f"copied {driver} {label}", 0, copied / result["bytes"],
                              "copies of a byte")

    # --- the cost of the parts alone
    def run_micro(self):
        if not self.wanted("micro") or self.arguments.peers_only:
            return
        for program in MICRO_PROGRAMS:
            argv = [self.lab.program(program), "--benchmark_format=json",
                    "--benchmark_min_time=" + ("0.05" if self.arguments.quick else "0.3")]
            print(f"[{time.monotonic() - self._start:6.1f} s] {program}", flush=True)
            result = subprocess.run(argv, capture_output=True, text=True, timeout=300,
                                    check=False)
            if result.returncode != 0:
                raise BenchError(f"{program}: {result.stderr.strip()[-400:]}")
            for one in json.loads(result.stdout)["benchmarks"]:
                if one.get("run_type") != "aggregate":
                    self.rows.append(report.make_row(f"micro {one['name']}", one["time_unit"],
                                                     [one["cpu_time"]]))

    def run_all(self):
        if self.arguments.netnode:
            netnode.measure(self)
            self.run_workers()
            return
        if self.arguments.lossy:
            lossy.measure(self)
            return
        self.run_idle()  # first: memory for a connection shows on a proxy that has none to reuse
        for work in WORKS:
            self.run_work(work)
        self.run_copied()
        self.run_micro()


def write_documents(rows, cpus, part):
    document = os.path.join(ROOT, "docs/benchmarks.md")
    if part:
        report.update_document(document, {part: report.markdown_table(rows) + "\n" +
                                          report.shortfalls(rows)})
        return
    if cpus:
        report.update_document(document, {"pinned": report.markdown_table(rows)})
        return
    report.update_document(document, {"table": report.markdown_table(rows),
                                      "shortfalls": report.shortfalls(rows)})
    with open(os.path.join(ROOT, "docs/benchmarks.svg"), "w") as file:
        file.write(report.svg_plot(rows, "sanproxy relative to HAProxy 2.6 on the same machine"))
    print(f"wrote {document} and its plot")


def run_fabric(arguments):
    """(rows, failed)"""
    try:
        return fabrics.measure(arguments), False
    except (BenchError, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nbench: interrupted", file=sys.stderr)
    return [], True


def run_bench(arguments):
    """(rows, failed)"""
    lab = Lab(arguments.bin)
    bench = Bench(arguments, lab)
    failed = False
    try:
        bench.run_all()
    except (BenchError, subprocess.SubprocessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        failed = True
    except KeyboardInterrupt:
        print("\nbench: interrupted; cleaning up", file=sys.stderr)
        failed = True
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        lab.close()
    return bench.rows, failed


def main():
    arguments = parse_arguments()
    if "SANPROXY_CHECK_OPTIONS" in os.environ:
        return 0
    if arguments.list:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader may have seen enough
        print("\n".join(row_names()))
        return 0
    if os.geteuid() != 0:
        print("bench: network namespaces need root: use ./run bench", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    if os.getloadavg()[0] > 1:
        print(f"bench: the machine is busy (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} "
              "processors): figures will wander", file=sys.stderr)
    if arguments.cpus:
        os.sched_setaffinity(0, arguments.cpus)
    rows, failed = run_fabric(arguments) if arguments.fabric else run_bench(arguments)
    if rows:
        print()
        report.print_table(rows)
    if arguments.json:
        report.write_json(arguments.json, rows)
    if arguments.docs and not failed:
        write_documents(rows, arguments.cpus,
                        "netnode" if arguments.netnode else
                        "lossy" if arguments.lossy else arguments.fabric)
    short = [row for row in rows if row["holds"] is False]
    print(f"\n{len(rows)} rows, {len(short)} below their bar")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
