"""Guests and the commands in them, for `./run vm` and for tests.

    with Guest() as guest:
        result = guest.run(["ibv_devinfo"], timeout_s=60)
        result.status, result.stdout, result.stderr

Many commands may run in one guest, one after another or at once (start). Pair gives two
guests joined by a network. Each guest has one reading thread; the methods may be called from any
thread.
"""

import collections
import json
import os
import select
import shutil
import signal
import socket
import tempfile
import threading
import time

import frames
import image as images
import qemu

HERE = os.path.dirname(os.path.abspath(__file__))
CHECKOUT = os.path.realpath(os.path.dirname(os.path.dirname(HERE)))
boot_timeout_s = 180
kept_output_bytes_max = 64 * 1024 * 1024    # of one stream of one command
kept_console_bytes = 256 * 1024

Result = collections.namedtuple("Result", "status stdout stderr")


class GuestError(Exception):
    """The guest itself failed: it did not boot, died, or ran out of time."""


class GuestTimeout(GuestError):
    pass


class Process:
    """A command in a guest. `sink(kind, data)`, if given, takes the output instead of keeping it;
    it is called on the reading thread, and while it waits the command waits."""

    def __init__(self, guest, number, sink):
        self._guest = guest
        self._number = number
        self._sink = sink
        self._output = {frames.STDOUT: bytearray(), frames.STDERR: bytearray()}
        self._ended = threading.Event()
        self._window = frames.stdin_window_bytes
        self._changed = threading.Condition()
        self.status = None      # 128 + n if signal n ended it
        self.failure = None     # why it will never have one

    def write(self, data):
        """To its standard input. Waits while the command does not take it."""
        data = memoryview(data)
        while data:
            with self._changed:
                self._changed.wait_for(lambda: self._window > 0 or self._ended.is_set())
                if self._ended.is_set():
                    return
                part = data[:min(self._window, 64 * 1024)]
                self._window -= len(part)
            self._guest.send(frames.STDIN, self._number, part)
            data = data[len(part):]

    def close_stdin(self):
        self._guest.send(frames.STDIN, self._number)

    def send_signal(self, number):
        """To the command and everything in its process group."""
        self._guest.send(frames.SIGNAL, self._number, frames.U32.pack(number))

    def resize(self, rows, columns):
        self._guest.send(frames.RESIZE, self._number, frames.SIZE.pack(rows, columns))

    def output(self):
        """What it has printed until now: (stdout, stderr) as bytes."""
        with self._changed:
            return tuple(bytes(kept) for kept in self._output.values())

    def wait_for_output(self, word, timeout_s):
        """Until it has printed `word`. False if it has ended without, or the time is over."""
        with self._changed:
            said = lambda: any(word in kept for kept in self._output.values())  # noqa: E731
            self._changed.wait_for(lambda: said() or self._ended.is_set(), timeout_s)
            return said()

    def wait(self, timeout_s=None):
        """Its Result. Past `timeout_s` the command is killed and GuestTimeout raised."""
        if not self._ended.wait(timeout_s):
            self.send_signal(signal.SIGKILL)
            self._ended.wait(10)
            stdout, stderr = self.output()
            raise GuestTimeout(f"still running after {timeout_s} s; it printed: "
                               f"{(stdout + stderr)[-2000:].decode(errors='replace')}")
        if self.failure:
            self.send_signal(signal.SIGKILL)    # for what printed too much; harmless otherwise
            raise GuestError(self.failure)
        return Result(self.status, *self.output())

    def ended(self):
        return self._ended.is_set()

    def on_frame(self, kind, payload):
        if kind in self._output:
            if self._sink:
                self._sink(kind, payload)
                return
            with self._changed:
                self._output[kind] += payload
                self._changed.notify_all()
                if len(self._output[kind]) > kept_output_bytes_max:
                    self._output[kind].clear()
                    self.end(failure="the command printed more than "
                                     f"{kept_output_bytes_max} bytes")
        elif kind == frames.TAKEN:
            with self._changed:
                self._window += frames.U32.unpack(payload)[0]
                self._changed.notify_all()
        elif kind == frames.NOT_STARTED:
            self.on_frame(frames.STDERR, b"vm: cannot run " + payload + b"\n")
        elif kind == frames.EXIT:
            status = frames.I32.unpack(payload)[0]
            self.end(status=status if status >= 0 else 128 - status)

    def end(self, status=None, failure=None):
        with self._changed:
            if not self._ended.is_set():
                self.status, self.failure = status, failure
                self._ended.set()
                self._changed.notify_all()


