// What the stack's caller may do, and when: end connections inside its callbacks, refuse payload,
// take listeners away, list what is there.
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

using StackCallers = ConnectedStackTest;

TEST_F(StackCallers, closing_with_unread_bytes_resets) {
  Peer peer;
  recorder_.consume = false;
  const ConnIndex conn = open(peer);
  send(peer, kTcpAck, pattern(10));
  take();
  stack_->close(conn);
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kAborted);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_TRUE(sent[0].has(kTcpRst));
}

TEST_F(StackCallers, bytes_that_arrive_after_close_are_answered_with_a_reset) {
  Peer peer;
  const ConnIndex conn = open(peer);
  stack_->close(conn);
  take();
  send(peer, kTcpAck, pattern(10));
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kAborted);
  EXPECT_TRUE(recorder_.conns[conn].received.empty());
  const auto sent = take();
  ASSERT_FALSE(sent.empty());
  EXPECT_TRUE(sent.back().has(kTcpRst));
}

TEST_F(StackCallers, callbacks_may_end_the_connection_they_are_about) {
  for (const int where : {0, 1, 2, 3}) {
    for (const bool abort : {true, false}) {
      SCOPED_TRACE(::testing::Message() << "callback " << where << (abort ? " aborts" : " closes"));
      Peer peer;
      peer.self.port = static_cast<std::uint16_t>(41'000 + where * 2 + abort);
      const auto end = [&](ConnIndex conn) { abort ? stack_->abort(conn) : stack_->close(conn); };
      recorder_.in_accepted = nullptr;
      recorder_.in_received = recorder_.in_fin = recorder_.in_acked = nullptr;
      const int closed_before = recorder_.closed;
      if (where == 0) {
        recorder_.in_accepted = [&](ConnIndex conn) {
          end(conn);
          return true;
        };
      }
      if (where == 1) recorder_.in_received = end;
      if (where == 2) recorder_.in_fin = end;
      if (where == 3) recorder_.in_acked = end;
      ASSERT_TRUE(half_open(peer));
      send(peer, kTcpAck);
      const ConnIndex conn = recorder_.last;
      if (where == 3) {
        ASSERT_TRUE(stack_->write(conn, as_span(pattern(5)), WriteMode::kCopy).ok());
        take();
        peer.rcv += 5;
        send(peer, kTcpAck, pattern(3));
      }
      if (where == 1) send(peer, kTcpAck | kTcpFin, pattern(3));
      if (where == 2) send(peer, kTcpAck | kTcpFin);
      EXPECT_EQ(recorder_.closed - closed_before, abort || where == 3 ? 1 : 0);
      const auto sent = take();
      ASSERT_FALSE(sent.empty());
      EXPECT_EQ(sent.back().has(kTcpRst), abort || where == 3);
      if (!abort && where != 3) {
        EXPECT_TRUE(sent.back().has(kTcpFin));
      }
    }
  }
  recorder_.in_accepted = nullptr;
  recorder_.in_received = recorder_.in_fin = recorder_.in_acked = nullptr;
}

TEST_F(StackCallers, a_callback_may_end_and_open_other_connections) {
  Peer first, second;
  second.self.port = 40001;
  const ConnIndex a = open(first);
  const ConnIndex b = open(second);
  recorder_.in_received = [&](ConnIndex) {
    stack_->abort(b);
    ASSERT_TRUE(
        stack_->connect(*SocketAddress::parse("10.77.0.1:9"), *SocketAddress::parse("10.77.0.10:0"))
            .ok());
    ASSERT_TRUE(stack_->write(a, as_span(pattern(4)), WriteMode::kCopy).ok());
  };
  send(first, kTcpAck, pattern(10));
  recorder_.in_received = nullptr;
  EXPECT_TRUE(recorder_.conns[b].closed);
  EXPECT_TRUE(stack_->is_open(a));
  EXPECT_EQ(count(TcpState::kSynSent), 1u);
  EXPECT_EQ(take().size(), 3u) << "a reset, a SYN and the answer";
}

TEST_F(StackCallers, refused_payload_is_offered_again_and_stops_only_this_client) {
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.refuse = true;
  send(peer, kTcpAck, pattern(100));
  EXPECT_EQ(recorder_.offered, 1);
  send(peer, kTcpAck | kTcpFin, pattern(50, 100));  // behind it
  EXPECT_EQ(recorder_.offered, 1);
  advance_ms(60);
  EXPECT_GE(recorder_.offered, 3);
  EXPECT_TRUE(recorder_.conns[conn].received.empty());
  EXPECT_FALSE(recorder_.conns[conn].fin);
  recorder_.refuse = false;
  advance_ms(40);
  EXPECT_EQ(recorder_.conns[conn].received, pattern(150));
  EXPECT_TRUE(recorder_.conns[conn].fin);
}

TEST_F(StackCallers, a_fin_behind_refused_payload_waits_for_it) {
  Peer peer;
  const ConnIndex conn = open(peer);
  recorder_.refuse = true;
  send(peer, kTcpAck | kTcpFin, pattern(100));
  EXPECT_FALSE(recorder_.conns[conn].fin);
  recorder_.refuse = false;
  advance_ms(40);
  EXPECT_EQ(recorder_.conns[conn].received, pattern(100));
  EXPECT_TRUE(recorder_.conns[conn].fin);
  EXPECT_EQ(stack_->state(conn), TcpState::kCloseWait);
}

TEST_F(StackCallers, refused_payload_survives_the_orderly_end_of_its_connection) {
  for (const bool we_close_first : {false, true}) {
    SCOPED_TRACE(we_close_first);
    Peer peer;
    peer.self.port = we_close_first ? 40001 : 40002;
    const ConnIndex conn = open(peer);
    if (we_close_first) {
      ASSERT_TRUE(stack_->shutdown_send(conn).ok());
      take();
      peer.rcv += 1;
    }
    recorder_.refuse = true;
    send(peer, kTcpAck | kTcpFin, pattern(100));
    if (!we_close_first) {
      ASSERT_TRUE(stack_->shutdown_send(conn).ok());
      take();
      peer.rcv += 1;
      send(peer, kTcpAck);
    }
    EXPECT_EQ(count(TcpState::kTimeWait), we_close_first ? 1u : 0u);
    EXPECT_TRUE(stack_->is_open(conn));
    EXPECT_FALSE(recorder_.conns[conn].closed);
    advance_ms(10'000);
    recorder_.refuse = false;
    advance_ms(40);
    EXPECT_EQ(recorder_.conns[conn].received, pattern(100));
    EXPECT_TRUE(recorder_.conns[conn].fin);
    EXPECT_TRUE(recorder_.conns[conn].closed);
    EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kFinished);
    EXPECT_FALSE(stack_->is_open(conn));
  }
  EXPECT_EQ(stack_->open_connections(), 0u);
}

TEST_F(StackCallers, a_connection_that_waits_for_its_refused_payload_can_be_ended) {
  for (const int how : {0, 1, 2}) {
    Peer peer;
    peer.self.port = static_cast<std::uint16_t>(40'000 + how);
    const ConnIndex conn = open(peer);
    recorder_.refuse = true;
    send(peer, kTcpAck | kTcpFin, pattern(100));
    if (how != 2) {
      ASSERT_TRUE(stack_->shutdown_send(conn).ok());
      take();
      peer.rcv += 1;
      send(peer, kTcpAck);
      how == 0 ? stack_->abort(conn) : stack_->close(conn);
      EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kAborted);
    } else {
      send(peer, kTcpRst);
      EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kResetByPeer);
    }
    EXPECT_TRUE(recorder_.conns[conn].closed);
    advance_ms(40);
    recorder_.refuse = false;
  }
}

