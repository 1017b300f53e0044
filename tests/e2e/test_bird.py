"""deploy/bird: what is announced by BGP follows the health of a network node."""

import os
import re
import subprocess
import tempfile
import unittest

from harness import netns, wait
from harness.netnode_lab import NODE_PORT, NetnodeLab
from harness.process import Program

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIRD = os.path.join(ROOT, "deploy", "bird")
# The router that the sample speaks to; it puts what it learns into its kernel.
ROUTER = """router id 10.0.0.1;
protocol device {
}
protocol kernel {
  ipv4 { export all; };
}
protocol kernel {
  ipv6 { export all; };
}
protocol bgp host {
  local as 65000;
  neighbor 10.0.0.2 as 65010;
  passive;
  ipv4 { import all; export none; };
  ipv6 { import all; export none; };
}
"""


def sample():
    with open(os.path.join(BIRD, "bird.conf")) as file:
        return file.read()


class Bird(unittest.TestCase):
    def write(self, folder, name, text):
        path = os.path.join(folder, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def test_routes_are_announced_while_the_node_is_well_and_withdrawn_when_it_is_not(self):
        one = NetnodeLab(".".join(self.id().split(".")[-2:]))
        self.addCleanup(one.close)
        router = one.far["router"] = netns.Namespace("r")
        one.client.ip("link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns",
                      router.name)
        for where, device, host in ((router, "eth0", 1), (one.client, "up0", 2)):
            where.ip("address", "add", f"10.0.0.{host}/30", "dev", device)
            where.ip("address", "add", f"fd00:b::{host}/64", "dev", device, "nodad")
            where.ip("link", "set", device, "up")
        one.add_plain("plain")
        one.start_node()
        # The sample as it is, but for the device: here it is that of a network node.
        files = {"router": (router, ROUTER),
                 "host": (one.client, sample().replace('"san0"', '"nn0"'))}
        for name, (where, text) in files.items():
            path = self.write(one.run_dir, name + ".conf", text)
            parsed = subprocess.run(["/usr/sbin/bird", "-p", "-c", path], capture_output=True,
                                    text=True, check=False)
            self.assertEqual(parsed.returncode, 0, parsed.stderr)
            one.start("bird-" + name, ["/usr/sbin/bird", "-f", "-c", path, "-s",
                                       os.path.join(one.run_dir, name + ".ctl"), "-P",
                                       os.path.join(one.run_dir, name + ".pid")], where)
        health = one.start("health", [os.path.join(BIRD, "sanproxy-health"),
                                      f"http://127.0.0.1:{NODE_PORT}/healthz",
                                      os.path.join(one.run_dir, "host.ctl")], one.client,
                           {**os.environ, "SANPROXY_HEALTH_INTERVAL_S": "0.1",
                            "PATH": os.environ["PATH"] + ":/usr/sbin"})

        def routes():
            told = router.ip("route", "show", "10.77.0.0/24").stdout
            told6 = router.ip("-6", "route", "show", "fd77::/64").stdout
            return ["10.0.0.2" in told, "fd00:b::2" in told6]

        def wait_for(there, what):
            wait.until(lambda: routes() == [there, there],
                       lambda: f"{what}: {routes()}\n{health.log()[-1000:]}\n"
                               + "\n".join(p.log()[-1000:] for p in one.programs))

        wait_for(True, "a node that is well is announced")
        # And served by the way that was announced.
        got = router.run("curl", "-sS", "-m", "20", one.url("/bytes/100000", 4))
        self.assertEqual((got.returncode, len(got.stdout)), (0, 100_000), got.stderr)
        # What bird reads says "disabled": that must not last.
        birdc = ["/usr/sbin/birdc", "-s", os.path.join(one.run_dir, "host.ctl")]
        self.assertIn("Reconfigur", one.client.run(*birdc, "configure").stdout.decode())

        def both_up():
            shown = one.client.run(*birdc, "show", "protocols").stdout.decode()
            return all(re.search(rf"^{name} +Static +\S+ +up ", shown, re.MULTILINE)
                       for name in ("sanproxy4", "sanproxy6"))

        wait.until(both_up, "they are enabled again")
        wait_for(True, "and announced after bird has read its file again")
        one.post("/drain")
        wait_for(False, "one that drains is withdrawn")
        one.post("/undrain")
        wait_for(True, "and announced again")
        one.node.kill()
        wait_for(False, "one that is dead is withdrawn")


    def test_a_bird_of_one_family_is_told_as_well(self):
        for protocol in ("sanproxy4", "sanproxy6"):
            with self.subTest(protocol=protocol), tempfile.TemporaryDirectory(prefix="sane2e-") as folder:
                # As birdc does with a protocol that is not there.
                for name, text in (("curl", "exit 0"), ("birdc", f'test "$3 $4" = "enable {protocol}"')):
                    os.chmod(self.write(folder, name, f"#!/bin/sh\n{text}\n"), 0o755)
                health = Program("health", [os.path.join(BIRD, "sanproxy-health")], folder,
                                 env={"SANPROXY_HEALTH_INTERVAL_S": "0.05",
                                      "PATH": folder + os.pathsep + os.environ["PATH"]})
                self.addCleanup(health.kill)
                health.wait_log("announced")
                health.kill()


if __name__ == "__main__":
    unittest.main()
