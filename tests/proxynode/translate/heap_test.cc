// The stack's memory is full of copies for clients that take nothing: the others are served all the
// same, and where that is not enough some of those clients are ended.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

class FullHeap : public World {
 protected:
  void SetUp() override {
    WorldOptions options;
    options.stack.heap_bytes_max = std::size_t{64} << 20;
    options.stack.send_buffer_bytes = options.translator.send_window_bytes = 1 << 20;
    options.stack.connections_max = options.translator.connections_max = 1'000;
    options.egress_slots = 256;
    options.ingress_slots = 256;
    make(options);
    node_ = &add_member();
    other_ = &add_node({.name = "other"});
    other_->join(kOther);
    node_->piece_bytes = other_->piece_bytes = 1000;  // copied by the stack
    run();
  }
  bool is_low() const {
    return stack_->heap_bytes_used() > stack_->heap_bytes_max() - stack_->heap_bytes_max() / 16;
  }
  // A client that takes nothing of so many bytes, but answers whoever asks.
  Client& add_hog(std::size_t bytes) {
    Client* client = nullptr;
    const std::uint64_t id = open(client, *node_);
    client->acknowledge = false;
    client->window = 0;
    client->acknowledge_now();
    run();
    node_->send(id, pattern(bytes));
    run();
    hogs_.push_back(client);
    return *client;
  }
  // Until one of them has to wait.
  void fill() {
    while (egress_->received_count() == 0 && hogs_.size() < 300) add_hog(1'000'000);
    ASSERT_GT(egress_->received_count(), 0u);
    ASSERT_TRUE(is_low());
  }
  Client& add_taker(std::size_t bytes) {
    const std::size_t before = other_->order.size();
    Client& client = add_client(kOther);
    client.send(bytes_of("hello"));
    run();
    EXPECT_EQ(other_->order.size(), before + 1);
    if (other_->order.size() > before) other_->send(other_->order.back(), pattern(bytes));
    run();
    return client;
  }
  void pass_ms(std::uint64_t ms) {
    for (std::uint64_t done = 0; done < ms; done += 100) {
      run_ms(100);
      for (Client* hog : hogs_) {
        if (!hog->reset) hog->acknowledge_now();
      }
    }
  }
  std::size_t hogs_left() const {
    return static_cast<std::size_t>(
        std::count_if(hogs_.begin(), hogs_.end(), [](const Client* hog) { return !hog->reset; }));
  }

  static constexpr const char* kOther = "10.77.0.20:80";
  Node* node_ = nullptr;
  Node* other_ = nullptr;
  std::vector<Client*> hogs_;
};

TEST_F(FullHeap, AClientThatIsDueLittleIsServedAtOnce) {
  fill();
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(is_low());
    EXPECT_EQ(add_taker(500).received.size(), 500u) << i;
  }
  EXPECT_EQ(hogs_left(), hogs_.size());
}

