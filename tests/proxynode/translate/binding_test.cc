// Who gets a connection, when it hears of it, and what it is told.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

using BindingOfConnections = World;

TEST_F(BindingOfConnections, DelayedANodeHearsOfAConnectionWithItsFirstBytesInOneTransfer) {
  make();
  Node& node = add_member();
  Client& client = add_client();
  EXPECT_TRUE(client.connected);
  EXPECT_TRUE(node.order.empty()) << "an idle client costs the application nothing";
  const std::uint64_t before = node.channel().counters().transfers_in;
  client.send(bytes_of("GET /"));
  run();
  ASSERT_EQ(node.order.size(), 1u);
  EXPECT_EQ(node.channel().counters().transfers_in, before + 1);
  EXPECT_EQ(text_of(node.conns[node.order[0]].received), "GET /");
}

TEST_F(BindingOfConnections, DelayedAClientThatLeavesWithoutAWordIsNobodysBusiness) {
  make();
  Node& node = add_member();
  Client& client = add_client();
  client.shut();
  run();
  EXPECT_TRUE(client.finished());
  EXPECT_FALSE(client.reset);
  Client& rude = add_client();
  rude.send_reset();
  run();
  EXPECT_TRUE(node.order.empty());
  EXPECT_EQ(translator_->bound_streams(), 0u);
  EXPECT_EQ(node.channel().counters().messages_in, 1u) << "the answer to JOIN";
}

TEST_F(BindingOfConnections, ImmediateANodeHearsOfAConnectionAtOnceAndMaySpeakFirst) {
  make();
  Node& node = add_member({}, wire::kFlagImmediate);
  Client& client = add_client();
  ASSERT_EQ(node.order.size(), 1u);
  node.send(node.order[0], bytes_of("220 ready"));
  run();
  EXPECT_EQ(text_of(client.received), "220 ready");
}

TEST_F(BindingOfConnections, ThePolicyDecidesAgainstTheJoin) {
  WorldOptions options;
  options.policies = {
      {.address = *SocketAddress::parse("10.77.0.10:25"), .binding = service::Binding::kImmediate},
      {.address = *SocketAddress::parse(kWeb), .binding = service::Binding::kDelayed}};
  make(options);
  Node& node = add_member({}, wire::kFlagImmediate);
  node.join("10.77.0.10:25");
  run();
  (void)add_client(kWeb);
  EXPECT_TRUE(node.order.empty());
  (void)add_client("10.77.0.10:25");
  EXPECT_EQ(node.order.size(), 1u);
}

