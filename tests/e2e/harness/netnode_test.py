"""What tests of the network node have in common: a laboratory, load through it, bytes verified."""

import hashlib
import unittest

from .load import EchoLoad
from .netnode_lab import NetnodeLab
from .pattern import Pattern

SERVED = Pattern("plain server")


class NetnodeTest(unittest.TestCase):
    def lab(self, driver="tun"):
        one = NetnodeLab(".".join(self.id().split(".")[-2:]), driver)
        self.addCleanup(one.close)
        return one

    def load(self, one, connections, family):
        load = EchoLoad(one, connections=connections, family=family, chunk_bytes=4096,
                        in_flight_bytes=16384)
        self.addCleanup(load.close)
        return load

    def check_download(self, one, family, total=20_000_000):
        got = one.curl(one.url(f"/bytes/{total}", family))
        self.assertEqual(got.returncode, 0, got.stderr)
        self.assertEqual(hashlib.sha256(got.stdout).hexdigest(), SERVED.sha256(total))
