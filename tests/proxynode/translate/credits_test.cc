// The proxy has no credit left for a node: whatever it has to say waits, in order, and is said
// later.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

// Few credits, and a node that may be stopped.
NodeOptions poor() { return {.name = "poor", .credits = 8, .reserve = 2}; }

// Uses up what the proxy may send to `node`, by transfers of a connection that it has.
void use_up_credits(Node& node, const std::function<void()>& send_one) {
  node.stopped = true;
  for (int i = 0; i < 20; ++i) send_one();
}

class OutOfCredits : public World, public ::testing::WithParamInterface<bool> {
 protected:
  void start(WorldOptions options = {}) {
    options.lend_ingress = GetParam();
    make(options);
    node_ = &add_member(poor());
    filler_id_ = open(filler_, *node_);
    use_up_credits(*node_, [this] {
      filler_->send(bytes_of("."));
      run();
    });
    ASSERT_FALSE(proxy_side().channel->data_writable());
  }
  const AppNode& proxy_side() { return *node_in_proxy("poor"); }
  void resume() {
    node_->stopped = false;
    run();
    EXPECT_EQ(node_->conns[filler_id_].received.size(), 25u);
    EXPECT_TRUE(node_->alive());
    EXPECT_EQ(proxy_side().blocked_head, kNone);
  }

  Node* node_ = nullptr;
  Client* filler_ = nullptr;
  std::uint64_t filler_id_ = 0;
};

