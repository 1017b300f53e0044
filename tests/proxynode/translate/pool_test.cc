// Over fabrics that receive into our memory and send from it (verbs, tcp): what an application
// sends lives in slots of the EgressPool until its client has acknowledged it.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

constexpr std::uint32_t kCredits = 16;
constexpr std::size_t kReserve = 16;  // egress_reserve() of a pool of less than 128 slots is half

class PoolNodes : public World {
 protected:
  // `spare`: slots that streams may hold when one node has all its receive buffers posted.
  void start(std::size_t spare, fabric::LentMemory* lent = nullptr) {
    WorldOptions options;
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

// Clients that acknowledge nothing hold every slot; the application has no credit left.
class NoSlotLeft : public PoolNodes {
 protected:
  void fill(fabric::LentMemory* lent = nullptr) {
    start(2, lent);
    node_ = &add_member();
    node_->piece_bytes = 60'000;
    for (std::size_t i = 0; i < 8; ++i) {
      ids_.push_back(open(silent_.emplace_back(), *node_));
      silent_.back()->acknowledge = false;
      node_->send(ids_.back(), pattern(240'000));
    }
    run();
    ASSERT_EQ(egress_->free_count(), egress_reserve(*egress_)) << "what is left is for copies";
    ASSERT_FALSE(node_->channel().data_writable());
  }
  fabric::LentMemory lent_{8};
  Node* node_ = nullptr;
  std::vector<Client*> silent_;
  std::vector<std::uint64_t> ids_;
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
