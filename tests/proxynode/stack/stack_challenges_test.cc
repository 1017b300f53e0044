// Which segments are answered by an acknowledgement alone, and how often.
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

using StackChallenges = ConnectedStackTest;

// RFC 9293 3.10.7.4: the sequence number is looked at first. Who guesses acknowledgements alone
// would make us forget bytes that the client lacks.
TEST_F(StackChallenges, an_acknowledgement_from_far_before_the_window_is_challenged) {
  Peer peer;
  const ConnIndex conn = open(peer);
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(1000)), WriteMode::kCopy).ok());
  ASSERT_EQ(take().size(), 1u);  // lost
  Peer forger = peer;
  forger.snd -= 0x1000'0000;
  forger.rcv += 1000;
  send(forger, kTcpAck);
  EXPECT_EQ(recorder_.conns[conn].acked, 0u);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.flags, kTcpAck);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);
  // One that data has overtaken on the way counts.
  send(peer, kTcpAck, pattern(10));
  Peer late = peer;
  late.snd -= 10;
  late.rcv += 1000;
  send(late, kTcpAck);
  EXPECT_EQ(recorder_.conns[conn].acked, 1000u);
}

// RFC 5961 7. Each one is a repeated acknowledgement to the client, which a stranger could make it
// get three of whenever he likes.
TEST_F(StackChallenges, challenges_are_few_however_much_asks_for_them) {
  Peer peer;
  const ConnIndex conn = open(peer);
  const auto ask = [&](std::uint32_t i) {
    deliver(peer.self, peer.other, {.flags = kTcpSyn, .seq = peer.snd + 77 * i});
    deliver(peer.self, peer.other, {.flags = kTcpRst, .seq = peer.snd + 1 + i});
    deliver(peer.self, peer.other,
            {.flags = kTcpAck, .seq = peer.snd + (1u << 24), .ack = peer.rcv});
    deliver(peer.self, peer.other, {.flags = kTcpAck, .seq = peer.snd, .ack = peer.rcv + 1 + i});
  };
  for (std::uint32_t i = 0; i < 100; ++i) ask(i);
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.flags, kTcpAck);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);
  advance_ms(600);
  take();
  ask(0);
  EXPECT_EQ(take().size(), 1u);
  send(peer, kTcpAck, pattern(10));
  EXPECT_EQ(recorder_.conns[conn].received, pattern(10));
}

// RFC 9293 3.10.7.4: a segment without bytes is acceptable at RCV.NXT when the window is closed.
// Two ends that both answered it would never stop.
TEST_F(StackChallenges, a_plain_acknowledgement_is_not_answered_while_our_window_is_closed) {
  make({.connections_max = 10,
        .receive_window_bytes = 64 * 1024,
        .heap_bytes_max = std::size_t{8} << 20});
  listen();
  recorder_.consume = false;
  Peer peer;
  const ConnIndex conn = open(peer);
  for (int i = 0; i < 8; ++i) send(peer, kTcpAck, pattern(8192));
  advance_ms(40);
  auto sent = take();
  ASSERT_FALSE(sent.empty());
  EXPECT_EQ(sent.back().tcp.ack, peer.snd);
  EXPECT_EQ(sent.back().tcp.window, 0u);
  for (int i = 0; i < 3; ++i) send(peer, kTcpAck);
  EXPECT_TRUE(take().empty());
  // Probes are, of both kinds.
  deliver(peer.self, peer.other, {.flags = kTcpAck, .seq = peer.snd - 1, .ack = peer.rcv});
  EXPECT_EQ(take().size(), 1u);
  deliver(peer.self, peer.other,
          {.flags = kTcpAck, .seq = peer.snd, .ack = peer.rcv, .payload = pattern(1)});
  EXPECT_EQ(take().size(), 1u);
  EXPECT_EQ(recorder_.conns[conn].received.size(), 65'536u);
  stack_->consume(conn, 65'536);
  sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(window_of(sent[0]), 65'536u);
}

}  // namespace
}  // namespace sanproxy::stack::testing
