"""What is measured: each work is one load on one function, with the figures read from it and the
bars of the table in docs/benchmarks.md."""

import dataclasses

REQUEST_PATH = "/bytes/13"


@dataclasses.dataclass(frozen=True)
class Bars:
    """Ratios to HAProxy that are asked for: speed at least, CPU at most."""
    speed: float | None = None
    app_cpu: float | None = None
    proxy_cpu: float | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    name: str
    function: str
    mode: str
    flags: dict
    unit: str            # of the speed
    count: str           # the result's key for how much was done
    speed: str           # the result's key for the speed
    per: str             # what CPU time is divided by
    bars: dict           # driver -> Bars
    shared: bool = False
    lower_is_better: bool = False
    # Only bulk shows what splice-auto does; elsewhere it never splices.
    without: tuple = ("haproxy splice-auto",)


def _bars(tun, packet, app_cpu=None, cpu=True):
    return {"tun": Bars(tun, app_cpu, 1 / 2.5 if cpu else None),
            "packet": Bars(packet, app_cpu, 1 / 2 if cpu else None)}


def _bulk(name, mode, connections, bars, shared=False):
    return Work(name, "source" if mode == "download" else "sink", mode,
                {"connections": connections}, "Gbit/s", "bytes", "gbit_per_second", "GB", bars,
                shared, without=())


WORKS = [
    Work("http", "http", "http", {"connections": 64, "path": REQUEST_PATH}, "req/s", "requests",
         "per_second", "request", _bars(3.0, 2.0, 1 / 10)),
    Work("connect", "http", "connect", {"connections": 32, "path": REQUEST_PATH}, "conn/s",
         "connections", "per_second", "connection", _bars(3.4, 2.9)),
    _bulk("download", "download", 1, _bars(3.2, 2.7, 1 / 3.5)),
    _bulk("upload", "upload", 1, _bars(2.7, 2.4, 1 / 8)),
    _bulk("upload-shared", "upload", 1, _bars(3.2, 2.7, 1 / 8), shared=True),
    _bulk("download8", "download", 8, _bars(2.0, 2.0, 1 / 3.5)),
    _bulk("upload8", "upload", 8, _bars(2.0, 2.0, 1 / 8)),
    Work("rtt", "echo", "rtt", {}, "us", "round_trips", "p50_us", "round trip",
         _bars(1.0, 1.0, cpu=False), lower_is_better=True),
]


def figures(work, side, result):
    """The figures of one run: name -> value. CPU is in µs, or in seconds per GB; `all_cpu` is that of
    proxy, application and client."""
    proxy_s, app_s = side.cpu(result, work.function)
    if work.per == "GB":
        amount, scale = result[work.count] / 1e9, 1.0
    else:
        amount, scale = result[work.count], 1e6
    amount = max(amount, 1e-9)
    out = {"speed": result[work.speed], "app_cpu": app_s / amount * scale}
    if proxy_s is not None:
        out["proxy_cpu"] = proxy_s / amount * scale
        out["all_cpu"] = (proxy_s + app_s + result["cpu_s"]["self"]) / amount * scale
    if work.name == "rtt":
        out["p99"] = result["p99_us"]
    return out


def run_once(lab, work, side, seconds, warmup):
    result = lab.load(side.client_namespace, work.mode, side.addresses[work.function],
                      timeout_s=seconds + warmup + 60, seconds=seconds, warmup=warmup,
                      watch=side.pids(work.function), **work.flags)
    return figures(work, side, result)


def cpu_unit(work):
    return "CPU-s/GB" if work.per == "GB" else f"CPU-us/{work.per}"
