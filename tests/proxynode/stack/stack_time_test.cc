// What happens by itself: TIME-WAIT, keepalive, and that idle connections cost no wake-ups.
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

class StackTime : public ConnectedStackTest {
 protected:
  // Opens, and closes from our side first, so that TIME-WAIT is ours.
  void into_time_wait(Peer& peer) {
    const ConnIndex conn = open(peer);
    stack_->close(conn);
    take();
    peer.rcv += 1;
    send(peer, kTcpFin | kTcpAck);
    EXPECT_TRUE(recorder_.conns[conn].closed);
    take();
  }
};

TEST_F(StackTime, time_wait_acknowledges_a_repeated_fin_and_starts_again) {
  Peer peer;
  peer.timestamps = true;
  into_time_wait(peer);
  advance_ms(50'000, 1000);
  peer.snd -= 1;
  send(peer, kTcpFin | kTcpAck);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.flags, kTcpAck);
  EXPECT_EQ(sent[0].tcp.seq, peer.rcv);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);
  EXPECT_EQ(sent[0].tcp.options.size(), 12u);
  advance_ms(50'000, 1000);
  EXPECT_EQ(count(TcpState::kTimeWait), 1u);
  advance_ms(11'000, 1000);
  EXPECT_EQ(count(TcpState::kTimeWait), 0u);
}

TEST_F(StackTime, time_wait_ignores_resets_and_plain_acknowledgements) {
  Peer peer;
  into_time_wait(peer);
  send(peer, kTcpRst);
  send(peer, kTcpAck);
  EXPECT_EQ(count(TcpState::kTimeWait), 1u);
  EXPECT_TRUE(take().empty());
  send(peer, kTcpAck, pattern(10));
  EXPECT_EQ(take().size(), 1u);
}

TEST_F(StackTime, a_later_syn_takes_over_the_tuple_from_time_wait) {
  Peer peer;
  into_time_wait(peer);
  peer.snd += 5000;
  const ConnIndex conn = open(peer);
  EXPECT_EQ(stack_->counters().time_wait_reused, 1u);
  EXPECT_EQ(count(TcpState::kTimeWait), 0u);
  send(peer, kTcpAck, pattern(10));
  EXPECT_EQ(recorder_.conns[conn].received, pattern(10));
}

// RFC 9293 3.6.1 (MAY-2): else its client might take bytes of the old one that are still on the
// way.
TEST_F(StackTime, what_takes_over_from_time_wait_begins_beyond_all_that_the_old_one_sent) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const Bytes data = pattern(200'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  for (auto sent = take(); !sent.empty(); sent = take()) {
    peer.rcv = sent.back().tcp.seq + sent.back().payload_bytes();
    send(peer, kTcpAck);
  }
  ASSERT_EQ(recorder_.conns[conn].acked, data.size());
  stack_->close(conn);
  take();
  peer.rcv += 1;
  send(peer, kTcpFin | kTcpAck);
  take();
  const std::uint32_t end = peer.rcv;
  peer.snd += 5000;
  ASSERT_TRUE(half_open(peer));
  EXPECT_EQ(stack_->counters().time_wait_reused, 1u);
  EXPECT_LT(static_cast<std::int32_t>(end - peer.rcv), 0);
}

TEST_F(StackTime, an_old_syn_does_not_unless_its_timestamp_is_newer) {
  for (const bool newer : {false, true}) {
    Peer peer;
    peer.timestamps = true;
    peer.now = 1000;
    peer.self.port = newer ? 40001 : 40002;
    into_time_wait(peer);
    Segment syn{.flags = kTcpSyn, .seq = peer.snd - 4000};
    syn.options = syn_options(1460, 7, true, newer ? 2000 : 500);
    deliver(peer.self, peer.other, syn);
    const auto sent = take();
    ASSERT_EQ(sent.size(), 1u);
    EXPECT_EQ(sent[0].has(kTcpSyn), newer);
    EXPECT_EQ(stack_->counters().time_wait_reused, newer ? 1u : 0u);
  }
}

