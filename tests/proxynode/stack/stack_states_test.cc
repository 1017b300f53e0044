// Every state of RFC 9293's diagram, and the ways through it.
#include "tests/proxynode/stack/stack_harness.h"

namespace sanproxy::stack::testing {
namespace {

using StackStates = ConnectedStackTest;

TEST_F(StackStates, a_handshake_leads_from_listen_over_syn_received_to_established) {
  Peer peer;
  EXPECT_EQ(count(TcpState::kListen), 1u);
  ASSERT_TRUE(half_open(peer));
  EXPECT_EQ(count(TcpState::kSynReceived), 1u);
  EXPECT_EQ(recorder_.accepted, 0);
  send(peer, kTcpAck);
  ASSERT_EQ(recorder_.accepted, 1);
  EXPECT_EQ(count(TcpState::kSynReceived), 0u);
  EXPECT_EQ(count(TcpState::kEstablished), 1u);
  const ConnectionInfo info = stack_->info(recorder_.last);
  EXPECT_EQ(info.remote, peer.self);
  EXPECT_EQ(info.local, peer.other);
  EXPECT_EQ(info.listener_cookie, 7u);
  EXPECT_EQ(info.initial_seq_remote, 1000u);
  EXPECT_EQ(info.initial_seq_local, peer.rcv - 1);
  EXPECT_EQ(info.mss_bytes, 1460u);
  EXPECT_TRUE(info.window_scaling);
  EXPECT_FALSE(info.active);
}

TEST_F(StackStates, bytes_go_both_ways) {
  Peer peer;
  const ConnIndex conn = open(peer);
  send(peer, kTcpAck | kTcpPsh, pattern(300));
  EXPECT_EQ(recorder_.conns[conn].received, pattern(300));
  const Bytes answer = pattern(500, 9);
  ASSERT_TRUE(stack_->write(conn, as_span(answer), WriteMode::kReference).ok());
  EXPECT_TRUE(io_.sent.empty()) << "nothing leaves before flush()";
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u) << "the acknowledgement travels on the answer";
  EXPECT_EQ(sent[0].tcp.payload, answer);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);
  peer.rcv += 500;
  send(peer, kTcpAck);
  EXPECT_EQ(recorder_.conns[conn].acked, 500u);
}

TEST_F(StackStates, the_client_closes_first_over_close_wait_and_last_ack) {
  Peer peer;
  const ConnIndex conn = open(peer);
  send(peer, kTcpFin | kTcpAck);
  EXPECT_TRUE(recorder_.conns[conn].fin);
  EXPECT_EQ(stack_->state(conn), TcpState::kCloseWait);
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);

  // The other direction goes on.
  ASSERT_TRUE(stack_->write(conn, as_span(pattern(100)), WriteMode::kCopy).ok());
  stack_->close(conn);
  EXPECT_EQ(stack_->state(conn), TcpState::kLastAck);
  sent = take();
  ASSERT_EQ(sent.size(), 1u) << "FIN travels on the last data";
  EXPECT_TRUE(sent[0].has(kTcpFin));
  EXPECT_EQ(sent[0].payload_bytes(), 100u);
  peer.rcv += 101;
  send(peer, kTcpAck);
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kFinished);
  EXPECT_EQ(stack_->state(conn), TcpState::kClosed);
  EXPECT_EQ(count(TcpState::kTimeWait), 0u) << "the side that closes first waits";
  EXPECT_EQ(stack_->open_connections(), 0u);
}

TEST_F(StackStates, we_close_first_over_fin_wait_1_and_2_into_time_wait) {
  Peer peer;
  const ConnIndex conn = open(peer);
  ASSERT_TRUE(stack_->shutdown_send(conn).ok());
  EXPECT_EQ(stack_->state(conn), TcpState::kFinWait1);
  EXPECT_EQ(stack_->write(conn, as_span(pattern(1)), WriteMode::kCopy).code(), Code::kDisconnected);
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_TRUE(sent[0].has(kTcpFin));
  peer.rcv += 1;
  send(peer, kTcpAck);
  EXPECT_EQ(stack_->state(conn), TcpState::kFinWait2);
  EXPECT_FALSE(recorder_.conns[conn].closed);

  send(peer, kTcpAck, pattern(700));  // half closed: still received
  EXPECT_EQ(recorder_.conns[conn].received, pattern(700));
  send(peer, kTcpFin | kTcpAck);
  EXPECT_TRUE(recorder_.conns[conn].fin);
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kFinished);
  EXPECT_EQ(count(TcpState::kTimeWait), 1u);
  sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd);
  advance_ms(60'100, 1000);
  EXPECT_EQ(count(TcpState::kTimeWait), 0u);
}

