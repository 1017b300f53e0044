// Segments that come in IP fragments: they count like others once they are whole, and until then
// hold no receive slot and no loan.
#include "tests/netnode/net/fragments_of.h"
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

using net::testing::in_fragments;

class StackFragments : public ConnectedStackTest {
 protected:
  Bytes next(Peer& peer, std::uint8_t flags, Bytes payload = {}) {
    const std::size_t bytes = payload.size();
    Bytes packet = make_packet(peer.self, peer.other, peer.segment(flags, std::move(payload)));
    peer.snd += static_cast<std::uint32_t>(bytes);
    return packet;
  }
  std::vector<Bytes> next_cut(Peer& peer, std::size_t bytes, std::uint64_t offset = 0) {
    return in_fragments(next(peer, kTcpAck, pattern(bytes, offset)), {504, 1000}, ++id_);
  }
  std::size_t slots_held() const { return pool_->slot_count() - pool_->free_count(); }

  std::uint16_t id_ = 0;
};

TEST_F(StackFragments, a_segment_in_fragments_is_received_when_it_is_whole) {
  for (const char* family : {"10.77.0.1:40000 10.77.0.10:80", "[fd77::1]:40000 [fd77::10]:80"}) {
    SCOPED_TRACE(family);
    const std::string both = family;
    Peer peer;
    peer.self = *SocketAddress::parse(both.substr(0, both.find(' ')));
    peer.other = *SocketAddress::parse(both.substr(both.find(' ') + 1));
    if (peer.self.ip.family == Family::kIpv6) listen("[fd77::10]:80");
    const ConnIndex conn = open(peer);
    const auto first = next_cut(peer, 1400), second = next_cut(peer, 1400, 1400);
    for (const std::size_t i : {2u, 0u}) {
      deliver_bytes(second[i]);
      deliver_bytes(first[i]);
    }
    EXPECT_EQ(slots_held(), 0u) << "what waits is no receive slot's";
    EXPECT_EQ(stack_->fragments().fragments_waiting(), 4u);
    deliver_bytes(second[1]);
    EXPECT_TRUE(recorder_.conns[conn].received.empty());
    deliver_bytes(first[1]);
    EXPECT_EQ(recorder_.conns[conn].received, pattern(2800));
    EXPECT_EQ(stack_->fragments().fragments_waiting(), 0u);
    const auto sent = take();
    ASSERT_FALSE(sent.empty());
    EXPECT_EQ(sent.back().tcp.ack, peer.snd);
  }
}