TEST_F(BindingOfConnections, TheRequestSaysWhatIsNeededToRebuildTheEndpoint) {
  make();
  Node& node = add_member({.window_bytes = 100'000});
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  const wire::ConnectionRequestBody& request = node.conns[id].request;
  EXPECT_EQ(request.connection, id);
  EXPECT_EQ(id >> 48, 0xbeefu);
  EXPECT_EQ(request.service, node.answers[0].join.service);
  EXPECT_EQ(request.request, 0u);
  EXPECT_EQ(*wire::from_wire(request.client), client->self);
  EXPECT_EQ(*wire::from_wire(request.local), client->other);
  EXPECT_EQ(request.initial_seq_remote, 0xffff'f000u);
  EXPECT_EQ(request.initial_seq_local + 1, client->next_expected());
  EXPECT_EQ(request.mss_bytes, 1460);
  EXPECT_EQ(request.window_scale_remote, 7);
  EXPECT_EQ(request.tcp_options, wire::kTcpOptionScaling);
  EXPECT_EQ(request.send_window_bytes, 256u * 1024);
}

TEST_F(BindingOfConnections, ConnectionsAreSharedAmongMembers) {
  make();
  Node& a = add_member({.name = "a"});
  Node& b = add_member({.name = "b"});
  for (int i = 0; i < 10; ++i) add_client().send(bytes_of("x"));
  run();
  EXPECT_EQ(a.order.size(), 5u);
  EXPECT_EQ(b.order.size(), 5u);
}

TEST_F(BindingOfConnections, WeightsAreThoseOfTheJoins) {
  WorldOptions options;
  options.policies = {
      {.address = *SocketAddress::parse(kWeb), .balance = service::Balance::kWeighted}};
  make(options);
  Node& a = add_node({.name = "a"});
  Node& b = add_node({.name = "b"});
  a.join(kWeb, 0, 3);
  b.join(kWeb, 0, 1);
  run();
  for (int i = 0; i < 12; ++i) add_client().send(bytes_of("x"));
  run();
  EXPECT_EQ(a.order.size(), 9u);
  EXPECT_EQ(b.order.size(), 3u);
}

TEST_F(BindingOfConnections, BeyondConnectionsMaxTheClientIsResetAndCounted) {
  make();
  Node& node = add_node();
  node.join(kWeb, 0, 1, 2);
  run();
  std::vector<Client*> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(&add_client());
    clients.back()->send(bytes_of("x"));
    run();
  }
  EXPECT_FALSE(clients[0]->reset);
  EXPECT_FALSE(clients[1]->reset);
  EXPECT_TRUE(clients[2]->reset);
  EXPECT_EQ(counters().unserved, 1u);
  clients[0]->send_reset();
  run();
  Client& next = add_client();
  next.send(bytes_of("x"));
  run();
  EXPECT_FALSE(next.reset) << "a place is free again";
}

TEST_F(BindingOfConnections, ANodesStreamsMaxIsKept) {
  make();
  Node& small = add_member({.name = "small", .streams_max = 1});
  Node& large = add_member({.name = "large"});
  for (int i = 0; i < 6; ++i) {
    add_client().send(bytes_of("x"));
    run();
  }
  EXPECT_EQ(small.order.size(), 1u);
  EXPECT_EQ(large.order.size(), 5u);
}

TEST_F(BindingOfConnections, ImmediateWithNobodyToTakeItTheHandshakeEndsInAReset) {
  make();
  Node& node = add_node({.streams_max = 1});
  node.join(kWeb, wire::kFlagImmediate);
  run();
  EXPECT_FALSE(add_client().reset);
  EXPECT_TRUE(add_client().reset);
  EXPECT_EQ(counters().unserved, 1u);
}

TEST_F(BindingOfConnections, ANodeShortOfCreditsIsPassedOverForAnother) {
  make();
  Node& slow = add_member({.name = "slow", .credits = 8, .reserve = 2});
  Node& quick = add_member({.name = "quick"});
  slow.stopped = true;
  for (int i = 0; i < 30; ++i) {
    add_client().send(bytes_of("x"));
    run();
  }
  EXPECT_GE(quick.order.size(), 24u);
  slow.stopped = false;
  run();
  EXPECT_EQ(slow.order.size() + quick.order.size(), 30u) << "nobody was lost";
}

TEST_F(BindingOfConnections, ARejectedClientIsResetAndItsEarlyDataDropped) {
  make();
  Node& node = add_member();
  node.accept = false;
  node.free = false;
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  EXPECT_FALSE(client->reset);
  node.reject_connection(id);
  run();
  EXPECT_TRUE(client->reset);
  EXPECT_EQ(counters().rejects, 1u);
  EXPECT_TRUE(node.conns[id].closes.empty()) << "a terminal message is not answered";
}

TEST_F(BindingOfConnections, BytesAndTheFinFlowBeforeTheAccept) {
  make();
  Node& node = add_member();
  node.accept = false;
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->send(pattern(50'000));
  client->shut();
  run();
  EXPECT_EQ(node.conns[id].received.size(), 50'005u);
  EXPECT_EQ(node.conns[id].closes, (std::vector{CloseCode::kFin}));
  EXPECT_EQ(node.conns[id].close_offset, 50'005u);
  node.accept_connection(id);
  node.send(id, bytes_of("late"));
  node.close(id);
  run();
  EXPECT_EQ(text_of(client->received), "late");
  EXPECT_TRUE(client->finished());
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_F(BindingOfConnections, IdsNeverComeBack) {
  WorldOptions options;
  options.translator.connections_max = options.stack.connections_max = 4;
  options.stack.time_wait_max = 0;
  make(options);
  Node& node = add_member();
  std::vector<std::uint64_t> ids;
  for (int i = 0; i < 50; ++i) {
    Client* client = nullptr;
    ids.push_back(open(client, node));
    client->send_reset();
    run();
  }
  std::sort(ids.begin(), ids.end());
  EXPECT_EQ(std::unique(ids.begin(), ids.end()), ids.end());
  EXPECT_LT(wire::connection_index(ids.back()), 4u);
}

}  // namespace
}  // namespace sanproxy::translate::testing
