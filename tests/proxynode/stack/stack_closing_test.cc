// How long connections may take to their end.
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

class StackClosing : public ConnectedStackTest {
 protected:
  // Within orphan_ms and with RST, though the client answers everything, with a window that stays
  // closed; until then it is in `state`.
  void ends_by_itself(Peer& peer, ConnIndex conn, TcpState state) {
    std::uint64_t ms = 0;
    bool reset = false;
    for (; ms < 130'000 && !recorder_.conns[conn].closed; ms += 100) {
      if (ms == 58'000) {
        EXPECT_EQ(stack_->state(conn), state);
      }
      advance_ms(100);
      const auto sent = take();
      if (!sent.empty()) reset = sent.back().has(kTcpRst);
      if (!reset) send(peer, kTcpAck);
    }
    EXPECT_TRUE(recorder_.conns[conn].closed);
    EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kTimedOut);
    EXPECT_TRUE(reset);
    EXPECT_GE(ms, 59'000u);
  }
};

TEST_F(StackClosing, fin_wait_2_ends_after_close_but_not_after_shutdown_send) {
  Peer closed_peer, shut_peer;
  shut_peer.self.port = 40001;
  const ConnIndex closed = open(closed_peer);
  const ConnIndex shut = open(shut_peer);
  stack_->close(closed);
  ASSERT_TRUE(stack_->shutdown_send(shut).ok());
  take();
  closed_peer.rcv += 1;
  shut_peer.rcv += 1;
  send(closed_peer, kTcpAck);
  send(shut_peer, kTcpAck);
  EXPECT_EQ(count(TcpState::kFinWait2), 2u);
  advance_ms(59'000, 500);
  EXPECT_EQ(count(TcpState::kFinWait2), 2u);
  advance_ms(2'000, 500);
  EXPECT_TRUE(recorder_.conns[closed].closed);
  EXPECT_EQ(recorder_.conns[closed].reason, EndReason::kTimedOut);
  EXPECT_EQ(stack_->state(shut), TcpState::kFinWait2);
  // Shut first and closed later, it is bounded from then on.
  stack_->close(shut);
  advance_ms(61'000, 500);
  EXPECT_TRUE(recorder_.conns[shut].closed);
}

// Though the connection is over with them, for TCP.
TEST_F(StackClosing, bytes_that_come_with_the_clients_fin_after_close_are_answered_with_a_reset) {
  for (const bool acknowledged : {false, true}) {
    SCOPED_TRACE(acknowledged);
    Peer peer;
    peer.self.port = acknowledged ? 40001 : 40002;
    const ConnIndex conn = open(peer);
    stack_->close(conn);
    ASSERT_EQ(take().size(), 1u);
    peer.rcv += 1;
    if (acknowledged) send(peer, kTcpAck);
    send(peer, kTcpFin | kTcpAck, pattern(10));
    EXPECT_TRUE(recorder_.conns[conn].closed);
    EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kAborted);
    const auto sent = take();
    ASSERT_EQ(sent.size(), 1u);
    EXPECT_TRUE(sent[0].has(kTcpRst));
    EXPECT_EQ(sent[0].tcp.seq, peer.rcv);
    EXPECT_EQ(count(TcpState::kTimeWait), 0u);
  }
}

// A kernel drops a reset from beyond its window.
TEST_F(StackClosing, a_reset_is_within_the_clients_window) {
  const Bytes data = pattern(20'000);
  for (const std::uint16_t window : {std::uint16_t{0}, std::uint16_t{3}}) {
    Peer peer;
    peer.self.port = static_cast<std::uint16_t>(40'001 + window);
    const ConnIndex conn = open(peer);
    ASSERT_TRUE(stack_->write(conn, as_span(data), WriteMode::kReference).ok());
    (void)take();  // all lost, or dropped, since the window shrinks
    peer.window = window;
    send(peer, kTcpAck);
    advance_ms(1'000);  // it is probed
    (void)take();
    stack_->abort(conn);
    const auto sent = take();
    ASSERT_EQ(sent.size(), 1u);
    EXPECT_TRUE(sent[0].has(kTcpRst));
    EXPECT_EQ(sent[0].tcp.seq, peer.rcv + window * 128u);
  }
}

TEST_F(StackClosing, a_closed_window_does_not_keep_a_closed_connection_for_ever) {
  for (const bool client_first : {false, true}) {
    Peer peer;
    peer.self.port = client_first ? 40001 : 40002;
    const ConnIndex conn = open(peer);
    peer.window = 0;
    send(peer, kTcpAck | (client_first ? kTcpFin : 0));
    ASSERT_TRUE(stack_->write(conn, as_span(pattern(3000)), WriteMode::kCopy).ok());
    stack_->close(conn);
    take();
    ends_by_itself(peer, conn, client_first ? TcpState::kLastAck : TcpState::kFinWait1);
    EXPECT_EQ(stack_->open_connections(), 0u);
  }
}

TEST_F(StackClosing, a_closed_window_does_not_keep_a_connection_that_both_sides_have_ended) {
  for (const bool client_first : {false, true}) {
    SCOPED_TRACE(client_first);
    Peer peer;
    peer.self.port = client_first ? 40001 : 40002;
    const ConnIndex conn = open(peer);
    if (client_first) send(peer, kTcpAck | kTcpFin);
    ASSERT_TRUE(stack_->write(conn, as_span(pattern(3000)), WriteMode::kCopy).ok());
    ASSERT_TRUE(stack_->shutdown_send(conn).ok());
    peer.window = 0;
    if (!client_first) send(peer, kTcpAck | kTcpFin);
    EXPECT_TRUE(recorder_.conns[conn].fin);
    take();
    ends_by_itself(peer, conn, client_first ? TcpState::kLastAck : TcpState::kClosing);
    if (stack_->is_open(conn)) stack_->abort(conn);
    take();
  }
}

TEST_F(StackClosing, a_closed_window_keeps_a_connection_that_one_side_has_ended) {
  for (const bool client_first : {false, true}) {
    Peer peer;
    peer.self.port = client_first ? 40001 : 40002;
    const ConnIndex conn = open(peer);
    if (client_first) send(peer, kTcpAck | kTcpFin);
    ASSERT_TRUE(stack_->write(conn, as_span(pattern(3000)), WriteMode::kCopy).ok());
    if (!client_first) {
      ASSERT_TRUE(stack_->shutdown_send(conn).ok());
    }
    peer.window = 0;
    for (int i = 0; i < 300; ++i) {
      send(peer, kTcpAck);
      advance_ms(1'000, 100);
      take();
    }
    EXPECT_TRUE(stack_->is_open(conn));
    stack_->abort(conn);
    take();
  }
}

// Kernels that have no room for more drop FIN as well, and answer.
TEST_F(StackClosing, an_end_for_which_the_client_has_no_room_waits_until_it_has) {
  Peer peer;
  const ConnIndex conn = open(peer);
  peer.window = 0;
  send(peer, kTcpAck);
  ASSERT_TRUE(stack_->shutdown_send(conn).ok());
  int times = 0;
  for (int second = 0; second < 600; ++second) {
    for (const Sent& packet : take()) {
      EXPECT_TRUE(packet.has(kTcpFin));
      ++times;
      send(peer, kTcpAck);
    }
    advance_ms(1000, 100);
  }
  EXPECT_GE(times, 12);
  ASSERT_TRUE(stack_->is_open(conn));
  take();
  peer.window = 100;
  send(peer, kTcpAck);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u) << "at once";
  EXPECT_TRUE(sent[0].has(kTcpFin));
  peer.rcv += 1;
  send(peer, kTcpAck);
  EXPECT_EQ(stack_->state(conn), TcpState::kFinWait2);
}

TEST_F(StackClosing, an_end_that_nobody_answers_is_given_up_whatever_the_window_is) {
  for (const std::uint16_t window : {std::uint16_t{0}, std::uint16_t{100}}) {
    Peer peer;
    peer.self.port = static_cast<std::uint16_t>(40'000 + window);
    const ConnIndex conn = open(peer);
    peer.window = window;
    send(peer, kTcpAck);
    ASSERT_TRUE(stack_->shutdown_send(conn).ok());
    advance_ms(100'000, 100);
    EXPECT_TRUE(stack_->is_open(conn));
    advance_ms(200'000, 100);
    EXPECT_TRUE(recorder_.conns[conn].closed);
    EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kTimedOut);
    take();
  }
}

TEST_F(StackClosing, a_slow_client_may_take_as_long_as_it_likes_after_close) {
  Peer peer;
  const ConnIndex conn = open(peer);
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(3000)), WriteMode::kCopy).ok());
  stack_->close(conn);
  take();
  peer.window = 0;
  for (int i = 0; i < 6; ++i) {
    peer.rcv += 400;
    for (int second = 0; second < 55; ++second) {
      send(peer, kTcpAck);
      advance_ms(1000, 100);
      take();
    }
    ASSERT_TRUE(stack_->is_open(conn)) << i;
  }
  peer.rcv += 600 + 1;
  send(peer, kTcpAck);
  EXPECT_EQ(stack_->state(conn), TcpState::kFinWait2);
}

}  // namespace
}  // namespace sanproxy::stack::testing
