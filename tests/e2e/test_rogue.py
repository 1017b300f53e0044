"""A rogue application node breaks every rule while a well-behaved one serves a verified load."""

import os
import re
import subprocess
import unittest

from harness import case, lab, load, programs, settings, wait

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Rules that an application node has no way to break: they bind the proxy, or the fabric's form
# does not let it happen.
NOT_OURS = {"M13", "M14", "M21", "T10", "D5", "D6", "D7", "D8", "D11"}
KEY = "no secret to the rogue"
# In the guest a process takes half a second to start, and a connection a tenth.
CASES_PER_PROCESS = 16 if settings.in_guest else 1
DIVIDE = 16 if settings.in_guest else 1
LAST = "die_without_goodbye"  # it ends its process
# So that a penalty is over before the next case begins.
LIMITS = {"failures_per_s": 1000, "penalty_ms": 100}
HEARTBEAT = {"interval_ms": 200, "timeout_ms": 500 * settings.slowness}
# The service beside the rogue's own that has a health check.
CHECKED = {"address": lab.service_address(4, 6668),
           "health": {"request": "?", "expect": "yes", "timeout_ms": 10000}}


def rogue_path():
    path = settings.rogue or programs.test_path("rogue_node")
    return path if os.path.exists(path) else None


def all_cases():
    """[(name, rule)], as the program lists them."""
    path = rogue_path()
    if path is None:
        raise unittest.SkipTest("rogue_node is not built")
    listed = subprocess.run([path, "--list"], capture_output=True, text=True, check=True)
    return [tuple(line.split("\t")) for line in listed.stdout.splitlines()]


class RogueNode:
    def run_cases(self, names):
        one = self.lab(keys={"web": KEY}, config={"limits": LIMITS, "heartbeat": HEARTBEAT},
                       services=[CHECKED])
        victim = one.start_echo(name="victim")
        busy = load.EchoLoad(one, port=7, connections=4 if settings.in_guest else 16,
                             modest=settings.in_guest)
        self.addCleanup(busy.close)
        busy.start()
        wrong = []
        names = sorted(names, key=lambda name: name == LAST)
        for first in range(0, len(names), CASES_PER_PROCESS):
            some = names[first:first + CASES_PER_PROCESS]
            got = one.run(rogue_path(), "--proxy", one.proxy_address, "--service",
                          lab.service_address(4, 6666), "--foreign", lab.service_address(4, 7),
                          "--packets", one.packets_address, "--key", one.key("web"), "--divide", DIVIDE,
                          *(f"--case={name}" for name in some), timeout_s=120)
            said = {line.split(":")[0] for line in got.stdout.decode().splitlines()}
            if got.returncode != 0 or not said >= set(some) - {LAST}:
                wrong.append(f"{some} ({got.returncode}): "
                             f"{(got.stdout + got.stderr).decode().strip()}")
            if not one.proxy.alive():
                self.fail(f"the proxy died of {some}: {one.tail()}")
            if busy.lost or busy.wrong:
                self.fail(f"{some} disturbed the other node: "
                          f"{busy.wrong or [c.lost for c in busy.lost]}")
        marks = busy.marks()
        wait.until(lambda: busy.all_progressed(marks, 65536), "the other node's load goes on")
        busy.finish()
        self.assertEqual(busy.lost, [])
        self.assertTrue(victim.alive())
        self.assertEqual(wrong, [], "\n" + "\n".join(wrong))

    def of(self, *sources):
        names = [name for name, _ in all_cases()]
        return [name for name in names if name.startswith(sources)]

    def by_rule(self, *letters):
        return [name for name, rule in all_cases() if rule[0] in letters and rule[1].isdigit()
                and not name.startswith(("packet_", "key_"))]


class Rogue(RogueNode):
    def test_bad_hellos_are_refused(self):
        self.run_cases(self.of("hello_"))

    def test_bad_transfers_end_only_their_channel(self):
        self.run_cases([name for name in self.of("transfer_", "message_", "data_reference_",
                                                 "data_too")])

    def test_bad_messages_end_only_their_channel(self):
        self.run_cases(self.by_rule("M", "D"))

    def test_breaches_of_a_stream_end_only_that_stream(self):
        self.run_cases(self.by_rule("S"))

    def test_greedy_and_vanishing_nodes_harm_nobody(self):
        covered = set(self.of("hello_", "transfer_", "message_", "data_reference_", "data_too",
                              "shm_", "packet_", "key_")) | set(self.by_rule("M", "D", "S"))
        self.run_cases([name for name, _ in all_cases() if name not in covered])


class RogueKeys(RogueNode):
    def test_a_key_that_is_guessed_replayed_or_reflected_opens_nothing(self):
        self.run_cases(self.of("key_"))


class RogueSharedMemory(RogueNode):
    def test_shared_memory_cannot_be_used_against_the_proxy(self):
        self.run_cases(self.of("shm_"))


class RoguePackets(RogueNode):
    def test_a_rogue_network_node_harms_nobody_behind_another_one(self):
        self.run_cases(self.of("packet_"))


class RogueCoverage(case.LabTest):
    def test_every_rule_of_the_wire_format_has_a_case(self):
        with open(os.path.join(ROOT, "docs", "wire_format.md")) as file:
            rules = set(re.findall(r"^\| ([HTMDS]\d+) \|", file.read(), re.MULTILINE))
        covered = set()
        for _, rule in all_cases():
            covered |= set(re.findall(r"\b[HTMDS]\d+\b", rule.split(":")[0]))
        self.assertEqual(sorted(rules - covered - NOT_OURS), [])


globals().update(case.over(Rogue, families=(4,), shared=True, network=("tcp", "verbs")))
globals().update(case.over(RogueKeys, topologies=("tun",), families=(4,),
                           network=("tcp", "verbs")))
globals().update(case.over(RoguePackets, topologies=("channel",), families=(4,)))
globals().update(case.over(RogueSharedMemory, families=(4,), shared=True))
