"""The whole path over verbs: real clients, a proxy on a TUN device, application nodes over RDMA."""

import json
import os
import re
import subprocess
import sys
import unittest

import guest
import settings
from guests import GuestCase, PairCase, check, text_of

E2E = os.path.join(guest.CHECKOUT, "tests/e2e/run.py")
# Everybody who may fall, a receiver that stops, what links may ask for, and that no payload is copied:
# who may join: of these classes the tests whose name has one of the words. The others (most rogue nodes
# among them, which take minutes in the guest) are there all the same: ./run vm -- tests/e2e/run.py --quick
# _verbs
TESTS = {"Faults": ("kill", "die", "leave", "pools"), "SlowParties": ("stopped_application",),
         "BrokenQueuePairs": ("",), "Copies": ("",), "VerbsLinks": ("",), "JoinRate": ("",),
         "RogueKeys": ("",)}
RUN_TIMEOUT_S = 280


class Demo(GuestCase):
    def test_the_demo_moves_and_verifies_its_bytes_and_a_thousand_connections(self):
        result = self.guest.run(["./run", "demo", "--once", "--fabric", "verbs"],
                                timeout_s=RUN_TIMEOUT_S)
        said = text_of(result)
        self.assertEqual(result.status, 0, said)
        self.assertIn("1000 of 1000 connections at a time", said)
        self.assertIn("MB moved and verified, 0 checks failed", said)
        for reason in ("isolation", "pressure"):
            self.assertIn(f'sanproxy_bytes_copied_total{{reason="{reason}"}} 0\n', said)


def names():
    """Of the end-to-end tests, as they are in the guest."""
    done = subprocess.run([sys.executable, E2E, "--list", "_verbs."], capture_output=True, text=True,
                          env=dict(os.environ, SANPROXY_VM="1"), check=True)
    found = [line.split(".", 1)[1] for line in done.stdout.splitlines()]
    return [name for name in found
            if any(word in name for word in TESTS.get(name.split("_")[0], ()))]


class EndToEnd(GuestCase):
    """One class of them: runs them all in one go; each is a test here."""
    names = ()
    lines = None  # name -> (verdict, text)

    def judge(self, name):
        cls = type(self)
        if cls.lines is None:
            cls.lines = {}
            chosen = [n for n in cls.names
                      if f"{__name__}.{cls.__name__}.{n.split('.')[1]}" in settings.test_ids]
            result = self.guest.run(["/usr/bin/python3", E2E, "--quick", "--bin",
                                     os.path.join(settings.build_dir, "bin"), *chosen],
                                    timeout_s=RUN_TIMEOUT_S)
            cls.lines = results_in(text_of(result))
        verdict, text = cls.lines.get(name, ("FAIL", "it was not run"))
        if verdict == "skip":
            self.skipTest(text)
        self.assertEqual(verdict, "ok", text)


def results_in(said):
    out, name = {}, None
    for line in said.splitlines():
        found = re.match(r"(ok|FAIL|skip) +[\d.]+ s  (\S+) *(.*)", line)
        if found:
            name = found[2].split(".", 1)[1]
            out[name] = (found[1], found[3])
        elif name and out[name][0] == "FAIL":
            out[name] = ("FAIL", out[name][1] + "\n" + line)
    return out


def load_tests(loader, standard_tests, _pattern):
    suite = unittest.TestSuite([standard_tests])
    for class_name in TESTS:
        chosen = [name for name in names() if name.startswith(class_name + "_")]
        members = {name.split(".")[1]: lambda self, name=name: self.judge(name) for name in chosen}
        made = type(class_name + "OverVerbs", (EndToEnd,),
                    {"names": chosen, "__module__": __name__, **members})
        suite.addTests(loader.loadTestsFromTestCase(made))
    return suite


CONFIG = """\
[proxy]
name = "two"

[[interface]]
driver = "tun"
name = "san0"
addresses = ["10.77.0.1/24"]

[[fabric]]
listen = "verbs://10.9.1.1:7471"
max_nodes = 4
allow = ["any"]
"""


ECHO = """
import os, socket, threading
client = socket.create_connection(("10.77.0.10", 7), timeout=60)
sent = os.urandom(1 << 20)
def send():
    client.sendall(sent)
    client.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
echoed = b"".join(iter(lambda: client.recv(1 << 16), b""))
assert echoed == sent, f"{len(echoed)} bytes came back"
"""


