#include <cstring>

#include "tests/appnode-lib/client/fake_proxy.h"

namespace sanproxy::app::test {
namespace {

using AppCode = ::sanproxy::app::CloseCode;

class MemoryTest : public Harness {
 protected:
  // A connection whose handler has seen it.
  std::uint64_t opened(Recorder& handler, std::uint32_t window_bytes = 256 * 1024) {
    const auto id = open(window_bytes);
    proxy_.send(id, "x");
    EXPECT_TRUE(pump_until([&] { return handler.connection != nullptr; }));
    return id;
  }
};

TEST_F(MemoryTest, LargeBytesAreKeptInPlaceAndSmallOnesAreCopied) {
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

TEST_F(MemoryTest, TheWindowStaysClosedWhileBytesAreKept) {
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

TEST_F(MemoryTest, WithheldBytesOpenTheWindowWhenTheApplicationSaysSo) {
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

TEST_F(MemoryTest, OpeningTheWindowTooFarOpensItForWhatIsKept) {
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

TEST_F(MemoryTest, KeepingMoreSmallBytesThanAllowedIsRefused) {
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
class ReceiveBuffers : public MemoryTest {
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

TEST_F(MemoryTest, KeptBytesSurviveTheProxyAndTheirConnection) {
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

TEST_F(MemoryTest, ChunksAreSentInPlaceAndComeBack) {
  Recorder& handler = recorder();
  serve(handler);
  proxy_.options.hold_loans = true;
  const auto id = opened(handler);
  const std::size_t free_before = impl_->send_memory().free_count();
  SendChunk chunk = handler.connection->acquire(1'000'000);
  ASSERT_TRUE(chunk.valid());
  EXPECT_EQ(chunk.bytes().size(), 64'240u);
  std::memset(chunk.bytes().data(), 'c', chunk.bytes().size());
  ASSERT_TRUE(handler.connection->send(chunk, 50'000));
  EXPECT_FALSE(chunk.valid());
  SendChunk small = handler.connection->acquire(100);
  std::memset(small.bytes().data(), 's', 100);
  ASSERT_TRUE(handler.connection->send(small, 100));
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).data.size() == 50'100; }));
  EXPECT_EQ(proxy_.stream(id).data, std::string(50'000, 'c') + std::string(100, 's'));
  EXPECT_EQ(impl_->send_memory().free_count(), free_before - 1);
  proxy_.release_loans();
  ASSERT_TRUE(pump_until([&] { return impl_->send_memory().free_count() == free_before; }));
}

TEST_F(MemoryTest, AChunkThatIsNotSentGoesBackAndOneBeyondTheWindowStaysOurs) {
  Recorder& handler = recorder();
  serve(handler);
  proxy_.options.free_at_once = false;
  opened(handler, 70'000);
  const std::size_t free_before = impl_->send_memory().free_count();
  { const SendChunk dropped = handler.connection->acquire(5000); }
  EXPECT_EQ(impl_->send_memory().free_count(), free_before);
  SendChunk chunk = handler.connection->acquire(64'000);
  ASSERT_TRUE(chunk.valid());
  EXPECT_EQ(handler.connection->send(std::string(30'000, 'x')), 30'000u);
  EXPECT_FALSE(handler.connection->send(chunk, 64'000));
  EXPECT_TRUE(chunk.valid());
  EXPECT_TRUE(handler.connection->send(chunk, 40'000));
  EXPECT_FALSE(handler.connection->acquire(1).valid());
}

TEST_F(MemoryTest, SendersThatFindNoMemoryAreToldWhenSomeIsBack) {
  Recorder& handler = recorder();
  NodeOptions options;
  options.send_memory_bytes = 1;  // the least that there can be
  serve(handler, options);
  proxy_.options.hold_loans = true;
  const auto id = opened(handler, 8 << 20);
  const std::string text(4 << 20, 'm');
  std::size_t sent = handler.connection->send(text);
  EXPECT_LT(sent, text.size());
  handler.writable_hook = [&](Connection& c) {
    sent += c.send(std::string_view(text).substr(sent));
  };
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).data.size() == sent; }));
  EXPECT_EQ(handler.writables, 0);
  ASSERT_TRUE(pump_until([&] {
    proxy_.release_loans();
    return proxy_.stream(id).data.size() == text.size();
  }));
  EXPECT_EQ(proxy_.stream(id).data, text);
}

TEST_F(MemoryTest, MemoryGivenBackOutsidePollIsForThoseWhoWaitForSome) {
  Recorder& handler = recorder();
  NodeOptions options;
  options.send_memory_bytes = 1;  // the least that there can be
  serve(handler, options);
  opened(handler, 8 << 20);
  std::vector<SendChunk> chunks;
  do {
    chunks.push_back(handler.connection->acquire(50'000));
  } while (chunks.back().valid());
  ASSERT_TRUE(pump_until([&] { return node_->arm(); }));
  EXPECT_EQ(handler.writables, 0);
  chunks.clear();
  EXPECT_FALSE(node_->arm());
  node_->poll();
  EXPECT_EQ(handler.writables, 1);
}

// Clients that acknowledge nothing hold all the places for references.
class NoPlaceLeft : public MemoryTest {
 protected:
  void fill() {
    serve(handler_);
    proxy_.options.hold_loans = true;
    proxy_.options.free_at_once = false;
    id_ = opened_one();  // before there are too many
    chunk_ = handler_.connection->acquire(50'000);
    ASSERT_EQ(chunk_.bytes().size(), 50'000u);
    first_ = handler_.connection;
    const std::string text(1 << 20, 'd');
    for (int i = 0; i < 400; ++i) {
      (void)opened_one();
      (void)handler_.connection->send(text);
      pump();
    }
    pump_some();
    ASSERT_EQ(proxy_.loans_held(), 1023u) << "the last one is nobody's";
  }
  std::uint64_t opened_one() {
    handler_.connection = nullptr;
    return opened(handler_, 8 << 20);
  }
  Recorder& handler_ = recorder();
  std::uint64_t id_ = 0;
  Connection* first_ = nullptr;
  SendChunk chunk_;
};

TEST_F(NoPlaceLeft, WhatOthersSendGoesInline) {
  fill();
  const auto small = opened_one();
  EXPECT_EQ(handler_.connection->send("thirteen byte"), 13u);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(small).data.size() == 13; }));
  const auto large = opened_one();
  const std::string text(1 << 20, 'l');
  EXPECT_EQ(handler_.connection->send(text), 65'536u) << "what every stream may have in flight";
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(large).data.size() == 65'536; }));
  const auto in_chunks = opened_one();
  SendChunk chunk = handler_.connection->acquire(50'000);
  ASSERT_EQ(chunk.bytes().size(), 1024u);
  std::memset(chunk.bytes().data(), 'c', 1024);
  EXPECT_TRUE(handler_.connection->send(chunk, 1024));
  auto memory = node_->register_memory(100'000);
  ASSERT_TRUE(memory.ok());
  std::memset(memory->bytes().data(), 'r', 100'000);
  EXPECT_EQ(handler_.connection->send(*memory, 0, 100'000, {}), 64'512u);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(in_chunks).data.size() == 65'536; }));
  EXPECT_EQ(proxy_.stream(in_chunks).data, std::string(1024, 'c') + std::string(64'512, 'r'));
  EXPECT_EQ(proxy_.loans_held(), 1023u);
}

// A chunk's DATA waits for others to join it, and has its place meanwhile.
TEST_F(NoPlaceLeft, ChunksDoNotTakeTheLastPlaceEither) {
  NodeOptions options;
  options.send_memory_bytes = std::size_t{256} << 20;
  serve(handler_, options);
  proxy_.options.hold_loans = true;
  proxy_.options.free_at_once = false;
  std::vector<Connection*> deaf;
  for (int i = 0; i < 600; ++i) {
    (void)opened_one();
    deaf.push_back(handler_.connection);
  }
  std::size_t refused = 0;
  for (int round = 0; round < 10; ++round) {
    for (Connection* connection : deaf) {
      SendChunk chunk = connection->acquire(60'000);  // two do not fit one DATA
      refused += chunk.valid() && connection->send(chunk, chunk.bytes().size()) ? 0 : 1;
    }
    pump();
  }
  EXPECT_GT(refused, 0u);
  ASSERT_EQ(proxy_.loans_held(), 1023u) << "the last one is nobody's";
  const auto small = opened_one();
  EXPECT_EQ(handler_.connection->send("thirteen byte"), 13u);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(small).data.size() == 13; }));
}

TEST_F(NoPlaceLeft, AFilledChunkWaitsForOneAndKeepsNobodyWaiting) {
  fill();
  std::memset(chunk_.bytes().data(), 'f', 50'000);
  EXPECT_FALSE(first_->send(chunk_, 50'000));
  EXPECT_TRUE(chunk_.valid()) << "it is still the application's";
  const auto other = opened_one();
  EXPECT_EQ(handler_.connection->send("thirteen byte"), 13u);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(other).data.size() == 13; }));
  bool sent = false;
  handler_.writable_hook = [&](Connection& connection) {
    if (&connection == first_ && !sent) sent = connection.send(chunk_, 50'000);
  };
  pump_some();
  EXPECT_FALSE(sent);
  proxy_.release_loans();
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id_).data.size() == 50'000; }));
  EXPECT_EQ(proxy_.stream(id_).data, std::string(50'000, 'f'));
}

TEST_F(MemoryTest, RegisteredMemoryIsSentByReferenceAndReportsWhenItIsDone) {
  Recorder& handler = recorder();
  serve(handler);
  proxy_.options.hold_loans = true;
  const auto id = opened(handler);
  auto memory = node_->register_memory(200'000);
  ASSERT_TRUE(memory.ok());
  std::memset(memory->bytes().data(), 'r', memory->bytes().size());
  int done = 0;
  const SendDone report{[](void* context, bool ok) { *static_cast<int*>(context) += ok; }, &done};
  EXPECT_EQ(handler.connection->send(*memory, 100, 150'000, report), 150'000u);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).data.size() == 150'000; }));
  EXPECT_EQ(proxy_.stream(id).data, std::string(150'000, 'r'));
  EXPECT_EQ(proxy_.loans_held(), 3u);  // 64,240 + 64,240 + the rest, nothing copied
  EXPECT_EQ(done, 0);
  EXPECT_EQ(memory->in_use(), 3u);
  proxy_.release_loans();
  ASSERT_TRUE(pump_until([&] { return done == 1; }));
  EXPECT_EQ(memory->in_use(), 0u);
  EXPECT_EQ(handler.connection->send(*memory, 0, 10, report), 10u);
  EXPECT_EQ(done, 2);  // so small that it was copied
}

TEST_F(MemoryTest, RegisteredMemoryIsAttachedToAProxyThatComesBack) {
  Recorder& handler = recorder();
  serve(handler);
  auto memory = node_->register_memory(100'000);
  ASSERT_TRUE(memory.ok());
  std::memset(memory->bytes().data(), 'q', memory->bytes().size());
  opened(handler);
  int reports = 0;
  const SendDone report{[](void* context, bool) { ++*static_cast<int*>(context); }, &reports};
  handler.connection->send(*memory, 0, 100'000, report);
  proxy_.stop();
  ASSERT_TRUE(pump_until([&] { return handler.closes == 1; }));
  EXPECT_EQ(reports, 1);
  EXPECT_EQ(memory->in_use(), 0u);
  proxy_.start();
  clock_.advance_ns(internal::Link::kRetryMaxNs);
  ASSERT_TRUE(pump_until([&] { return service_.joined_count() == 1; }));
  const auto id = opened(handler);
  EXPECT_EQ(handler.connection->send(*memory, 0, 100'000), 100'000u);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).data == std::string(100'000, 'q'); }));
}

TEST_F(MemoryTest, RegisteredMemoryThatIsSentWhenTheNodeEndsIsReportedAndOutlivesIt) {
  struct : Recorder {
    void on_closed(Connection& c, CloseCode why) override {
      again = c.node().connect("192.0.2.1:443", *this).status().code();
      joined = c.node().join("10.77.0.11:80", [](Request&) {}).status().code();
      Recorder::on_closed(c, why);
    }
    Code again = Code::kOk, joined = Code::kOk;
  } handler;
  serve(handler);
  proxy_.options.hold_loans = true;
  const auto id = opened(handler);
  auto memory = node_->register_memory(200'000);
  ASSERT_TRUE(memory.ok());
  std::pair<int, int> done;  // well and not
  const SendDone report{[](void* context, bool ok) {
                          auto& count = *static_cast<std::pair<int, int>*>(context);
                          ++(ok ? count.first : count.second);
                        },
                        &done};
  EXPECT_EQ(handler.connection->send(*memory, 0, 100'000, report), 100'000u);
  EXPECT_EQ(handler.connection->send(*memory, 0, 50'000, report), 50'000u);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id).data.size() == 150'000; }));
  impl_.reset();
  EXPECT_EQ(done, std::pair(0, 2));
  EXPECT_EQ(handler.code, CloseCode::kNodeClosed);
  EXPECT_EQ(handler.again, Code::kDisconnected);
  EXPECT_EQ(handler.joined, Code::kDisconnected);
  EXPECT_EQ(memory->in_use(), 0u);
  memory->bytes()[0] = std::byte{1};
}

TEST_F(MemoryTest, ReleasedMemoryServesTheNextRegistration) {
  make_node();
  auto first = node_->register_memory(100'000);
  ASSERT_TRUE(first.ok());
  first->bytes()[0] = std::byte{1};
  const std::byte* at = first->bytes().data();
  first->release();
  auto second = node_->register_memory(50'000);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->bytes().data(), at);
  EXPECT_EQ(second->bytes()[0], std::byte{0});
  EXPECT_EQ(second->bytes().size(), 50'000u);
}

}  // namespace
}  // namespace sanproxy::app::test
