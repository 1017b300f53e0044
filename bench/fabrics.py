"""./run bench --fabric KIND: the fabrics by themselves, without a proxy, against the raw tools.

verbs  over soft-RoCE, against perftest (ib_send_bw, ib_send_lat) and rsockets (rstream)
tcp    over loopback, against one raw kernel TCP stream
wan    the tcp fabric over a link with delay and loss (netem), against itself without the options
       that are made for such links

verbs and wan run in the guest (./run vm): the first needs an RDMA device, the second a kernel with
netem. All sides run in turn in the same boot, round after round; a figure is the median of the rounds.
"""

import json
import os
import re
import subprocess
import sys
import time

import report
from lab import BenchError, Lab

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
IN_GUEST = bool(os.environ.get("SANPROXY_VM"))
KINDS = ("verbs", "tcp", "wan")
NEEDS_GUEST = ("verbs", "wan")
SMALL = 64
MIB = 1.048576  # perftest says MB and means MiB
PERFTEST_ATTEMPTS = 5
# Over verbs both ends are pinned, ours and those of the raw tools alike: soft-RoCE works in whoever
# sends, and a scheduler that puts both ends on one of two processors for a while decides more than
# what is compared.
PINS = (["taskset", "-c", "0"], ["taskset", "-c", "1"])
# As many transfers under way as perftest has, and few words back: perftest has none.
SERVER_WORDS = ["--depth", "128", "--send-depth", "128"]
CLIENT_WORDS = [*SERVER_WORDS, "--report-bytes", str(1 << 20)]