# Two connections, one to each application node; the first one's machine vanishes after "open".
TWO_CONNECTIONS = """
import socket, time, urllib.request
def echoes(client, said):
    client.sendall(said)
    return client.recv(len(said), socket.MSG_WAITALL) == said
def serves(address):
    try:
        with socket.create_connection((address, 7), timeout=5) as client:
            return echoes(client, b"again")
    except OSError:
        time.sleep(0.1)
        return False
def status():
    return urllib.request.urlopen("http://127.0.0.1:9477/status", timeout=10).read().decode()
while not (serves("10.77.0.10") and serves("10.77.0.11")):
    pass
there = socket.create_connection(("10.77.0.10", 7), timeout=40)
here = socket.create_connection(("10.77.0.11", 7), timeout=40)
assert echoes(there, b"one") and echoes(here, b"two")
print("open", flush=True)
try:
    print("got", there.recv(1))
except ConnectionResetError:
    print("reset")
assert echoes(here, b"three") and serves("10.77.0.11"), "the other one's connections do not go on"
assert "verbs:10.9.1.2" not in status(), status()
try:
    socket.create_connection(("10.77.0.10", 7), timeout=40)
    print("accepted")
except ConnectionRefusedError:
    print("refused")
print("back", flush=True)
while not serves("10.77.0.10"):
    pass
assert echoes(here, b"four")
print("served again", flush=True)
"""


NETWORK_NODE = """\
[node]
name = "n1"
maglev_entries = 5003

[[interface]]
driver = "tun"
name = "nn0"
addresses = ["10.77.0.1/24"]

[[service]]
address = "10.77.0.10:80"

[[service]]
address = "10.77.0.10:7"

[[proxy]]
name = "one"
mode = "channel"
address = "verbs://ADDRESS:7470"
id = 1

[admin]
listen = "127.0.0.1:9478"
"""
BEHIND_IT = """\
[proxy]
name = "one"
id = 1
ingress_pool_bytes = 67_108_864

[[interface]]
driver = "channel"
name = "net"
listen = "verbs://ADDRESS:7470"
allow = ["any"]
max_nodes = 2

[[fabric]]
listen = "verbs://ADDRESS:7471"
allow = ["any"]
max_nodes = 4
channel_region_bytes = 8_388_608
"""


class NetworkNode(GuestCase):
    def test_packets_reach_a_proxy_over_verbs_and_its_application_nodes_too(self):
        bin_dir = os.path.join(settings.build_dir, "bin")
        address = self.check("echo $SANPROXY_VM_ADDRESS").strip()
        files = "".join(f"cat >/tmp/over-{name}.toml <<'END'\n{text}END\n"
                        for name, text in (("netnode", NETWORK_NODE.replace("ADDRESS", address)),
                                           ("proxynode", BEHIND_IT.replace("ADDRESS", address))))
        self.check(files)
        node = [f"{bin_dir}/appnode-httpd", "--proxy", f"verbs://{address}:7471", "--service",
                "10.77.0.10:80", "--root", guest.CHECKOUT]
        echo = [f"{bin_dir}/appnode-echo", "--mode", "echo", "--proxy", f"verbs://{address}:7471",
                "--service", "10.77.0.10:7"]
        running = [self.guest.start(f"exec {bin_dir}/{name} --config /tmp/over-{name}.toml")
                   for name in ("proxynode", "netnode")]
        running += [self.guest.start(words) for words in (node, echo)]
        result = self.guest.run("""
            until curl -sf --max-time 5 -o /tmp/page http://10.77.0.10/README.md; do
              sleep 0.2
            done
            cmp /tmp/page README.md || exit 1
            until /usr/bin/python3 -c "$ECHO" 2>/tmp/why; do
              grep -q ConnectionRefused /tmp/why || { cat /tmp/why; exit 1; }
              sleep 0.2
            done
            curl -s --max-time 10 http://127.0.0.1:9477/status""", timeout_s=120, env={"ECHO": ECHO})
        said = text_of(result)
        everybody = said + "".join(map(text_of_running, running))
        self.assertEqual(result.status, 0, everybody)
        (seen,) = json.loads(said)["network_nodes"]
        self.assertTrue(seen["peer"].startswith("verbs:"), seen)
        self.assertGreater(seen["bytes_in"], 1 << 20)
        for process in reversed(running):
            process.send_signal(15)
            ended = process.wait(30)
            self.assertEqual(ended.status, 0, text_of(ended))


