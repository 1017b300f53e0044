"""Scenario: the procedure "Upgrading without loss" of docs/operating.md, step by step, under load."""

import time

import paths  # noqa: F401
from connections import Story, both_see, remove_by_drain
from harness import wait
from laboratory import PROXIES


def run(report, options):
    with report.laboratory("upgrade", configured=False, fabric=options.fabric) as laboratory:
        story = Story(report, laboratory, options)
        story.expected = min(options.connections, 5_000)
        try:
            _tell(story)
        finally:
            story.close()


def _tell(story):
    report, crowd = story.report, story.crowd
    begin = time.monotonic()
    count = story.expected
    found = crowd.open(story.targets, count)
    report.step("opened", f"{found['open']:,} connections in {time.monotonic() - begin:.1f} s "
                f"{story.shares()}")
    story.all_well("at first")
    crowd.beat(max(0.5, count / 5000))
    for application in ("a1", "a2"):
        _exchange_application(story, application)
    for proxy in PROXIES:
        remove_by_drain(story, proxy)
    for node, other, family in (("n1", "n2", 4), ("n2", "n1", 6)):
        _restart_node(story, node, other, family)
    final = story.all_well("at last")
    report.figures(connections=count, broken=0, verified=final["verified"])
    report.closing(f"{count:,} connections, {final['verified']:,} messages verified: 0 broken while both "
                   f"application nodes, all three proxies and both network nodes were exchanged")


def _exchange_application(story, name):
    laboratory, crowd = story.laboratory, story.crowd
    old = laboratory.programs[name]
    called = f"appnode-echo:{old.pid}"

    def members():
        return [member for proxy in PROXIES for one in laboratory.status(proxy)["services"]
                if one["address"].endswith(":7") for member in one["members"]]

    def drain():
        laboratory.start_application(name)
        wait.until(lambda: len(members()) == 3 * 2 * len(PROXIES),
                   lambda: f"the new one has joined everywhere: {members()}")
        laboratory.sanctl("drain", called, "--no-wait")
        wait.until(lambda: all(called in laboratory.status(proxy)["drained_nodes"] for proxy in PROXIES),
                   f"{called} is drained everywhere")
        before = _held(story, called)
        story.new_ones_are_made()
        if len(_held(story, called)) > len(before):
            raise AssertionError(f"a drained application node took new connections: {called}")
    story.stage(f"{name}: the new process joins, the old one is drained", drain,
                lambda: f"; it keeps {len(_held(story, called)):,}")

    held = _held(story, called)
    story.expected = crowd.close_some(held)["open"]

    def stop():
        done = laboratory.sanctl("drain", called, timeout_s=90)
        if not done["drained"]:
            raise AssertionError(f"sanctl drain says {done}")
        story.ends_well(old)
        laboratory.sanctl("undrain", called)
        laboratory.wait_ready()
    story.stage("it is empty (its clients have ended), and is stopped", stop)
    crowd.open(story.targets, len(held))
    story.expected += len(held)


def _held(story, application):
    return {name for proxy in PROXIES for name in story.held_by(proxy, application)}


def _restart_node(story, node, other, family):
    laboratory = story.laboratory
    up = {proxy: "up" for proxy in PROXIES}

    def take_over():
        laboratory.sanctl("drain", node, "--no-wait")
        wait.until(lambda: not laboratory.healthy(node), f"/healthz of {node} asks to be relieved")
        laboratory.route(family, other)  # as bird would
    story.stage(f"{node} is drained, {other} takes over its addresses", take_over)

    def exchange():
        done = laboratory.sanctl("drain", node, timeout_s=90)
        if not done["drained"]:
            raise AssertionError(f"sanctl drain says {done}")
        story.ends_well(laboratory.programs[node])
        laboratory.start_node(node, drained=True)
        laboratory.sanctl("undrain", node)
        wait.until(lambda: laboratory.healthy(node), f"{node} is well")
        both_see(laboratory, **up)
    story.stage("it is empty, stopped and started anew", exchange)
    story.stage("it has its addresses back", lambda: laboratory.route(family, node))