TEST_F(StackTime, the_oldest_time_wait_goes_when_there_are_too_many) {
  for (int i = 0; i < 105; ++i) {
    Peer peer;
    peer.self.port = static_cast<std::uint16_t>(10'000 + i);
    into_time_wait(peer);
  }
  EXPECT_EQ(count(TcpState::kTimeWait), 100u);
  EXPECT_EQ(stack_->counters().time_wait_evicted, 5u);
  Peer oldest;
  oldest.self.port = 10'000;
  oldest.snd -= 100;
  open(oldest);  // an old sequence number does not matter any more
}

TEST_F(StackTime, time_wait_may_be_switched_off) {
  make({.connections_max = 10, .time_wait_max = 0, .heap_bytes_max = std::size_t{8} << 20});
  listen();
  Peer peer;
  into_time_wait(peer);
  EXPECT_EQ(count(TcpState::kTimeWait), 0u);
}

TEST_F(StackTime, keepalive_probes_an_idle_client_and_gives_up_without_answer) {
  StackOptions options{.connections_max = 10, .heap_bytes_max = std::size_t{8} << 20};
  options.keepalive_idle_ms = 60'000;
  options.keepalive_interval_ms = 5'000;
  options.keepalive_probes = 3;
  make(options);
  listen();
  Peer peer;
  const ConnIndex conn = open(peer);
  advance_ms(59'000, 100);
  EXPECT_TRUE(io_.sent.empty());
  advance_ms(2'000, 100);
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.seq, peer.rcv - 1);
  EXPECT_EQ(sent[0].payload_bytes(), 0u);
  send(peer, kTcpAck);  // alive
  advance_ms(58'000, 100);
  EXPECT_TRUE(take().empty());
  send(peer, kTcpAck, pattern(10));  // and busy
  advance_ms(59'000, 100);
  ASSERT_EQ(take().size(), 1u) << "the acknowledgement only";
  advance_ms(20'000, 100);
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kTimedOut);
  sent = take();
  ASSERT_EQ(sent.size(), 4u) << "three probes and a reset";
  EXPECT_TRUE(sent[3].has(kTcpRst));
}

// Clients answer such segments only so often (Linux: twice a second), and one that has just
// answered would be taken for silent.
TEST_F(StackTime, keepalive_probes_are_an_interval_apart_also_if_that_is_longer_than_idle) {
  StackOptions options{.connections_max = 10, .heap_bytes_max = std::size_t{8} << 20};
  options.keepalive_idle_ms = 100;
  options.keepalive_interval_ms = 2'000;
  options.keepalive_probes = 1;
  make(options);
  listen();
  Peer peer;
  const ConnIndex conn = open(peer);
  std::vector<std::uint64_t> probed_ns;
  for (int i = 0; i < 1'000; ++i) {
    advance_ms(20);
    if (take().empty()) continue;
    probed_ns.push_back(clock_.now_ns());
    send(peer, kTcpAck);
  }
  EXPECT_FALSE(recorder_.conns[conn].closed);
  ASSERT_GE(probed_ns.size(), 8u);
  for (std::size_t i = 1; i < probed_ns.size(); ++i) {
    EXPECT_GE(probed_ns[i] - probed_ns[i - 1], 1'990'000'000u) << i;
  }
}

TEST_F(StackTime, without_keepalive_an_idle_stack_needs_no_wake_up) {
  StackOptions options{.connections_max = 10, .heap_bytes_max = std::size_t{8} << 20};
  options.keepalive_idle_ms = 0;
  make(options);
  listen();
  Peer peer;
  const ConnIndex conn = open(peer);
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(10)), WriteMode::kCopy).ok());
  take();
  EXPECT_NE(stack_->next_timer_ns(), UINT64_MAX);
  peer.rcv += 10;
  send(peer, kTcpAck, pattern(3));
  advance_ms(100);
  EXPECT_EQ(stack_->next_timer_ns(), UINT64_MAX);
}

TEST_F(StackTime, with_keepalive_an_idle_connection_wakes_once_a_turn_of_the_wheel) {
  Peer peer;
  open(peer);
  advance_ms(100);
  int wakes = 0;
  const std::uint64_t end = clock_.now_ns() + std::uint64_t{3600} * 1'000'000'000;
  while (stack_->next_timer_ns() < end) {
    clock_.advance_ns(stack_->next_timer_ns() - clock_.now_ns());
    stack_->on_time();
    ++wakes;
  }
  EXPECT_LE(wakes, 3600 / 128 + 2);
}

TEST_F(StackTime, after_a_long_stall_timers_go_on) {
  Peer peer;
  const ConnIndex conn = open(peer);
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(10)), WriteMode::kCopy).ok());
  take();
  clock_.advance_ns(std::uint64_t{3600} * 1'000'000'000);
  stack_->on_time();
  take();
  EXPECT_TRUE(stack_->is_open(conn)) << "the peer had no chance to answer";
  peer.rcv += 10;
  send(peer, kTcpAck);
  EXPECT_EQ(recorder_.conns[conn].acked, 10u);
}

// Not every device tells when there is room again, and what waits may be a reset, which nobody
// sends again.
TEST_F(StackTime, what_a_full_device_did_not_take_is_tried_again_soon) {
  make({.connections_max = 10, .heap_bytes_max = std::size_t{8} << 20});
  listen();
  EXPECT_EQ(stack_->next_timer_ns(), UINT64_MAX);
  Peer stray;
  io_.accept_max = 0;
  deliver(stray.self, stray.other, {.flags = kTcpAck, .seq = 1, .ack = 2});
  stack_->flush();
  EXPECT_TRUE(io_.sent.empty());
  EXPECT_LE(stack_->next_timer_ns(), clock_.now_ns() + 1'000'000);
  clock_.advance_ns(1'000'000);
  stack_->on_time();
  stack_->flush();
  EXPECT_GT(stack_->next_timer_ns(), clock_.now_ns()) << "it is full still: no spinning";
  io_.accept_max = SIZE_MAX;
  stack_->flush();
  ASSERT_EQ(io_.sent.size(), 1u);
  EXPECT_TRUE(io_.sent[0].has(kTcpRst));
  EXPECT_EQ(stack_->next_timer_ns(), UINT64_MAX);
}

}  // namespace
}  // namespace sanproxy::stack::testing
