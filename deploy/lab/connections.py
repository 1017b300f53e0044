"""Scenario: long-lived connections while proxies and network nodes come, drain, go and die."""

import json
import signal
import time

import paths  # noqa: F401
from crowd import Crowd, Doors
from harness import wait
from laboratory import CLIENTS, NODES, PROXIES, vip

NEW_WITHIN_S = 1.0  # new connections succeed so soon after a proxy was killed


class Story:
    def __init__(self, report, laboratory, options):
        self.report, self.laboratory, self.options = report, laboratory, options
        self.targets = [(vip("channel", 4), 7), (vip("channel", 6), 7)]
        self.crowd = Crowd([laboratory.hosts[client] for client in CLIENTS])
        self.doors = Doors(laboratory.hosts["c2"], self.targets).start()
        self.expected = options.connections

    def close(self):
        self.crowd.close()
        self.doors.close()

    def all_well(self, what, lost_before=None):
        """A message over every connection; nobody is missing. The figures of this stage."""
        found = self.crowd.verify()
        lost = sum(found["lost"].values()) - (lost_before or 0)
        if lost or found["silent"] or found["wrong"] or found["open"] != self.expected:
            raise AssertionError(f"{what}: of {self.expected} connections {found['open']} are open, "
                                 f"{lost} broken {found['lost']}, {found['silent']} silent, "
                                 f"{found['wrong']} with wrong bytes")
        return found

    def held_by(self, proxy, application=""):
        """Our ends of a proxy's established connections, or only of those that an application node has."""
        query = f"&node={application}" if application else ""
        listed = json.loads(self.laboratory.get(proxy, f"/connections?limit=100000{query}")[1])
        return {one["client"] for one in listed["connections"] if one["state"] == "ESTABLISHED"}

    def shares(self):
        return {proxy: self.laboratory.status(proxy)["connections"]["states"].get("ESTABLISHED", 0)
                for proxy in PROXIES if proxy in self.laboratory.programs
                and self.laboratory.programs[proxy].alive()}

    def new_ones_are_made(self):
        moment = time.monotonic()
        wait.until(lambda: self.doors.since(moment)["good"] > 50, "new connections are made")

    @staticmethod
    def ends_well(program):
        """On SIGTERM, of somebody who has nobody left to serve."""
        program.signal(signal.SIGTERM)
        code = program.wait()
        if code != 0:
            raise AssertionError(f"{program.label}, drained, ended with {code}")

    def stage(self, what, act, note=lambda: ""):
        """Everything goes on through `act`; 0 broken."""
        self.crowd.stats()
        begin = time.monotonic()
        act()
        found = self.all_well(what)
        doors = self.doors.since(begin)
        if doors["bad"]:
            raise AssertionError(f"{what}: {doors['bad']} new connections failed: {doors['reasons']}")
        self.report.step(what, f"0 of {found['open']:,} broken, longest silence "
                         f"{found['silence_s'] * 1e3:.0f} ms; {doors['good']} new connections, slowest "
                         f"{doors['slowest_s'] * 1e3:.0f} ms{note()}")
        return found


def run(report, options):
    with report.laboratory("connections", configured=False, fabric=options.fabric,
                           proxies=("p1", "p2")) as laboratory:
        story = Story(report, laboratory, options)
        try:
            _tell(story)
        finally:
            story.close()


def both_see(laboratory, **states):
    for node in NODES:
        laboratory.wait_steered(node, states)