TEST_F(StackCallers, removing_a_listener_resets_half_open_and_keeps_established) {
  const ListenerId id = listen("10.77.0.11:80");
  Peer half, whole;
  half.other = whole.other = *SocketAddress::parse("10.77.0.11:80");
  whole.self.port = 40001;
  const ConnIndex conn = open(whole);
  ASSERT_TRUE(half_open(half));
  stack_->unlisten(id);
  EXPECT_EQ(count(TcpState::kListen), 1u);
  EXPECT_EQ(count(TcpState::kSynReceived), 0u);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_TRUE(sent[0].has(kTcpRst));
  send(whole, kTcpAck, pattern(9));
  EXPECT_EQ(recorder_.conns[conn].received, pattern(9));
  Peer late;
  late.self.port = 40002;
  late.other = half.other;
  EXPECT_FALSE(half_open(late));
  EXPECT_TRUE(stack_->listen(late.other, 1).ok());
}

TEST_F(StackCallers, an_exact_listener_wins_over_any_address_and_ipv6_is_its_own) {
  const auto any = stack_->listen(*SocketAddress::parse("0.0.0.0:80"), 100);
  const auto six = stack_->listen(*SocketAddress::parse("[::]:80"), 600);
  ASSERT_TRUE(any.ok() && six.ok());
  EXPECT_EQ(stack_->listen(*SocketAddress::parse("0.0.0.0:80"), 1).status().code(), Code::kExists);
  Peer exact, other, v6;
  other.other = *SocketAddress::parse("192.0.2.5:80");
  v6.self = *SocketAddress::parse("[fd77::1]:40000");
  v6.other = *SocketAddress::parse("[fd77::10]:80");
  EXPECT_EQ(stack_->info(open(exact)).listener_cookie, 7u);
  EXPECT_EQ(stack_->info(open(other)).listener_cookie, 100u);
  const ConnIndex conn = open(v6, 7, 1440);
  EXPECT_EQ(stack_->info(conn).listener_cookie, 600u);
  EXPECT_EQ(stack_->info(conn).remote, v6.self);
  send(v6, kTcpAck, pattern(20));
  EXPECT_EQ(recorder_.conns[conn].received, pattern(20));
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(3000)), WriteMode::kCopy).ok());
  std::size_t bytes = 0;
  for (const Sent& sent : take()) bytes += sent.payload_bytes();
  EXPECT_EQ(bytes, 3000u);
}

