"""Scenario: what may happen to etcd. Traffic never stops, and everybody agrees again afterwards."""

import contextlib
import datetime
import json
import os
import time

import paths  # noqa: F401
from crowd import Crowd, Doors
from harness import etcd, settings, wait
from laboratory import CLIENTS, NODES, PROXIES, at, vip

SERVICE = at(vip("channel", 4), 7)
ENTRY = f"services/{SERVICE}"
LIBRARY = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
SILENCE_MAX_S = 2.0  # of any connection, whatever happens to etcd
BALANCES = ("round-robin", "least-connections", "weighted")


class Story:
    def __init__(self, report, laboratory, options):
        self.report, self.laboratory, self.options = report, laboratory, options
        self.store = laboratory.etcd
        targets = [(vip("channel", 4), 7), (vip("channel", 6), 7)]
        self.crowd = Crowd([laboratory.hosts[client] for client in CLIENTS])
        self.expected = min(options.connections, 1000)
        self.crowd.open(targets, self.expected)
        self.doors = Doors(laboratory.hosts["c2"], targets, pause_s=0.05).start()
        self.crowd.beat(0.5)
        self.changes = 0
        self.silence_s = 0.0

    def close(self):
        self.crowd.close()
        self.doors.close()

    @contextlib.contextmanager
    def stage(self, what):
        """Whatever happens inside: no connection ends, none is silent for long, new ones succeed."""
        self.crowd.stats()
        begin = time.monotonic()
        notes = []
        yield notes
        moment = time.monotonic()
        wait.until(lambda: self.doors.since(moment)["good"] > 3, "new connections are made")
        found = self.crowd.verify()
        doors = self.doors.since(begin)
        if found["lost"] or found["silent"] or found["wrong"] or found["open"] != self.expected:
            raise AssertionError(f"{what}: connections suffered: {found}")
        if doors["bad"]:
            raise AssertionError(f"{what}: new connections failed: {doors}")
        if found["silence_s"] > SILENCE_MAX_S:
            raise AssertionError(f"{what}: a connection waited {found['silence_s']:.1f} s for its bytes")
        self.silence_s = max(self.silence_s, found["silence_s"])
        self.report.step(what, f"0 of {found['open']:,} broken, longest silence "
                         f"{found['silence_s'] * 1e3:.0f} ms, {doors['good']} new connections in "
                         f"{time.monotonic() - begin:.1f} s" + "".join("; " + note for note in notes))

    def connected(self, names=PROXIES + NODES):
        return [name for name in names if self.laboratory.status(name)["cluster"]["connected"]]

    def balance(self, proxy):
        found = {one["address"]: one for one in self.laboratory.status(proxy)["services"]}
        return found[SERVICE]["balance"]

    def change(self, seen_by=PROXIES):
        """The configuration is changed in one transaction, and these proxies take it over."""
        wanted = BALANCES[self.changes % len(BALANCES)]
        self.changes += 1
        begin = time.monotonic()
        # Another endpoint may have to be tried first, or a leader to be elected.
        self.laboratory.sanctl("config", "set", ENTRY, json.dumps({"balance": wanted}))
        for proxy in seen_by:
            wait.until(lambda p=proxy: self.balance(p) == wanted,
                       lambda p=proxy: f"{p} balances by {wanted}: {self.balance(p)}", timeout_s=30)
        return f"a change reached {', '.join(seen_by)} in {time.monotonic() - begin:.1f} s"

    def agree(self):
        """Everybody is connected and registered, applications as well."""
        wait.until(lambda: len(self.connected()) == len(PROXIES + NODES),
                   lambda: f"all are connected to etcd: {self.connected()}", timeout_s=30)
        wanted = {f"node/proxy/{p}" for p in PROXIES} | {f"node/netnode/{n}" for n in NODES}

        def registered():
            keys = self.store.keys("node/")
            applications = [key for key in keys if key.startswith("node/appnode/")]
            return wanted <= set(keys) and len(applications) == 4 * len(PROXIES)
        wait.until(registered, lambda: f"all are registered: {self.store.keys('node/')}", timeout_s=30)


def run(report, options):
    clock = os.path.exists(LIBRARY)
    with report.laboratory("etcd", configured=False, fabric=options.fabric,
                           faketime=("p2", "n2") if clock else ()) as laboratory:
        story = Story(report, laboratory, options)
        try:
            story.agree()
            _member_killed(story)
            _all_stopped(story)
            _split_of_a_member(story)
            _split_of_nodes(story)
            _wrong_by_hand(story)
            if clock:
                _clock_jump(story)
            else:
                report.step("clock jump", f"NOT RUN: {LIBRARY} is missing (package libfaketime)")
            if settings.in_guest:
                _every_clock_jumps(story)
            story.agree()
            found = story.crowd.stats()
        finally:
            story.close()
        report.figures(connections=story.expected, broken=0, outage_s=options.outage,
                       longest_silence_ms=round(story.silence_s * 1e3), verified=found["verified"],
                       clock_jump=clock)
        report.closing(f"{story.expected:,} connections, {found['verified']:,} messages verified: 0 broken, "
                       f"longest silence {story.silence_s * 1e3:.0f} ms; member killed, all gone for "
                       f"{options.outage:g} s, splits, compaction, wrong data"
                       + (", clock jumps" if clock else " (no clock jumps: libfaketime is missing)"))


def _leader(store):
    answer = json.loads(store.ctl("endpoint", "status", "-w", "json"))
    leader = answer[0]["Status"]["leader"]
    for member, one in zip(store.members, answer):
        if one["Status"]["header"]["member_id"] == leader:
            return member
    raise AssertionError(f"etcd has no leader: {answer}")


