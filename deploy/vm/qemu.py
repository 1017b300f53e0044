"""Starts QEMU: its command line, and the sockets that join us to it.

Software emulation only: no nested hardware virtualisation. All sockets are pairs made before the
start and inherited, so no port and no path is taken on the host, and when this process dies the
guest sees its end close and powers off.
"""

import os
import platform
import shutil
import socket
import subprocess
import tempfile

program = "qemu-system-x86_64"
machine_memory_mb = 2048
machine_cpus = 2


class CannotRun(Exception):
    """This machine cannot run the guest; the text says why."""


def check():
    if platform.machine() != "x86_64":
        raise CannotRun(f"the guest uses this machine's own programs, and they are for "
                        f"{platform.machine()}, not x86_64")
    if shutil.which(program) is None:
        raise CannotRun(f"there is no {program} (Debian package qemu-system-x86)")


def escaped(path):
    return path.replace(",", ",,")


class Machine:
    """One running QEMU. `agent` and `console` are our ends of its two character devices."""

    def __init__(self, image, share, parameters, memory_mb, cpus, network=None):
        self.agent, agent_end = socket.socketpair()
        self.console, console_end = socket.socketpair()
        inherited = [agent_end, console_end] + ([network] if network else [])
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                arguments(image, share, parameters, memory_mb, cpus, agent_end.fileno(),
                          console_end.fileno(), network),
                stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors,
                pass_fds=[end.fileno() for end in inherited], start_new_session=True)
        except OSError as error:
            raise CannotRun(f"{program} does not start: {error.strerror}") from error
        finally:
            for end in inherited:
                end.close()

    def running(self):
        return self._process.poll() is None

    def errors(self):
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def wait(self, timeout_s):
        """Its exit status, or None if it is still running then."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self):
        if self.running():
            self._process.terminate()
            if self.wait(5) is None:
                self._process.kill()
                self._process.wait()


def arguments(image, share, parameters, memory_mb, cpus, agent, console, network):
    # Parameters without a dot reach the guest's first program as environment variables.
    settings = " ".join(f"{name}={value}" for name, value in parameters.items())
    argv = [
        program, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        # Without "enhanced rep movsb": the kernel would move bytes one by one wherever it copies,
        # which is quick on a real processor and slow on an emulated one.
        "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,erms=off",
        "-smp", str(cpus), "-m", f"{memory_mb}M",
        "-kernel", image.kernel, "-initrd", image.initramfs,
        "-append", "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off nokaslr "
                   "nowatchdog audit=0 init_on_alloc=0 random.trust_cpu=on tsc=reliable "
                   "rcupdate.rcu_cpu_stall_suppress=1 " + settings,
        "-chardev", f"socket,id=console,fd={console}", "-serial", "chardev:console",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,fd={agent}",
        "-device", "virtserialport,chardev=agent,name=org.sanproxy.agent",
        "-device", "virtio-rng-pci",
        "-virtfs", "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
        "-virtfs", f"local,path={escaped(share)},mount_tag=share,security_model=none,"
                   "multidevs=remap",
    ]
    if network:
        argv += ["-netdev", f"socket,id=peer,fd={network.fileno()}", "-device",
                 "virtio-net-pci,netdev=peer,host_mtu=4300,romfile=,mac="
                 + ("52:54:00:53:41:01" if parameters["SANPROXY_VM_ROLE"] == "a"
                    else "52:54:00:53:41:02")]
    return argv


def parameter_path(path):
    """A path as a kernel parameter: there is no way to write white space or quotes in one."""
    path = os.path.realpath(path)
    if any(character.isspace() or character in "\"'\\" for character in path):
        raise CannotRun(f"the path {path!r} has white space or quotes in it")
    return path