TEST_F(StackCallers, every_open_connection_is_listed_and_time_wait_without_an_index) {
  Peer a, b;
  b.self.port = 40001;
  open(a);
  const ConnIndex conn = open(b);
  stack_->close(conn);
  take();
  b.rcv += 1;
  send(b, kTcpFin | kTcpAck);
  std::map<TcpState, int> seen;
  stack_->for_each([&](ConnIndex index, TcpState state, const ConnectionInfo& info) {
    ++seen[state];
    EXPECT_EQ(index == kNoConn, state == TcpState::kTimeWait);
    EXPECT_EQ(info.local, a.other);
  });
  EXPECT_EQ(seen, (std::map<TcpState, int>{{TcpState::kEstablished, 1}, {TcpState::kTimeWait, 1}}));
}

TEST_F(StackCallers, an_index_is_not_reused_while_others_wait_longer) {
  Peer peer;
  const ConnIndex first = open(peer);
  stack_->abort(first);
  take();
  peer.self.port = 40001;
  const ConnIndex second = open(peer);
  EXPECT_NE(first, second);
}

TEST_F(StackCallers, an_interface_that_shares_its_segment_connects_from_its_own_address) {
  for (const char* const driver : {"packet", "xdp"}) {
    SCOPED_TRACE(driver);
    io_.set_driver(driver);
    ASSERT_TRUE(
        stack_->connect(*SocketAddress::parse("10.77.0.9:9"), *SocketAddress::parse("0.0.0.0:0"))
            .ok());
    const auto sent = take();
    ASSERT_EQ(sent.size(), 1u);
    EXPECT_EQ(sent[0].src.ip, *IpAddress::parse("10.77.0.1"));
  }
}

}  // namespace
}  // namespace sanproxy::stack::testing
