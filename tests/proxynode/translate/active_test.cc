// Connections that an application node wants to open itself.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

class Outgoing : public World {
 protected:
  static constexpr const char* kRemote = "10.77.0.1:443";
  // The server that a SYN is for; answers it.
  Client& server_for_syn() {
    EXPECT_EQ(strays_.size(), 1u);
    clients_.emplace_back();
    Client& server = clients_.back();
    EXPECT_TRUE(strays_.front().has(kTcpSyn));
    server.take_syn(strays_.front());
    strays_.clear();
    return server;
  }
  CloseCode refusal(Node& node, std::uint32_t request) {
    run();
    if (node.answers.empty()) return CloseCode::kNone;
    const wire::Message& last = node.answers.back();
    EXPECT_EQ(last.type, MessageType::kRejectConnection);
    EXPECT_EQ(last.reject.request, request);
    EXPECT_EQ(last.reject.connection, 0u);
    return last.code;
  }
};

TEST_F(Outgoing, AnEstablishedOneIsAcceptedWithItsEndpointAndMovesBytes) {
  make();
  Node& node = add_member();
  const std::uint32_t request = node.connect(kRemote);
  run();
  EXPECT_TRUE(node.order.empty()) << "the SYN is out, nothing more";
  Client& server = server_for_syn();
  EXPECT_EQ(server.other.ip, SocketAddress::parse(kWeb)->ip) << "the address that it serves";
  run();
  ASSERT_EQ(node.order.size(), 1u);
  const std::uint64_t id = node.order[0];
  const wire::AcceptConnectionBody& accept = node.conns[id].accept;
  EXPECT_EQ(accept.request, request);
  EXPECT_EQ(accept.send_window_bytes, 256u * 1024);
  EXPECT_EQ(*wire::from_wire(accept.local), server.other);
  EXPECT_EQ(accept.initial_seq_local + 1, server.next_expected());
  EXPECT_EQ(accept.initial_seq_remote, 0xffff'f000u);
  EXPECT_EQ(accept.mss_bytes, 1460);
  const Bytes up = pattern(300'000), down = pattern(400'000, 7);
  node.send(id, up);
  server.send(down);
  run();
  EXPECT_TRUE(server.received == up);
  EXPECT_TRUE(node.conns[id].received == down);
  node.close(id);
  server.shut();
  run();
  EXPECT_TRUE(server.finished());
  EXPECT_EQ(node.conns[id].closes, (std::vector{CloseCode::kFin}));
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_F(Outgoing, AServerThatSpeaksFirstIsHeardBehindTheAccept) {
  make();
  Node& node = add_member();
  node.connect(kRemote);
  run();
  Client& server = server_for_syn();
  server.send(bytes_of("220 hello"));
  run();
  ASSERT_EQ(node.order.size(), 1u);
  EXPECT_EQ(text_of(node.conns[node.order[0]].received), "220 hello");
  EXPECT_EQ(node.story.end()[-2], "ACCEPT_CONNECTION");
  EXPECT_EQ(node.story.end()[-1], "DATA");
}

TEST_F(Outgoing, AResetIsRefused) {
  make();
  Node& node = add_member();
  const std::uint32_t request = node.connect(kRemote);
  run();
  ASSERT_EQ(strays_.size(), 1u);
  const Sent syn = strays_.front();
  deliver(syn.dst, syn.src, {.flags = kTcpRst | kTcpAck, .ack = syn.tcp.seq + 1});
  EXPECT_EQ(refusal(node, request), CloseCode::kRefused);
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_F(Outgoing, SilenceIsTimedOut) {
  make();
  Node& node = add_member();
  const std::uint32_t request = node.connect(kRemote);
  for (int i = 0; i < 4000 && node.answers.size() < 2; ++i) {
    clock_.advance_ns(40'000'000);
    run();
  }
  EXPECT_EQ(refusal(node, request), CloseCode::kTimedOut);
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_F(Outgoing, S17_AnotherWindowThanThatOfHelloIsProtocolError) {
  make();
  Node& node = add_member();
  for (const std::uint32_t window : {1u, 512u * 1024 + 1}) {
    wire::ConnectionRequestBody body{};
    body.request = window;
    body.client = wire::to_wire(*SocketAddress::parse(kRemote));
    body.send_window_bytes = window;
    node.connect(body);
    EXPECT_EQ(refusal(node, window), CloseCode::kProtocolError);
  }
  EXPECT_TRUE(node.alive());
  EXPECT_TRUE(strays_.empty());
}

TEST_F(Outgoing, S18_OnBehalfOfAServiceThatItHasNotJoinedIsNotPermitted) {
  make();
  Node& node = add_member({.name = "a"});
  Node& other = add_node({.name = "b"});
  other.join("10.77.0.20:80");
  run();
  const std::uint32_t theirs = other.answers[0].join.service;
  EXPECT_EQ(refusal(node, node.connect(kRemote, "", theirs)), CloseCode::kNotPermitted);
  EXPECT_EQ(refusal(node, node.connect(kRemote, "", 99)), CloseCode::kNotPermitted);
  node.connect(kRemote, "", node.answers[0].join.service);
  run();
  EXPECT_EQ(strays_.size(), 1u);
  (void)server_for_syn();
}

TEST_F(Outgoing, S18_ToAnAddressThatNoHostHasIsUnreachable) {
  make();
  Node& node = add_member();
  Node& six = add_node({.name = "six"});
  six.join("[fd77::10]:80");
  run();
  for (const char* remote : {"255.255.255.255:80", "224.0.0.1:80", "240.0.0.1:80", "0.0.0.1:80"}) {
    EXPECT_EQ(refusal(node, node.connect(remote)), CloseCode::kUnreachable) << remote;
  }
  EXPECT_EQ(refusal(six, six.connect("[ff02::1]:80")), CloseCode::kUnreachable);
  EXPECT_TRUE(strays_.empty()) << "nobody was sent a SYN";
}

TEST_F(Outgoing, S18_FromAnAddressThatItDoesNotServeIsNotPermitted) {
  make();
  Node& node = add_member({.name = "a"});
  Node& other = add_node({.name = "b"});
  other.join("10.77.0.20:80");
  run();
  EXPECT_EQ(refusal(node, node.connect(kRemote, "10.77.0.20:0")), CloseCode::kNotPermitted);
  EXPECT_EQ(refusal(node, node.connect(kRemote, "10.77.0.99:5000")), CloseCode::kNotPermitted);
  node.connect(kRemote, "10.77.0.10:5000");
  run();
  ASSERT_EQ(strays_.size(), 1u);
  EXPECT_EQ(strays_.front().src, *SocketAddress::parse("10.77.0.10:5000"));
  (void)server_for_syn();
}

TEST_F(Outgoing, S18_EveryAddressIsNoneThatItServes) {
  make();
  Node& every = add_node({.name = "every"});
  every.join("0.0.0.0:8080");
  Node& other = add_node({.name = "b"});
  other.join("10.77.0.20:80");
  run();
  EXPECT_EQ(refusal(every, every.connect(kRemote, "0.0.0.0:0")), CloseCode::kNotPermitted);
  EXPECT_EQ(refusal(every, every.connect(kRemote, "0.0.0.0:5000")), CloseCode::kNotPermitted);
  EXPECT_EQ(refusal(every, every.connect(kRemote)), CloseCode::kUnreachable);
  EXPECT_TRUE(strays_.empty()) << "not from the other node's address either";
}

TEST_F(Outgoing, S18_WherePolicyForbidsItIsNotPermitted) {
  WorldOptions options;
  options.translator.outgoing = false;
  make(options);
  Node& node = add_member();
  EXPECT_EQ(refusal(node, node.connect(kRemote)), CloseCode::kNotPermitted);
}

TEST_F(Outgoing, S18_BeyondALimitIsLimitReached) {
  WorldOptions options;
  options.translator.connections_max = options.stack.connections_max = 3;
  make(options);
  Node& node = add_member({.streams_max = 2});
  node.connect(kRemote);
  node.connect(kRemote);
  run();
  EXPECT_EQ(node.answers.size(), 1u);
  EXPECT_EQ(refusal(node, node.connect(kRemote)), CloseCode::kLimitReached) << "its streams_max";
  Node& other = add_node({.name = "b"});
  other.join("10.77.0.20:80");
  other.connect(kRemote);
  EXPECT_EQ(refusal(other, other.connect(kRemote)), CloseCode::kLimitReached) << "the proxy's";
  EXPECT_EQ(strays_.size(), 3u);
  node.die();  // with attempts under way, which end with it
  other.die();
  run();
}

TEST_F(Outgoing, WithoutAnAddressOfThatFamilyIsUnreachable) {
  make();
  Node& homeless = add_node({.name = "homeless"});
  EXPECT_EQ(refusal(homeless, homeless.connect(kRemote)), CloseCode::kUnreachable);
  Node& node = add_member();
  EXPECT_EQ(refusal(node, node.connect("[fd77::1]:443")), CloseCode::kUnreachable);
}

TEST_F(Outgoing, OverIpv6) {
  make();
  Node& node = add_node();
  node.join("[fd77::10]:80");
  node.connect("[fd77::1]:443");
  run();
  Client& server = server_for_syn();
  run();
  ASSERT_EQ(node.order.size(), 1u);
  server.send(bytes_of("six"));
  run();
  EXPECT_EQ(text_of(node.conns[node.order[0]].received), "six");
}

TEST_F(Outgoing, AnAddressInUseIsSaid) {
  make();
  Node& node = add_member();
  node.connect(kRemote, "10.77.0.10:5000");
  run();
  EXPECT_EQ(refusal(node, node.connect(kRemote, "10.77.0.10:5000")), CloseCode::kAddressInUse);
  (void)server_for_syn();
}

TEST_F(Outgoing, S4_AnActiveOneIsNotTheApplicationsToAcceptOrReject) {
  make();
  Node& node = add_member();
  for (const bool accept : {true, false}) {
    node.connect(kRemote);
    run();
    Client& server = server_for_syn();
    run();
    const std::uint64_t id = node.order.back();
    if (accept) {
      node.accept_connection(id);
    } else {
      node.reject_connection(id);
    }
    run();
    EXPECT_TRUE(server.reset);
    EXPECT_EQ(node.conns[id].closes, (std::vector{CloseCode::kProtocolError}));
    EXPECT_TRUE(node.alive());
  }
}

TEST_F(Outgoing, S1_AnIdIsNobodysBeforeItsAccept) {
  make();
  Node& node = add_member();
  node.connect(kRemote);
  run();
  node.raw_close(wire::make_connection_id(0xbeef, 1, 0), CloseCode::kReset, 0);
  run();
  EXPECT_EQ(node.code, CloseCode::kNotFound);
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

}  // namespace
}  // namespace sanproxy::translate::testing