class Tools:
    """Runs a server and a client that talks to it; both end before the next pair starts."""

    def __init__(self, bin_dir, seconds, warmup, server_prefix=(), client_prefix=(),
                 server_words=(), client_words=()):
        self.words = [list(server_words), list(client_words)]
        self.program = os.path.join(bin_dir, "fabric_bench")
        self.warmup = warmup
        self.times = ["--seconds", str(seconds), "--warmup", str(warmup)]
        self.prefix = [list(server_prefix), list(client_prefix)]

    def pair(self, server, client, ready, limit_s=60):
        started = subprocess.Popen(self.prefix[0] + server, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        try:
            ready(started)
            done = subprocess.run(self.prefix[1] + client, capture_output=True, text=True,
                                  timeout=limit_s, check=False)
            if done.returncode != 0:
                raise BenchError(f"{' '.join(client)}: {(done.stdout + done.stderr).strip()[-600:]}")
            started.wait(10)
            return done.stdout
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{' '.join(client)}: no end") from error
        finally:
            if started.poll() is None:
                started.kill()
            started.communicate()

    @staticmethod
    def says_ready(process):
        if process.stdout.readline().strip() != "READY":
            raise BenchError(f"{' '.join(process.args)} did not start")

    def ours(self, address, work, size, spin=False, link="", times=None):
        words = ["--spin"] if spin else []
        client = [self.program, "run", address, "--work", work, "--bytes", str(size),
                  *(times or self.times), *words, *self.words[1],
                  *(["--link", link] if link else [])]
        return json.loads(self.pair([self.program, "serve", address, *words, *self.words[0]], client,
                                    self.says_ready))

    def raw(self, address, size):
        return json.loads(self.pair([self.program, "raw-serve", address],
                                    [self.program, "raw-run", address, "--bytes", str(size),
                                     *self.times], self.says_ready))


def until(condition, what):
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within 20 s")
        time.sleep(0.05)


def output_of(*argv):
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def perftest(tools, program, size, count, address, sleeping=False):
    """The last line of figures, as numbers. `sleeping`: on completion events, else polling."""
    argv = [program, "-d", os.environ["SANPROXY_VM_DEVICE"], "-s", str(size), "-n", str(count),
            *(["-e"] if sleeping else [])]
    # It measures its clock first, and says now and then that it could not.
    for attempt in range(PERFTEST_ATTEMPTS):
        try:
            text = tools.pair(argv, [*argv, address], lambda _: until(
                lambda: ":18515 " in output_of("ss", "-Htln"), f"{program} listens"))
            break
        except BenchError as error:
            if "Correlation coefficient" not in str(error) or attempt + 1 == PERFTEST_ATTEMPTS:
                raise
    found = re.search(rf"^ *{size} +.*$", text, re.MULTILINE)
    if not found:
        raise BenchError(f"{program} printed no figures: {text[-400:]}")
    return [float(word) for word in found[0].split()]


def rstream(tools, size, iterations, count, address, sleeping=False):
    """Microseconds a transfer."""
    words = ["-S", str(size), "-I", str(iterations), "-C", str(count),
             *(["-T", "b"] if sleeping else [])]
    text = tools.pair(["rstream", "-b", address, *words], ["rstream", "-s", address, *words],
                      lambda _: until(lambda: "LISTEN" in output_of(
                          "rdma", "resource", "show", "cm_id"), "rstream listens"))
    return float(text.strip().splitlines()[-1].split()[-1])


class Samples:
    def __init__(self, rounds, seconds):
        self.rounds = rounds
        self.seconds = seconds
        self.values = {}
        self.round = 0
        self._start = time.monotonic()

    def add(self, name, value, unit):
        self.values.setdefault(name, []).append(value)
        print(f"[{time.monotonic() - self._start:6.1f} s] round {self.round + 1}/{self.rounds}  "
              f"{name:44} {report.number(value):>10} {unit}", flush=True)

    def row(self, name, unit, ours, peer=None, **bar):
        return report.make_row(name, unit, self.values[ours], peer,
                               self.values[peer] if peer else None, **bar)


# --- verbs

BULK_SIZES = (65536, 4096)
# How long a blocking rsocket polls before it sleeps; 10 us if nobody says otherwise, in which the
# answer is mostly there. What is compared with it sleeps at once.
RSOCKET_POLLING_TIME = "/etc/rdma/rsocket/polling_time"


TURNS = 3  # in a round
WAYS = {"": True, ", sleeping": False}  # suffix of a row: whether both sides poll without sleeping


class VerbsWorks:
    """What is compared over verbs. Round trips count from the first on, as those of rstream. Of bulk
    a first burst is sent before anything can be counted: that is left out by a warm-up."""

    def __init__(self, tools, samples):
        self.tools = tools
        self.samples = samples
        self.address = os.environ["SANPROXY_VM_ADDRESS"]
        self.own = f"verbs://{self.address}:7500"

    def ours(self, work, size, seconds, spin):
        warmup = 0 if "round-trips" in work else self.tools.warmup
        return self.tools.ours(self.own, work, size, spin=spin,
                               times=["--seconds", str(seconds), "--warmup", str(warmup)])

    def bulk(self, size):
        """Runs; those that are compared are neighbours."""
        seconds = self.samples.seconds / 2
        # About as long as ours take.
        count = int(seconds * (1600 if size == 65536 else 20000))
        label = f"{size // 1024} KB"

        def channel(suffix):
            found = self.ours("messages", size, seconds, WAYS[suffix])
            self.samples.add(f"channel{suffix} {label}", found["mb_per_s"], "MB/s")

        def raw(suffix):
            found = perftest(self.tools, "ib_send_bw", size, count, self.address,
                             sleeping=not WAYS[suffix])
            self.samples.add(f"ib_send_bw{suffix} {label}", found[3] * MIB, "MB/s")

        def endpoint():
            found = self.ours("throughput", size, seconds, True)
            self.samples.add(f"endpoint {label}", found["mb_per_s"], "MB/s")

        def rsockets():
            found = rstream(self.tools, size, 1, count, self.address)
            self.samples.add(f"rsockets {label}", size / found, "MB/s")

        return [rsockets, lambda: channel(""), lambda: raw(""), endpoint,
                lambda: raw(", sleeping"), lambda: channel(", sleeping")]

    def round_trips(self):
        seconds = self.samples.seconds / 3
        counts = {suffix: int(seconds * (18000 if spin else 3000)) for suffix, spin in WAYS.items()}

        def raw(suffix):
            found = perftest(self.tools, "ib_send_lat", SMALL, counts[suffix], self.address,
                             sleeping=not WAYS[suffix])
            self.samples.add(f"2 x ib_send_lat{suffix}", 2 * found[4], "us")

        def channel(suffix):
            found = self.ours("channel-round-trips", SMALL, seconds, WAYS[suffix])
            self.samples.add(f"channel{suffix} round trip", found["p50_us"], "us")
            self.samples.add(f"channel{suffix} round trip, mean", found["mean_us"], "us")

        def endpoint():
            found = self.ours("round-trips", SMALL, seconds, True)
            self.samples.add("endpoint round trip", found["p50_us"], "us")

        def rsockets(suffix):
            found = rstream(self.tools, SMALL, counts[suffix], 1, self.address,
                            sleeping=not WAYS[suffix])
            self.samples.add(f"rsockets{suffix} round trip", 2 * found, "us")

        return [lambda: rsockets(""), lambda: channel(""), lambda: raw(""), endpoint,
                lambda: raw(", sleeping"), lambda: channel(", sleeping"),
                lambda: rsockets(", sleeping")]

    def small(self):
        def channel():
            self.samples.add("channel small messages",
                             self.ours("streams", SMALL, self.samples.seconds,
                                       False)["messages_per_s"], "messages/s")

        def rsockets():
            count = int(self.samples.seconds * 18000)
            self.samples.add("rsockets small messages",
                             1e6 / rstream(self.tools, SMALL, 1, count, self.address), "messages/s")

        return [channel, rsockets]

    def in_turns(self, runs, turns):
        """The emulated machine changes its pace from one process to the next and for seconds: short
        turns, and of two neighbours each comes first as often."""
        for turn in range(turns):
            for run in runs if (self.samples.round * turns + turn) % 2 == 0 else runs[::-1]:
                run()


def measure_verbs(tools, samples):
    os.makedirs(os.path.dirname(RSOCKET_POLLING_TIME), exist_ok=True)
    with open(RSOCKET_POLLING_TIME, "w") as file:  # the guest's alone
        file.write("0\n")
    works = VerbsWorks(tools, samples)
    for samples.round in range(samples.rounds):
        for size in BULK_SIZES:
            works.in_turns(works.bulk(size), TURNS)
        works.in_turns(works.round_trips(), TURNS)
        works.in_turns(works.small(), 1)


def verbs_rows(samples):
    rows = []
    for size in BULK_SIZES:
        label = f"{size // 1024} KB"
        rows += [samples.row(f"verbs channel{suffix} {label}", "MB/s", f"channel{suffix} {label}",
                             f"ib_send_bw{suffix} {label}", at_least=0.9) for suffix in WAYS]
        rows += [samples.row(f"verbs channel {label}", "MB/s", f"channel {label}",
                             f"rsockets {label}", at_least=1.0),
                 samples.row(f"verbs endpoint {label}", "MB/s", f"endpoint {label}",
                             f"ib_send_bw {label}")]
    rows += [samples.row(f"verbs channel{suffix} round trip, p50", "us",
                         f"channel{suffix} round trip", f"2 x ib_send_lat{suffix}", at_most=1.25)
             for suffix in WAYS]
    rows += [samples.row(f"verbs channel{suffix} round trip, mean", "us",
                         f"channel{suffix} round trip, mean", f"rsockets{suffix} round trip",
                         at_most=1.0)
             for suffix in WAYS]
    return rows + [
        samples.row("verbs endpoint round trip, p50", "us", "endpoint round trip",
                    "2 x ib_send_lat"),
        samples.row("verbs channel small messages, 64 streams", "messages/s",
                    "channel small messages", "rsockets small messages", at_least=2.0)]


# --- tcp

def measure_tcp(tools, samples):
    address = "tcp://127.0.0.1:7500"
    for samples.round in range(samples.rounds):
        samples.add("raw stream", tools.raw(address, 262144)["mb_per_s"], "MB/s")
        samples.add("channel 64 KB", tools.ours(address, "messages", 65536)["mb_per_s"], "MB/s")
        samples.add("one send a message", tools.raw(address, SMALL)["messages_per_s"], "messages/s")
        samples.add("channel small messages",
                    tools.ours(address, "streams", SMALL)["messages_per_s"], "messages/s")
        samples.add("channel round trip",
                    tools.ours(address, "channel-round-trips", SMALL)["p50_us"], "us")


def tcp_rows(samples):
    return [samples.row("tcp channel 64 KB", "MB/s", "channel 64 KB", "raw stream", at_least=0.9),
            samples.row("tcp channel small messages, 64 streams", "messages/s",
                        "channel small messages", "one send a message", at_least=3.0),
            samples.row("tcp channel round trip, 64 B, p50", "us", "channel round trip")]


# --- wan

_SERVER_NS, _CLIENT_NS = "sanwan-server", "sanwan-client"
DELAY_MS = 50  # each way


class Wan:
    """Two namespaces of the guest and a link between them that netem makes long."""

    def __init__(self):
        for name in (_SERVER_NS, _CLIENT_NS):
            self.ip("netns", "add", name)
        self.ip("-n", _SERVER_NS, "link", "add", "wan0", "mtu", "1500", "type", "veth", "peer",
                "name", "wan0", "netns", _CLIENT_NS)
        for name, last in ((_SERVER_NS, 1), (_CLIENT_NS, 2)):
            self.ip("-n", name, "address", "add", f"10.9.2.{last}/24", "dev", "wan0")
            # Else netem loses 64 KB at a time.
            self.ip("-n", name, "link", "set", "wan0", "gso_max_segs", "1", "up")
            self.run("ip", "netns", "exec", name, "sysctl", "-q", "-w",
                     "net.ipv4.tcp_congestion_control=cubic", "net.ipv4.tcp_rmem=4096 131072 8388608",
                     "net.ipv4.tcp_wmem=4096 16384 8388608", "net.ipv4.tcp_no_metrics_save=1",
                     "net.ipv4.tcp_slow_start_after_idle=0")
        self.shape(0)

    @staticmethod
    def run(*argv):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"{' '.join(argv)}: {done.stderr.strip()}")

    def ip(self, *words):
        self.run("ip", *words)

    def shape(self, loss_percent):
        for name in (_SERVER_NS, _CLIENT_NS):
            loss = ["loss", f"{loss_percent}%"] if loss_percent and name == _CLIENT_NS else []
            self.run("ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", "wan0", "root",
                     "netem", "limit", "20000", "delay", f"{DELAY_MS}ms", *loss)