TEST_P(OutOfCredits, ARequestWaitsWithItsData) {
  start();
  Client& client = add_client();
  client.send(pattern(20'000));
  run();
  EXPECT_EQ(node_->order.size(), 1u);
  resume();
  ASSERT_EQ(node_->order.size(), 2u);
  EXPECT_TRUE(node_->conns[node_->order[1]].received == pattern(20'000));
}

TEST_P(OutOfCredits, DataAndFinWaitInOrder) {
  start();
  Client& client = add_client();
  client.send(bytes_of("first "));
  run();
  client.send(pattern(40'000));
  client.shut();
  run();
  resume();
  const std::uint64_t id = node_->order.at(1);
  EXPECT_EQ(node_->conns[id].received.size(), 40'006u);
  EXPECT_EQ(node_->conns[id].closes, (std::vector{CloseCode::kFin}));
}

TEST_P(OutOfCredits, AClientThatGivesUpBeforeItsRequestLeftIsForgotten) {
  start();
  Client& client = add_client();
  client.send(bytes_of("never mind"));
  run();
  client.send_reset();
  run();
  resume();
  EXPECT_EQ(node_->order.size(), 1u) << "the application never hears of it";
}

TEST_P(OutOfCredits, TheEndOfAKnownConnectionWaitsAndIsTold) {
  WorldOptions options;
  options.lend_ingress = GetParam();
  make(options);
  node_ = &add_member(poor());
  filler_id_ = open(filler_, *node_);
  std::vector<Client*> clients(5);
  std::vector<std::uint64_t> ids;
  for (Client*& client : clients) ids.push_back(open(client, *node_));
  use_up_credits(*node_, [this] {
    filler_->send(bytes_of("."));
    run();
  });
  for (Client* client : clients) {
    client->send_reset();
    run();
  }
  EXPECT_EQ(proxy_side().owed.size(), 5u);
  resume();
  EXPECT_TRUE(proxy_side().owed.empty());
  for (const std::uint64_t id : ids) {
    EXPECT_EQ(node_->conns[id].closes, (std::vector{CloseCode::kReset}));
  }
}

TEST_P(OutOfCredits, BytesTheClientSentBeforeItFinishedBothWaysAreNotLost) {
  WorldOptions options;
  options.lend_ingress = GetParam();
  make(options);
  node_ = &add_member(poor());
  filler_id_ = open(filler_, *node_);
  Client* client = nullptr;
  const std::uint64_t id = open(client, *node_);
  node_->send(id, bytes_of("bye"));
  node_->close(id);
  run();
  EXPECT_TRUE(client->fin);
  use_up_credits(*node_, [this] {
    filler_->send(bytes_of("."));
    run();
  });
  client->send(pattern(30'000));
  client->shut();
  run();
  EXPECT_TRUE(client->finished()) << "TCP is over";
  resume();
  EXPECT_EQ(node_->conns[id].received.size(), 30'005u);
  EXPECT_EQ(node_->conns[id].closes, (std::vector{CloseCode::kFin}));
  EXPECT_EQ(node_->conns[id].close_offset, 30'005u);
}

TEST_P(OutOfCredits, WhoLingersForCreditsEndsWithItsNode) {
  WorldOptions options;
  options.lend_ingress = GetParam();
  make(options);
  node_ = &add_member(poor());
  filler_id_ = open(filler_, *node_);
  Client* client = nullptr;
  const std::uint64_t id = open(client, *node_);
  node_->close(id);
  run();
  use_up_credits(*node_, [this] {
    filler_->send(bytes_of("."));
    run();
  });
  client->send(pattern(30'000));
  client->shut();
  run();
  EXPECT_TRUE(client->finished());
  node_->die();
  run();
  expect_nothing_held();
}

TEST_P(OutOfCredits, WhoLingersMayBeAbortedByItsApplication) {
  WorldOptions options;
  options.lend_ingress = GetParam();
  make(options);
  node_ = &add_member({.name = "poor", .window_bytes = 1000});
  node_->free = false;
  Client* client = nullptr;
  const std::uint64_t id = open(client, *node_);
  node_->close(id);
  run();
  client->send(pattern(30'000));
  client->shut();
  run();
  EXPECT_TRUE(client->finished());
  EXPECT_EQ(node_->conns[id].received.size(), 1000u);
  EXPECT_EQ(translator_->bound_streams(), 1u);
  node_->close(id, CloseCode::kReset);
  run();
  EXPECT_EQ(translator_->bound_streams(), 0u);
  EXPECT_TRUE(node_->alive());
}

TEST_P(OutOfCredits, WhoLingersForItsWindowGetsEveryByte) {
  WorldOptions options;
  options.lend_ingress = GetParam();
  make(options);
  node_ = &add_member({.name = "poor", .window_bytes = 1000});
  node_->free = false;
  Client* client = nullptr;
  const std::uint64_t id = open(client, *node_);
  node_->close(id);
  run();
  client->send(pattern(30'000));
  client->shut();
  run();
  node_->free = true;
  node_->free_all(id);
  run();
  EXPECT_EQ(node_->conns[id].received.size(), 30'005u);
  EXPECT_EQ(node_->conns[id].closes, (std::vector{CloseCode::kFin}));
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_P(OutOfCredits, CreditsForTheApplicationWaitToo) {
  start();
  Client* client = nullptr;
  node_->stopped = false;
  run();
  const std::uint64_t id = open(client, *node_);
  client->acknowledge = false;
  node_->send(id, pattern(256 * 1024));
  run();
  use_up_credits(*node_, [this] {
    filler_->send(bytes_of("."));
    run();
  });
  client->acknowledge = true;
  run_ms(3000);
  EXPECT_EQ(node_->conns[id].freed, 0u);
  node_->stopped = false;
  run();
  EXPECT_GE(node_->conns[id].freed, 192u * 1024);
}

TEST_P(OutOfCredits, AnAcceptedOutgoingConnectionWaitsAndIsTold) {
  start();
  node_->stopped = false;
  run();
  const std::uint32_t request = node_->connect("10.77.0.1:443");
  run();
  use_up_credits(*node_, [this] {
    filler_->send(bytes_of("."));
    run();
  });
  ASSERT_EQ(strays_.size(), 1u);
  clients_.emplace_back();
  Client& server = clients_.back();
  server.take_syn(strays_.front());
  strays_.clear();
  server.send(bytes_of("220 hello"));
  run();
  EXPECT_EQ(node_->order.size(), 1u);
  node_->stopped = false;
  run();
  ASSERT_EQ(node_->order.size(), 2u);
  EXPECT_EQ(node_->conns[node_->order[1]].accept.request, request);
  EXPECT_EQ(text_of(node_->conns[node_->order[1]].received), "220 hello");
}

TEST_P(OutOfCredits, AnOutgoingConnectionThatEndsBeforeItsAcceptLeftIsRejected) {
  start();
  node_->stopped = false;
  run();
  const std::uint32_t request = node_->connect("10.77.0.1:443");
  run();
  use_up_credits(*node_, [this] {
    filler_->send(bytes_of("."));
    run();
  });
  ASSERT_EQ(strays_.size(), 1u);
  clients_.emplace_back();
  Client& server = clients_.back();
  server.take_syn(strays_.front());
  strays_.clear();
  run();
  server.send_reset();
  run();
  node_->stopped = false;
  run();
  ASSERT_FALSE(node_->answers.empty());
  EXPECT_EQ(node_->answers.back().type, MessageType::kRejectConnection);
  EXPECT_EQ(node_->answers.back().reject.request, request);
}

TEST_P(OutOfCredits, ManyConnectionsAreServedWhenCreditsComeBack) {
  start();
  std::vector<Client*> clients;
  for (int i = 0; i < 30; ++i) {
    clients.push_back(&add_client());
    clients.back()->send(pattern(3000 + static_cast<std::size_t>(i)));
    if (i % 2 == 0) clients.back()->shut();
  }
  run();
  resume();
  ASSERT_EQ(node_->order.size(), 31u);
  for (std::size_t i = 1; i < 31; ++i) {
    const Node::Conn& conn = node_->conns[node_->order[i]];
    EXPECT_EQ(conn.received.size(), 3000 + i - 1) << "in the order in which they came";
    EXPECT_EQ(conn.closes.size(), i % 2 == 1 ? 1u : 0u);
  }
}

// The CREDIT found nothing, not even in the reserve. What comes back then is more than the reserve,
// and all that is above it goes to data of others, which the node may keep until it has got the
// CREDIT.
TEST_P(OutOfCredits, ACreditForTheApplicationDoesNotWaitBehindDataOfOthers) {
  WorldOptions options;
  options.lend_ingress = GetParam();
  make(options);
  node_ = &add_member({.name = "poor", .credits = 8, .reserve = 4});
  filler_id_ = open(filler_, *node_);
  std::vector<Client*> readers(3), writers(6);
  std::vector<std::uint64_t> ids;
  for (Client*& client : writers) (void)open(client, *node_);
  for (Client*& client : readers) {
    ids.push_back(open(client, *node_));
    client->acknowledge = false;
    node_->send(ids.back(), pattern(150 * 1024));
    run();
  }
  use_up_credits(*node_, [this] {
    filler_->send(bytes_of("."));
    run();
  });
  for (Client* client : writers) client->send(pattern(20'000));
  run();
  for (Client* client : readers) {  // their CREDITs use up what the reserve has for such
    client->acknowledge = true;
    run_ms(3000);
  }
  ASSERT_EQ(proxy_side().channel->ledger().available(), 2u);

  node_->stopped = false;
  node_->round();  // reads what there is, and posts as many buffers again
  auto& endpoint = dynamic_cast<fabric::sim::SimEndpoint&>(node_->channel().endpoint());
  endpoint.keep_buffers = true;
  run();
  ASSERT_FALSE(proxy_side().channel->data_writable());
  for (const std::uint64_t id : ids) EXPECT_GT(node_->conns[id].freed, 0u);
  endpoint.keep_buffers = false;
  run();
}

INSTANTIATE_TEST_SUITE_P(Trust, OutOfCredits, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Shared" : "Isolated"; });

}  // namespace
}  // namespace sanproxy::translate::testing
