"""RDMA in one guest, with rdma-core's own tools."""

import os

import settings
from guests import GuestCase


class Rdma(GuestCase):
    def test_the_device_is_active_with_an_mtu_of_4096(self):
        shown = self.check(["ibv_devinfo", "-d", "rxe0"])
        self.assertRegex(shown, r"state:\s+PORT_ACTIVE")
        self.assertRegex(shown, r"active_mtu:\s+4096")

    def test_rping_goes_and_comes_over_either_address(self):
        for address in ("$SANPROXY_VM_ADDRESS", "$SANPROXY_VM_PEER_ADDRESS"):
            with self.subTest(address):
                said = self.check(f"""
                    rping -s -v -C 5 -a {address} & server=$!
                    until rdma resource show cm_id | grep -q LISTEN; do
                      sleep 0.1
                    done
                    rping -c -v -C 5 -a {address} || exit 1
                    wait $server""")
                self.assertEqual(said.count("ping data: rdma-ping-4"), 2, said)

    def test_ib_send_bw_moves_bytes_between_two_processes(self):
        said = self.check("""
            ib_send_bw -d rxe0 -s 65536 -n 100 >/tmp/server.log 2>&1 & server=$!
            for turn in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
              ss -Htln | grep -q :18515 && break
              sleep 0.2
            done
            ib_send_bw -d rxe0 -s 65536 -n 100 $SANPROXY_VM_ADDRESS || exit 1
            wait $server""")
        self.assertRegex(said, r"65536\s+100\s+\d")

    def test_who_may_not_open_the_device_is_told_so(self):
        node = os.path.join(settings.build_dir, "bin", "appnode-echo")
        user = "setpriv --reuid=65534 --regid=65534 --clear-groups timeout 3"
        for file, said in (("rdma_cm", "/dev/infiniband/rdma_cm may not be opened"),
                           ("uverbs0", "an RDMA device may not be opened")):
            with self.subTest(file):
                # A copy: not everybody may look into the folder that all is built in, a home perhaps.
                self.assertIn(said, self.check(f"""
                    cp {node} /tmp/node
                    chmod 600 /dev/infiniband/{file}
                    {user} /tmp/node --proxy verbs://$SANPROXY_VM_ADDRESS:7471 \\
                      --service 10.77.0.10:7 2>&1
                    chmod 666 /dev/infiniband/{file}"""))

    def test_too_little_memory_that_may_be_locked_is_told(self):
        bin_dir = os.path.join(settings.build_dir, "bin")
        self.check("""cat >/tmp/lock.toml <<END
[proxy]
name = "lock"
workers = 1
ingress_pool_bytes = 67_108_864
[[interface]]
driver = "tun"
name = "lock0"
addresses = ["10.79.0.1/24"]
[[fabric]]
listen = "verbs://$SANPROXY_VM_ADDRESS:7479"
allow = ["any"]
max_nodes = 1
channel_region_bytes = 8_388_608
END""")
        proxy = f"{bin_dir}/proxynode --config /tmp/lock.toml"
        node = f"{bin_dir}/appnode-echo --proxy verbs://$SANPROXY_VM_ADDRESS:7479 " \
               "--service 10.79.0.10:7"
        for limit in (0, 1_000_000):
            # Without the right to lock whatever one likes.
            limited = f"prlimit --memlock={limit}:{limit} setpriv --bounding-set=-ipc_lock " \
                      "--inh-caps=-ipc_lock"
            with self.subTest(limit):
                said = self.check(f"{limited} {proxy} 2>&1; test $? = 1")
                self.assertIn("raise the memlock limit", said)
                said = self.check(f"""
                    {proxy} >/tmp/lock.log 2>&1 & proxy=$!
                    until grep -q :7479 /tmp/lock.log; do
                      sleep 0.2
                    done
                    {limited} {node} >/tmp/node.log 2>&1 & node=$!
                    until grep -q "7479: " /tmp/node.log; do
                      sleep 0.2
                    done
                    kill $node $proxy
                    wait
                    cat /tmp/node.log""")
                self.assertIn("raise the memlock limit", said)
