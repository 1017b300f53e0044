// What was received and is kept: in place or as a copy, and what its window does meanwhile.
#include "tests/appnode-lib/client/fake_proxy.h"

namespace sanproxy::app::test {
namespace {

using KeptMemory = Harness;

TEST_F(KeptMemory, LargeBytesAreKeptInPlaceAndSmallOnesAreCopied) {
  Recorder& handler = recorder();
  std::vector<Borrowed> kept;
  const std::byte* seen = nullptr;
  handler.data_hook = [&](Connection&, Received& data) {
    seen = data.pieces()[0].data();
    kept.push_back(data.keep());
    EXPECT_TRUE(kept.back().valid());
    EXPECT_FALSE(data.keep().valid());  // once only
  };
  serve(handler);
  const auto id = open();
  proxy_.send(id, "small");
  ASSERT_TRUE(pump_until([&] { return kept.size() == 1; }));
  EXPECT_NE(kept[0].pieces()[0].data(), seen);
  EXPECT_EQ(as_text(kept[0].pieces()[0]), "small");
  proxy_.send_large(id, 40'000);
  ASSERT_TRUE(pump_until([&] { return kept.size() == 2; }));
  EXPECT_EQ(kept[1].pieces()[0].data(), seen);
  EXPECT_EQ(kept[1].size(), 40'000u);
  pump_some();
  EXPECT_EQ(proxy_.sent_back, 0u);
  kept.clear();
  ASSERT_TRUE(pump_until([&] { return proxy_.sent_back == 1; }));
}

TEST_F(KeptMemory, TheWindowStaysClosedWhileBytesAreKept) {
  Recorder& handler = recorder();
  std::vector<Borrowed> kept;
  handler.data_hook = [&](Connection&, Received& data) { kept.push_back(data.keep()); };
  NodeOptions options;
  options.receive_window_bytes = 64 * 1024;
  serve(handler, options);
  const auto id = open();
  proxy_.send_large(id, 32 * 1024);
  proxy_.send_large(id, 32 * 1024);
  ASSERT_TRUE(pump_until([&] { return kept.size() == 2; }));
  pump_some();
  EXPECT_EQ(proxy_.stream(id).freed, 0u);
  kept.pop_back();
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).freed == 32 * 1024; }));
  kept.clear();
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).freed == 64 * 1024; }));
}

TEST_F(KeptMemory, WithheldBytesOpenTheWindowWhenTheApplicationSaysSo) {
  Recorder& handler = recorder();
  handler.data_hook = [](Connection&, Received& data) { data.withhold(); };
  NodeOptions options;
  options.receive_window_bytes = 64 * 1024;
  serve(handler, options);
  const auto id = open();
  proxy_.send_large(id, 48 * 1024);
  ASSERT_TRUE(pump_until([&] { return handler.data.size() == 48 * 1024; }));
  ASSERT_TRUE(pump_until([&] { return proxy_.sent_back == 1; }));  // the memory is back
  EXPECT_EQ(proxy_.stream(id).freed, 0u);
  handler.connection->open_window(48 * 1024);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).freed == 48 * 1024; }));
}

TEST_F(KeptMemory, OpeningTheWindowTooFarOpensItForWhatIsKept) {
  Recorder& handler = recorder();
  std::vector<Borrowed> kept;
  handler.data_hook = [&](Connection&, Received& data) { kept.push_back(data.keep()); };
  NodeOptions options;
  options.receive_window_bytes = 64 * 1024;
  serve(handler, options);
  const auto id = open();
  proxy_.send_large(id, 32 * 1024);
  ASSERT_TRUE(pump_until([&] { return kept.size() == 1; }));
  handler.connection->open_window(SIZE_MAX);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).freed == 32 * 1024; }));
  kept.clear();  // is nothing any more
  proxy_.send_large(id, 32 * 1024);
  ASSERT_TRUE(pump_until([&] { return kept.size() == 1; }));
  EXPECT_EQ(proxy_.stream(id).freed, 32 * 1024u);
  kept.clear();
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).freed == 64 * 1024; }));
}