class ProxyAndNodeOnTwoMachines(PairCase):
    def test_connections_of_a_machine_that_vanishes_are_reset_and_those_of_others_go_on(self):
        bin_dir = os.path.join(settings.build_dir, "bin")
        a, b = self.pair.a, self.pair.b
        proxy = a.start(f"""cat >/tmp/vanish.toml <<'END'\n{CONFIG}
[[fabric]]
listen = "shm:/tmp/vanish.sock"
END
            exec {bin_dir}/proxynode --config /tmp/vanish.toml""")
        echo = [os.path.join(bin_dir, "appnode-echo"), "--mode", "echo"]
        near = a.start([*echo, "--proxy", "shm:/tmp/vanish.sock", "--service", "10.77.0.11:7"])
        far = b.start([*echo, "--proxy", "verbs://10.9.1.1:7471", "--service", "10.77.0.10:7"])
        client = a.start(["/usr/bin/python3", "-c", TWO_CONNECTIONS])
        try:
            self.until_said(client, b"open", proxy)
            # Its answers are lost, those of its RDMA device too. The interface stays up: soft-RoCE
            # does not get over that (docs/verbs_fabric.md).
            check(self, b, "tc qdisc replace dev $SANPROXY_VM_INTERFACE root netem loss 100%")
            self.until_said(client, b"back", proxy)
        finally:
            b.run("tc qdisc del dev $SANPROXY_VM_INTERFACE root", timeout_s=30)
        ended = client.wait(90)
        said = text_of(ended)
        self.assertEqual(ended.status, 0, said + text_of_running(proxy))
        self.assertEqual(said.split("\n")[:-1],
                         ["open", "reset", "refused", "back", "served again"], said)
        for process in (far, near, proxy):
            process.send_signal(15)
            ended = process.wait(30)
            self.assertEqual(ended.status, 0, text_of(ended))

    def until_said(self, process, word, proxy):
        self.assertTrue(process.wait_for_output(word, timeout_s=90),
                        text_of_running(process) + text_of_running(proxy))

    def test_bytes_go_from_a_client_over_one_to_an_application_on_the_other_and_back(self):
        bin_dir = os.path.join(settings.build_dir, "bin")
        a, b = self.pair.a, self.pair.b
        proxy = a.start(f"""cat >/tmp/two.toml <<'END'\n{CONFIG}END
            exec {bin_dir}/proxynode --config /tmp/two.toml""")
        node = b.start([os.path.join(bin_dir, "appnode-httpd"), "--proxy", "verbs://10.9.1.1:7471",
                        "--service", "10.77.0.10:80", "--root", guest.CHECKOUT])
        echo = b.start([os.path.join(bin_dir, "appnode-echo"), "--mode", "echo", "--proxy",
                        "verbs://10.9.1.1:7471", "--service", "10.77.0.10:7", "--link",
                        "queue_pairs=3"])
        result = a.run("""
            until curl -sf --max-time 5 -o /tmp/page http://10.77.0.10/README.md; do
              sleep 0.2
            done
            cmp /tmp/page README.md || exit 1
            /usr/bin/python3 -c "$ECHO" || exit 1
            curl -s --max-time 10 http://127.0.0.1:9477/status""", timeout_s=120, env={"ECHO": ECHO})
        said = text_of(result)
        self.assertEqual(result.status, 0, said + text_of_running(proxy) + text_of_running(node))
        self.assertIn('"fabric": "verbs"', said)
        self.assertIn("verbs:10.9.1.2", said)
        self.assertRegex(said, r'"queue_pairs": ?3')
        for process in (node, echo, proxy):
            process.send_signal(15)
            ended = process.wait(30)
            self.assertEqual(ended.status, 0, text_of(ended))
        self.assertIn("has ended in order", text_of(ended))


def text_of_running(process):
    return b"".join(process.output()).decode(errors="replace")