# name, loss in percent, link parameters, seconds, warm-up
_WAN_WORKS = (
    ("window 64 KiB", 0, "window=64KiB", 2, 1),
    ("window 512 KiB", 0, "window=512KiB", 2, 1),
    ("1 stream, loss 0.5 %", 0.5, "window=2MiB", 5, 2),
    ("8 streams, loss 0.5 %", 0.5, "window=2MiB,streams=8", 5, 2),
    ("slow start, first second", 0, "window=512KiB", 1, 0),
    ("slow start skipped, first second", 0, "window=512KiB,skip_slow_start=true", 1, 0),
)


def measure_wan(tools, samples):
    wan = Wan()
    address = "tcp://10.9.2.1:7500"
    for samples.round in range(samples.rounds):
        for name, loss, link, seconds, warmup in _WAN_WORKS:
            wan.shape(loss)
            found = tools.ours(address, "messages", 16384, link=link,
                               times=["--seconds", str(seconds), "--warmup", str(warmup)])
            samples.add(name, found["mb_per_s"], "MB/s")


def wan_rows(samples):
    names = [work[0] for work in _WAN_WORKS]
    return [samples.row(f"wan {ours}", "MB/s", ours, peer, at_least=bar)
            for ours, peer, bar in ((names[1], names[0], 4.0), (names[3], names[2], 3.0),
                                    (names[5], names[4], 1.5))]


