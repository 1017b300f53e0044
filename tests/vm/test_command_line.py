"""./run vm as people use it."""

import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import unittest

import guest
import qemu
from guests import require

vm_program = os.path.join(guest.CHECKOUT, "deploy/vm/vm.py")
boot_s = 200


def vm_command(*arguments):
    return [sys.executable, vm_program, *arguments]


def machines(process):
    """Process ids of the QEMUs that `process` started."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(pid) for pid in file.read().split() if is_machine(pid)]


def is_machine(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return qemu.program.encode() in file.read().split(b"\0")[0]
    except OSError:
        return False


class WithGuest(unittest.TestCase):
    def setUp(self):
        require()

    def start(self, *arguments):
        process = subprocess.Popen(vm_command(*arguments), stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def test_input_output_and_status_are_the_commands_own(self):
        process = self.start("--", "sh", "-c", "cat; echo oops >&2; kill -9 $$")
        stdout, stderr = process.communicate(b"in\0and\xffout", timeout=boot_s)
        self.assertEqual(stdout, b"in\0and\xffout")
        self.assertEqual(process.returncode, 128 + signal.SIGKILL)
        self.assertIn(b"\noops\n", stderr)
        self.assertIn(b"starting QEMU", stderr)

    def test_interrupting_it_lets_the_command_end_and_leaves_no_machine(self):
        process = self.start("--quiet", "--", "sh", "-c",
                             "trap 'echo ended; exit' INT; echo up; while :; do sleep 0.2; done")
        self.assertEqual(process.stdout.readline(), b"up\n")
        running = machines(process)
        self.assertEqual(len(running), 1)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        self.assertEqual((process.returncode, stdout, stderr), (130, b"ended\n", b""))
        self.assertFalse(any(is_machine(pid) for pid in running))

    def test_without_a_command_it_is_a_shell_on_the_terminal(self):
        ours, terminal = pty.openpty()
        self.addCleanup(os.close, ours)
        process = subprocess.Popen(vm_command("--quiet"), stdin=terminal, stdout=terminal,
                                   stderr=terminal, start_new_session=True)
        self.addCleanup(process.kill)
        os.close(terminal)
        said = self.read_until(ours, b"vm:")
        os.write(ours, b"echo six times seven is $((6*7)); tty; exit 3\n")
        said += self.read_until(ours, b"/dev/pts/")
        self.assertIn(b"six times seven is 42", said)
        self.assertEqual(process.wait(60), 3)

    @staticmethod
    def read_until(descriptor, wanted):
        said = b""
        while wanted not in said:
            said += os.read(descriptor, 4096)
        return said

    def test_a_command_past_its_time_is_ended_with_124(self):
        process = self.start("--timeout", "1", "--quiet", "--", "sleep", "1000")
        process.communicate(timeout=boot_s)
        self.assertEqual(process.returncode, 124)

    def test_a_script_past_its_time_is_ended_with_124_too(self):
        process = self.start("--timeout", "1", "--quiet")
        process.communicate(b"sleep 1000\n", timeout=boot_s)
        self.assertEqual(process.returncode, 124)

    def test_interrupting_it_lets_a_script_end(self):
        process = self.start("--quiet")
        process.stdin.write(b"trap 'echo ended; exit' INT; echo up; while :; do sleep 0.2; done\n")
        process.stdin.flush()
        self.assertEqual(process.stdout.readline(), b"up\n")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        self.assertEqual((process.returncode, stdout, stderr), (130, b"ended\n", b""))

    def test_killing_it_leaves_no_machine_behind(self):
        process = self.start("--quiet", "--", "sh", "-c", "echo up; sleep 1000")
        self.assertEqual(process.stdout.readline(), b"up\n")
        running = [os.pidfd_open(pid) for pid in machines(process)]
        self.assertEqual(len(running), 1)
        process.kill()
        with os.fdopen(running[0], "rb") as machine:
            self.assertTrue(select.select([machine], [], [], 30)[0], "QEMU goes on")


class WithoutGuest(unittest.TestCase):
    def run_with_program(self, text):
        """vm.py on a machine whose QEMU is the given script; none at all if it is empty."""
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, qemu.program)
            if text:
                with open(path, "w") as file:
                    file.write("#!/bin/sh\n" + text)
                os.chmod(path, 0o755)
                folder += ":" + os.environ["PATH"]
            return subprocess.run(vm_command("--", "true"), env=dict(os.environ, PATH=folder),
                                  stdin=subprocess.DEVNULL, capture_output=True, timeout=200,
                                  text=True, check=False)

    def test_a_machine_without_qemu_is_told_so_with_77(self):
        done = self.run_with_program("")
        self.assertEqual(done.returncode, 77)
        self.assertIn("qemu-system-x86", done.stderr)

    def test_a_qemu_that_does_not_run_here_is_told_so_with_77_and_its_own_words(self):
        done = self.run_with_program("echo cannot allocate that much >&2; exit 1\n")
        self.assertEqual(done.returncode, 77)
        self.assertIn("cannot allocate that much", done.stderr)

    def test_wrong_use_is_2(self):
        wrong = [["--two", "--", "true"], ["--"], ["--nonsense"], ["true"]]
        wrong += [[*option, "--", "true"] for option in (
            ("--cpus", "0"), ("--cpus", "-1"), ("--memory", "0"), ("--memory", "-5"),
            ("--timeout", "0"), ("--timeout", "nan"), ("--share", "/dev/null"),
            ("--share", "/dev/null/below"))]
        for arguments in wrong:
            done = subprocess.run(vm_command(*arguments), stdin=subprocess.DEVNULL,
                                  capture_output=True, timeout=60, check=False)
            self.assertEqual(done.returncode, 2, arguments)

    def test_help_tells_about_exit_status_and_environment(self):
        done = subprocess.run(vm_command("--help"), capture_output=True, text=True, timeout=60,
                              check=True)
        for word in ("--two", "exit status", "SANPROXY_VM_SHARE", "77"):
            self.assertIn(word, done.stdout)
