// Packets that an interface lends: they stay where they are, and go back exactly once. Flows that
// another proxy may know, session tags, and whom an answer goes to.
#include "netnode/net/session_tag.h"
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

class StackLent : public ConnectedStackTest {
 protected:
  Bytes next(Peer& peer, std::uint8_t flags, Bytes payload = {}) {
    const std::size_t bytes = payload.size();
    Bytes packet = make_packet(peer.self, peer.other, peer.segment(flags, std::move(payload)));
    peer.snd += static_cast<std::uint32_t>(bytes);
    return packet;
  }
};

TEST_F(StackLent, payload_stays_in_the_memory_that_was_lent_until_it_is_released) {
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.hold = true;
  const Bytes packet = next(peer, kTcpAck, pattern(20'000));
  const Bytes before(packet.begin(), packet.end());
  deliver_lent(packet, 17);
  ASSERT_EQ(recorder_.conns[conn].held.size(), 1u);
  RxPayload& payload = recorder_.conns[conn].held[0];
  EXPECT_EQ(payload.piece_count(), 1u);
  EXPECT_EQ(payload.length(), 20'000u);
  EXPECT_EQ(payload.front().data(), reinterpret_cast<const std::byte*>(packet.data()) + 40);
  EXPECT_TRUE(io_.released.empty());
  recorder_.conns[conn].held.clear();
  EXPECT_EQ(io_.released, std::vector<packet_io::PacketLoan>{17});
  EXPECT_EQ(packet, before) << "what is lent is not written to";
  EXPECT_EQ(stack_->counters().bytes_copied, 0u);
}

TEST_F(StackLent, a_small_packet_is_copied_and_its_loan_goes_back_at_once) {
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.hold = true;
  Bytes packet = next(peer, kTcpAck, pattern(300));
  deliver_lent(packet, 5);
  EXPECT_EQ(io_.released, std::vector<packet_io::PacketLoan>{5});
  std::fill(packet.begin(), packet.end(), std::uint8_t{0});
  ASSERT_EQ(recorder_.conns[conn].held.size(), 1u);
  const auto bytes = recorder_.conns[conn].held[0].front();
  const Bytes expected = pattern(300);
  ASSERT_EQ(bytes.size(), expected.size());
  EXPECT_EQ(std::memcmp(bytes.data(), expected.data(), bytes.size()), 0);
  EXPECT_EQ(stack_->counters().bytes_copied, 300u);
}

TEST_F(StackLent, a_large_packet_without_a_loan_is_copied) {
  Peer peer;
  const ConnIndex conn = open(peer);
  Bytes packet = next(peer, kTcpAck, pattern(30'000));
  deliver_lent(packet, packet_io::kNoPacketLoan);
  EXPECT_EQ(recorder_.conns[conn].received, pattern(30'000));
  EXPECT_TRUE(io_.released.empty());
  EXPECT_EQ(stack_->counters().bytes_copied, 30'000u);
}

// A network node, or a device, has so many buffers for all of its flows.
TEST_F(StackLent, what_is_lent_is_not_held_for_an_application_that_does_not_take_it) {
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.refuse = true;
  const Bytes first = next(peer, kTcpAck, pattern(5'000));
  const Bytes second = next(peer, kTcpAck, pattern(5'000, 5'000));
  deliver_lent(first, 1);
  EXPECT_EQ(io_.released, std::vector<packet_io::PacketLoan>{1}) << "it was copied";
  EXPECT_EQ(stack_->counters().bytes_copied, 5'000u);
  deliver_lent(second, 2);
  EXPECT_EQ(io_.released, (std::vector<packet_io::PacketLoan>{1, 2}));
  EXPECT_EQ(stack_->counters().dropped_refused, 0u) << "and kept";
  advance_ms(100);
  recorder_.refuse = false;
  advance_ms(20);
  EXPECT_EQ(recorder_.conns[conn].received, pattern(10'000));
  EXPECT_EQ(stack_->counters().bytes_copied, 10'000u) << "once";
}

TEST_F(StackLent, what_is_lent_is_not_held_for_a_client_that_leaves_a_gap) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const Bytes missing = next(peer, kTcpAck, pattern(1'400));
  for (packet_io::PacketLoan loan = 2; loan <= 21; ++loan) {
    deliver_lent(next(peer, kTcpAck, pattern(1'400, (loan - 1) * 1'400)), loan);
    EXPECT_EQ(io_.released.size(), loan - 1);
  }
  EXPECT_TRUE(recorder_.conns[conn].received.empty());
  deliver_lent(missing, 1);
  EXPECT_EQ(recorder_.conns[conn].received, pattern(21 * 1'400));
  EXPECT_EQ(io_.released.size(), 21u);
}

TEST_F(StackLent, without_memory_to_copy_it_what_is_behind_a_gap_is_sent_again) {
  make({.connections_max = 10, .heap_bytes_max = std::size_t{1} << 20});
  listen();
  Peer peer;
  const ConnIndex conn = open(peer);
  const Bytes missing = next(peer, kTcpAck, pattern(50'000));
  std::vector<Bytes> behind;
  for (int i = 1; i <= 20; ++i) {
    behind.push_back(next(peer, kTcpAck, pattern(50'000, static_cast<std::uint64_t>(i) * 50'000)));
  }
  packet_io::PacketLoan loan = 1;
  for (const Bytes& packet : behind) deliver_lent(packet, loan++);
  EXPECT_EQ(io_.released.size(), 20u);
  EXPECT_LE(stack_->heap_bytes_used(), stack_->heap_bytes_max() * 3 / 4);
  deliver_lent(missing, loan++);
  for (const Bytes& packet : behind) deliver_lent(packet, loan++);
  EXPECT_EQ(recorder_.conns[conn].received, pattern(21 * 50'000));
}

TEST_F(StackLent, a_whole_connection_runs_over_lent_packets) {
  Peer peer;
  Segment syn = peer.segment(kTcpSyn);
  syn.ack = 0;
  syn.options = syn_options();
  deliver_lent(make_packet(peer.self, peer.other, syn), 1);
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  peer.snd += 1;
  peer.rcv = sent[0].tcp.seq + 1;
  deliver_lent(next(peer, kTcpAck), 2);
  const ConnIndex conn = recorder_.last;
  // Out of order, so that the first one waits while it is on loan.
  const Bytes first = next(peer, kTcpAck, pattern(5'000));
  const Bytes second = next(peer, kTcpAck, pattern(5'000, 5'000));
  deliver_lent(second, 4);
  EXPECT_TRUE(recorder_.conns[conn].received.empty());
  deliver_lent(first, 3);
  EXPECT_EQ(recorder_.conns[conn].received, pattern(10'000));
  Segment fin = peer.segment(kTcpFin | kTcpAck);
  deliver_lent(make_packet(peer.self, peer.other, fin), 5);
  EXPECT_TRUE(recorder_.conns[conn].fin);
  std::sort(io_.released.begin(), io_.released.end());
  EXPECT_EQ(io_.released, (std::vector<packet_io::PacketLoan>{1, 2, 3, 4, 5}));
}

TEST_F(StackLent, malformed_packets_go_back_and_do_nothing_else) {
  Peer peer;
  open(peer);
  packet_io::PacketLoan loan = 0;
  const Bytes good = next(peer, kTcpAck, pattern(2'000));
  for (std::size_t bytes : {20u, 39u, 45u, 1000u, 2039u}) {
    deliver_lent(Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(bytes)), ++loan);
  }
  Bytes broken = good;
  broken[1500] ^= 1;  // behind what is copied
  deliver_lent(broken, ++loan);
  EXPECT_EQ(stack_->counters().dropped_checksum, 1u);
  EXPECT_EQ(stack_->counters().dropped_malformed, 5u);
  EXPECT_EQ(io_.released.size(), loan);
  EXPECT_TRUE(recorder_.conns[recorder_.last].received.empty());
}

TEST_F(StackLent, when_the_table_of_loans_is_full_payload_is_copied) {
  make(StackOptions{.connections_max = 10,
                    .time_wait_max = 10,
                    .heap_bytes_max = std::size_t{16} << 20,
                    .lent_packets_max = 1});
  listen();
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.hold = true;
  const Bytes first = next(peer, kTcpAck, pattern(2'000));
  const Bytes second = next(peer, kTcpAck, pattern(2'000, 2'000));
  deliver_lent(first, 1);
  deliver_lent(second, 2);
  EXPECT_EQ(io_.released, std::vector<packet_io::PacketLoan>{2});
  EXPECT_EQ(stack_->counters().bytes_copied, 2'000u);
  EXPECT_EQ(recorder_.conns[conn].held.size(), 2u);
}

// --- flows of others

TEST_F(StackLent, a_segment_of_an_unknown_flow_goes_back_unchanged_instead_of_a_reset) {
  Peer peer;
  peer.rcv = 77;
  for (const std::uint8_t flags :
       {kTcpAck, kTcpRst, std::uint8_t{kTcpFin | kTcpAck}, std::uint8_t{kTcpSyn | kTcpAck}}) {
    const Bytes packet = make_packet(peer.self, peer.other, peer.segment(flags, pattern(3)));
    deliver_lent(packet, packet_io::kNoPacketLoan, 3, true);
    ASSERT_EQ(io_.sent_back.size(), 1u) << int{flags};
    EXPECT_EQ(io_.sent_back[0], packet);
    io_.sent_back.clear();
    EXPECT_TRUE(take().empty()) << int{flags};
  }
  EXPECT_EQ(stack_->counters().unknown_flows, 4u);
}

TEST_F(StackLent, a_segment_of_an_unknown_flow_is_reset_when_nobody_else_may_know_it) {
  Peer peer;
  peer.rcv = 77;
  deliver_lent(make_packet(peer.self, peer.other, peer.segment(kTcpAck, pattern(3))), 1, 3, false);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_TRUE(sent[0].has(kTcpRst));
  EXPECT_EQ(sent[0].to, 3);
  EXPECT_TRUE(io_.sent_back.empty());
}

TEST_F(StackLent, a_syn_goes_back_where_nobody_listens_and_is_refused_when_it_has_been_to_all) {
  Peer peer;
  peer.other.port = 81;  // no listener
  Segment syn = peer.segment(kTcpSyn);
  const Bytes packet = make_packet(peer.self, peer.other, syn);
  deliver_lent(packet, packet_io::kNoPacketLoan, 3, true);
  EXPECT_TRUE(take().empty());
  ASSERT_EQ(io_.sent_back.size(), 1u);
  EXPECT_EQ(io_.sent_back[0], packet);
  io_.sent_back.clear();
  deliver_lent(packet, 1, 3, false);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_TRUE(sent[0].has(kTcpRst));
  EXPECT_TRUE(io_.sent_back.empty());
}

TEST_F(StackLent, answers_go_to_where_the_last_packet_came_from) {
  Peer peer;
  Segment syn = peer.segment(kTcpSyn);
  syn.options = syn_options();
  deliver_lent(make_packet(peer.self, peer.other, syn), 1, 4);
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].to, 4);
  peer.snd += 1;
  peer.rcv = sent[0].tcp.seq + 1;
  deliver_lent(next(peer, kTcpAck), 2, 9);
  const Bytes answer = pattern(100);
  ASSERT_TRUE(stack_->write(recorder_.last, as_span(answer), WriteMode::kCopy).ok());
  sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].to, 9);
}

// --- session tags

TEST_F(StackLent, every_timestamp_carries_the_proxys_id_and_never_goes_back) {
  StackOptions options{
      .connections_max = 10, .time_wait_max = 10, .heap_bytes_max = std::size_t{16} << 20};
  options.proxy_id = 517;
  clock_.advance_ns(10'000'000'000);
  make(options);
  listen();
  Peer peer;
  peer.timestamps = true;
  open(peer);
  std::uint32_t last = 0;
  for (int i = 0; i < 40; ++i) {
    const Bytes bytes = pattern(10);
    ASSERT_TRUE(stack_->write(recorder_.last, as_span(bytes), WriteMode::kCopy).ok());
    const auto sent = take();
    ASSERT_EQ(sent.size(), 1u);
    ASSERT_EQ(sent[0].tcp.options.size(), 12u);
    const std::uint32_t value = net::load_be32(sent[0].tcp.options.data() + 4);
    EXPECT_EQ(net::session_tag_of(value), 517);
    EXPECT_TRUE(i == 0 || static_cast<std::int32_t>(value - last) >= 0);
    last = value;
    peer.rcv += 10;
    send(peer, kTcpAck);
    (void)take();
    clock_.advance_ns(300'000'000);
  }
}

}  // namespace
}  // namespace sanproxy::stack::testing