TEST_F(StackStates, both_close_at_once_over_closing) {
  Peer peer;
  const ConnIndex conn = open(peer);
  stack_->close(conn);
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  send(peer, kTcpFin | kTcpAck);  // does not acknowledge our FIN
  EXPECT_EQ(stack_->state(conn), TcpState::kClosing);
  EXPECT_EQ(count(TcpState::kClosing), 1u);
  peer.rcv += 1;
  send(peer, kTcpAck);
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_EQ(count(TcpState::kTimeWait), 1u);
}

TEST_F(StackStates, a_fin_that_acknowledges_ours_leads_from_fin_wait_1_to_time_wait) {
  Peer peer;
  const ConnIndex conn = open(peer);
  stack_->close(conn);
  take();
  peer.rcv += 1;
  send(peer, kTcpFin | kTcpAck);
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kFinished);
  EXPECT_EQ(count(TcpState::kTimeWait), 1u);
  EXPECT_EQ(take().size(), 1u);
}

TEST_F(StackStates, connect_leads_over_syn_sent_to_established) {
  Peer peer;
  const auto conn = stack_->connect(peer.self, *SocketAddress::parse("10.77.0.10:0"));
  ASSERT_TRUE(conn.ok()) << conn.status().to_string();
  EXPECT_EQ(stack_->state(*conn), TcpState::kSynSent);
  auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.flags, kTcpSyn);
  EXPECT_GE(sent[0].src.port, 32768);
  peer.other = sent[0].src;
  peer.rcv = sent[0].tcp.seq + 1;
  Segment answer = peer.segment(kTcpSyn | kTcpAck);
  answer.options = syn_options();
  deliver(peer.self, peer.other, answer);
  peer.snd += 1;
  ASSERT_EQ(recorder_.connected, 1);
  EXPECT_EQ(stack_->state(*conn), TcpState::kEstablished);
  const ConnectionInfo info = stack_->info(*conn);
  EXPECT_TRUE(info.active);
  EXPECT_EQ(info.initial_seq_local, sent[0].tcp.seq);
  EXPECT_EQ(info.initial_seq_remote, 1000u);
  sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.flags, kTcpAck);
  send(peer, kTcpAck, pattern(10));
  EXPECT_EQ(recorder_.conns[*conn].received, pattern(10));
}

TEST_F(StackStates, connect_is_refused_by_a_reset) {
  Peer peer;
  const auto conn = stack_->connect(peer.self, *SocketAddress::parse("10.77.0.10:0"));
  ASSERT_TRUE(conn.ok());
  const auto sent = take();
  peer.other = sent.at(0).src;
  peer.rcv = sent.at(0).tcp.seq + 1;
  deliver(peer.self, peer.other, {.flags = kTcpRst | kTcpAck, .seq = 0, .ack = peer.rcv});
  EXPECT_TRUE(recorder_.conns[*conn].closed);
  EXPECT_EQ(recorder_.conns[*conn].reason, EndReason::kRefused);
  EXPECT_EQ(stack_->open_connections(), 0u);
}

