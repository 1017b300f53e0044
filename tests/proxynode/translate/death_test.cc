// An application node dies, with connections in every state.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

struct Fabric {
  const char* name;
  bool shm, lend;
};

class NodeDeath : public World, public ::testing::WithParamInterface<Fabric> {
 protected:
  void make_with(WorldOptions options = {}) {
    options.shm = GetParam().shm;
    options.lend_ingress = GetParam().lend;
    make(options);
  }
  // A node whose channel the proxy ends while a network node reads what it has sent.
  struct Closed {
    Node* node = nullptr;
    Client* client = nullptr;
    fabric::LentMemory::Lend read = {};
  };
  Closed close_while_read(std::uint32_t lent_ms_max) {
    WorldOptions options;
    options.translator.lent = &lent_;
    options.translator.lent_ms_max = lent_ms_max;
    make_with(options);
    Closed out;
    out.node = &add_member();
    const std::uint64_t id = open(out.client, *out.node);
    out.read = lent_.begin();
    out.node->send(id, pattern(200'000));
    run();
    translator_->close_all_channels(wire::CloseCode::kTimedOut, "it is slow");
    return out;
  }
  fabric::LentMemory lent_{1};
};

TEST_P(NodeDeath, ItsConnectionsAreResetItsServiceIsClosedAndOthersGoOn) {
  make_with();
  Node& dying = add_member({.name = "dying"});
  Client* client = nullptr;
  (void)open(client, dying);
  Node& other = add_node({.name = "other"});
  other.join("10.77.0.20:80");
  run();
  Client& safe = add_client("10.77.0.20:80");
  safe.send(bytes_of("x"));
  run();
  Client& idle = add_client();  // unbound
  dying.die();
  run();
  EXPECT_TRUE(client->reset);
  EXPECT_EQ(counters().closed_node_died, 1u);
  EXPECT_EQ(node_in_proxy("dying"), nullptr);
  EXPECT_EQ(closed_.size(), 1u);
  EXPECT_TRUE(add_client().reset) << "nobody serves it any more";
  EXPECT_FALSE(idle.reset);
  idle.send(bytes_of("x"));
  run();
  EXPECT_TRUE(idle.reset);
  EXPECT_FALSE(safe.reset);
  other.send(other.order[0], bytes_of("alive"));
  run();
  EXPECT_EQ(text_of(safe.received), "alive");
}

TEST_P(NodeDeath, AnotherMemberTakesWhatComesNext) {
  make_with();
  Node& a = add_member({.name = "a"});
  Node& b = add_member({.name = "b"});
  Client& waiting = add_client();
  a.die();
  run();
  waiting.send(bytes_of("x"));
  add_client().send(bytes_of("y"));
  run();
  EXPECT_EQ(b.order.size(), 2u);
  EXPECT_FALSE(waiting.reset);
  EXPECT_TRUE(closed_.empty());
}

TEST_P(NodeDeath, BeforeTheAcceptIsAReset) {
  make_with();
  Node& node = add_member();
  node.accept = false;
  Client* client = nullptr;
  (void)open(client, node);
  node.die();
  run();
  EXPECT_TRUE(client->reset);
}

TEST_P(NodeDeath, BeforeItHasEvenReadTheRequestIsAReset) {
  make_with();
  Node& node = add_member();
  node.stopped = true;
  Client& client = add_client();
  client.send(pattern(30'000));
  run();
  EXPECT_FALSE(client.reset);
  node.die();
  run();
  EXPECT_TRUE(client.reset);
  EXPECT_EQ(ingress_->free_count(), ingress_->slot_count());
}

TEST_P(NodeDeath, InTheMiddleOfAnUploadGivesEveryBufferBack) {
  make_with();
  Node& node = add_member();
  node.hold = true;
  node.free = false;
  Client* client = nullptr;
  (void)open(client, node);
  client->segment_bytes = 30'000;
  client->send(pattern(1'000'000));
  run();
  EXPECT_GT(node.held(), 0u);
  node.die();
  run();
  EXPECT_TRUE(client->reset);
  expect_nothing_held();
}

TEST_P(NodeDeath, InTheMiddleOfADownloadIsAReset) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->acknowledge = false;
  node.send(id, pattern(1'000'000));
  run();
  EXPECT_GT(translator_->records_used(), 0u);
  node.die();
  run();
  EXPECT_TRUE(client->reset);
  expect_nothing_held();
}

TEST_P(NodeDeath, WhatANetworkNodeStillReadsOutlivesItsConnection) {
  WorldOptions options;
  options.translator.lent = &lent_;
  make_with(options);
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  const fabric::LentMemory::Lend first = lent_.begin();  // an interface has passed something on
  node.send(id, pattern(200'000));
  run();
  EXPECT_EQ(client->received.size(), 200'000u);
  EXPECT_GT(node.cookies_out(), 0u) << "the client has all, but a network node may still read it";
  const fabric::LentMemory::Lend second = lent_.begin();
  lent_.end(first);
  run();
  EXPECT_EQ(node.cookies_out(), 0u) << "nothing was acknowledged after the second";
  node.send(id, pattern(100'000));
  run();
  EXPECT_GT(node.cookies_out(), 0u);
  node.die();
  run();
  EXPECT_TRUE(client->reset);
  EXPECT_NE(node_in_proxy("node"), nullptr) << "its memory is still read from";
  lent_.end(second);
  run();
  EXPECT_EQ(node_in_proxy("node"), nullptr);
  expect_nothing_held();
}

TEST_P(NodeDeath, WhoseChannelTheProxyEndsLearnsItWhenNobodyReadsItsMemory) {
  const auto [node, client, read] = close_while_read(1'000);
  run();
  EXPECT_TRUE(client->reset) << "clients need not wait";
  EXPECT_EQ(node->closed, 0) << "it would write to its memory";
  EXPECT_TRUE(translator_->holds_ends());
  lent_.end(read);
  run();
  EXPECT_EQ(node->closed, 1);
  EXPECT_EQ(node->code, wire::CloseCode::kTimedOut);
  EXPECT_FALSE(translator_->holds_ends());
  EXPECT_EQ(node_in_proxy("node"), nullptr);
  expect_nothing_held();
}

TEST_P(NodeDeath, WhoseMemoryIsReadForeverLearnsItsEndAllTheSame) {
  const auto [node, client, read] = close_while_read(500);
  run_ms(400);
  EXPECT_EQ(node->closed, 0);
  EXPECT_LE(translator_->next_timer_ns(), clock_.now_ns() + 120'000'000) << "it sleeps no longer";
  run_ms(200);
  EXPECT_EQ(node->closed, 1);
  EXPECT_NE(node_in_proxy("node"), nullptr) << "what is lent is not forgotten";
  lent_.end(read);
  run();
  EXPECT_EQ(node_in_proxy("node"), nullptr);
}

TEST_P(NodeDeath, BehindItsHalfCloseIsAReset) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  node.send(id, bytes_of("bye"));
  node.close(id);
  run();
  EXPECT_TRUE(client->fin);
  node.die();
  run();
  EXPECT_TRUE(client->reset);
}

TEST_P(NodeDeath, BehindTheClientsHalfCloseIsAReset) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  (void)open(client, node);
  client->shut();
  run();
  node.die();
  run();
  EXPECT_TRUE(client->reset);
}

TEST_P(NodeDeath, WhatItHadClosedInOrderIsFinishedFromItsMemory) {
  make_with();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->acknowledge = false;
  const Bytes bytes = pattern(250'000);
  node.send(id, bytes);
  node.close(id, CloseCode::kFinBoth);
  run();
  node.die();
  run();
  EXPECT_FALSE(client->reset);
  EXPECT_EQ(translator_->bound_streams(), 1u);
  client->acknowledge = true;
  run_ms(5000);
  EXPECT_TRUE(client->received == bytes);
  EXPECT_TRUE(client->fin);
  EXPECT_FALSE(client->reset);
  client->shut();
  run();
  EXPECT_TRUE(client->finished());
  EXPECT_EQ(node_in_proxy("node"), nullptr);
}

TEST_P(NodeDeath, WhatItHadClosedInOrderIsHeldForNoClientThatTakesNothing) {
  WorldOptions options;
  options.stack.orphan_ms = 2'000;
  make_with(options);
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->acknowledge = false;
  client->window = 0;
  client->shut();
  run();
  node.send(id, pattern(100'000));
  node.close(id);
  run();
  node.die();
  run();
  EXPECT_NE(node_in_proxy("node"), nullptr) << "its memory is what the client is to get";
  for (int i = 0; i < 30; ++i) {
    run_ms(200);
    if (!client->reset) client->acknowledge_now();  // as a living one answers probes
  }
  EXPECT_TRUE(client->reset);
  EXPECT_EQ(node_in_proxy("node"), nullptr);
  expect_nothing_held();
}

TEST_P(NodeDeath, WhileItConnectsIsTheEndOfTheAttempt) {
  make_with();
  Node& node = add_member();
  node.connect("10.77.0.1:443");
  run();
  ASSERT_EQ(strays_.size(), 1u);
  node.die();
  run();
  EXPECT_EQ(translator_->bound_streams(), 0u);
  EXPECT_EQ(stack_->open_connections(), 0u);
}

TEST_P(NodeDeath, ItsPlaceIsTakenByTheNext) {
  WorldOptions options;
  options.translator.nodes_max = 2;
  make_with(options);
  for (int i = 0; i < 20; ++i) {
    Node& node = add_member({.name = "n" + std::to_string(i)});
    Client* client = nullptr;
    (void)open(client, node);
    node.die();
    run();
    EXPECT_TRUE(client->reset);
  }
  EXPECT_EQ(counters().channels_opened, 20u);
  EXPECT_EQ(counters().channels_closed, 20u);
  EXPECT_EQ(counters().channels_breached, 0u);
}

INSTANTIATE_TEST_SUITE_P(Fabric, NodeDeath,
                         ::testing::Values(Fabric{"Isolated", false, false},
                                           Fabric{"Lent", false, true},
                                           Fabric{"IsolatedShm", true, false},
                                           Fabric{"LentShm", true, true}),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace sanproxy::translate::testing