TEST_F(KeptMemory, KeepingMoreSmallBytesThanAllowedIsRefused) {
  Recorder& handler = recorder();
  std::vector<Borrowed> kept;
  handler.data_hook = [&](Connection&, Received& data) { kept.push_back(data.keep()); };
  NodeOptions options;
  options.kept_bytes_max = 2048;
  serve(handler, options);
  const auto id = open();
  for (int i = 0; i < 3; ++i) proxy_.send(id, "small");
  ASSERT_TRUE(pump_until([&] { return kept.size() == 3; }));
  EXPECT_TRUE(kept[1].valid());
  EXPECT_FALSE(kept[2].valid());
  kept.clear();
  proxy_.send(id, "small");
  ASSERT_TRUE(pump_until([&] { return kept.size() == 1; }));
  EXPECT_TRUE(kept[0].valid());
  kept.clear();
}

// Two proxies over tcp, where payload lands in receive buffers that all links share.
class ReceiveBuffers : public KeptMemory {
 protected:
  ReceiveBuffers() {
    for (FakeProxy* proxy : {&first_, &second_}) proxy->start();
    NodeOptions options;
    options.proxies = {first_.address(), second_.address()};
    options.receive_buffers = 16;  // four times as many are shared
    options.kept_bytes_max = 4096;
    make_node(std::move(options));
    handler_.data_hook = [this](Connection&, Received& data) {
      if (data.size() < kLarge) {
        if (on_small_) on_small_();
      } else {
        kept_.push_back(data.keep());
      }
    };
    auto joined = node_->join("10.77.0.10:80", [&](Request& request) { request.accept(handler_); });
    EXPECT_TRUE(joined.ok());
    EXPECT_TRUE(all_pump_until([&] { return joined->joined_count() == 2; }));
  }
  ~ReceiveBuffers() override {
    kept_.clear();
    impl_.reset();
    for (FakeProxy* proxy : {&first_, &second_}) proxy->stop();
  }
  [[nodiscard]] bool all_pump_until(const std::function<bool()>& condition) {
    return pump_until([&] {
      first_.pump();
      second_.pump();
      return condition();
    });
  }
  std::uint64_t open_at(FakeProxy& proxy) {
    const std::uint64_t id = proxy.request(proxy.last_service);
    EXPECT_TRUE(all_pump_until([&] { return proxy.stream(id).accepted; }));
    return id;
  }
  static bool may_send(FakeProxy& proxy) {
    return proxy.channel().data_writable() && proxy.channel().ledger().may_send_data();
  }
  // Until the node has nothing to do, and the proxy no credit.
  void use_up(FakeProxy& proxy) {
    const std::uint64_t id = open_at(proxy);
    int rounds_at_rest = 0;
    ASSERT_TRUE(all_pump_until([&] {
      const bool sent = may_send(proxy);
      if (sent) proxy.send_large(id, kLarge);
      rounds_at_rest = sent || !node_->arm() ? 0 : rounds_at_rest + 1;
      return rounds_at_rest == 20;
    }));
  }
  // The loop that a program has: it sleeps, and nothing wakes it.
  [[nodiscard]] bool may_send_while_the_node_sleeps(FakeProxy& proxy) {
    while (!node_->arm()) node_->poll();
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!may_send(proxy) && std::chrono::steady_clock::now() < give_up) proxy.pump();
    return may_send(proxy);
  }

  static constexpr std::size_t kLarge = 4000;
  FakeProxy first_{"tcp://127.0.0.1:0"}, second_{"tcp://127.0.0.1:0"};
  Recorder& handler_ = recorder();
  std::vector<Borrowed> kept_;
  std::function<void()> on_small_;
};

TEST_F(ReceiveBuffers, ThoseGivenBackOutsidePollAreGrantedBeforeTheNodeSleeps) {
  use_up(first_);
  EXPECT_GE(kept_.size(), 40u) << "all but what is posted for the other proxy";
  kept_.clear();
  EXPECT_TRUE(may_send_while_the_node_sleeps(first_));
}

