// Payload that the delegate does not take: what is kept of it, where, and what the client hears.
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

using StackRefused = ConnectedStackTest;

constexpr std::uint32_t kKeptPieces = 64;  // behind a refusal

// A client that lost them would wait for its own time-out, and the longer the refusal the longer.
TEST_F(StackRefused, what_is_on_its_way_when_payload_is_refused_is_kept_behind_it) {
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.refuse = true;
  for (std::uint32_t i = 0; i < kKeptPieces; ++i) {
    send(peer, kTcpAck, pattern(3'000, i * 3'000));
    const auto sent = take();
    ASSERT_EQ(sent.size(), 1u) << i;
    EXPECT_EQ(sent[0].tcp.ack, peer.snd);
    EXPECT_EQ(sent[0].tcp.window, 0u);
  }
  EXPECT_EQ(stack_->counters().dropped_refused, 0u);
  send(peer, kTcpAck, pattern(3'000, kKeptPieces * 3'000));
  EXPECT_EQ(stack_->counters().dropped_refused, 1u) << "a client that ignores the window";
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd - 3'000);
  peer.snd -= 3'000;
  EXPECT_TRUE(recorder_.conns[conn].received.empty());
  EXPECT_EQ(stack_->counters().bytes_copied, 0u) << "there are slots enough";
  recorder_.refuse = false;
  advance_ms(20);
  EXPECT_EQ(recorder_.conns[conn].received, pattern(kKeptPieces * 3'000));
  sent = take();
  ASSERT_EQ(sent.size(), 1u) << "it hears at once when they are taken";
  EXPECT_GT(window_of(sent[0]), 1u << 20);
}

TEST_F(StackRefused, what_is_refused_while_slots_are_short_is_copied_and_kept_all_the_same) {
  make({.connections_max = 100, .heap_bytes_max = std::size_t{8} << 20}, 32);
  listen();
  Peer peer;
  const ConnIndex conn = open(peer);
  std::vector<buffer::SlotIndex> taken;
  while (pool_->free_count() > 4) taken.push_back(pool_->acquire());
  recorder_.refuse = true;
  for (std::uint32_t i = 0; i < 30; ++i) send(peer, kTcpAck, pattern(1'000, i * 1'000));
  EXPECT_EQ(pool_->free_count(), 4u) << "nobody else is left without slots";
  EXPECT_EQ(stack_->counters().dropped_refused, 0u);
  recorder_.refuse = false;
  stack_->offer_again(conn);
  EXPECT_EQ(recorder_.conns[conn].received, pattern(30'000)) << "no tick is waited for";
  auto sent = take();
  ASSERT_FALSE(sent.empty());
  EXPECT_EQ(sent.back().tcp.ack, peer.snd);
  EXPECT_GT(window_of(sent.back()), 1u << 20);
  stack_->offer_again(conn);
  EXPECT_EQ(recorder_.conns[conn].received.size(), 30'000u) << "there is nothing more to offer";
  for (const buffer::SlotIndex slot : taken) pool_->release(slot);
}

TEST_F(StackRefused, while_payload_is_refused_the_client_hears_of_no_window) {
  const std::uint32_t kWindowBytes = StackOptions{}.receive_window_bytes;
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.consume = false;
  send(peer, kTcpAck, pattern(3'000));
  recorder_.refuse = true;
  send(peer, kTcpAck, pattern(2'000, 3'000));
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd) << "the acknowledgement of the refused bytes says it";
  EXPECT_EQ(sent[0].tcp.window, 0u);
  std::uint32_t at = 5'000;
  for (std::uint32_t i = 1; i < kKeptPieces; ++i, ++at) send(peer, kTcpAck, pattern(1, at));
  take();
  for (const bool fin : {false, false, true}) {
    advance_ms(1'000);
    const auto flags = static_cast<std::uint8_t>(kTcpAck | (fin ? kTcpFin : 0));
    const Segment again = peer.segment(flags, pattern(1'000, at));
    deliver(peer.self, peer.other, again);
    sent = take();
    ASSERT_EQ(sent.size(), 1u) << "what comes meanwhile is answered";
    EXPECT_EQ(sent[0].tcp.ack, peer.snd);
    EXPECT_EQ(sent[0].tcp.window, 0u);
  }
  stack_->consume(conn, 3'000);
  EXPECT_TRUE(take().empty()) << "nor does what became free meanwhile open it";
  recorder_.refuse = false;
  advance_ms(20);
  sent = take();
  ASSERT_EQ(sent.size(), 1u) << "it hears at once when they are taken";
  EXPECT_EQ(window_of(sent[0]), (kWindowBytes - (at - 3'000)) & ~127u);
  EXPECT_EQ(stack_->counters().dropped_refused, 3u);
  send(peer, kTcpAck, pattern(1'000, at));
  EXPECT_EQ(recorder_.conns[conn].received, pattern(at + 1'000));
}

// It stands before what was on its way and not taken: the client sends that again.
TEST_F(StackRefused, the_window_of_a_client_whose_payload_is_dropped_behind_a_refusal_still_opens) {
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.consume = false;
  recorder_.refuse = true;
  peer.window = 32;
  for (std::uint32_t i = 0; i < kKeptPieces; ++i) send(peer, kTcpAck, pattern(10, i * 10));
  take();
  const auto payload_sent = [this] {
    std::uint32_t bytes = 0;
    for (const Sent& one : take()) bytes += static_cast<std::uint32_t>(one.payload_bytes());
    return bytes;
  };
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(10'000)), WriteMode::kCopy).ok());
  const std::uint32_t first = payload_sent();
  ASSERT_GT(first, 0u);
  ASSERT_LE(first, 32u * 128);
  const std::uint32_t next = peer.snd;
  send(peer, kTcpAck, pattern(1'000, 1'000));
  send(peer, kTcpAck, pattern(1'000, 2'000));
  ASSERT_EQ(stack_->counters().dropped_refused, 2u);
  take();
  peer.snd = next;  // the end of the window, which is closed now
  peer.rcv += first;
  peer.window = 0xffff;
  send(peer, kTcpAck);
  EXPECT_EQ(payload_sent(), 10'000u - first);
}

// With a gap before what is kept the end of the closed window is before that, too.
TEST_F(StackRefused, the_window_of_a_client_with_a_gap_before_a_refusal_still_opens) {
  Peer peer;
  const ConnIndex conn = open(peer);
  peer.window = 32;
  recorder_.refuse = true;
  const auto payload_sent = [this] {
    std::uint32_t bytes = 0;
    for (const Sent& one : take()) bytes += static_cast<std::uint32_t>(one.payload_bytes());
    return bytes;
  };
  send(peer, kTcpAck, pattern(1'000));
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(10'000)), WriteMode::kCopy).ok());
  const std::uint32_t first = payload_sent();
  ASSERT_GT(first, 0u);
  ASSERT_LE(first, 32u * 128);
  const std::uint32_t next = peer.snd;
  peer.snd += 1'000;  // lost
  send(peer, kTcpAck, pattern(1'000, 2'000));
  ASSERT_EQ(stack_->counters().dropped_refused, 0u);
  take();
  peer.snd = next;
  peer.rcv += first;
  peer.window = 0xffff;
  send(peer, kTcpAck);
  EXPECT_EQ(payload_sent(), 10'000u - first);
  send(peer, kTcpAck, pattern(1'000, 1'000));
  recorder_.refuse = false;
  stack_->offer_again(conn);
  EXPECT_EQ(recorder_.conns[conn].received, pattern(3'000)) << "what is behind the gap is there";
}

TEST_F(StackRefused, a_refusal_that_is_over_before_the_acknowledgement_leaves_closes_nothing) {
  const std::uint32_t kWindowBytes = StackOptions{}.receive_window_bytes;
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.refuse = true;
  send(peer, kTcpAck, pattern(100));
  recorder_.refuse = false;
  advance_ms(60);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(window_of(sent[0]), (kWindowBytes - 100) & ~127u) << "the right edge is where it was";
  EXPECT_EQ(recorder_.conns[conn].received, pattern(100));
}

TEST_F(StackRefused, segments_whose_payload_is_not_taken_are_no_repeated_acknowledgements) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const Bytes data = pattern(10'000);
  ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
  ASSERT_FALSE(take().empty());
  recorder_.refuse = true;
  send(peer, kTcpAck, pattern(100));
  for (int i = 0; i < 8; ++i) {
    send(peer, kTcpAck, pattern(100));
    send(peer, kTcpAck);  // one that is
  }
  EXPECT_EQ(stack_->counters().retransmits, 0u);
  recorder_.refuse = false;
}

TEST_F(StackRefused, short_refused_payload_is_copied_when_slots_run_short) {
  make({.connections_max = 100, .heap_bytes_max = std::size_t{8} << 20}, 32);
  listen();
  std::vector<Peer> peers(60);
  std::vector<ConnIndex> conns;
  for (std::size_t i = 0; i < peers.size(); ++i) {
    peers[i].self.port = static_cast<std::uint16_t>(40'000 + i);
    conns.push_back(open(peers[i]));
  }
  recorder_.refuse = true;
  for (Peer& peer : peers) send(peer, kTcpAck, pattern(300));
  EXPECT_GE(pool_->free_count(), 32u / 2);
  EXPECT_GT(stack_->counters().bytes_copied, 0u);
  advance_ms(100);
  recorder_.refuse = false;
  advance_ms(100);
  for (const ConnIndex conn : conns) EXPECT_EQ(recorder_.conns[conn].received, pattern(300));
  EXPECT_EQ(recorder_.closed, 0);
  EXPECT_EQ(pool_->free_count(), 32u);
}

TEST_F(StackRefused, nothing_more_is_kept_while_a_quarter_of_the_memory_is_used) {
  make({.connections_max = 100, .heap_bytes_max = std::size_t{8} << 20}, 32);
  listen();
  Peer peer, slow;
  slow.self.port = 41'000;
  const ConnIndex conn = open(peer);
  const ConnIndex other = open(slow);
  while (stack_->heap_bytes_used() < std::size_t{2} << 20) {
    ASSERT_TRUE(stack_->write(other, as_span(pattern(60'000)), WriteMode::kCopy).ok());
  }
  recorder_.refuse = true;
  send(peer, kTcpAck, pattern(1'000));
  send(peer, kTcpAck, pattern(1'000, 1'000));
  EXPECT_EQ(stack_->counters().dropped_refused, 1u);
  peer.snd -= 1'000;
  recorder_.refuse = false;
  stack_->offer_again(conn);
  EXPECT_EQ(recorder_.conns[conn].received, pattern(1'000));
  send(peer, kTcpAck, pattern(1'000, 1'000));
  EXPECT_EQ(recorder_.conns[conn].received, pattern(2'000));
}

}  // namespace
}  // namespace sanproxy::stack::testing
