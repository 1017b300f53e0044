"""Two guests on one network."""

import subprocess
import unittest

from guests import PairCase, check, require, text_of
from test_command_line import vm_command


class TwoGuests(PairCase):
    def both(self, command_a, command_b, timeout_s=90):
        a = self.pair.a.start(command_a)
        b = self.pair.b.start(command_b)
        result_b = b.wait(timeout_s)
        self.assertEqual(result_b.status, 0, "b printed:\n" + text_of(result_b))
        result_a = a.wait(timeout_s)
        self.assertEqual(result_a.status, 0, "a printed:\n" + text_of(result_a))
        return result_a.stdout.decode(), result_b.stdout.decode()

    def test_each_has_an_active_device_and_knows_its_peer(self):
        for where, line in ((self.pair.a, "a 10.9.1.1 10.9.1.2"),
                            (self.pair.b, "b 10.9.1.2 10.9.1.1")):
            said = check(self, where, "ibv_devinfo -d rxe0; echo $SANPROXY_VM_ROLE "
                                      "$SANPROXY_VM_ADDRESS $SANPROXY_VM_PEER_ADDRESS")
            self.assertRegex(said, r"active_mtu:\s+4096")
            self.assertIn(line, said)

    def test_rping_goes_from_one_to_the_other(self):
        a, b = self.both("""rping -s -v -C 10 -a $SANPROXY_VM_ADDRESS & server=$!
                            until rdma resource show cm_id | grep -q LISTEN; do sleep 0.1; done
                            vm-ready rping
                            wait $server""",
                         "vm-wait-peer rping && rping -c -v -C 10 -a $SANPROXY_VM_PEER_ADDRESS")
        self.assertIn("rdma-ping-9", a)
        self.assertIn("rdma-ping-9", b)

    def test_waiting_for_a_peer_that_says_nothing_ends(self):
        result = self.pair.b.run("vm-wait-peer nothing 1", timeout_s=30)
        self.assertEqual(result.status, 1)
        self.assertIn(b"has not said 'nothing'", result.stderr)


class TwoGuestsFromTheCommandLine(unittest.TestCase):
    def test_output_is_marked_and_the_first_failure_is_the_exit_status(self):
        require()
        done = subprocess.run(
            vm_command("--two", "--quiet", "--", "sh", "-c",
                       "echo from a; vm-wait-peer done; echo a saw it; exit 9", "---", "sh", "-c",
                       "echo from b; vm-ready done"),
            capture_output=True, timeout=200, check=False)
        self.assertEqual(done.returncode, 9, done.stderr.decode())
        self.assertEqual(sorted(done.stdout.splitlines()),
                         [b"a| a saw it", b"a| from a", b"b| from b"])
        self.assertEqual(done.stderr, b"")