# --- running

def measure_here(arguments):
    samples = Samples(arguments.rounds, arguments.seconds)
    if arguments.fabric == "verbs":
        measure_verbs(Tools(arguments.bin, arguments.seconds, arguments.warmup, *PINS, SERVER_WORDS,
                            CLIENT_WORDS), samples)
        return verbs_rows(samples)
    if arguments.fabric == "wan":
        prefixes = [["ip", "netns", "exec", name] for name in (_SERVER_NS, _CLIENT_NS)]
        measure_wan(Tools(arguments.bin, arguments.seconds, arguments.warmup, *prefixes,
                          client_words=["--report-bytes", "65536"]), samples)
        return wan_rows(samples)
    lab = Lab(arguments.bin)
    try:
        inside = ["ip", "netns", "exec", lab.namespace("tcp")]
        measure_tcp(Tools(arguments.bin, arguments.seconds, arguments.warmup, inside, inside),
                    samples)
    finally:
        lab.close()
    return tcp_rows(samples)


def measure_in_guest(arguments):
    sys.path.insert(0, os.path.join(ROOT, "deploy/vm"))
    import guest as guests  # pylint: disable=import-outside-toplevel
    import qemu             # pylint: disable=import-outside-toplevel

    def say(text):
        print(f"vm: {text}", flush=True)

    def sink(_, data):
        sys.stdout.write(data.decode(errors="replace"))
        sys.stdout.flush()

    try:
        with guests.Guest(say=say) as guest:
            path = os.path.join(guest.share, f"rows-{os.getpid()}.json")
            process = guest.start(
                ["/usr/bin/python3", os.path.join(HERE, "bench.py"), "--bin", arguments.bin,
                 "--fabric", arguments.fabric, "--rounds", str(arguments.rounds), "--seconds",
                 str(arguments.seconds), "--warmup", str(arguments.warmup), "--json", path],
                sink=sink)
            process.close_stdin()
            status = process.wait(1800).status
            if status != 0:
                raise BenchError(f"the run in the guest ended with {status}")
            with open(path) as file:
                rows = json.load(file)
            os.remove(path)
            return rows
    except (qemu.CannotRun, guests.GuestError) as error:
        raise BenchError(f"the guest: {error}") from error


def measure(arguments):
    """The rows of one kind of fabric."""
    if arguments.fabric in NEEDS_GUEST and not IN_GUEST:
        return measure_in_guest(arguments)
    return measure_here(arguments)
