#!/usr/bin/python3
"""./run vm: commands of this checkout in a guest that has RDMA (soft-RoCE)."""

import argparse
import fcntl
import os
import shlex
import signal
import struct
import sys
import termios
import threading
import time
import tty

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import frames  # noqa: E402
import guest as guests  # noqa: E402
import qemu  # noqa: E402

usage = """./run vm [OPTIONS] [-- COMMAND [ARGS...]]
       ./run vm --two [OPTIONS] -- COMMAND_A [ARGS...] --- COMMAND_B [ARGS...]"""
epilog = """
Without a command: a shell in the guest. With --two: two guests, a and b, joined by a network; each
line of output starts with the guest's letter, and the first failure's exit status is returned.

In a guest: rxe0 on the interface roce0, at 10.9.0.1 and 10.9.0.2 (with --two: a has 10.9.1.1,
b has 10.9.1.2). This machine's files, the checkout among them, are there at the same paths; what
a command writes is gone afterwards, except below $SANPROXY_VM_SHARE, which is build/vm/share.
Environment: SANPROXY_VM_ROLE (single, a, b), _ADDRESS, _PEER_ADDRESS, _INTERFACE, _DEVICE, _SHARE.
With --two, `vm-ready [NAME]` in one guest ends `vm-wait-peer [NAME] [SECONDS]` in the other.

exit status: the command's (128 + n if signal n ended it); 77: this machine cannot run a guest;
124: --timeout has passed; 125: the guest itself failed; 130: Ctrl-C.
"""
status_cannot_run, status_timeout, status_guest_failed, status_interrupted = 77, 124, 125, 130
grace_s = 5     # from asking a command to end to ending the guest
stopped_by = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    pass


def positive(text):
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def seconds(text):
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


positive.__name__, seconds.__name__ = "positive number", "number of seconds"    # in error messages


