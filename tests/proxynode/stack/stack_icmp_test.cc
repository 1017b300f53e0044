// ICMP: "packet too big" makes segments smaller when it is about something that is under way, and
// does nothing otherwise.
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

class StackIcmp : public ConnectedStackTest {
 protected:
  // Opens a connection and lets the stack send two bytes less than five segments of 1460 or 1440.
  void start(Peer& peer) {
    conn_ = open(peer);
    bytes_ = pattern(7'000);
    ASSERT_TRUE(stack_->write(conn_, as_span(bytes_), WriteMode::kReference).ok());
    const auto sent = take();
    ASSERT_FALSE(sent.empty());
    std::uint32_t total = 0;
    for (const Sent& one : sent) total += one.payload_bytes();
    ASSERT_EQ(total, bytes_.size());
  }

  ConnIndex conn_ = kNoConn;
  Bytes bytes_;
};

TEST_F(StackIcmp, a_narrower_path_gets_smaller_segments_and_what_was_lost_again) {
  for (const bool v4 : {true, false}) {
    if (!v4) listen("[fd77::10]:80");
    Peer peer;
    if (!v4) {
      peer.self = *SocketAddress::parse("[fd77::1]:40000");
      peer.other = *SocketAddress::parse("[fd77::10]:80");
    }
    start(peer);
    const std::uint32_t first = peer.rcv;
    deliver_bytes(too_big(peer.other, peer.self, first, 1300));
    EXPECT_EQ(stack_->counters().path_mtu_lowered, v4 ? 1u : 2u);
    const auto sent = take();
    ASSERT_FALSE(sent.empty()) << "at once, not after a time-out";
    EXPECT_EQ(sent[0].tcp.seq, first);
    const std::uint32_t mss = 1300 - (v4 ? 40 : 60);
    std::uint32_t total = 0;
    for (const Sent& one : sent) {
      const bool cut = one.offload.segmentation != packet_io::Segmentation::kNone;
      EXPECT_LE(cut ? one.offload.segment_bytes : one.payload_bytes(), mss);
      total += one.payload_bytes();
    }
    EXPECT_EQ(total, bytes_.size());
    EXPECT_EQ(stack_->info(conn_).mss_bytes, mss);
    stack_->abort(conn_);
    (void)take();
  }
}

TEST_F(StackIcmp, an_interface_that_takes_smaller_packets_gets_them_and_what_was_lost_again) {
  Peer peer;
  start(peer);
  const std::uint32_t first = peer.rcv;
  stack_->take_smaller_mtus();
  EXPECT_TRUE(take().empty()) << "nothing has changed";
  io_.mtu = 1300;
  stack_->take_smaller_mtus();
  EXPECT_EQ(stack_->counters().path_mtu_lowered, 1u);
  const auto sent = take();
  ASSERT_FALSE(sent.empty());
  EXPECT_EQ(sent[0].tcp.seq, first);
  std::uint32_t total = 0;
  for (const Sent& one : sent) {
    const bool cut = one.offload.segmentation != packet_io::Segmentation::kNone;
    EXPECT_LE(cut ? one.offload.segment_bytes : one.payload_bytes(), 1260u);
    total += one.payload_bytes();
  }
  EXPECT_EQ(total, bytes_.size());
  EXPECT_EQ(stack_->info(conn_).mss_bytes, 1260u);
  stack_->take_smaller_mtus();
  EXPECT_EQ(stack_->counters().path_mtu_lowered, 1u);
  Peer later;
  later.self.port = 40'001;
  EXPECT_EQ(stack_->info(open(later)).mss_bytes, 1260u);
}

TEST_F(StackIcmp, a_handshake_during_which_the_interface_shrinks_ends_with_what_fits) {
  Peer peer;
  Segment syn = peer.segment(kTcpSyn);
  syn.options = syn_options();
  deliver(peer.self, peer.other, syn);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  peer.snd += 1;
  peer.rcv = sent[0].tcp.seq + 1;
  io_.mtu = 1300;
  stack_->take_smaller_mtus();
  send(peer, kTcpAck);
  EXPECT_EQ(stack_->info(recorder_.last).mss_bytes, 1260u);
}

TEST_F(StackIcmp, an_error_that_cannot_be_true_changes_nothing) {
  Peer peer;
  start(peer);
  const std::uint16_t before = stack_->info(conn_).mss_bytes;
  const auto ignored = [&](const Bytes& packet, const char* what) {
    deliver_bytes(packet);
    EXPECT_EQ(stack_->info(conn_).mss_bytes, before) << what;
    EXPECT_TRUE(take().empty()) << what;
  };
  ignored(too_big(peer.other, peer.self, peer.rcv - 1, 1300), "before what is under way");
  ignored(too_big(peer.other, peer.self, peer.rcv + 7'000, 1300), "behind what was sent");
  ignored(too_big(peer.other, peer.self, peer.rcv, 1500), "not smaller");
  SocketAddress stranger = peer.self;
  stranger.port = 1;
  ignored(too_big(peer.other, stranger, peer.rcv, 1300), "another flow");
  Bytes broken = too_big(peer.other, peer.self, peer.rcv, 1300);
  broken[22] ^= 1;
  ignored(broken, "a wrong checksum");
  Bytes cut = too_big(peer.other, peer.self, peer.rcv, 1300);
  cut.resize(cut.size() - 5);
  net::store_be16(cut.data() + 2, static_cast<std::uint16_t>(cut.size()));
  net::store_raw16(cut.data() + 10, 0);
  net::store_raw16(cut.data() + 10, net::ipv4_header_checksum(cut.data(), 20));
  ignored(cut, "cut inside of what it quotes");
}

TEST_F(StackIcmp, nobody_is_believed_who_says_that_nothing_fits) {
  Peer peer;
  start(peer);
  deliver_bytes(too_big(peer.other, peer.self, peer.rcv, 68));
  EXPECT_EQ(stack_->info(conn_).mss_bytes, 576 - 40);
}

// `error` as another one: its type and code changed, its checksum right.
Bytes made_into(Bytes error, std::uint8_t type, std::uint8_t code) {
  const bool v4 = (error[0] >> 4) == 4;
  const std::size_t ip = v4 ? 20 : 40;
  std::uint8_t* const icmp = error.data() + ip;
  const std::size_t bytes = error.size() - ip;
  icmp[0] = type;
  icmp[1] = code;
  net::store_raw16(icmp + 2, 0);
  const std::uint64_t pseudo =
      v4 ? 0
         : net::pseudo_header_sum(Family::kIpv6, error.data() + 8, error.data() + 24, 58,
                                  static_cast<std::uint32_t>(bytes));
  net::store_raw16(icmp + 2, net::finish(net::sum_bytes(icmp, bytes, pseudo)));
  return error;
}

TEST_F(StackIcmp, an_outgoing_connection_ends_when_it_is_told_that_there_is_no_way) {
  for (const bool v4 : {true, false}) {
    SCOPED_TRACE(v4);
    const auto remote = *SocketAddress::parse(v4 ? "10.77.0.1:40000" : "[fd77::1]:40000");
    const auto conn =
        stack_->connect(remote, *SocketAddress::parse(v4 ? "10.77.0.10:0" : "[fd77::10]:0"));
    ASSERT_TRUE(conn.ok());
    const auto syn = take();
    ASSERT_EQ(syn.size(), 1u);
    const std::uint32_t seq = syn[0].tcp.seq;
    const auto error = [&](std::uint32_t quoted, std::uint8_t type, std::uint8_t code) {
      return made_into(too_big(syn[0].src, remote, quoted, 0), type, code);
    };
    const std::uint8_t unreachable = v4 ? 3 : 1;
    deliver_bytes(error(seq + 1, unreachable, 1));  // a guess
    deliver_bytes(error(seq - 1, unreachable, 1));
    deliver_bytes(error(seq, v4 ? 11 : 3, 0));  // time exceeded
    if (v4) deliver_bytes(error(seq, 3, 4));
    EXPECT_EQ(stack_->state(*conn), TcpState::kSynSent);
    deliver_bytes(error(seq, unreachable, 1));
    EXPECT_TRUE(recorder_.conns[*conn].closed);
    EXPECT_EQ(recorder_.conns[*conn].reason, EndReason::kUnreachable);
    EXPECT_TRUE(take().empty());
  }
  Peer peer;
  start(peer);
  deliver_bytes(made_into(too_big(peer.other, peer.self, peer.rcv, 0), 3, 1));
  EXPECT_TRUE(stack_->is_open(conn_)) << "one that is there may outlive a route";
}

TEST_F(StackIcmp, an_error_about_a_flow_of_another_worker_is_passed_on) {
  StackOptions options{
      .connections_max = 10, .time_wait_max = 10, .heap_bytes_max = std::size_t{16} << 20};
  std::vector<Bytes> passed_on;
  options.hand_over = [&](InterfaceIndex, std::span<const std::byte> packet, bool verified) {
    EXPECT_TRUE(verified);
    const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
    passed_on.emplace_back(at, at + packet.size());
    return HandedOver::kPassedOn;
  };
  make(options);
  listen();
  Peer peer;
  start(peer);
  deliver_bytes(too_big(peer.other, peer.self, peer.rcv, 1300));
  EXPECT_EQ(stack_->counters().path_mtu_lowered, 1u);
  EXPECT_TRUE(passed_on.empty());
  SocketAddress stranger = peer.self;
  stranger.port = 1;
  const Bytes error = too_big(peer.other, stranger, 1, 1300);
  deliver_bytes(error);
  EXPECT_EQ(passed_on, std::vector<Bytes>{error});
  EXPECT_EQ(stack_->counters().handed_over, 1u);
  EXPECT_EQ(stack_->counters().icmp_errors_ignored, 0u);
}

TEST_F(StackIcmp, an_error_about_a_flow_of_another_proxy_goes_back) {
  Peer peer;
  const Bytes packet = too_big(peer.other, peer.self, 1, 1300);
  deliver_lent(packet, 1, 2, true);
  ASSERT_EQ(io_.sent_back.size(), 1u);
  EXPECT_EQ(io_.sent_back[0], packet);
}

}  // namespace
}  // namespace sanproxy::stack::testing
