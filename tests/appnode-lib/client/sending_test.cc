// What is sent: chunks, copies, registered memory, and who waits for some.
#include <cstring>

#include "tests/appnode-lib/client/fake_proxy.h"

namespace sanproxy::app::test {
namespace {

using SentMemory = Harness;

TEST_F(SentMemory, ChunksAreSentInPlaceAndComeBack) {
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

TEST_F(SentMemory, AChunkThatIsNotSentGoesBackAndOneBeyondTheWindowStaysOurs) {
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

TEST_F(SentMemory, SendersThatFindNoMemoryAreToldWhenSomeIsBack) {
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

TEST_F(SentMemory, MemoryGivenBackOutsidePollIsForThoseWhoWaitForSome) {
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
class NoPlaceLeft : public SentMemory {
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

TEST_F(SentMemory, RegisteredMemoryIsSentByReferenceAndReportsWhenItIsDone) {
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

TEST_F(SentMemory, RegisteredMemoryIsAttachedToAProxyThatComesBack) {
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

TEST_F(SentMemory, RegisteredMemoryThatIsSentWhenTheNodeEndsIsReportedAndOutlivesIt) {
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

TEST_F(SentMemory, ReleasedMemoryServesTheNextRegistration) {
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
