#!/usr/bin/python3
"""Shows the whole path on this host: a proxy node on a TUN device, application nodes that do no
TCP, and ordinary clients (curl and plain sockets) whose bytes are verified.

Stays up until Ctrl-C with addresses to try; --once exits after the checks. --fabric chooses how the
application nodes reach the proxy node; verbs needs an RDMA device, which ./run vm has. Removes
everything that it made: processes, device, files.
"""

import argparse
import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1

CONFIG = """\
[proxy]
name = "demo"

[[interface]]
driver = "tun"
name = "{device}"
mtu = 1500
addresses = ["{net4}.1/24", "{net6}::1/64"]

[[fabric]]
listen = "{address}"
allow = ["any"]

[admin]
listen = "127.0.0.1:{admin_port}"
"""


class DemoError(Exception):
    pass


def say(text):
    print(text, flush=True)


def free_device():
    taken = {name for _, name in socket.if_nameindex()}  # of this network namespace, as /sys may not be
    for number in range(10):
        if f"san{number}" not in taken:
            return f"san{number}"
    raise DemoError("san0 to san9 all exist: remove some (ip link delete san0)")


def free_network():
    """The first of a few private networks that this host has no route to."""
    taken = subprocess.run(["ip", "route", "show"], capture_output=True, text=True,
                           check=False).stdout
    for number in (77, 177, 78, 178):
        if f"10.{number}.0." not in taken:
            return f"10.{number}.0", f"fd00:{number}"
    raise DemoError("10.77.0.0/24 and its alternatives are all in use on this host")


def free_port(first):
    for port in range(first, first + 20):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise DemoError(f"no free port from {first}")


def rdma_address():
    """An IPv4 address of an interface that an RDMA device sits on."""
    devices = "/sys/class/infiniband"
    for device in sorted(os.listdir(devices)) if os.path.isdir(devices) else []:
        try:
            with open(f"{devices}/{device}/ports/1/gid_attrs/ndevs/0") as file:
                interface = file.read().strip()
        except OSError:
            continue
        shown = subprocess.run(["ip", "-json", "-4", "address", "show", "dev", interface],
                               capture_output=True, text=True, check=False).stdout
        for one in json.loads(shown or "[]"):
            for address in one.get("addr_info", []):
                return address["local"]
    raise DemoError("this host has no RDMA device with an IPv4 address: see --address, or use the "
                    "guest: ./run vm -- ./run demo --once --fabric verbs")


def fabric_address(fabric, folder):
    if fabric == "shm":
        return f"shm:{folder}/proxy.sock"
    host = rdma_address() if fabric == "verbs" else "127.0.0.1"
    return f"{fabric}://{host}:{free_port(7471)}"


# Soft-RoCE under emulation moves a few hundred Mbit/s at best.
IN_GUEST = bool(os.environ.get("SANPROXY_VM"))
BULK_BYTES = (8 if IN_GUEST else 64) << 20
MANY_CONNECTIONS = 1000 if IN_GUEST else 100
LIMIT_S = 300 if IN_GUEST else 60
READY_S = 90 if IN_GUEST else 15
WAYS = {"shm": "over shared memory", "tcp": "over the tcp fabric", "verbs": "over RDMA"}


