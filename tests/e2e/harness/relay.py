"""A lab with a bad link between its client and its proxy node."""

import signal

from . import netns, programs
from .lab import Lab


class RelayedLab(Lab):
    """client -- lossy_relay -- proxynode, all Ethernet; offloads are off, so that every segment meets
    its own fate. The relay runs from start_relay() on."""

    def __init__(self, label, **options):
        self.relay_ns = netns.Namespace("r")
        self.relay = None
        try:
            super().__init__("packet", label, **options)
        except BaseException:
            self.relay_ns.remove()
            raise

    def _make_segment(self):
        self.relay_ns.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        for side, namespace, name in (("left", self.client, "eth0"),
                                      ("right", self.proxy_ns, "san0")):
            self.relay_ns.ip("link", "add", side, "type", "veth", "peer", "name", name,
                             "netns", namespace.name)
            namespace.run("ethtool", "-K", name, "tx", "off", "tso", "off", "gso", "off",
                          check=True)
            self.relay_ns.ip("link", "set", side, "up")
        self._set_up_segment()

    def start_relay(self, seed, to_proxy, to_client):
        """`to_proxy`, `to_client`: {fault: value}, see tests/e2e/lossy_relay.cc."""
        def words(faults):
            return ",".join(f"{key}={value}" for key, value in faults.items())
        self.relay = self.start("relay", [programs.test_path("lossy_relay"), "--a", "left", "--b",
                                          "right", "--seed", seed, "--a-to-b", words(to_proxy),
                                          "--b-to-a", words(to_client)], self.relay_ns)
        self.relay.wait_log("ready")

    def stop_relay(self):
        self.relay.signal(signal.SIGTERM)
        assert self.relay.wait() == 0, self.relay.log()

    def close(self):
        super().close()
        self.relay_ns.remove()
