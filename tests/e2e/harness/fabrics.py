"""Kinds of fabrics between the proxy and its application nodes, and what each needs.

shm    a socket file; nodes run anywhere on the host
tcp    the loopback of the proxy's namespace; nodes run in there as well
tls    the same with mutual TLS
verbs  an RDMA device, so only inside the guest (./run vm), and all in its one namespace
"""

import os
import subprocess
import threading
import unittest

from . import settings

KINDS = ("shm", "tcp", "tls", "verbs")
_PORTS = {"tcp": 7471, "tls": 7472, "verbs": 7473}
_certificates = {}
_making = threading.Lock()  # tests run side by side and use the same ones


def scheme(kind):
    return "tcp" if kind == "tls" else kind


def address(kind, run_dir):
    if kind == "shm":
        return f"shm:{run_dir}/proxy.sock"
    if kind == "verbs":
        if not settings.in_guest:
            raise unittest.SkipTest("verbs needs an RDMA device: it runs in the guest")
        return f"verbs://{os.environ['SANPROXY_VM_ADDRESS']}:{_PORTS[kind]}"
    return f"tcp://127.0.0.1:{_PORTS[kind]}"


def section(kind, run_dir, extra):
    """The [[fabric]] section of the proxy."""
    values = {"listen": address(kind, run_dir)}
    if kind == "shm":
        values["trust"] = "isolated"
    elif kind == "tls":
        own = certificate("proxy")
        values.update(certificate=own.certificate, key=own.key, ca=own.ca, allow=["cert:node"])
    else:
        values["allow"] = ["any"]  # by itself nobody may join over a network
    if kind == "verbs":  # all of it is locked, and the guest is small
        values.update(max_nodes=8, channel_region_bytes=8 << 20)
    return {**values, **{key: value for key, value in extra.items()
                         if key != "trust" or kind == "shm"}}


def node_words(kind, name="node"):
    """What a node's command line has besides --proxy."""
    if kind != "tls":
        return []
    own = certificate(name)
    return ["--tls-certificate", own.certificate, "--tls-key", own.key, "--tls-ca", own.ca]


class Certificate:
    def __init__(self, folder, name):
        self.certificate = os.path.join(folder, name + ".pem")
        self.key = os.path.join(folder, name + ".key")
        self.ca = os.path.join(folder, "ca.pem")


def _openssl(*words):
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def certificate(name, authority="ca"):
    """A certificate of that name, signed by the tests' authority (or by another one)."""
    with _making:
        if (name, authority) not in _certificates:
            _certificates[name, authority] = _make(name, authority)
        return _certificates[name, authority]


def _make(name, authority):
    # Tests run in several processes, of which each makes its own.
    folder = os.path.join(settings.log_dir, f"certificates-{authority}-{os.getpid()}")
    ca = os.path.join(folder, "ca")
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    if not os.path.exists(ca + ".pem"):
        os.makedirs(folder, exist_ok=True)
        _openssl("req", "-x509", *ec, "-subj", f"/CN={authority}", "-keyout", ca + ".key",
                 "-out", ca + ".pem")
    made = Certificate(folder, name)
    _openssl("req", "-x509", *ec, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}",
             "-addext", "basicConstraints=critical,CA:FALSE",
             "-CA", ca + ".pem", "-CAkey", ca + ".key", "-keyout", made.key,
             "-out", made.certificate)
    return made
