"""What a test may rely on in a guest."""

import time

from guests import GuestCase


class Environment(GuestCase):
    def test_memory_may_be_locked_without_limit(self):
        self.assertEqual(self.check("ulimit -l").strip(), "unlimited")

    def test_there_is_a_tun_device(self):
        self.check("ip tuntap add vmtun0 mode tun && ip link delete vmtun0")

    def test_network_namespaces_work(self):
        listing = self.check("""set -e
            ip netns add vmtest
            ip link add vmouter type veth peer name vminner netns vmtest
            ip netns exec vmtest ip -brief link show vminner
            ip netns delete vmtest""")
        self.assertIn("vminner", listing)

    def test_congestion_control_is_cubic_or_reno(self):
        self.assertEqual(self.check("cat /proc/sys/net/ipv4/tcp_congestion_control"), "cubic\n")
        self.check("sysctl net.ipv4.tcp_congestion_control=reno && "
                   "sysctl net.ipv4.tcp_congestion_control=cubic")

    def test_delay_and_loss_can_be_made(self):
        shown = self.check("""set -e
            tc qdisc add dev lo root netem delay 20ms loss 1%
            tc qdisc show dev lo
            tc qdisc delete dev lo root""")
        self.assertIn("netem", shown)

    def test_the_clock_tells_the_time_and_its_seconds_are_seconds(self):
        before = time.time()
        told = float(self.check("date +%s.%N"))
        self.assertLess(before - 2, told)
        self.assertLess(told, time.time() + 2)
        # How long a command takes is not known, but it lies between these.
        start, first, after_first = self.uptime_s()
        self.check("sleep 5")
        before_second, second, end = self.uptime_s()
        self.assertLess(second - first, (end - start) * 1.05)
        self.assertGreater(second - first, (before_second - after_first) * 0.95)

    def uptime_s(self):
        """The guest's, between two readings of our own clock."""
        before = time.monotonic()
        uptime_s = float(self.check("cut -d' ' -f1 /proc/uptime"))
        return before, uptime_s, time.monotonic()

    def test_temporary_folders_are_writable_and_have_room(self):
        for folder in ("/tmp", "/run", "/dev/shm", "/var/tmp"):
            with self.subTest(folder):
                self.check(["dd", "if=/dev/zero", f"of={folder}/vmtest", "bs=1M", "count=100"])
                self.check(["rm", folder + "/vmtest"])

    def test_tools_of_the_system_are_found(self):
        self.check("for name in ip modprobe rping ib_send_bw rstream curl python3; do "
                   'command -v $name || { echo "no $name"; exit 1; }; done')

    def test_it_says_who_it_is(self):
        said = self.check("hostname; echo $SANPROXY_VM_ROLE $SANPROXY_VM_ADDRESS "
                          "$SANPROXY_VM_PEER_ADDRESS $SANPROXY_VM_DEVICE $SANPROXY_VM_INTERFACE")
        self.assertEqual(said, "sanproxy-vm\nsingle 10.9.0.1 10.9.0.2 rxe0 roce0\n")