def _tell(story):
    report, laboratory, crowd = story.report, story.laboratory, story.crowd
    begin = time.monotonic()
    found = crowd.open(story.targets, story.expected)
    report.step("opened", f"{found['open']:,} connections in {time.monotonic() - begin:.1f} s "
                f"{story.shares()}")
    story.all_well("at first")
    crowd.beat(max(1.0, story.expected / 5000))

    def add():
        laboratory.start_proxy("p3")
        both_see(laboratory, p1="up", p2="up", p3="up")
    story.stage("a proxy is added", add)
    laboratory.wait_ready()  # its application nodes have come
    story.expected += story.options.connections // 10
    crowd.open(story.targets, story.options.connections // 10)
    report.step("10 % more connections", f"{story.shares()}")
    if not story.shares()["p3"]:
        raise AssertionError("none of the new connections went to the new proxy")

    remove_by_drain(story, "p2")

    def restart_node():
        laboratory.programs["n1"].stop()
        laboratory.start_node("n1")
        both_see(laboratory, p1="up", p2="up", p3="up")
    story.stage("a network node is restarted (SIGTERM)", restart_node)

    def fail_over():
        laboratory.programs["n1"].kill()
        laboratory.route(4, "n2")
    story.stage("a network node is killed, the other takes over", fail_over)

    def back():
        laboratory.start_node("n1")
        laboratory.wait_steered("n1", {p: "up" for p in PROXIES})
        laboratory.route(4, "n1")
    story.stage("the network node is back", back)
    _kill(story)


def remove_by_drain(story, proxy):
    """A proxy is drained, stopped once its clients have ended, started and undrained."""
    laboratory, crowd = story.laboratory, story.crowd
    up = {one: "up" for one in PROXIES}

    def drain():
        laboratory.sanctl("drain", proxy, "--no-wait")
        both_see(laboratory, **{**up, proxy: "draining"})
        before = laboratory.metrics(proxy)["sanproxy_tcp_accepted_total"]
        story.new_ones_are_made()
        after = laboratory.metrics(proxy)["sanproxy_tcp_accepted_total"]
        if after != before:
            raise AssertionError(f"a drained proxy took {after - before} new connections")
    story.stage(f"{proxy} is drained", drain, lambda: f"; it keeps {story.shares()[proxy]:,} "
                "and takes no new ones")

    held = story.held_by(proxy)
    story.expected = crowd.close_some(held)["open"]

    def stop():
        done = laboratory.sanctl("drain", proxy, timeout_s=90)
        if not done["drained"]:
            raise AssertionError(f"sanctl drain says {done}")
        story.ends_well(laboratory.programs[proxy])
    story.stage("it is empty (its clients have ended), and is stopped", stop,
                lambda: f"; {len(held):,} had ended")

    def again():
        laboratory.start_proxy(proxy, drained=True)
        laboratory.sanctl("undrain", proxy)
        both_see(laboratory, **up)
        laboratory.wait_ready()
    story.stage("it is added again", again)
    crowd.open(story.targets, len(held))
    story.expected += len(held)
    story.report.step("as many connections again", f"{story.shares()}")


def _kill(story):
    laboratory, crowd, report = story.laboratory, story.crowd, story.report
    story.all_well("before the kill")
    crowd.beat(0)
    before = crowd.names()
    its_own = before & story.held_by("p3")
    moment = time.monotonic()
    laboratory.programs["p3"].kill()
    time.sleep(3)  # new connections are tried all the time
    doors = story.doors.since(moment)
    found = crowd.verify(timeout_s=30)
    ended = before - crowd.names()
    if found["silent"] or found["wrong"] or ended != its_own:
        raise AssertionError(f"a killed proxy had {len(its_own)} connections; of them "
                             f"{len(its_own & ended)} have ended, of others {len(ended - its_own)}; "
                             f"{found['silent']} are silent, {found['wrong']} had wrong bytes")
    new_s = max(doors["last_bad_s"], doors["last_slow_s"], doors["first_good_s"])
    report.step("a proxy is killed (SIGKILL)",
                f"its own {len(its_own):,} connections ended, the other {found['open']:,} go on; new ones: "
                f"{doors['good']} made, {doors['bad']} failed{doors['reasons'] or ''}; all well that began "
                f"{new_s * 1e3:.0f} ms after or later, slowest of all {doors['slowest_s'] * 1e3:.0f} ms (one "
                f"SYN lost is 1 s)")
    if new_s > NEW_WITHIN_S:
        raise AssertionError(f"new connections succeeded only {new_s:.1f} s after the kill: {doors}")
    story.expected = found["open"]
    laboratory.start_proxy("p3")
    laboratory.wait_ready()
    final = story.all_well("after it is back", sum(found["lost"].values()))
    report.figures(connections=story.options.connections, broken=0, ended_with_proxy=len(its_own),
                   new_after_kill_ms=round(new_s * 1e3), slowest_new_ms=round(doors["slowest_s"] * 1e3),
                   verified=final["verified"])
    report.closing(f"{story.options.connections:,} connections, {final['verified']:,} messages verified: 0 "
                   f"broken while proxies were added, drained, removed and added again, and a network node "
                   f"restarted and failed over; SIGKILL of a proxy ended its own {len(its_own):,}, new ones "
                   f"succeeded {new_s * 1e3:.0f} ms after, the slowest in {doors['slowest_s'] * 1e3:.0f} ms")