class Guest:
    """One guest. Starts on construction; boot() (or `with`) waits until it takes commands."""

    def __init__(self, say=None, memory_mb=qemu.machine_memory_mb, cpus=qemu.machine_cpus,
                 role="single", share=None, barrier=None, network=None, on_console=None):
        qemu.check()
        self._say = say or (lambda text: None)
        self._on_console = on_console
        self.share = os.path.realpath(share or os.path.join(CHECKOUT, "build/vm/share"))
        images.make_folder(self.share)
        try:
            image = images.prepare(os.path.join(CHECKOUT, "build/vm/kernel"), self._say)
        except (images.ImageError, OSError) as error:
            raise qemu.CannotRun(f"no kernel for the guest: {error}") from error
        own, peer = addresses(role)
        parameters = {
            "SANPROXY_VM_CHECKOUT": qemu.parameter_path(CHECKOUT),
            "SANPROXY_VM_MODULES": qemu.parameter_path(image.modules),
            "SANPROXY_VM_SHARE": qemu.parameter_path(self.share),
            "SANPROXY_VM_ROLE": role,
            "SANPROXY_VM_ADDRESS": own,
            "SANPROXY_VM_PEER_ADDRESS": peer,
        }
        if barrier:
            parameters["SANPROXY_VM_BARRIER"] = qemu.parameter_path(barrier)
        self._started = time.monotonic()
        self._say(f"starting QEMU: kernel {image.release}, {cpus} CPU{'s' * (cpus != 1)}, "
                  f"{memory_mb} MB, software emulation")
        self._machine = qemu.Machine(image, self.share, parameters, memory_mb, cpus, network)
        self._lock = threading.Lock()
        self._processes = {}
        self._next_number = 1
        self._console = bytearray()
        self._ready = threading.Event()
        self._closing = False
        self._dead = None
        self.about = None       # what the agent told: kernel, uptime_s
        self._thread = threading.Thread(target=self._read, name=f"guest-{role}", daemon=True)
        self._thread.start()

    def boot(self, timeout_s=boot_timeout_s):
        if not self._ready.wait(timeout_s):
            raise GuestTimeout(f"the guest did not boot in {timeout_s} s; the end of its console:"
                               f"\n{self.console()[-3000:]}")
        if self._dead:
            if not self._console:
                raise qemu.CannotRun("QEMU does not run here: "
                                     + (self._machine.errors() or self._dead))
            raise GuestError(self._dead)
        self._say(f"guest is up after {time.monotonic() - self._started:.1f} s")
        return self

    def run(self, argv, timeout_s=None, cwd=None, env=None, stdin=b""):
        """Runs a command to its end. A string is given to /bin/sh."""
        process = self.start(argv, cwd=cwd, env=env)
        if stdin:
            process.write(stdin)
        process.close_stdin()
        return process.wait(timeout_s)

    def start(self, argv, cwd=None, env=None, terminal=None, sink=None):
        if isinstance(argv, str):
            argv = ["/bin/sh", "-c", argv]
        with self._lock:
            if self._dead:
                raise GuestError(self._dead)
            number = self._next_number
            self._next_number += 1
            process = self._processes[number] = Process(self, number, sink)
        request = {"argv": list(argv), "cwd": cwd or CHECKOUT, "env": env or {},
                   "terminal": terminal}
        self.send(frames.START, number, json.dumps(request).encode())
        return process

    def alive(self):
        return not self._dead

    def console(self):
        """The end of what the guest's kernel and start-up said."""
        return bytes(self._console).decode(errors="replace")

    def send(self, kind, number, payload=b""):
        data = frames.pack(kind, number, payload)
        if len(payload) > frames.payload_bytes_max:
            raise ValueError(f"{len(payload)} bytes are too many for one frame")
        with self._lock:
            try:
                self._machine.agent.sendall(data)
            except OSError:
                pass    # the guest is gone: whoever waits for the process gets told

    def close(self):
        self._closing = True
        self._machine.stop()
        self._thread.join()
        self._machine.agent.close()
        self._machine.console.close()

    def __enter__(self):
        try:
            return self.boot()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_):
        self.close()

    def _read(self):
        parser = frames.Parser()
        poll = select.poll()
        agent, console = self._machine.agent, self._machine.console
        for end in (agent, console):
            poll.register(end, select.POLLIN)
        why = "the guest ended"
        open_ends = {agent.fileno(), console.fileno()}
        try:
            while open_ends:
                for descriptor, _ in poll.poll():
                    data = os.read(descriptor, 256 * 1024)
                    if not data:
                        poll.unregister(descriptor)
                        open_ends.discard(descriptor)
                    elif descriptor == console.fileno():
                        self._take_console(data)
                    else:
                        for frame in parser.feed(data):
                            self._take(*frame)
        except (OSError, frames.BadFrame) as error:
            why = f"the guest's agent cannot be understood any more: {error}"
        self._machine.wait(5)
        self._dead = why + "; the end of its console:\n" + self.console()[-3000:]
        with self._lock:
            processes = list(self._processes.values())
        for process in processes:
            process.end(failure="the guest was closed" if self._closing else self._dead)
        self._ready.set()

    def _take(self, kind, number, payload):
        if kind == frames.READY:
            self.about = json.loads(payload)
            self._ready.set()
            return
        with self._lock:
            process = self._processes.get(number)
            if kind == frames.EXIT:
                self._processes.pop(number, None)
        if process:
            process.on_frame(kind, payload)

    def _take_console(self, data):
        line_start = self._console.rfind(b"\n") + 1
        self._console += data
        for line in self._console[line_start:self._console.rfind(b"\n") + 1].splitlines():
            text = line.decode(errors="replace").rstrip()
            if text.startswith("vm: ") and not self._ready.is_set():
                self._say(text[4:])
            if self._on_console:
                self._on_console(text)
        del self._console[:-kept_console_bytes]