class Demo:
    def __init__(self, bin_dir, fabric, address):
        self.bin_dir = os.path.abspath(bin_dir)
        self.folder = tempfile.mkdtemp(prefix=f"sanproxy-demo-{os.getpid()}-")
        self.fabric = fabric
        self.address = address
        self.processes = []
        self.moved_bytes = 0
        self.failed = 0

    # --- setting up
    def start(self, *argv):
        program = os.path.join(self.bin_dir, argv[0])
        log = open(os.path.join(self.folder, f"log-{len(self.processes)}"), "wb")

        def before_exec():
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setpgid(0, 0)  # Ctrl-C is for the demo, which then stops them in order

        process = subprocess.Popen([program, *argv[1:]], stdout=log, stderr=log,
                                   preexec_fn=before_exec)
        log.close()
        process.name, process.log = argv[0], log.name
        self.processes.append(process)
        return process

    def check_alive(self):
        for process in self.processes:
            if process.poll() is not None:
                with open(process.log, errors="replace") as file:
                    raise DemoError(f"{process.name} ended with {process.returncode}:\n"
                                    + file.read()[-3000:])

    def wait_for(self, what, ready):
        deadline = time.monotonic() + READY_S
        while not ready():
            self.check_alive()
            if time.monotonic() > deadline:
                raise DemoError(f"{what}: not within {READY_S} s")
            time.sleep(0.05)

    def set_up(self):
        self.address = self.address or fabric_address(self.fabric, self.folder)
        if not os.path.exists("/dev/net/tun"):
            raise DemoError("this host has no /dev/net/tun (in a container: --device /dev/net/tun)")
        device = free_device()
        self.net4, self.net6 = free_network()
        self.admin_port = free_port(9477)
        config = os.path.join(self.folder, "proxynode.toml")
        with open(config, "w") as file:
            file.write(CONFIG.format(device=device, net4=self.net4, net6=self.net6,
                                     address=self.address, admin_port=self.admin_port))
        self.http4, self.http6 = f"{self.net4}.10:80", f"[{self.net6}::10]:80"
        self.echo4, self.echo6 = f"{self.net4}.10:7", f"[{self.net6}::10]:7"
        self.make_pages()
        say(f"== proxynode: TCP endpoints on device {device}, application nodes at {self.address}")
        self.start("proxynode", "--config", config)
        self.wait_for("the proxy's /healthz", lambda: self.admin("/healthz") == b"ok")
        for service in (self.http4, self.http6):
            say(f"== appnode-httpd joins {service}")
            self.start("appnode-httpd", "--proxy", self.address, "--service", service,
                       "--root", self.pages)
        for service in (self.echo4, self.echo6):
            say(f"== appnode-echo joins {service}")
            self.start("appnode-echo", "--mode", "echo", "--proxy", self.address,
                       "--service", service)
        for host, port in self.services():
            self.wait_for(f"{host} port {port}", lambda at=(host, port): can_connect(*at))

    def services(self):
        return [(f"{self.net4}.10", 80), (f"{self.net6}::10", 80), (f"{self.net4}.10", 7),
                (f"{self.net6}::10", 7)]

    def make_pages(self):
        self.pages = os.path.join(self.folder, "pages")
        os.mkdir(self.pages)
        with open(os.path.join(self.pages, "index.html"), "w") as file:
            file.write("<!doctype html><title>sanproxy</title><h1>It works</h1><p>This page came "
                       f"over TCP to the proxy node, and {WAYS[self.fabric]} from an application "
                       "node that does no TCP.</p>\n")
        self.digests = {}
        for size in (1, 1000, 100_000, BULK_BYTES):
            content = os.urandom(size)
            self.digests[f"{size}.bin"] = hashlib.sha256(content).hexdigest()
            with open(os.path.join(self.pages, f"{size}.bin"), "wb") as file:
                file.write(content)

    def admin(self, page):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{page}",
                                        timeout=READY_S) as reply:
                return reply.read().strip()
        except OSError:
            return b""

    # --- the checks
    def report(self, ok, text, byte_count, seconds):
        self.failed += 0 if ok else 1
        self.moved_bytes += byte_count if ok else 0
        rate = ""
        if byte_count >= 1 << 20 and seconds > 0:
            rate = f"  {byte_count * 8e-9 / seconds:.1f} Gbit/s"
        say(f"  {'ok  ' if ok else 'FAIL'} {text}{rate}")

    def check_download(self, host, name):
        target = os.path.join(self.folder, "download")
        begin = time.monotonic()
        result = subprocess.run(["curl", "-sS", "-g", "--noproxy", "*", "--max-time",
                                 str(LIMIT_S), "-o", target, f"http://{host}/{name}"], capture_output=True, text=True,
                                check=False)
        seconds = time.monotonic() - begin
        digest, size = "", 0
        if result.returncode == 0:
            with open(target, "rb") as file:
                content = file.read()
            digest, size = hashlib.sha256(content).hexdigest(), len(content)
        self.report(digest == self.digests[name], f"curl http://{host}/{name}: {size:,} bytes, "
                    f"checksum compared {result.stderr.strip()}", size, seconds)

    def check_echo(self, host, size):
        begin = time.monotonic()
        sent, received = hashlib.sha256(), hashlib.sha256()
        count, note = 0, ""
        try:
            with socket.create_connection((host, 7), timeout=LIMIT_S) as client:
                sender = threading.Thread(target=send_random, args=(client, size, sent))
                sender.start()
                while piece := client.recv(1 << 18):
                    received.update(piece)
                    count += len(piece)
                sender.join()
        except OSError as error:
            note = f" ({error})"
        ok = count == size and sent.digest() == received.digest()
        self.report(ok, f"{size:,} bytes up to [{host}]:7, half-close, and back down: checksums "
                    f"compared{note}", 2 * count, time.monotonic() - begin)

    def check_many(self, host, count):
        begin = time.monotonic()
        results = [False] * count

        def one(index):
            try:
                with socket.create_connection((host, 7), timeout=LIMIT_S) as client:
                    message = f"connection {index}".encode()
                    client.sendall(message)
                    client.shutdown(socket.SHUT_WR)
                    reply = b""
                    while piece := client.recv(4096):
                        reply += piece
                    results[index] = reply == message
            except OSError:
                pass

        threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.report(all(results), f"{sum(results)} of {count} connections at a time to "
                    f"[{host}]:7 answered", 0, time.monotonic() - begin)

    def check_all(self):
        say("\n== moving bytes through and verifying them")
        for host in (self.http4, self.http6):
            for name in self.digests:
                self.check_download(host.removesuffix(":80"), name)
        for host in (f"{self.net4}.10", f"{self.net6}::10"):
            for size in (1, 1000, 100_000, BULK_BYTES):
                self.check_echo(host, size)
        self.check_many(f"{self.net4}.10", MANY_CONNECTIONS)
        self.check_alive()
        say(f"\n== {self.moved_bytes / 1e6:,.0f} MB moved and verified, {self.failed} checks failed")
        for line in self.admin("/metrics").decode().splitlines():
            if line.startswith(("sanproxy_bytes_copied_total", "sanproxy_tcp_accepted_total")) \
                    and "worker=" not in line:  # the sum of all
                say(f"   {line}")

    def invite(self):
        say(f"""
== up until Ctrl-C; try from another terminal:
   curl http://{self.net4}.10/
   curl -g 'http://[{self.net6}::10]/bytes/1000000' -o /dev/null
   wrk -c 64 -d 5 http://{self.net4}.10/bytes/13
   nc {self.net4}.10 7                          # an echo; IPv6 too: nc {self.net6}::10 7
   a browser at http://{self.net4}.10/
   curl http://127.0.0.1:{self.admin_port}/status      # and /metrics, /healthz
   another application node: build/bin/appnode-httpd --proxy {self.address} --service """
            f"{self.net4}.20:80")
        while True:
            time.sleep(0.5)
            self.check_alive()

    def close(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def can_connect(host, port):
    try:
        socket.create_connection((host, port), timeout=1).close()
        return True
    except OSError:
        return False


def send_random(client, size, digest):
    try:
        block = os.urandom(1 << 20)
        while size > 0:
            piece = block[:min(size, len(block))]
            digest.update(piece)
            client.sendall(piece)
            size -= len(piece)
        client.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the receiving side reports what is missing


def main():
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__)
    parser.add_argument("--bin", default="build/release/bin", help=argparse.SUPPRESS)
    parser.add_argument("--once", action="store_true", help="exit after the checks")
    parser.add_argument("--fabric", choices=WAYS, default="shm",
                        help="between proxy node and application nodes (default: %(default)s)")
    parser.add_argument("--address", metavar="ADDRESS",
                        help="where the proxy listens for application nodes, such as "
                             "verbs://10.9.0.1:7471; by default a free one of this host")
    options = parser.parse_args()
    if options.address and not options.address.startswith(options.fabric + ":"):
        parser.error(f"--address {options.address} is not of --fabric {options.fabric}")
    if "SANPROXY_CHECK_OPTIONS" in os.environ:
        return 0
    if os.geteuid() != 0:
        print("demo: a TUN device needs root: use ./run demo", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    demo = Demo(options.bin, options.fabric, options.address)
    try:
        demo.set_up()
        demo.check_all()
        if not options.once:
            demo.invite()
    except (DemoError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        demo.failed += 1
    except KeyboardInterrupt:
        say("\n== stopping")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        demo.close()
    say("demo: " + ("ok" if demo.failed == 0 else "FAILED"))
    return 1 if demo.failed else 0


if __name__ == "__main__":
    sys.exit(main())
