// Something runs out: windows, chunks, slots, records, TCP memory, the patience with who takes
// nothing. Whoever is held back goes on later, in order; nobody else notices.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

class Pressure : public World {
 protected:
  // It has so many chunks, and gives none back until it is told to.
  Node& add_holder(std::size_t chunks) {
    WorldOptions options;
    options.translator.channel_region_bytes = chunks * ChunkRegion::kChunkBytes;
    make(options);
    Node& node = add_member();
    node.hold = true;
    return node;
  }
  // Each sends a little, for which the region may have no chunk.
  std::vector<std::uint64_t> open_with(std::span<Client*> clients, Node& node) {
    std::vector<std::uint64_t> ids;
    for (Client*& client : clients) {
      ids.push_back(open(client, node));
      client->send(pattern(2'000));
      run();
    }
    return ids;
  }
};

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

// Time stands still here: nobody waits for a tick, or for his client's timer.
TEST_F(Pressure, WhoFoundNoChunkIsNextWhenOneIsFree) {
  Node& node = add_holder(4);
  std::vector<Client*> clients(12);
  std::vector<std::uint64_t> ids;
  for (Client*& client : clients) {
    ids.push_back(open(client, node));
    client->segment_bytes = 10'000;
    client->send(pattern(30'000));
    run();
  }
  EXPECT_EQ(node_in_proxy("node")->chunks->free_count(), 0u);
  EXPECT_EQ(counters().refused_payloads, 8u);
  for (int turn = 0; turn < 12; ++turn) {
    // Who has had chunks sends on, and stands behind those that wait.
    clients[0]->send(pattern(5'000));
    node.release_held();
    run();
  }
  for (std::size_t i = 1; i < ids.size(); ++i) {
    EXPECT_EQ(node.conns[ids[i]].received.size(), 30'005u) << i;
  }
  node.hold = false;
  node.release_held();
  run();
}

// Each of many streams has a piece with the application node, and some send on and on.
TEST_F(Pressure, FewChunksGoRoundAmongManyStreams) {
  Node& node = add_holder(4);
  std::vector<Client*> clients(4);
  open_with(clients, node);
  EXPECT_EQ(node_in_proxy("node")->chunks->free_count(), 0u);
  for (Client* client : clients) {
    client->send(pattern(2'000));
    run();
  }
  EXPECT_EQ(counters().refused_payloads, 4u) << "nobody keeps his chunk by filling it up";
  node.hold = false;
  node.release_held();
  run();
}

TEST_F(Pressure, WhoEndsWhileItWaitsForAChunkLeavesTheOthersTheirTurn) {
  Node& node = add_holder(1);
  std::vector<Client*> clients(5);
  const std::vector<std::uint64_t> ids = open_with(clients, node);
  EXPECT_EQ(counters().refused_payloads, 4u);
  for (const std::size_t i : {1, 4, 2}) {  // the first of those that wait, the last, one between
    clients[i]->send_reset();
    run();
  }
  node.hold = false;
  node.release_held();
  run();
  EXPECT_EQ(node.conns[ids[3]].received.size(), 2'005u);
}

TEST_F(Pressure, SmallPiecesThatAreHeldDoNotTakeAChunkEach) {
  make();  // 64 chunks
  Node& node = add_member();
  node.free = false;
  node.hold = true;
  std::vector<std::uint64_t> ids;
  for (int i = 0; i < 4; ++i) {
    Client* client = nullptr;
    ids.push_back(open(client, node));
    for (int piece = 0; piece < 100; ++piece) {
      client->send(pattern(1100));
      run();
    }
  }
  EXPECT_GT(node.held(), 150u);
  EXPECT_GT(node_in_proxy("node")->chunks->free_count(), 16u);
  Client* other = nullptr;
  const std::uint64_t id = open(other, node);
  other->send(pattern(50'000));
  run();
  EXPECT_EQ(node.conns[id].received.size(), 50'005u) << "there is room for whoever comes";
  EXPECT_EQ(counters().refused_payloads, 0u);
  node.hold = false;
  node.free = true;
  node.release_held();
  for (const std::uint64_t one : ids) node.free_all(one);
  run();
  for (const std::uint64_t one : ids) EXPECT_EQ(node.conns[one].received.size(), 110'005u);
  EXPECT_EQ(node_in_proxy("node")->chunks->free_count(), 64u) << "who is idle holds nothing";
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
