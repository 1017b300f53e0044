"""A client behind a router: the namespace that a lab's own clients are in."""

import socket

from . import netns, programs, settings
from .process import Program

ROUTES = {4: "10.77.0.0/24", 6: "fd77::/64"}


class FarClient:
    """client -- [relay --] router. Packets to services leave the router through an MTU of its own, or
    the relay does with them what it is told."""

    def __init__(self, router, log_dir, relayed=None):
        """`relayed`: faults on the way to the router (tests/e2e/lossy_relay.cc); then there is a relay,
        and offloads are off."""
        self.ns = netns.Namespace("f")
        self.router = router
        self.relay_ns = netns.Namespace("r") if relayed is not None else None
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            router.sysctl(key, "1")
        if self.relay_ns is None:
            self.ns.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far0", "netns",
                       router.name)
        else:
            self._add_relay_links()
        for where, device, host in ((self.ns, "eth0", 2), (router, "far0", 1)):
            where.ip("address", "add", f"10.99.0.{host}/24", "dev", device)
            where.ip("address", "add", f"fd99::{host}/64", "dev", device, "nodad")
            where.ip("link", "set", device, "up")
        self.ns.ip("route", "add", "default", "via", "10.99.0.1")
        self.ns.ip("-6", "route", "add", "default", "via", "fd99::1")
        self.relay = None
        if relayed is not None:
            words = ",".join(f"{key}={value}" for key, value in relayed.items())
            self.relay = Program("far-relay", [
                programs.test_path("lossy_relay"), "--a", "left", "--b", "right", "--a-to-b", words],
                log_dir, self.relay_ns)
            self.relay.wait_log("ready")

    def _add_relay_links(self):
        self.relay_ns.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
        for side, where, name in (("left", self.ns, "eth0"), ("right", self.router, "far0")):
            self.relay_ns.ip("link", "add", side, "type", "veth", "peer", "name", name, "netns",
                             where.name)
            where.run("ethtool", "-K", name, "tx", "off", "tso", "off", "gso", "off", check=True)
            self.relay_ns.ip("link", "set", side, "up")

    def let_router_cut(self, mtu):
        """The client sets no "don't fragment", and the router's way to services is narrow (IPv4)."""
        self.ns.sysctl("net.ipv4.ip_no_pmtu_disc", "1")
        words = self.router.ip("route", "show", ROUTES[4]).stdout.split()
        words = [word for word in words if word not in ("linkdown", "proto", "kernel")]
        self.router.ip("route", "replace", *words, "mtu", "lock", str(mtu))

    def let_router_say_too_big(self, mtu):
        """The router's way to the client is narrow, and what says "don't fragment" is answered (IPv4)."""
        self.router.sysctl("net.ipv4.icmp_ratelimit", "0")
        self.router.ip("route", "replace", "10.99.0.0/24", "dev", "far0", "mtu", "lock", str(mtu))

    def connect(self, address, port, timeout_s=60):
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self.ns.socket(kind)
        sock.settimeout(timeout_s * settings.slowness)
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self):
        if self.relay:
            self.relay.kill()
        for one in (self.ns, self.relay_ns):
            if one:
                one.remove()