TEST_F(ReceiveBuffers, ThoseGivenBackByAHandlerOfAnotherLinkAreGrantedBeforeTheNodeSleeps) {
  const std::uint64_t id = open_at(second_);
  use_up(first_);
  on_small_ = [&] { kept_.clear(); };
  second_.send(id, "small");
  second_.channel().flush();
  // Not by way of all_pump_until(): one poll() has to be enough.
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!kept_.empty() && std::chrono::steady_clock::now() < give_up) node_->poll();
  EXPECT_TRUE(kept_.empty());
  EXPECT_TRUE(may_send_while_the_node_sleeps(first_));
}

TEST_F(ReceiveBuffers, OneThatIsKeptDoesNotKeepTheNodeFromConnectingAgain) {
  for (std::uint32_t round = 1; round <= 4; ++round) {  // more than are there beside those posted
    const std::uint64_t id = open_at(first_);
    first_.send_large(id, kLarge);
    ASSERT_TRUE(all_pump_until([&] { return kept_.size() == round; }));
    first_.stop();
    ASSERT_TRUE(all_pump_until([&] { return node_->proxies_up() == 1; }));
    first_.start();
    ASSERT_TRUE(all_pump_until([&] {
      clock_.advance_ns(internal::Link::kRetryFirstNs);
      return first_.joins == round + 1;
    })) << round;
  }
  EXPECT_EQ(as_text(kept_[0].pieces()[0]).substr(0, 3), "abc");
}

TEST(KeptPool, CopiesThatNeedNotBeMadeLeaveAQuarterToThoseThatMust) {
  internal::KeptPool pool(8192);
  EXPECT_NE(pool.acquire_copy(6144, false), nullptr);
  EXPECT_EQ(pool.acquire_copy(1, false), nullptr);
  EXPECT_NE(pool.acquire_copy(1, true), nullptr);
  EXPECT_NE(pool.acquire_copy(1024, true), nullptr);
  EXPECT_EQ(pool.acquire_copy(1, true), nullptr);
}

TEST(KeptPool, WhatIsReleasedServesTheNextCopyOfItsSize) {
  internal::KeptPool pool(1 << 20);
  internal::ConnectionImpl connection;
  const auto copy_of = [&](std::size_t bytes) {
    internal::Kept* kept = pool.acquire_copy(bytes, false);
    kept->connection = &connection;
    kept->serial = connection.serial + 1;  // of a connection that has gone
    pool.release(*kept);
    return kept;
  };
  const internal::Kept* large = copy_of(60'000);
  const internal::Kept* small = copy_of(100);
  EXPECT_NE(large, small);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(copy_of(60'000), large);
    EXPECT_EQ(copy_of(100), small);
  }
  EXPECT_EQ(pool.acquire_loan(), large);
}

TEST_F(KeptMemory, KeptBytesSurviveTheProxyAndTheirConnection) {
  Recorder& handler = recorder();
  std::vector<Borrowed> kept;
  handler.data_hook = [&](Connection&, Received& data) { kept.push_back(data.keep()); };
  serve(handler);
  const auto id = open();
  proxy_.send_large(id, 30'000);
  proxy_.send(id, "small");
  ASSERT_TRUE(pump_until([&] { return kept.size() == 2; }));
  proxy_.stop();
  ASSERT_TRUE(pump_until([&] { return handler.closes == 1; }));
  EXPECT_EQ(as_text(kept[0].pieces()[0]).substr(0, 26), "abcdefghijklmnopqrstuvwxyz");
  EXPECT_EQ(as_text(kept[1].pieces()[0]), "small");
  proxy_.start();
  clock_.advance_ns(internal::Link::kRetryMaxNs);
  ASSERT_TRUE(pump_until([&] { return service_.joined_count() == 1; }));
  open();  // takes the same object; the old bytes must not open its window
  kept.clear();
  pump_some();
  EXPECT_TRUE(proxy_.connected());
}

}  // namespace
}  // namespace sanproxy::app::test