TEST_F(FullHeap, AClientThatIsDueMuchGetsItAndOnlyWhoStandsStillIsEnded) {
  fill();
  add_hog(1'000'000);
  const std::size_t before = hogs_left();
  std::vector<Client*> takers;
  for (int i = 0; i < 4; ++i) takers.push_back(&add_taker(250'000));
  pass_ms(4'000);
  for (Client* taker : takers) {
    EXPECT_FALSE(taker->reset);
    EXPECT_TRUE(taker->received == pattern(250'000)) << taker->received.size();
  }
  EXPECT_GT(counters().closed_no_memory, 0u);
  pass_ms(20'000);
  EXPECT_GE(hogs_left(), before - 8) << "no more of them than others needed";
  EXPECT_TRUE(node_->alive());
}

TEST_F(FullHeap, NobodyIsEndedWhileNobodyWaits) {
  const std::size_t nearly = stack_->heap_bytes_max() / 32 * 29;
  while (stack_->heap_bytes_used() < nearly) add_hog(500'000);
  while (!is_low() && hogs_.size() < 900) add_hog(3'000);
  ASSERT_TRUE(is_low());
  ASSERT_EQ(counters().held_writes, 0u);
  pass_ms(5'000);
  EXPECT_EQ(hogs_left(), hogs_.size());
  EXPECT_EQ(counters().closed_no_memory, 0u);
}

TEST_F(FullHeap, TheHeaviestIsSparedAsLongAsItGetsOn) {
  Client& heaviest = add_hog(1'040'000);
  fill();
  for (int i = 0; i < 100; ++i) add_hog(3'000);  // more than it takes makes room for
  const std::uint32_t start = heaviest.next_expected();
  heaviest.window = 24;
  for (std::uint32_t taken = 0; taken < 40 * 1'400; taken += 1'400) {
    heaviest.send_raw({.flags = kTcpAck, .seq = heaviest.sequence(), .ack = start + taken});
    pass_ms(100);
    ASSERT_FALSE(heaviest.reset) << taken;
  }
  EXPECT_GT(counters().closed_no_memory, 0u) << "but not the others";
}

TEST_F(FullHeap, WhoWaitsWhenItsNodeDiesIsForgotten) {
  fill();
  add_hog(1'000'000);
  node_->die();
  run();
  EXPECT_EQ(hogs_left(), 0u);
  EXPECT_FALSE(is_low());
  EXPECT_TRUE(add_taker(250'000).received == pattern(250'000));
  EXPECT_EQ(egress_->received_count(), 0u);
}

TEST_F(FullHeap, WhoComesWhenHalfOfItIsFullGetsASmallerWindow) {
  add_hog(1'000);
  const std::uint32_t whole = node_->conns[node_->order.back()].window;
  while (stack_->heap_bytes_used() <= stack_->heap_bytes_max() / 2) add_hog(1'000'000);
  add_hog(1'000);
  EXPECT_LT(node_->conns[node_->order.back()].window, whole);
  EXPECT_EQ(node_->conns[node_->order.back()].window, 256u * 1024);
}

using SmallHeap = World;

TEST_F(SmallHeap, WhoeverFindsNoMemoryIsCounted) {
  WorldOptions options;
  options.stack.heap_bytes_max = std::size_t{256} << 10;
  options.stack.connections_max = options.translator.connections_max = 4'000;
  make(options);
  (void)add_member();
  while (add_client().connected && clients_.size() < 3'000) {
  }
  ASSERT_FALSE(clients_.back().connected);
  EXPECT_EQ(stack_->counters().refused_no_memory, 1u);
  (void)add_client();
  EXPECT_EQ(stack_->counters().refused_no_memory, 2u);
}

// It passes, so the application library asks again.
TEST_F(SmallHeap, AJoinThatFindsNoMemoryForItsListenerIsLimitReached) {
  WorldOptions options;
  options.stack.heap_bytes_max = std::size_t{256} << 10;
  options.stack.connections_max = options.translator.connections_max = 4'000;
  options.services_max = 4'000;
  make(options);
  Node& node = add_member();
  while (stack_->counters().refused_no_memory == 0 && clients_.size() < 2'000) (void)add_client();
  ASSERT_GT(stack_->counters().refused_no_memory, 0u);
  for (int port = 1'000; port < 2'000 && node.answers.back().code == CloseCode::kNone; ++port) {
    node.join("10.77.0.10:" + std::to_string(port));
    run();
  }
  EXPECT_EQ(node.answers.back().type, MessageType::kJoinService);
  EXPECT_EQ(node.answers.back().code, CloseCode::kLimitReached);
  EXPECT_EQ(counters().joins_limited, 1u);
}

TEST_F(SmallHeap, AListenerThatFindsNoMemoryBehindAPauseOpensLater) {
  WorldOptions options;
  options.stack.heap_bytes_max = std::size_t{256} << 10;
  make(options);
  (void)add_member();
  translator_->set_paused(true);
  std::vector<stack::ListenerId> others;
  for (std::uint16_t port = 1'000; port < 20'000; ++port) {
    SocketAddress address = *SocketAddress::parse(kWeb);
    address.port = port;
    const auto listener = stack_->listen(address, 0);
    if (!listener.ok()) break;
    others.push_back(*listener);
  }
  ASSERT_LT(others.size(), 19'000u);
  translator_->set_paused(false);
  EXPECT_TRUE(add_client().reset);
  for (const stack::ListenerId listener : others) stack_->unlisten(listener);
  run_ms(2'000);
  EXPECT_TRUE(add_client().connected);
  translator_->set_paused(true);
  run_ms(2'000);
  EXPECT_TRUE(add_client().reset);
}

}  // namespace
}  // namespace sanproxy::translate::testing