def parse(argv):
    command = None
    if "--" in argv:
        at = argv.index("--")
        argv, command = argv[:at], argv[at + 1:]
    parser = argparse.ArgumentParser(
        prog="./run vm", usage=usage, description=__doc__, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--two", action="store_true", help="two guests joined by a network")
    parser.add_argument("--quiet", action="store_true", help="say nothing of its own")
    parser.add_argument("--console", action="store_true",
                        help="show what the guest's kernel and start-up say (on stderr)")
    parser.add_argument("--timeout", type=seconds, metavar="S",
                        help="end the command after S seconds (from its start)")
    parser.add_argument("--memory", type=positive, metavar="M",
                        help=f"megabytes for each guest (default {qemu.machine_memory_mb}; half "
                             "of it with --two); files written there are in it")
    parser.add_argument("--cpus", type=positive, metavar="N", default=qemu.machine_cpus,
                        help=f"CPUs (default {qemu.machine_cpus}; one each with --two)")
    parser.add_argument("--share", metavar="DIR", help="the shared folder (build/vm/share)")
    options = parser.parse_args(argv)
    if options.share:
        try:
            os.makedirs(options.share, exist_ok=True)
        except OSError as error:
            parser.error(f"--share {options.share}: {error.strerror}")
    if command is not None and not command:
        parser.error("no command after --")
    options.commands = [command]
    if options.two:
        if command is None or command.count("---") != 1:
            parser.error("--two takes two commands, with --- between them")
        at = command.index("---")
        options.commands = [command[:at], command[at + 1:]]
        if not all(options.commands):
            parser.error("--two takes two commands, with --- between them")
    return options


class Reporter:
    """What vm itself says, on stderr."""

    def __init__(self, quiet):
        self._quiet = quiet
        self._start = time.monotonic()

    def __call__(self, text):
        if not self._quiet:
            print(f"vm: {time.monotonic() - self._start:5.1f} s  {text}", file=sys.stderr,
                  flush=True)


def write_all(descriptor, data):
    data = memoryview(data)
    while data:
        try:
            data = data[os.write(descriptor, data):]
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:
            return      # nobody reads it; the command goes on, as under `command | head`


def plain_sink(kind, data):
    write_all(1 if kind == frames.STDOUT else 2, data)


class PrefixSink:
    """Passes whole lines on, each with a prefix."""

    def __init__(self, prefix):
        self._prefix = prefix
        self._rest = {frames.STDOUT: b"", frames.STDERR: b""}

    def __call__(self, kind, data):
        *lines, self._rest[kind] = (self._rest[kind] + data).split(b"\n")
        plain_sink(kind, b"".join(self._prefix + line + b"\n" for line in lines))

    def flush(self):
        for kind, rest in self._rest.items():
            if rest:
                plain_sink(kind, self._prefix + rest + b"\n")


def feed_stdin(process):
    """On a thread of its own: our standard input goes to the command."""
    def run():
        while not process.ended():
            try:
                data = os.read(0, 64 * 1024)
            except OSError:
                data = b""
            if not data:
                process.close_stdin()
                return
            process.write(data)
    threading.Thread(target=run, daemon=True, name="stdin").start()


def wait_for(process, timeout_s):
    """Waits in slices, so that a signal's exception gets through."""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    while not process.ended():
        if end is not None and time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def ask_to_end(processes, number):
    for process in processes:
        process.send_signal(number)
    end = time.monotonic() + grace_s
    while not all(process.ended() for process in processes) and time.monotonic() < end:
        time.sleep(0.02)


def run_one(guest, options, say):
    command = options.commands[0] or ["/bin/sh"]    # which reads a script
    say("running: " + shlex.join(command))
    process = guest.start(command, cwd=inside(), env=passed_on(), sink=plain_sink)
    if os.isatty(0):
        process.close_stdin()
    else:
        feed_stdin(process)
    try:
        if not wait_for(process, options.timeout):
            say(f"still running after {options.timeout:g} s: ending it")
            ask_to_end([process], signal.SIGTERM)
            return status_timeout
    except Interrupted:
        say("stopping")
        ask_to_end([process], signal.SIGINT)
        return status_interrupted
    return process.wait().status


def run_two(pair, options, say):
    processes, sinks = [], []
    for guest, command, letter in zip(pair.guests, options.commands, "ab"):
        say(f"{letter}: running: " + shlex.join(command))
        sinks.append(PrefixSink(letter.encode() + b"| "))
        processes.append(guest.start(command, cwd=inside(), env=passed_on(), sink=sinks[-1]))
        processes[-1].close_stdin()
    first_failure = 0
    end = None if options.timeout is None else time.monotonic() + options.timeout
    try:
        while not all(process.ended() for process in processes):
            failed = [p for p in processes if p.ended() and (p.failure or p.status)]
            if failed and not first_failure:
                first_failure = failed[0].wait().status
                say("one command failed; the other gets a few seconds to end")
                end = time.monotonic() + grace_s
            if end is not None and time.monotonic() > end:
                ask_to_end([p for p in processes if not p.ended()], signal.SIGTERM)
                return first_failure or status_timeout
            time.sleep(0.02)
    except Interrupted:
        say("stopping")
        ask_to_end(processes, signal.SIGINT)
        return status_interrupted
    finally:
        for sink in sinks:
            sink.flush()
    return first_failure or next((p.wait().status for p in processes if p.wait().status), 0)


def run_shell(guest, say):
    def size():
        return struct.unpack("HH", fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8)[:4])
    say("a shell in the guest; leave it with exit or Ctrl-D")
    process = guest.start(["/bin/bash", "--norc"], cwd=inside(), terminal=size(), sink=plain_sink,
                          env=dict(passed_on(), TERM=os.environ.get("TERM", "linux"),
                                   PS1="vm:\\w# "))
    signal.signal(signal.SIGWINCH, lambda *_: process.resize(*size()))
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        feed_stdin(process)
        wait_for(process, None)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
    return process.wait().status


def inside():
    """The present folder, if the guest has it too."""
    here = os.getcwd()
    return here if (here + "/").startswith(guests.CHECKOUT + "/") else guests.CHECKOUT


def passed_on():
    return {name: os.environ[name] for name in ("CI",) if name in os.environ}


def on_signal(*_):
    for number in stopped_by:       # once: the clean-up that follows is not to be cut short
        signal.signal(number, signal.SIG_IGN)
    raise Interrupted


def run(options, say):
    on_console = None
    if options.console:
        def on_console(text):
            print(f"console: {text}", file=sys.stderr, flush=True)
    common = dict(say=say, share=options.share, on_console=on_console)
    if options.two:
        memory_mb = options.memory or qemu.machine_memory_mb // 2
        with guests.Pair(memory_mb=memory_mb, **common) as pair:
            return run_two(pair, options, say)
    memory_mb = options.memory or qemu.machine_memory_mb
    with guests.Guest(memory_mb=memory_mb, cpus=options.cpus, **common) as guest:
        if options.commands[0] or not os.isatty(0):
            return run_one(guest, options, say)
        return run_shell(guest, say)


def main():
    options = parse(sys.argv[1:])
    say = Reporter(options.quiet)
    for number in stopped_by:
        signal.signal(number, on_signal)
    try:
        status = run(options, say)
        say(f"exit status {status}")
    except qemu.CannotRun as error:
        print(f"vm: this machine cannot run the guest: {error}", file=sys.stderr)
        status = status_cannot_run
    except guests.GuestError as error:
        print(f"vm: {error}", file=sys.stderr)
        status = status_guest_failed
    except Interrupted:
        status = status_interrupted
    return status


if __name__ == "__main__":
    sys.exit(main())
