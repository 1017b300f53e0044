"""The agent: process 1 of the guest. Runs commands for the host and carries their bytes.

One thread, one poll loop. What reaches it on the port was sent by deploy/vm/guest.py. When the
host goes away, the guest powers itself off.
"""

import errno
import fcntl
import glob
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import frames  # noqa: E402

port_name = "org.sanproxy.agent"
read_bytes = 64 * 1024


def power_off(why):
    print(f"vm: powering off: {why}", flush=True)
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write("o")
    while True:
        signal.pause()


def open_port():
    for path in glob.glob("/sys/class/virtio-ports/*/name"):
        with open(path) as file:
            if file.read().strip() == port_name:
                device = "/dev/" + os.path.basename(os.path.dirname(path))
                return os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    power_off(f"there is no port {port_name}")


class Command:
    """A started command: its process and the host's ends of its standard streams."""

    def __init__(self, number, request):
        self.number = number
        self.input = bytearray()    # at most frames.stdin_window_bytes
        self.input_ended = False
        self.terminal = request["terminal"]
        slave = None
        if self.terminal:
            master, slave = pty.openpty()
            termios.tcsetwinsize(master, tuple(self.terminal))
            ends = dict(stdin=slave, stdout=slave, stderr=slave,
                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        else:
            ends = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            self.process = subprocess.Popen(
                request["argv"], cwd=request["cwd"], env=dict(os.environ, **request["env"]),
                start_new_session=True, bufsize=0, **ends)
        except OSError:
            if slave is not None:
                os.close(master)
            raise
        finally:
            if slave is not None:
                os.close(slave)
        if self.terminal:
            self.stdin = master
            self.outputs = {master: frames.STDOUT}
        else:
            self.stdin = self.process.stdin.fileno()
            self.outputs = {self.process.stdout.fileno(): frames.STDOUT,
                            self.process.stderr.fileno(): frames.STDERR}
        for descriptor in {self.stdin, *self.outputs}:
            os.set_blocking(descriptor, False)

    def close_stdin(self):
        if self.terminal:
            return
        self.process.stdin.close()
        self.stdin = None


class Agent:
    def __init__(self, port):
        self._port = port
        self._parser = frames.Parser()
        self._commands = {}     # number -> Command that has not ended
        self._outputs = {}      # descriptor -> (Command, frame type)
        self._inputs = {}       # descriptor -> Command with input waiting
        self._poll = select.poll()
        self._wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._poll.register(port, select.POLLIN)
        self._poll.register(self._wake_read, select.POLLIN)

    def send(self, kind, number, payload=b""):
        data = memoryview(frames.pack(kind, number, payload))
        waiting = select.poll()
        waiting.register(self._port, select.POLLOUT)
        while data:
            try:
                data = data[os.write(self._port, data):]
            except BlockingIOError:
                if any(events & select.POLLHUP for _, events in waiting.poll()):
                    power_off("the host is gone")
            except OSError as error:
                power_off(f"the host does not listen any more: {error}")

    def run(self):
        while True:
            for descriptor, events in self._poll.poll():
                if descriptor == self._port:
                    self._read_port()
                elif descriptor == self._wake_read:
                    os.read(self._wake_read, 4096)
                else:
                    self._serve(descriptor, events)
            self._reap()

    def _serve(self, descriptor, events):
        if events & (select.POLLIN | select.POLLHUP) and descriptor in self._outputs:
            self._read_output(descriptor)
        if events & (select.POLLOUT | select.POLLERR) and descriptor in self._inputs:
            self._write_input(descriptor)

    def _watch(self, descriptor):
        events = (select.POLLIN if descriptor in self._outputs else 0) | \
                 (select.POLLOUT if descriptor in self._inputs else 0)
        if events:
            self._poll.register(descriptor, events)
        else:
            try:
                self._poll.unregister(descriptor)
            except KeyError:
                pass

    def _read_port(self):
        try:
            data = os.read(self._port, read_bytes)
        except BlockingIOError:
            return
        if not data:
            power_off("the host is gone")
        for kind, number, payload in self._parser.feed(data):
            if kind == frames.START:
                self._start(number, json.loads(payload))
                continue
            command = self._commands.get(number)
            if command is None:
                continue    # it ended while this was on its way
            if kind == frames.STDIN:
                self._take_input(command, payload)
            elif kind == frames.SIGNAL:
                self._signal(command, frames.U32.unpack(payload)[0])
            elif kind == frames.RESIZE and command.terminal:
                termios.tcsetwinsize(command.stdin, frames.SIZE.unpack(payload))

    def _start(self, number, request):
        try:
            command = Command(number, request)
        except OSError as error:
            why = f"{request['argv'][0]}: {error.strerror}"
            self.send(frames.NOT_STARTED, number, why.encode())
            self.send(frames.EXIT, number,
                      frames.I32.pack(127 if error.errno == errno.ENOENT else 126))
            return
        self._commands[number] = command
        for descriptor, kind in command.outputs.items():
            self._outputs[descriptor] = (command, kind)
            self._watch(descriptor)

    @staticmethod
    def _signal(command, number):
        try:
            os.killpg(command.process.pid, number)
        except ProcessLookupError:
            pass

    def _take_input(self, command, payload):
        if command.stdin is None:
            return
        command.input += payload
        command.input_ended = command.input_ended or not payload
        self._inputs[command.stdin] = command
        self._watch(command.stdin)

    def _write_input(self, descriptor):
        command = self._inputs[descriptor]
        taken = 0
        try:
            if command.input:
                taken = os.write(descriptor, command.input)
        except BlockingIOError:
            return
        except OSError:     # the command closed its input: what is left goes nowhere
            taken, command.input_ended = len(command.input), True
        del command.input[:taken]
        if taken:
            self.send(frames.TAKEN, command.number, frames.U32.pack(taken))
        if not command.input:
            del self._inputs[descriptor]
            self._watch(descriptor)
            if command.input_ended:
                command.close_stdin()

    def _read_output(self, descriptor):
        """One read. False when there is nothing more for now."""
        command, kind = self._outputs[descriptor]
        try:
            data = os.read(descriptor, read_bytes)
        except BlockingIOError:
            return False
        except OSError:     # a terminal whose last user has gone
            data = b""
        if data:
            if command.number in self._commands:
                self.send(kind, command.number, data)
            return True
        del self._outputs[descriptor]
        if command.terminal:
            self._inputs.pop(descriptor, None)
            command.stdin = None
        self._watch(descriptor)
        if command.terminal:
            os.close(descriptor)
        return False

    def _reap(self):
        """Process 1 collects every orphan; a command's end is told when its output is out."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for command in list(self._commands.values()):
                if command.process.pid == pid:
                    self._end(command, os.waitstatus_to_exitcode(status))

    def _end(self, command, status):
        # A background process may hold the pipe open for ever: what is in it now is the output.
        for descriptor in command.outputs:
            while descriptor in self._outputs and self._read_output(descriptor):
                pass
        command.process.returncode = status
        self.send(frames.EXIT, command.number, frames.I32.pack(status))
        del self._commands[command.number]
        if command.stdin is not None and command.stdin in self._inputs:
            del self._inputs[command.stdin]
            self._watch(command.stdin)


def main():
    agent = Agent(open_port())
    with open("/proc/uptime") as file:
        uptime_s = float(file.read().split()[0])
    agent.send(frames.READY, 0, json.dumps({"kernel": os.uname().release,
                                            "uptime_s": uptime_s}).encode())
    try:
        agent.run()
    except frames.BadFrame as error:
        power_off(str(error))


main()
