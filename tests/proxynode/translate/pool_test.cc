// Over fabrics that receive into our memory and send from it (verbs, tcp): what an application
// sends lives in slots of the EgressPool until its client has acknowledged it.
#include <array>

#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

constexpr std::uint32_t kCredits = 16;
constexpr std::size_t kReserve = 16;  // egress_reserve() of a pool of less than 128 slots is half

class PoolNodes : public World {
 protected:
  // `spare`: slots that streams may hold when one node has all its receive buffers posted.
  void start(std::size_t spare, fabric::LentMemory* lent = nullptr,
             std::size_t heap_bytes = WorldOptions{}.stack.heap_bytes_max) {
    WorldOptions options;
    options.stack.heap_bytes_max = heap_bytes;
    options.translator.lent = lent;
    options.translator.lent_ms_max = 5'000;
    options.pool = true;
    options.credits = kCredits;
    options.ingress_slots = 256;
    options.egress_slots = 2 * (kCredits + spare);
    make(options);
    ASSERT_EQ(egress_reserve(*egress_), kCredits + spare);
  }
  std::uint64_t copied() const {
    return counters().copied_inline + counters().copied_isolation + counters().copied_pressure +
           stack_->counters().bytes_copied;
  }
};

TEST_F(PoolNodes, PayloadsAboveTheInlineLimitAreNeverCopied) {
  start(kReserve);
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  const std::uint64_t before = copied();
  client->send(pattern(1460 * 40));  // whole segments, each above the limit
  run();
  EXPECT_EQ(node.conns[id].received.size(), 1460u * 40 + 5);
  node.piece_bytes = 1025;
  node.send(id, pattern(1025 * 7));
  run();
  node.piece_bytes = 60'000;
  node.send(id, pattern(180'000));
  run();
  EXPECT_EQ(client->received.size(), 1025u * 7 + 180'000);
  EXPECT_EQ(copied(), before);
}

// It may keep them for want of just these CREDITs: what it echoes finds no window.
TEST_F(PoolNodes, CreditsReachANodeThatKeepsEveryBufferItMay) {
  start(48);
  Node& node = add_member({.name = "echo", .credits = 16, .reserve = 4, .window_bytes = 4 << 20});
  node.hold = true;
  std::array<Client*, 3> takers{};
  std::array<std::uint64_t, 3> ids{};
  for (std::size_t i = 0; i < takers.size(); ++i) {
    ids[i] = open(takers[i], node);
    takers[i]->acknowledge = false;
    node.send(ids[i], pattern(400'000));
  }
  run();
  const channel::Channel& to_node = *node_in_proxy("echo")->channel;
  Client* pusher = nullptr;
  const std::uint64_t pushed = open(pusher, node);
  std::size_t sent = 0;
  for (; sent < 1'000'000 && to_node.ledger().available() > 4; sent += 10'000) {
    pusher->send(pattern(10'000));
    run();
  }
  // All of them wait for a credit for data, and have a CREDIT to come.
  for (Client* taker : takers) {
    taker->send(pattern(10'000));
    run();
  }
  ASSERT_EQ(to_node.ledger().available(), 4u);
  ASSERT_NE(node_in_proxy("echo")->blocked_head, kNone);
  const std::array<std::uint64_t, 3> before{node.conns[ids[0]].freed, node.conns[ids[1]].freed,
                                            node.conns[ids[2]].freed};
  for (Client* taker : takers) taker->acknowledge = true;
  run_ms(3000);
  for (std::size_t i = 0; i < ids.size(); ++i) EXPECT_GT(node.conns[ids[i]].freed, before[i]);
  EXPECT_FALSE(to_node.data_writable());
  node.hold = false;
  node.release_held();
  run_ms(3000);
  EXPECT_EQ(node.conns[pushed].received.size(), sent + 5);
  for (const std::uint64_t id : ids) EXPECT_EQ(node.conns[id].received.size(), 10'005u);
}

// Before it sleeps the proxy looks once more for receive buffers that have become free, and then
// for who may send: what that yields must leave, for nobody comes by until something wakes the
// proxy.
TEST_F(PoolNodes, WhatIsSentWhenBuffersComeBackBeforeASleepDoesNotStayBehind) {
  start(kReserve);
  Node& node = add_member();
  Client *reader = nullptr, *writer = nullptr;
  const std::uint64_t read = open(reader, node), written = open(writer, node);
  reader->acknowledge = false;
  node.send(read, pattern(10'000));
  run();
  auto& endpoint =
      dynamic_cast<fabric::sim::SimEndpoint&>(node_in_proxy("node")->channel->endpoint());
  endpoint.refuse_sends = 4;
  writer->send(bytes_of("more"));
  for (const Segment& segment : writer->produce()) deliver(*writer, segment);
  proxy_round();  // its send queue is full, whenever it is asked; then it is not
  ASSERT_NE(node_in_proxy("node")->blocked_head, kNone);
  deliver(*reader,
          {.flags = kTcpAck, .seq = reader->sequence(), .ack = reader->next_expected() + 10'000});
  translator_->replenish_channels();
  EXPECT_EQ(node_in_proxy("node")->blocked_head, kNone);
  endpoint.flush();  // as Fabric::arm() does
  while (node.round()) {
  }
  EXPECT_EQ(text_of(node.conns[written].received), "hellomore");
  node.close(read, CloseCode::kReset);  // its client knows nothing of what it has acknowledged
  run();
}

TEST_F(PoolNodes, SlotsComeBackWithTheClientsAcknowledgements) {
  start(kReserve);
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->acknowledge = false;
  node.send(id, pattern(120'000));
  run();
  EXPECT_GT(egress_->received_count(), 0u);
  client->acknowledge = true;
  run_ms(5000);
  EXPECT_EQ(client->received.size(), 120'000u);
  EXPECT_EQ(egress_->received_count(), 0u);
}

TEST_F(PoolNodes, SmallPiecesForASilentClientDoNotTakeASlotEach) {
  start(kReserve);
  Node& node = add_member();
  Client *silent = nullptr, *other = nullptr;
  const std::uint64_t stuck = open(silent, node);
  const std::uint64_t moves = open(other, node);
  silent->acknowledge = false;
  node.piece_bytes = 1100;
  node.send(stuck, pattern(200'000));  // 182 pieces, more than there are slots
  run();
  EXPECT_EQ(node.conns[stuck].sent, 200'000u) << "its window takes them all";
  EXPECT_LT(egress_->received_count(), kReserve);
  EXPECT_GT(counters().copied_pressure, 0u);
  node.piece_bytes = 30'000;
  node.send(moves, pattern(500'000));
  run();
  EXPECT_TRUE(other->received == pattern(500'000)) << "its neighbour is served";
  silent->acknowledge = true;
  run_ms(20'000);
  EXPECT_TRUE(silent->received == pattern(200'000));
}

TEST_F(PoolNodes, SmallAndLargePiecesArriveInOrderHoweverTheyAreHeld) {
  start(2);
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->acknowledge = false;
  Bytes expected;
  for (std::uint32_t i = 0; i < 40; ++i) {
    node.piece_bytes = i % 3 == 0 ? 900 : i % 3 == 1 ? 1500 : 9000;
    const Bytes piece = pattern(node.piece_bytes, i);
    expected.insert(expected.end(), piece.begin(), piece.end());
    node.send(id, piece);
    run();
  }
  client->acknowledge = true;
  run_ms(20'000);
  EXPECT_TRUE(client->received == expected);
}

// Clients that acknowledge nothing: each has four receive buffers' worth.
class SilentClients : public PoolNodes {
 protected:
  void send_to_silent() {
    node_ = &add_member();
    node_->piece_bytes = 60'000;
    for (std::size_t i = 0; i < 8; ++i) {
      ids_.push_back(open(silent_.emplace_back(), *node_));
      silent_.back()->acknowledge = false;
    }
    for (const std::uint64_t id : ids_) node_->send(id, pattern(240'000));
    run();
  }
  Node* node_ = nullptr;
  std::vector<Client*> silent_;
  std::vector<std::uint64_t> ids_;
};

TEST_F(SilentClients, HoldNoMoreThanHalfOfTheSlotsAsLongAsTheStackHasMemory) {
  start(8);
  send_to_silent();
  EXPECT_LE(egress_->received_count(), (8 + kCredits) / 2);
  EXPECT_GT(counters().copied_pressure, 1'000'000u);
  Client* other = nullptr;
  const std::uint64_t id = open(other, *node_);
  node_->send(id, pattern(500'000));
  run_ms(1000);
  EXPECT_TRUE(other->received == pattern(500'000)) << "nobody waits for those";
  for (Client* client : silent_) client->acknowledge = true;
  run_ms(20'000);
  for (Client* client : silent_) EXPECT_TRUE(client->received == pattern(240'000));
}

// The stack has no memory either: they hold every slot, and the application has no credit left.
class NoSlotLeft : public SilentClients {
 protected:
  void fill(fabric::LentMemory* lent = nullptr) {
    start(2, lent, std::size_t{512} << 10);
    send_to_silent();
    ASSERT_EQ(egress_->free_count(), egress_reserve(*egress_)) << "what is left is for copies";
    ASSERT_FALSE(node_->channel().data_writable());
  }
  fabric::LentMemory lent_{8};
};

TEST_F(NoSlotLeft, TheApplicationGoesOnAsSoonAsOneClientTakesItsBytes) {
  fill();
  for (Client* client : silent_) client->acknowledge = true;
  run_ms(20'000);
  for (Client* client : silent_) EXPECT_TRUE(client->received == pattern(240'000));
  EXPECT_EQ(counters().closed_no_memory, 0u);
}

TEST_F(NoSlotLeft, NobodyIsEndedWhileANetworkNodeMayBeKeepingWhatItWasLent) {
  fill(&lent_);
  run_ms(5'000);
  EXPECT_EQ(counters().closed_no_memory, 0u);
  run_ms(2'000);
  EXPECT_GT(counters().closed_no_memory, 0u);
}

TEST_F(NoSlotLeft, ConnectionsThatDoNotGetOnAreEndedUntilTheOthersAreServed) {
  fill();
  Client& fresh = add_client();
  fresh.send(bytes_of("hello"));
  run_ms(20'000);
  EXPECT_GT(counters().closed_no_memory, 0u);
  ASSERT_EQ(node_->order.size(), 9u);
  node_->send(node_->order.back(), pattern(200'000));
  run_ms(1000);
  EXPECT_TRUE(fresh.received == pattern(200'000));
  EXPECT_TRUE(node_->alive());
}

TEST_F(NoSlotLeft, SlotsOfADeadNodeComeBack) {
  fill();
  node_->die();
  run();
  for (Client* client : silent_) EXPECT_TRUE(client->reset);
  EXPECT_EQ(egress_->free_count(), egress_->slot_count());
}

TEST_F(PoolNodes, ANodeBeyondTheFabricsLimitIsRefused) {
  WorldOptions options;
  options.pool = true;
  options.credits = 8;
  options.egress_slots = 64;
  options.fabric_nodes_max = 1;
  make(options);
  Node& node = add_member();
  const wire::HelloBody hello = Node({.name = "second"}).hello();
  EXPECT_EQ(dial_refused(std::as_bytes(std::span(&hello, 1))).code, CloseCode::kLimitReached);
  node.die();
  run();
  add_node({.name = "third"});
}

}  // namespace
}  // namespace sanproxy::translate::testing