TEST_F(StackStates, connect_that_nobody_answers_times_out) {
  Peer peer;
  const auto conn = stack_->connect(peer.self, *SocketAddress::parse("10.77.0.10:0"));
  ASSERT_TRUE(conn.ok());
  advance_ms(20'000);
  EXPECT_TRUE(recorder_.conns[*conn].closed);
  EXPECT_EQ(recorder_.conns[*conn].reason, EndReason::kTimedOut);
  EXPECT_GT(stack_->counters().retransmits, 3u);
}

TEST_F(StackStates, connect_finds_a_free_port_and_knows_when_there_is_none) {
  StackOptions options{.connections_max = 10, .heap_bytes_max = std::size_t{8} << 20};
  options.ephemeral_port_first = 50'000;
  options.ephemeral_port_last = 50'003;
  make(options);
  const Peer peer;
  const SocketAddress local = *SocketAddress::parse("10.77.0.10:0");
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(stack_->connect(peer.self, local).ok());
  EXPECT_EQ(stack_->connect(peer.self, local).status().code(), Code::kExists);
  SocketAddress elsewhere = peer.self;
  elsewhere.port = 1;
  EXPECT_TRUE(stack_->connect(elsewhere, local).ok()) << "a port is taken for one remote side only";
}

struct ResetCase {
  const char* name;
  bool fin_from_peer, fin_from_us, fin_acked;
  TcpState state;
};
class StackResets : public ConnectedStackTest, public ::testing::WithParamInterface<ResetCase> {
 protected:
  ConnIndex bring(Peer& peer) {
    const ResetCase& c = GetParam();
    const ConnIndex conn = open(peer);
    if (c.fin_from_us) {
      EXPECT_TRUE(stack_->shutdown_send(conn).ok());
    }
    take();
    if (c.fin_acked) {
      peer.rcv += 1;
      send(peer, kTcpAck);
    }
    if (c.fin_from_peer) send(peer, kTcpFin | kTcpAck);
    if (c.state == TcpState::kLastAck) {
      EXPECT_TRUE(stack_->shutdown_send(conn).ok());
    }
    EXPECT_EQ(stack_->state(conn), c.state);
    EXPECT_EQ(count(c.state), 1u);
    take();
    return conn;
  }
};

TEST_P(StackResets, a_reset_from_the_client_ends_it_at_once) {
  Peer peer;
  const ConnIndex conn = bring(peer);
  send(peer, kTcpRst);
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kResetByPeer);
  EXPECT_EQ(count(GetParam().state), 0u);
  EXPECT_TRUE(take().empty());
}

TEST_P(StackResets, a_reset_beside_the_expected_number_is_challenged) {
  Peer peer;
  const ConnIndex conn = bring(peer);
  peer.snd += 100;
  send(peer, kTcpRst);
  EXPECT_FALSE(recorder_.conns[conn].closed);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.flags, kTcpAck);
  EXPECT_EQ(sent[0].tcp.ack, peer.snd - 100);
}

TEST_P(StackResets, abort_sends_a_reset_and_reports_before_it_returns) {
  Peer peer;
  const ConnIndex conn = bring(peer);
  stack_->abort(conn);
  EXPECT_TRUE(recorder_.conns[conn].closed);
  EXPECT_EQ(recorder_.conns[conn].reason, EndReason::kAborted);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_TRUE(sent[0].has(kTcpRst));
}

TEST_P(StackResets, a_syn_in_the_middle_is_challenged_and_changes_nothing) {
  Peer peer;
  const ConnIndex conn = bring(peer);
  Segment syn{.flags = kTcpSyn, .seq = peer.snd + 5};
  syn.options = syn_options(200, 3);
  deliver(peer.self, peer.other, syn);
  EXPECT_EQ(stack_->state(conn), GetParam().state);
  EXPECT_EQ(stack_->info(conn).mss_bytes, 1460u);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.flags, kTcpAck);
}

INSTANTIATE_TEST_SUITE_P(
    Synchronized, StackResets,
    ::testing::Values(ResetCase{"established", false, false, false, TcpState::kEstablished},
                      ResetCase{"fin_wait_1", false, true, false, TcpState::kFinWait1},
                      ResetCase{"fin_wait_2", false, true, true, TcpState::kFinWait2},
                      ResetCase{"close_wait", true, false, false, TcpState::kCloseWait},
                      ResetCase{"closing", true, true, false, TcpState::kClosing},
                      ResetCase{"last_ack", true, false, false, TcpState::kLastAck}),
    [](const auto& one) { return one.param.name; });

TEST_F(StackStates, a_reset_in_syn_received_is_never_reported) {
  Peer peer;
  ASSERT_TRUE(half_open(peer));
  send(peer, kTcpRst);
  EXPECT_EQ(count(TcpState::kSynReceived), 0u);
  EXPECT_EQ(stack_->open_connections(), 0u);
  EXPECT_EQ(recorder_.accepted + recorder_.closed, 0);
}

