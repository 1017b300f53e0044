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

}  // namespace
}  // namespace sanproxy::stack::testing
