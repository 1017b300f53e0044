#!/usr/bin/python3
"""The laboratory: 2 network nodes, 3 proxy nodes, 4 application nodes, 3 etcd members and clients on this
host, each in a network namespace of its own, with the programs of this build.

Without options it is built, says what is where, and stays until Ctrl-C. With -- COMMAND the command runs
in a client's namespace. --check runs scenarios. Whatever it made is removed at the end.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import paths
import connections
import forwarding
import membership
import upgrade
from harness import netns, settings
from laboratory import Laboratory

SCENARIOS = {"forwarding": forwarding.run, "connections": connections.run, "upgrade": upgrade.run,
             "etcd": membership.run}


class Report:
    """What a scenario says while it runs, and its closing line."""

    def __init__(self, name, say):
        self.name = name
        self._say = say
        self._begin = self._last = time.monotonic()
        self._closing = ""
        self.result = {"scenario": name, "passed": False, "steps": []}

    def step(self, what, figures):
        now = time.monotonic()
        self._say(f"   {now - self._last:6.1f} s  {what}: {figures}")
        self.result["steps"].append({"what": what, "figures": figures,
                                     "seconds": round(now - self._last, 1)})
        self._last = now

    def figures(self, **values):
        self.result["figures"] = values

    def closing(self, text):
        self._closing = text

    def end(self, error=None):
        self.result["passed"] = error is None
        self.result["seconds"] = round(time.monotonic() - self._begin, 1)
        self.result["summary"] = self._closing if error is None else str(error).split("\n")[0]
        if error is not None:
            self._say("   " + str(error).replace("\n", "\n   "))
        self._say(f"{'pass' if error is None else 'FAIL'}  {self.name}  {self.result['summary']}  "
                  f"({self.result['seconds']:.0f} s)")

    @contextlib.contextmanager
    def laboratory(self, label, proxies=None, **how):
        laboratory = Laboratory(label, **how)
        try:
            laboratory.build(**({"proxies": proxies} if proxies else {}))
            self.step("built", ", ".join(laboratory.programs) + " and etcd")
            yield laboratory
            if lines := laboratory.broken():
                raise AssertionError("a program says what none may ever say: " + "; ".join(lines))
        finally:
            laboratory.close()


def check(options, say):
    results = []
    for name in options.scenarios or SCENARIOS:
        say(f"== {name}")
        report = Report(name, say)
        try:
            SCENARIOS[name](report, options)
            report.end()
        except (AssertionError, OSError, RuntimeError, KeyError, ValueError,
                subprocess.SubprocessError) as error:
            report.end(error if str(error) else repr(error))
        results.append(report.result)
    passed = all(one["passed"] for one in results)
    if not passed:
        options.keep_logs = True
        say(f"logs are in {settings.log_dir}")
    if options.json:
        print(json.dumps({"passed": passed, "scenarios": results}, indent=2))
    return 0 if passed else 1


def stay(options, say):
    laboratory = Laboratory("laboratory", fabric=options.fabric, page_bytes=options.page_bytes)
    try:
        say("== building the laboratory")
        laboratory.build()
        if options.command:
            argv = laboratory.hosts["c1"].argv(options.command)
            return subprocess.run(argv, env=laboratory.environment(), check=False).returncode
        if options.json:
            print(json.dumps(laboratory.as_json(), indent=2), flush=True)
        say(laboratory.describe())
        say("\n== up until Ctrl-C")
        ended = set()
        while True:
            time.sleep(0.5)
            for name, program in laboratory.programs.items():
                if not program.alive() and program.pid not in ended:
                    ended.add(program.pid)
                    say(f"{name} has ended ({program.exit_code}); its log: {program.log_path}")
    except (AssertionError, OSError, RuntimeError) as error:
        options.keep_logs = True
        say(f"lab: {error}\nlogs are in {settings.log_dir}")
        return 1
    except KeyboardInterrupt:
        say("\n== removing the laboratory")
        return 0
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        laboratory.close()


def arguments():
    parser = argparse.ArgumentParser(
        prog="./run lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Scenarios: " + ", ".join(SCENARIOS) + ". What they do and what was seen: docs/lab.md\n"
        "Example: ./run lab -- sanctl status\n"
        "         ./run lab --check connections --connections 2000")
    parser.add_argument("--check", nargs="*", metavar="SCENARIO", dest="scenarios",
                        help="run these scenarios, or all, each in a laboratory of its own")
    parser.add_argument("--connections", type=int, default=10_000, metavar="N",
                        help="long-lived connections (default: %(default)s; at most 60000)")
    parser.add_argument("--outage", type=float, default=60, metavar="S",
                        help="for how long all of etcd is stopped (default: %(default)s s)")
    parser.add_argument("--bytes-each", type=int, default=2_000_000, metavar="N",
                        help="forwarding: to be echoed by each connection; a download is ten times as "
                             "much (default: %(default)s)")
    parser.add_argument("--fabric", choices=("shm", "tcp"), default="shm",
                        help="between network nodes, proxies and applications (default: %(default)s)")
    parser.add_argument("--json", action="store_true",
                        help="the result on stdout as JSON; progress goes to stderr")
    parser.add_argument("--keep-logs", action="store_true", help="also after a success")
    parser.add_argument("--bin", default=os.path.join(paths.ROOT, "build", "release", "bin"),
                        help=argparse.SUPPRESS)
    own, command = sys.argv[1:], []
    if "--" in own:
        cut = own.index("--")
        own, command = own[:cut], own[cut + 1:]
        if not command:
            parser.error("a command is missing behind --")
    options = parser.parse_args(own)
    options.command = command
    options.page_bytes = 10 * options.bytes_each
    for name in options.scenarios or []:
        if name not in SCENARIOS:
            parser.error(f"there is no scenario {name}: {', '.join(SCENARIOS)}")
    if command and options.scenarios is not None:
        parser.error("either --check or -- COMMAND")
    if not 10 <= options.connections <= 60_000:
        parser.error("--connections is 10 to 60000")
    if not 0 <= options.outage <= 3600:
        parser.error("--outage is 0 to 3600 seconds")
    if not 1 <= options.bytes_each <= 1_000_000_000:
        parser.error("--bytes-each is 1 to 1000000000")
    return options


def main():
    options = arguments()
    if "SANPROXY_CHECK_OPTIONS" in os.environ:
        return 0
    if os.geteuid() != 0:
        print("lab: network namespaces need root: use ./run lab", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    out = sys.stderr if options.json or options.command else sys.stdout

    def say(text):
        print(text, file=out, flush=True)
    settings.bin_dir = os.path.abspath(options.bin)
    settings.log_dir = tempfile.mkdtemp(prefix=f"sanlab-{os.getpid()}-logs-")
    try:
        return check(options, say) if options.scenarios is not None else stay(options, say)
    except KeyboardInterrupt:
        say("\n== stopped")
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        netns.remove_own()
        if not options.keep_logs:
            shutil.rmtree(settings.log_dir, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
