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

// RFC 6298 5.5, RFC 9293 3.8.3 (MUST-23).
TEST_F(StackStates, connect_that_nobody_answers_asks_ever_more_seldom_and_times_out) {
  Peer peer;
  const auto conn = stack_->connect(peer.self, *SocketAddress::parse("10.77.0.10:0"));
  ASSERT_TRUE(conn.ok());
  std::vector<std::uint64_t> seconds;
  std::uint64_t ms = 0;
  for (; ms < 200'000 && !recorder_.conns[*conn].closed; ms += 20) {
    for (const Sent& packet : take()) {
      EXPECT_EQ(packet.tcp.flags, kTcpSyn);
      seconds.push_back((ms + 500) / 1000);
    }
    advance_ms(20);
  }
  EXPECT_EQ(seconds, (std::vector<std::uint64_t>{0, 1, 3, 7, 15, 31, 63}));
  EXPECT_EQ((ms + 500) / 1000, 127u);
  EXPECT_EQ(recorder_.conns[*conn].reason, EndReason::kTimedOut);
  EXPECT_TRUE(take().empty());
}

TEST_F(StackStates, what_a_lost_syn_took_does_not_hold_up_the_first_data) {
  Peer peer;
  const auto conn = stack_->connect(peer.self, *SocketAddress::parse("10.77.0.10:0"));
  ASSERT_TRUE(conn.ok());
  advance_ms(16'000);
  auto sent = take();
  ASSERT_EQ(sent.size(), 5u);
  peer.other = sent[0].src;
  peer.rcv = sent[0].tcp.seq + 1;
  Segment answer = peer.segment(kTcpSyn | kTcpAck);
  answer.options = syn_options();
  deliver(peer.self, peer.other, answer);
  peer.snd += 1;
  ASSERT_EQ(stack_->state(*conn), TcpState::kEstablished);
  take();
  ASSERT_TRUE(stack_->write(*conn, as_span(pattern(10)), WriteMode::kCopy).ok());
  ASSERT_EQ(take().size(), 1u);  // lost
  advance_ms(1'100);
  sent = take();
  ASSERT_EQ(sent.size(), 1u);
  EXPECT_EQ(sent[0].payload_bytes(), 10u);
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

}  // namespace
}  // namespace sanproxy::stack::testing
