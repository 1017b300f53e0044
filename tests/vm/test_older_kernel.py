"""What takes another way through a kernel that is older than the one beneath the guest."""

import os

import guest
import settings
from guests import GuestCase, text_of

E2E = os.path.join(guest.CHECKOUT, "tests/e2e/run.py")
TESTS = ("test_by_tun", "test_by_packet_sockets", "test_by_xdp",
         "test_clients_of_a_server_that_is_gone_are_told_so")


class SessionsInTheKernel(GuestCase):
    def test_debians_own_kernel_carries_them_by_clsact(self):
        command = (f"modprobe -a sch_ingress cls_bpf && /usr/bin/python3 {E2E} --quick "
                   f"--bin {settings.build_dir}/bin "
                   + " ".join(f"InKernel.{name}" for name in TESTS))
        result = self.guest.run(["sh", "-c", command], timeout_s=280)
        said = text_of(result)
        self.assertEqual(result.status, 0, said)
        self.assertIn(f"{len(TESTS)} passed, 0 failed, 0 skipped", said)

    def test_it_takes_no_more_rights_there_than_the_sample_unit_has(self):
        command = ("modprobe -a sch_ingress cls_bpf && setpriv "
                   "--bounding-set=-all,+net_admin,+net_raw,+bpf "
                   f"{settings.build_dir}/tests/netnode_flow_redirect_test")
        result = self.guest.run(["sh", "-c", command], timeout_s=280)
        said = text_of(result)
        self.assertEqual(result.status, 0, said)
        self.assertIn("[       OK ] Hooks/FlowRedirectTest.ChangesAPacketAsTheTranslationDoes", said)