def addresses(role):
    """(own, peer) of a guest's RDMA interface. Alone, it has both."""
    return {"single": ("10.9.0.1", "10.9.0.2"), "a": ("10.9.1.1", "10.9.1.2"),
            "b": ("10.9.1.2", "10.9.1.1")}[role]


class Pair:
    """Two guests on one network, `a` and `b`, with one CPU each; use with `with`."""

    def __init__(self, say=None, memory_mb=qemu.machine_memory_mb // 2, share=None,
                 on_console=None):
        say = say or (lambda text: None)
        self.share = os.path.realpath(share or os.path.join(CHECKOUT, "build/vm/share"))
        images.make_folder(self.share)
        self._barrier = tempfile.mkdtemp(prefix=".barrier-", dir=self.share)
        self.guests = []
        ends = socket.socketpair()
        try:
            for role, end in zip("ab", ends):
                self.guests.append(Guest(
                    say=lambda text, role=role: say(f"{role}: {text}"), memory_mb=memory_mb,
                    cpus=1, role=role, share=self.share, barrier=self._barrier, network=end,
                    on_console=on_console))
        except BaseException:
            self.close()
            raise
        self.a, self.b = self.guests

    def boot(self):
        for guest in self.guests:
            guest.boot()
        return self

    def close(self):
        for guest in self.guests:
            guest.close()
        shutil.rmtree(self._barrier, ignore_errors=True)

    def __enter__(self):
        try:
            return self.boot()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_):
        self.close()