TEST_F(StackStates, a_repeated_syn_repeats_the_answer) {
  Peer peer;
  ASSERT_TRUE(half_open(peer));
  Segment again{.flags = kTcpSyn, .seq = peer.snd - 1};
  again.options = syn_options(300, 2);
  deliver(peer.self, peer.other, again);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].tcp.flags, kTcpSyn | kTcpAck);
  send(peer, kTcpAck);
  EXPECT_EQ(recorder_.accepted, 1);
  EXPECT_EQ(stack_->info(recorder_.last).mss_bytes, 1460u) << "the first SYN's options count";
}

TEST_F(StackStates, a_syn_with_ack_in_syn_received_establishes_nothing) {
  Peer peer;
  ASSERT_TRUE(half_open(peer));
  deliver(peer.self, peer.other,
          {.flags = kTcpSyn | kTcpAck, .seq = peer.snd - 1, .ack = peer.rcv});
  EXPECT_EQ(recorder_.accepted, 0);
  EXPECT_EQ(count(TcpState::kSynReceived), 1u);
}

TEST_F(StackStates, a_wrong_acknowledgement_in_syn_received_is_reset) {
  Peer peer;
  ASSERT_TRUE(half_open(peer));
  peer.rcv += 5;
  send(peer, kTcpAck);
  EXPECT_EQ(recorder_.accepted, 0);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_TRUE(sent[0].has(kTcpRst));
  EXPECT_EQ(sent[0].tcp.seq, peer.rcv);
}

TEST_F(StackStates, a_syn_received_that_is_never_acknowledged_goes_away) {
  Peer peer;
  ASSERT_TRUE(half_open(peer));
  advance_ms(25'000);
  EXPECT_EQ(stack_->open_connections(), 0u);
  EXPECT_EQ(recorder_.accepted + recorder_.closed, 0);
}

TEST_F(StackStates, a_refused_connection_is_reset_and_not_reported_again) {
  Peer peer;
  recorder_.accept = false;
  ASSERT_TRUE(half_open(peer));
  send(peer, kTcpAck);
  EXPECT_EQ(recorder_.accepted, 1);
  EXPECT_EQ(recorder_.closed, 0);
  const auto sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_TRUE(sent[0].has(kTcpRst));
  EXPECT_EQ(stack_->counters().resets_out, 1u);
  EXPECT_EQ(stack_->open_connections(), 0u);
}

TEST_F(StackStates, data_in_the_last_segment_of_the_handshake_is_received) {
  Peer peer;
  ASSERT_TRUE(half_open(peer));
  send(peer, kTcpAck | kTcpPsh, pattern(64));
  EXPECT_EQ(recorder_.conns[recorder_.last].received, pattern(64));
}

TEST_F(StackStates, a_fin_in_the_last_segment_of_the_handshake_leads_to_close_wait) {
  Peer peer;
  ASSERT_TRUE(half_open(peer));
  send(peer, kTcpAck | kTcpFin, pattern(64));
  EXPECT_TRUE(recorder_.conns[recorder_.last].fin);
  EXPECT_EQ(stack_->state(recorder_.last), TcpState::kCloseWait);
}

TEST_F(StackStates, closing_with_unread_bytes_resets) {
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

TEST_F(StackStates, bytes_that_arrive_after_close_are_answered_with_a_reset) {
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

TEST_F(StackStates, callbacks_may_end_the_connection_they_are_about) {
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

TEST_F(StackStates, a_callback_may_end_and_open_other_connections) {
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

TEST_F(StackStates, refused_payload_is_offered_again_and_stops_only_this_client) {
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

TEST_F(StackStates, a_fin_behind_refused_payload_waits_for_it) {
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

TEST_F(StackStates, refused_payload_survives_the_orderly_end_of_its_connection) {
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

TEST_F(StackStates, a_connection_that_waits_for_its_refused_payload_can_be_ended) {
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

TEST_F(StackStates, removing_a_listener_resets_half_open_and_keeps_established) {
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

TEST_F(StackStates, an_exact_listener_wins_over_any_address_and_ipv6_is_its_own) {
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

TEST_F(StackStates, every_open_connection_is_listed_and_time_wait_without_an_index) {
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

TEST_F(StackStates, an_index_is_not_reused_while_others_wait_longer) {
  Peer peer;
  const ConnIndex first = open(peer);
  stack_->abort(first);
  take();
  peer.self.port = 40001;
  const ConnIndex second = open(peer);
  EXPECT_NE(first, second);
}

}  // namespace
}  // namespace sanproxy::stack::testing
