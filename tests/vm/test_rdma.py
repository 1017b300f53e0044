"""RDMA in one guest, with rdma-core's own tools."""

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