TEST_F(StackFragments, lent_fragments_go_back_at_once_and_none_is_written_to) {
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.hold = true;
  // Larger than what is looked at, and than what is copied without being asked.
  const Bytes packet = next(peer, kTcpAck, pattern(20'000));
  auto fragments = in_fragments(packet, {8000, 16'000}, 7);
  const auto before = fragments;
  packet_io::PacketLoan loan = 0;
  for (const Bytes& fragment : fragments) {
    deliver_lent(fragment, ++loan);
    EXPECT_EQ(io_.released.size(), loan);
  }
  EXPECT_EQ(fragments, before);
  for (Bytes& fragment : fragments) std::fill(fragment.begin(), fragment.end(), std::uint8_t{0});
  Bytes got;
  for (RxPayload& payload : recorder_.conns[conn].held) {
    while (!payload.empty()) {
      const auto piece = payload.pop_front();
      const auto* at = reinterpret_cast<const std::uint8_t*>(piece.bytes.data());
      got.insert(got.end(), at, at + piece.bytes.size());
      RxPayload::release(piece.handle);
    }
  }
  EXPECT_EQ(got, pattern(20'000));
}

// A driver may say of a fragment what it likes: only the whole has a checksum.
TEST_F(StackFragments, the_checksum_of_the_whole_is_verified_whatever_the_driver_says) {
  Peer peer;
  const ConnIndex conn = open(peer);
  auto fragments = next_cut(peer, 1400);
  fragments[1][100] ^= 1;
  packet_io::Offload verified, partial;
  verified.checksum_verified = true;
  partial.checksum_partial = true;
  deliver_bytes(fragments[0], verified);
  deliver_bytes(fragments[1], partial);
  deliver_bytes(fragments[2], verified);
  EXPECT_EQ(stack_->fragments().counters().whole, 1u);
  EXPECT_EQ(stack_->counters().dropped_checksum, 1u);
  EXPECT_TRUE(recorder_.conns[conn].received.empty());
}

TEST_F(StackFragments, a_whole_connection_may_come_in_fragments) {
  Peer peer;
  Segment syn = peer.segment(kTcpSyn);
  syn.options = syn_options();
  syn.payload = pattern(1000);
  for (const Bytes& one : in_fragments(make_packet(peer.self, peer.other, syn), {504}, 1)) {
    deliver_bytes(one);
  }
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.flags, kTcpSyn | kTcpAck);
  peer.snd += 1;
  peer.rcv = sent[0].tcp.seq + 1;
  for (const Bytes& one : next_cut(peer, 1400)) deliver_bytes(one);
  EXPECT_EQ(recorder_.conns[recorder_.last].received, pattern(1400));
  const Segment fin = peer.segment(kTcpFin | kTcpAck, pattern(1400, 1400));
  for (const Bytes& one : in_fragments(make_packet(peer.self, peer.other, fin), {504}, 9)) {
    deliver_bytes(one);
  }
  EXPECT_EQ(recorder_.conns[recorder_.last].received, pattern(2800));
  EXPECT_TRUE(recorder_.conns[recorder_.last].fin);
}

TEST_F(StackFragments, a_segment_of_an_unknown_flow_is_reset) {
  Peer peer;
  peer.rcv = 77;
  for (const Bytes& one : next_cut(peer, 1400)) deliver_bytes(one);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_TRUE(sent[0].has(kTcpRst));
}

TEST_F(StackFragments, one_that_is_another_workers_is_passed_on_whole_and_nothing_else) {
  StackOptions options{
      .connections_max = 10, .time_wait_max = 10, .heap_bytes_max = std::size_t{16} << 20};
  HandedOver answer = HandedOver::kPassedOn;
  std::vector<Bytes> passed_on;
  options.hand_over = [&](InterfaceIndex interface, std::span<const std::byte> packet,
                          bool checksum_verified) {
    EXPECT_EQ(interface, 0);
    EXPECT_FALSE(checksum_verified);
    const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
    passed_on.emplace_back(at, at + packet.size());
    return answer;
  };
  make(options);
  listen();
  Peer peer;
  const ConnIndex conn = open(peer);
  EXPECT_TRUE(passed_on.empty()) << "what comes whole is steered right";
  const std::uint32_t seq = peer.snd;
  const Bytes packet = make_packet(peer.self, peer.other, peer.segment(kTcpAck, pattern(1400)));
  const auto send_cut = [&] {
    peer.snd = seq;
    for (const Bytes& one : next_cut(peer, 1400)) deliver_bytes(one);
  };
  send_cut();
  ASSERT_EQ(passed_on.size(), 1u);
  EXPECT_EQ(Bytes(passed_on[0].begin() + 20, passed_on[0].end()),
            Bytes(packet.begin() + 20, packet.end()));
  answer = HandedOver::kLost;
  send_cut();
  EXPECT_TRUE(recorder_.conns[conn].received.empty());
  EXPECT_TRUE(take().empty());
  EXPECT_EQ(stack_->counters().handed_over, 1u);
  EXPECT_EQ(stack_->counters().dropped_handing_over, 1u);
  answer = HandedOver::kOurs;
  send_cut();
  EXPECT_EQ(recorder_.conns[conn].received, pattern(1400));
}

// Steering does not look for ports behind extension headers.
TEST_F(StackFragments, an_unknown_flow_behind_extension_headers_may_be_another_workers) {
  StackOptions options{
      .connections_max = 10, .time_wait_max = 10, .heap_bytes_max = std::size_t{16} << 20};
  HandedOver answer = HandedOver::kPassedOn;
  std::vector<Bytes> passed_on;
  options.hand_over = [&](InterfaceIndex, std::span<const std::byte> packet, bool verified) {
    EXPECT_TRUE(verified);
    const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
    passed_on.emplace_back(at, at + packet.size());
    return answer;
  };
  make(options);
  listen("[fd77::10]:80");
  Peer peer;
  peer.self = *SocketAddress::parse("[fd77::1]:40000");
  peer.other = *SocketAddress::parse("[fd77::10]:80");
  const auto with_options = [](Bytes packet) {
    const Bytes header = {packet[6], 0, 1, 4, 0, 0, 0, 0};  // destination options: padding
    packet[6] = 60;
    net::store_be16(packet.data() + 4,
                    static_cast<std::uint16_t>(packet.size() - 40 + header.size()));
    packet.insert(packet.begin() + 40, header.begin(), header.end());
    return packet;
  };
  const Bytes syn = with_options(make_packet(peer.self, peer.other, peer.segment(kTcpSyn)));
  deliver_bytes(syn);
  EXPECT_EQ(passed_on, std::vector<Bytes>{syn});
  EXPECT_TRUE(take().empty());
  answer = HandedOver::kOurs;
  const ConnIndex conn = open(peer);
  EXPECT_EQ(passed_on.size(), 1u) << "what comes without is steered right";
  deliver_bytes(
      with_options(make_packet(peer.self, peer.other, peer.segment(kTcpAck, pattern(9)))));
  EXPECT_EQ(passed_on.size(), 1u) << "the flow is known";
  EXPECT_EQ(recorder_.conns[conn].received, pattern(9));
}

TEST_F(StackFragments, one_that_another_proxy_may_know_goes_back_whole) {
  Peer peer;
  peer.rcv = 77;
  Bytes packet = next(peer, kTcpAck, pattern(1400));
  net::store_be16(packet.data() + 4, 5);
  net::testing::fix_ipv4_checksum(packet);
  packet_io::PacketLoan loan = 0;
  for (const Bytes& one : in_fragments(packet, {504, 1000}, 5)) deliver_lent(one, ++loan, 3, true);
  ASSERT_EQ(io_.sent_back.size(), 1u);
  EXPECT_EQ(io_.sent_back[0], packet);
  EXPECT_EQ(stack_->counters().unknown_flows, 1u);
  EXPECT_EQ(io_.released, (std::vector<packet_io::PacketLoan>{1, 2, 3}));
}

TEST_F(StackFragments, what_stays_incomplete_ends_by_the_stacks_own_timer) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const auto fragments = next_cut(peer, 1400);
  deliver_bytes(fragments[0]);
  (void)take();
  EXPECT_LE(stack_->next_timer_ns(), clock_.now_ns() + 15'000'000'000u);
  advance_ms(15'000, 1000);
  EXPECT_EQ(stack_->fragments().fragments_waiting(), 0u);
  EXPECT_EQ(stack_->fragments().counters().timed_out, 1u);
  deliver_bytes(fragments[1]);
  deliver_bytes(fragments[2]);
  EXPECT_TRUE(recorder_.conns[conn].received.empty());
}

// What a flood of fragments may take is its table, nothing of what connections need.
TEST_F(StackFragments, a_flood_takes_no_slot_and_none_of_the_heap) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const std::size_t heap = stack_->heap_bytes_used();
  Peer hostile;
  for (int i = 0; i < 5'000; ++i) {
    hostile.self.ip.bytes[1] = static_cast<std::uint8_t>(i);
    hostile.self.ip.bytes[2] = static_cast<std::uint8_t>(i >> 8);
    deliver_bytes(next_cut(hostile, 1400)[static_cast<std::size_t>(i) % 3]);
  }
  EXPECT_EQ(slots_held(), 0u);
  EXPECT_EQ(stack_->heap_bytes_used(), heap);
  EXPECT_LE(stack_->fragments().datagrams_waiting(), 256u);
  send(peer, kTcpAck, pattern(1400));
  EXPECT_EQ(recorder_.conns[conn].received, pattern(1400));
}

}  // namespace
}  // namespace sanproxy::stack::testing