def _member_killed(story):
    with story.stage("the leader of etcd is killed") as notes:
        member = _leader(story.store)
        member.kill()
        notes.append(story.change())
        member.start()
        story.store.wait_healthy()
        story.agree()


def _all_stopped(story):
    laboratory, store = story.laboratory, story.store
    with story.stage(f"all of etcd is stopped for {story.options.outage:g} s") as notes:
        for member in store.members:
            member.stop()
        wait.until(lambda: not story.connected(), lambda: f"all notice: {story.connected()}")
        begin = time.monotonic()
        # An application that comes meanwhile is served at once, and registered later.
        laboratory.programs["a4"].stop()
        laboratory.start_application("a4")
        wait.until(lambda: time.monotonic() > begin + story.options.outage, "",
                   timeout_s=story.options.outage + 1)
        for member in store.members:
            member.start()
        back = time.monotonic()
        store.wait_healthy()
        story.agree()
        notes.append(f"all registered again {time.monotonic() - back:.1f} s after its start")
        notes.append(story.change())


def _split_of_a_member(story):
    with story.stage("the leader of etcd is cut off from the network") as notes:
        member = _leader(story.store)
        name = f"e{member.index + 1}"
        story.laboratory.cut(name)
        hand = story.store.namespace
        story.store.namespace = story.laboratory.hosts["c1"]  # the hand is not behind the cut
        notes.append(story.change())
        story.laboratory.mend(name)
        story.store.namespace = hand
        story.store.wait_healthy()
        story.agree()


def _split_of_nodes(story):
    laboratory, store = story.laboratory, story.store
    cut = ("p1", "n1")
    with story.stage("a proxy and a network node are cut off, history is compacted") as notes:
        laboratory.cut(*cut)
        wait.until(lambda: "node/proxy/p1" not in store.keys("node/"), "the lease of p1 runs out",
                   timeout_s=30)
        notes.append(story.change(seen_by=("p2", "p3")))
        revision = json.loads(store.ctl("get", "x", "-w", "json"))["header"]["revision"]
        store.ctl("compact", str(revision))
        laboratory.mend(*cut)
        story.agree()
        wanted = story.balance("p2")
        wait.until(lambda: story.balance("p1") == wanted, lambda: f"p1 has caught up: {story.balance('p1')}")
        notes.append("those cut off have caught up by a new list")


def _wrong_by_hand(story):
    laboratory, store = story.laboratory, story.store
    wrong = {f"config/service/{SERVICE}": '{"balance": "by hand"}',
             "config/service/nowhere": "{}",
             "config/proxy/p1": '{"weight": "heavy"}',
             "drain/proxy/p1": "[1, 2",
             "node/proxy/impostor": '{"tag": "seven"}',
             "node/appnode/p1/999": "\x01\x02"}
    with story.stage("wrong data is written by hand") as notes:
        was = store.ctl("get", "--print-value-only", etcd.ROOT + f"config/service/{SERVICE}").strip()
        balance = story.balance("p1")
        for name in PROXIES + NODES:
            if "is refused" in laboratory.programs[name].log():
                raise AssertionError(f"{name} has refused what was right: "
                                     f"{laboratory.programs[name].log()[-3000:]}")
        for key, value in wrong.items():
            store.ctl("put", etcd.ROOT + key, value)
        for name in PROXIES + NODES:
            log = laboratory.programs[name].log
            for key in wrong:
                wait.until(lambda k=key, look=log: k in look(),
                           lambda k=key, n=name, look=log: f"{n} logs that {k} is refused:\n{look()[-3000:]}")
        if story.balance("p1") != balance:
            raise AssertionError("the last good value did not stay")
        for name in PROXIES + NODES:
            refused = laboratory.metrics(name)['sanproxy_cluster_refused_total{reason="value"}']
            if refused < len(wrong):
                raise AssertionError(f"{name} counts {refused} refusals of {len(wrong)}")
        for key in wrong:
            if key == f"config/service/{SERVICE}":
                store.ctl("put", etcd.ROOT + key, was)
            else:
                store.ctl("del", etcd.ROOT + key)
        for name in PROXIES + NODES:
            wait.until(lambda n=name: not laboratory.status(n)["cluster"]["refused"],
                       lambda n=name: f"{n} refuses nothing: {laboratory.status(n)['cluster']}")
        notes.append(f"{len(wrong)} values refused, logged with their keys and counted by all 5")


def _clock_jump(story):
    """The wall clocks of a proxy and of a network node jump; etcd, a Go program, keeps its own."""
    laboratory = story.laboratory
    with story.stage("the clocks of a proxy and of a network node jump by an hour, and back by two") \
            as notes:
        for jump in (3600, -3600, 0):
            for name in laboratory.faketime:
                laboratory.set_clock(name, f"{jump:+d}s")
            time.sleep(4)  # longer than a lease
            notes.append(story.change())
            _assert_clock(laboratory.programs["p2"].log(), jump)
            story.agree()


def _every_clock_jumps(story):
    """The wall clock of the whole host, etcd's members with it: a Go program asks the kernel itself, so
    this is for a guest (./run vm), whose clock is nobody else's."""
    with story.stage("the wall clock of the host jumps, etcd's own with it") as notes:
        for jump in (3600, -7200, 3600):
            time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME) + jump)
            time.sleep(4)  # longer than a lease
            notes.append(story.change())
            story.agree()


def _assert_clock(log, jump_s):
    """The last line of a log shows the wall clock that the program was given."""
    written = datetime.datetime.fromisoformat(log.rstrip().rsplit("\n", 1)[-1].split(" ", 1)[0])
    ahead_s = (written - datetime.datetime.now()).total_seconds()
    if abs(ahead_s - jump_s) > 600:
        raise AssertionError(f"p2's clock is {ahead_s:.0f} s ahead, it was to be {jump_s} s")
