// Something runs out: credits, windows, chunks, slots, records, TCP memory. Whoever is held back
// goes on later, in order; nobody else notices.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

using Pressure = World;

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

INSTANTIATE_TEST_SUITE_P(Trust, OutOfCredits, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Shared" : "Isolated"; });

// --- a rogue that lets nobody speak to it

TEST_F(Pressure, AnswersToJoinsWaitForCreditsToo) {
  make();
  Node& node = add_node({.name = "poor", .credits = 4, .reserve = 2});
  // It asks seven times and reads nothing meanwhile.
  for (std::uint16_t port = 1; port <= 7; ++port) {
    node.join("10.77.0.10:" + std::to_string(port));
    node.channel().flush();
    proxy_round();
  }
  run();
  EXPECT_EQ(node.answers.size(), 7u);
}

class RogueThatTakesNothing : public World {
 protected:
  void ask_for_ever(std::uint32_t streams_max);
};

void RogueThatTakesNothing::ask_for_ever(std::uint32_t streams_max) {
  WorldOptions options;
  options.translator.outgoing = false;
  make(options);
  // Its own reserve is half of what it posts: the proxy's answers need more than it ever grants.
  auto hello =
      Node({.name = "rogue", .credits = 4, .reserve = 2, .streams_max = streams_max}).hello();
  std::array<std::byte, sizeof(hello)> bytes{};
  wire::encode_hello(hello, bytes);
  const std::uint64_t token = listener_->dial(bytes, {.receive_depth = 4});
  translator_->poll_listeners();
  auto endpoint = std::move(listener_->answer(token)->endpoint);
  std::uint32_t sent = 0, read = 0, credits = 64;
  std::size_t most = 0;
  for (int round = 0; round < 5000; ++round) {
    std::array<fabric::Completion, 8> out;
    while (const std::size_t count = endpoint->poll(out)) {
      for (std::size_t i = 0; i < count; ++i) {
        if (out[i].kind != fabric::Completion::Kind::kReceive) continue;
        ++read;
        wire::TransferHeader header;
        std::memcpy(&header, out[i].segments[0].data, sizeof(header));
        credits = header.credits_granted - sent;
      }
    }
    endpoint->replenish();
    if (credits > 0) {
      auto space = endpoint->begin_send(wire::kTransferInlineBytesMax);
      if (!space.ok()) break;
      wire::TransferWriter writer(*space);
      wire::ConnectionRequestBody body{};
      body.request = 1;
      body.client = wire::to_wire(*SocketAddress::parse("10.0.0.1:1"));
      body.send_window_bytes = 1;
      while (writer.append(MessageType::kConnectionRequest, wire::kFlagActive, CloseCode::kNone,
                           body)) {
      }
      // Two credits less than it could grant: enough for pure returns and nothing else.
      const std::uint32_t grant = std::max(4u, read + 2);
      ASSERT_TRUE(endpoint->commit_send(writer.finish(grant), {}, 0).ok());
      ++sent;
      endpoint->flush();
      --credits;
    }
    proxy_round();
    const AppNode* rogue = node_in_proxy("rogue");
    if (rogue == nullptr) break;
    most = std::max(most, rogue->owed.size());
  }
  EXPECT_LE(most, 10'000u) << "answers that wait, from one node";
  endpoint.reset();
}

TEST_F(RogueThatTakesNothing, IsOwedABoundedNumberOfAnswers) { ask_for_ever(1000); }

TEST_F(RogueThatTakesNothing, IsOwedNoMoreWhateverItSaysOfItsStreams) {
  ask_for_ever(wire::kStreamsMax);
}

// --- memory

TEST_F(Pressure, AnExhaustedRegionHoldsOneClientBackAndLosesNothing) {
  WorldOptions options;
  options.translator.channel_region_bytes = 256 * 1024;  // four chunks
  make(options);
  Node& node = add_member();
  node.free = false;
  node.hold = true;  // every chunk stays lent
  std::vector<Client*> clients(4);
  std::vector<std::uint64_t> ids;
  for (Client*& client : clients) {
    ids.push_back(open(client, node));
    client->segment_bytes = 20'000;
    client->send(pattern(200'000));
  }
  run();
  EXPECT_GT(counters().refused_payloads, 0u);
  EXPECT_EQ(node_in_proxy("node")->chunks->free_count(), 0u);
  node.hold = false;
  node.free = true;
  node.release_held();
  for (const std::uint64_t id : ids) node.free_all(id);
  for (int i = 0; i < 200; ++i) {
    run_ms(40);
    for (Client* client : clients) client->send_again();
  }
  for (std::size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(node.conns[ids[i]].received.size(), 200'005u) << i;
  }
}

TEST_F(Pressure, WithoutRecordsTheConnectionIsResetAndCounted) {
  WorldOptions options;
  options.translator.tx_records_max = 4;
  make(options);
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->acknowledge = false;
  node.piece_bytes = 2000;
  node.send(id, pattern(20'000));
  run();
  EXPECT_TRUE(client->reset);
  EXPECT_EQ(node.conns[id].closes, (std::vector{CloseCode::kLimitReached}));
  EXPECT_EQ(counters().closed_no_memory, 1u);
  EXPECT_EQ(translator_->records_used(), 0u);
  EXPECT_TRUE(node.alive());
  const std::uint64_t next = open(client, node);
  node.send(next, pattern(8000));
  run();
  EXPECT_TRUE(client->received == pattern(8000)) << "the records are free again";
}

class LittleTcpMemory : public World {
 protected:
  // Clients that acknowledge nothing, until TCP has no memory for what is sent to them.
  void fill_and_drain(std::size_t heap_bytes, std::size_t count) {
    WorldOptions options;
    options.stack.heap_bytes_max = heap_bytes;
    options.egress_slots = count * 5;  // a full window of each in slots
    make(options);
    Node& node = add_member();
    std::vector<Client*> clients(count);
    std::vector<std::uint64_t> ids;
    for (Client*& client : clients) {
      ids.push_back(open(client, node));
      client->acknowledge = false;
    }
    node.piece_bytes = 1000;  // copied by the stack
    std::vector<Bytes> sent;
    for (const std::uint64_t id : ids) {
      sent.push_back(pattern(300'000, id));
      node.send(id, sent.back());
    }
    run();
    EXPECT_GT(counters().held_writes, 0u) << "writes wait while memory is low";
    for (Client* client : clients) client->acknowledge = true;
    for (int i = 0; i < 100; ++i) run_ms(100);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      ASSERT_TRUE(clients[i]->received == sent[i]) << i << ": " << clients[i]->received.size();
    }
    EXPECT_EQ(counters().closed_no_memory, 0u);
  }
};

TEST_F(LittleTcpMemory, HoldsApplicationsBackAndLosesNothing) {
  fill_and_drain(std::size_t{16} << 20, 60);
}

TEST_F(LittleTcpMemory, HoldsThemBackAlsoWhenOnePollBringsMoreThanIsLeft) {
  fill_and_drain(std::size_t{1} << 20, 8);
}

TEST_F(Pressure, OneSilentClientOfAChattyApplicationStopsNobodyElse) {
  make();
  Node& node = add_member();
  Client* silent = nullptr;
  const std::uint64_t id = open(silent, node);
  silent->acknowledge = false;
  node.piece_bytes = 1;
  for (int i = 0; i < 40; ++i) {  // byte by byte, each round a segment of its own
    node.send(id, pattern(1000, static_cast<std::uint64_t>(i) * 1000));
    run();
  }
  EXPECT_EQ(egress_->free_count(), egress_->slot_count());
  const std::uint64_t before = counters().held_writes;
  node.piece_bytes = 30'000;
  Client* client = nullptr;
  const std::uint64_t other = open(client, node);
  node.send(other, pattern(500'000));
  run();
  EXPECT_TRUE(client->received == pattern(500'000));
  EXPECT_EQ(counters().held_writes, before);
}

// --- lending

TEST_F(Pressure, LentSlotsComeBackInWhateverOrderTheyAreReleased) {
  WorldOptions options;
  options.lend_ingress = true;
  make(options);
  Node& node = add_member();
  node.hold = true;
  std::vector<Client*> clients(3);
  for (Client*& client : clients) {
    (void)open(client, node);
    client->segment_bytes = 9000;
    client->send(pattern(100'000));
  }
  run();
  EXPECT_GT(node.held(), 10u);
  EXPECT_LT(ingress_->free_count(), ingress_->slot_count());
  EXPECT_EQ(counters().copied_isolation, 0u);
  clients[1]->send_reset();
  run();
  node.hold = false;
  node.release_held();
  run();
  EXPECT_EQ(ingress_->free_count(), ingress_->slot_count());
}

TEST_F(Pressure, LendingStopsBeforeThePoolIsDryAndCopiesInstead) {
  WorldOptions options;
  options.lend_ingress = true;
  options.ingress_slots = 16;
  make(options);
  Node& node = add_member();
  node.hold = true;
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->segment_bytes = 2000;
  const Bytes bytes = pattern(100'000);
  client->send(bytes);
  run();
  EXPECT_EQ(node.conns[id].received.size(), 100'005u);
  EXPECT_GE(ingress_->free_count(), 2u);
  EXPECT_GT(counters().copied_pressure, 0u);
}

TEST_F(Pressure, AllTheWhileANeighbourIsServed) {
  WorldOptions options;
  options.ingress_slots = 16;
  options.translator.channel_region_bytes = std::size_t{2} << 20;
  make(options);
  Node& stopped = add_member({.name = "stopped", .credits = 8, .reserve = 2});
  Node& works = add_node({.name = "works"});
  works.join("10.77.0.20:80");
  run();
  std::vector<Client*> stuck(6);
  for (Client*& client : stuck) {
    (void)open(client, stopped);
    client->segment_bytes = 10'000;
  }
  stopped.stopped = true;
  for (Client* client : stuck) client->send(pattern(500'000));
  run();
  Client& good = add_client("10.77.0.20:80");
  good.send(pattern(300'000));
  run();
  ASSERT_EQ(works.order.size(), 1u);
  works.send(works.order[0], pattern(300'000));
  run();
  EXPECT_EQ(works.conns[works.order[0]].received.size(), 300'000u);
  EXPECT_EQ(good.received.size(), 300'000u);
  stopped.stopped = false;
  for (int i = 0; i < 100; ++i) {
    run_ms(40);
    for (Client* client : stuck) client->send_again();
  }
  for (const auto& [id, conn] : stopped.conns) EXPECT_EQ(conn.received.size(), 500'005u);
}

}  // namespace
}  // namespace sanproxy::translate::testing
