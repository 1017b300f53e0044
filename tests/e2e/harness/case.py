"""LabTest: the base of every test case; opens labs and checks them at the end."""

import unittest

from . import settings
from .lab import Lab


class LabTest(unittest.TestCase):
    topology = "tun"
    family = 4
    trust = "isolated"
    kind = "shm"  # of the fabric
    alone = False  # True: nothing else runs at the same time

    def lab(self, **options):
        """A lab with a running proxy; what must hold at the end is checked when the test ends."""
        label = ".".join(self.id().split(".")[-2:])
        options.setdefault("fabric", {"trust": self.trust})
        options.setdefault("kinds", (self.kind,))
        one = Lab(options.pop("topology", self.topology), label, **options)
        self.addCleanup(one.close)
        one.start_proxy()
        self.addCleanup(self._check_at_end, one, self._failures())
        return one

    def _failures(self):
        result = self._outcome.result
        return len(result.failures) + len(result.errors)

    def _check_at_end(self, one, failures_before):
        if self._failures() == failures_before:
            one.assert_healthy()
            one.assert_clean_stop()

    def socket(self, lab, port, **options):
        sock = lab.connect(port, options.pop("family", self.family), **options)
        self.addCleanup(sock.close)
        return sock


def over(test_base, topologies=("tun", "packet"), families=(4, 6), shared=False, network=()):
    """{class name: class}: `test_base` over each topology and family on shm; `shared`: once more
    with shared trust; `network`: once more over these kinds of fabrics, on the first topology and
    family. verbs is only there in the guest, and then it is all there is."""
    if settings.in_guest:
        variants = [("tun", families[0], "isolated", kind) for kind in ("verbs",)
                    if kind in network]
    else:
        variants = [(t, f, "isolated", "shm") for t in topologies for f in families]
        variants += [(t, families[0], "shared", "shm") for t in topologies] if shared else []
        variants += [((*topologies, "tun")[0], families[0], "isolated", kind) for kind in network
                     if kind != "verbs"]
    made = {}
    for topology, family, trust, kind in variants:
        name = f"{test_base.__name__}_{topology}_ip{family}"
        name += "_shared" if trust == "shared" else "" if kind == "shm" else "_" + kind
        made[name] = type(name, (test_base, LabTest),
                          {"topology": topology, "family": family, "trust": trust, "kind": kind,
                           "__module__": test_base.__module__})
    return made
