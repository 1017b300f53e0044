"""etcd members in a namespace, and sanctl against them."""

import json
import os
import signal
import subprocess

from . import programs, settings, wait

CLIENT_PORT = 2379
PEER_PORT = 2479
ROOT = "/sanproxy/default/"


class Member:
    """One etcd process; its data survive kill() and start()."""

    def __init__(self, lab, namespace, index, hosts):
        self.lab, self.namespace, self.index = lab, namespace, index
        self.url = f"http://{hosts[index]}:{CLIENT_PORT + index}"
        peers = [f"http://{host}:{PEER_PORT + i}" for i, host in enumerate(hosts)]
        self._peer = peers[index]
        cluster = ",".join(f"m{i}={peer}" for i, peer in enumerate(peers))
        self._argv = ["etcd", "--name", f"m{index}",
                      "--data-dir", os.path.join(lab.run_dir, f"etcd{index}"),
                      "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
                      "--listen-peer-urls", self._peer,
                      "--initial-advertise-peer-urls", self._peer,
                      "--initial-cluster", cluster, "--initial-cluster-state", "new",
                      "--heartbeat-interval", "50", "--election-timeout", "500"]
        self.program = None

    def start(self):
        self.program = self.lab.start(f"etcd{self.index}", self._argv, self.namespace)

    def kill(self):
        self.program.kill()

    def healthy(self):
        return self.namespace.run("etcdctl", "--endpoints", self.url, "endpoint", "health",
                                  "--command-timeout=1s", env=_env()).returncode == 0

    def stop(self):
        self.program.signal(signal.SIGTERM)
        self.program.wait()


def _env():
    return {**os.environ, "ETCDCTL_API": "3"}


class Etcd:
    def __init__(self, lab, members=1, places=()):
        """`places`: a (namespace, IP address) for each member; else they share the proxy's loopback. The
        first one's is also where somebody's hand and sanctl are."""
        places = places or [(lab.proxy_ns, "127.0.0.1")] * members
        self.namespace = places[0][0]
        hosts = [host for _, host in places]
        self.members = [Member(lab, place, i, hosts) for i, (place, _) in enumerate(places)]
        self.urls = [member.url for member in self.members]

    def start(self):
        for member in self.members:
            member.start()
        self.wait_healthy()

    def wait_healthy(self, members=None):
        for member in members or self.members:
            wait.until(member.healthy, lambda m=member: f"{m.url} is healthy\n"
                       f"{m.program.log()[-1500:]}", timeout_s=30)

    def ctl(self, *words):
        """etcdctl: somebody's hand."""
        done = self.namespace.run("etcdctl", "--endpoints", ",".join(self.urls), *words,
                                  env=_env(), text=True)
        if done.returncode != 0:
            raise AssertionError(f"etcdctl {words}: {done.stderr}")
        return done.stdout

    def keys(self, below=""):
        return [line[len(ROOT):] for line in
                self.ctl("get", "--prefix", "--keys-only", ROOT + below).splitlines() if line]

    def sanctl(self, *words, code=0, timeout_s=60):
        """The answer of sanctl --json; or its text on stderr where it must fail."""
        argv = sanctl_argv(*words, "--json", "--etcd", ",".join(self.urls))
        done = self.namespace.run(*argv, text=True, timeout_s=timeout_s * settings.slowness)
        if done.returncode != code:
            raise AssertionError(f"{argv} ended with {done.returncode}, not {code}:\n"
                                 f"{done.stdout}{done.stderr}")
        return done.stderr if code else json.loads(done.stdout)


def sanctl_argv(*words):
    return [programs.path("sanctl"), *map(str, words)]


def plain(namespace, *words, timeout_s=60):
    return subprocess.run(namespace.argv(sanctl_argv(*words)), capture_output=True, text=True,
                          timeout=timeout_s * settings.slowness, check=False)
