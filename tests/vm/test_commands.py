"""Commands in a guest: what goes in, what comes out, how they end."""

import os
import signal
import time

import guest
from guests import GuestCase, check


class Commands(GuestCase):
    def test_the_exit_status_passes_through(self):
        for status in (0, 1, 77, 255):
            self.assertEqual(self.guest.run(f"exit {status}", timeout_s=30).status, status)

    def test_an_end_by_a_signal_is_128_and_its_number(self):
        for number in (signal.SIGKILL, signal.SIGSEGV):
            result = self.guest.run(f"kill -{int(number)} $$", timeout_s=30)
            self.assertEqual(result.status, 128 + number)

    def test_a_program_that_is_not_there_says_so_and_gives_127(self):
        result = self.guest.run(["no-such-program"], timeout_s=30)
        self.assertEqual(result.status, 127)
        self.assertIn(b"no-such-program", result.stderr)

    def test_bytes_of_every_value_go_in_and_come_out_unharmed(self):
        data = bytes(range(256)) * 64 + os.urandom(700_000)
        result = self.guest.run(["cat"], timeout_s=60, stdin=data)
        self.assertEqual(result.status, 0)
        self.assertTrue(result.stdout == data, "what came back is not what went in")

    def test_both_streams_are_told_apart_and_the_kernel_speaks_in_neither(self):
        result = self.guest.run("echo out; echo '<0>loud kernel message' >/dev/kmsg; echo err >&2",
                                timeout_s=30)
        self.assertEqual(result, guest.Result(0, b"out\n", b"err\n"))

    def test_a_command_that_leaves_a_daemon_behind_still_ends(self):
        result = self.guest.run("sleep 1000 & echo started", timeout_s=30)
        self.assertEqual(result, guest.Result(0, b"started\n", b""))
        check(self, self.guest, ["pkill", "sleep"])

    def test_commands_run_at_the_same_time(self):
        # Each waits for what only the other does.
        check(self, self.guest, "rm -f /tmp/one /tmp/two; mkfifo /tmp/one /tmp/two")
        first = self.guest.start("echo hello >/tmp/one; cat /tmp/two")
        second = self.guest.start("read line </tmp/one; echo $line back >/tmp/two")
        self.assertEqual(first.wait(30).stdout, b"hello back\n")
        self.assertEqual(second.wait(30).status, 0)

    def test_a_command_that_takes_too_long_is_killed_and_the_guest_lives_on(self):
        with self.assertRaisesRegex(guest.GuestTimeout, "so far"):
            self.guest.run("echo so far; sleep 1000", timeout_s=3)
        self.assertEqual(self.guest.run(["pgrep", "sleep"], timeout_s=30).status, 1)

    def test_a_signal_reaches_the_whole_command(self):
        command = self.guest.start("trap 'echo caught; exit 5' TERM; echo up; sleep 1000 & wait")
        while command.output()[0] != b"up\n" and not command.ended():
            time.sleep(0.01)
        command.send_signal(signal.SIGTERM)
        self.assertEqual(command.wait(30), guest.Result(5, b"up\ncaught\n", b""))

    def test_a_terminal_is_one(self):
        command = self.guest.start("tty; stty size; read line; echo got $line", terminal=(30, 99))
        command.write(b"hello\n")
        result = command.wait(30)
        self.assertIn(b"/dev/pts/", result.stdout)
        self.assertIn(b"30 99", result.stdout)
        self.assertIn(b"got hello", result.stdout)


class Files(GuestCase):
    def test_the_checkout_is_there_and_writing_to_it_changes_nothing_here(self):
        name = f"written-by-a-guest-{os.getpid()}"
        self.check(f"test -x run && test -r tests/vm/test_commands.py && echo text >{name}")
        self.assertEqual(self.check(["cat", os.path.join(guest.CHECKOUT, name)]), "text\n")
        self.assertFalse(os.path.exists(os.path.join(guest.CHECKOUT, name)))

    def test_the_shared_folder_is_the_same_on_both_sides(self):
        name = f"result-{os.getpid()}"
        path = os.path.join(self.guest.share, name)
        data = os.urandom(300_000)
        with open(path, "wb") as file:
            file.write(data)
        self.addCleanup(os.remove, path)
        self.check(f'cd "$SANPROXY_VM_SHARE" && cp {name} {name}.copy')
        self.addCleanup(os.remove, path + ".copy")
        with open(path + ".copy", "rb") as file:
            self.assertTrue(file.read() == data, "the guest read or wrote other bytes")
