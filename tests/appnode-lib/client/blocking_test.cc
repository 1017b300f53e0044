#include <atomic>
#include <thread>

#include "tests/appnode-lib/client/fake_proxy.h"

namespace sanproxy::app::test {
namespace {

// The proxy on a thread of its own, driven by a script; the blocking side is the test's thread.
class BlockingTest : public Harness {
 protected:
  ~BlockingTest() override { join(); }
  // The script runs until the fixture's end, longer than the test's own variables live.
  void run_proxy(std::function<void()> each_round) {
    proxy_.start();
    thread_ = std::thread([this, each_round = std::move(each_round)] {
      while (!stop_) {
        proxy_.pump();
        each_round();
        std::this_thread::yield();
      }
    });
  }
  void join() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }
  NodeOptions options() const {
    NodeOptions out;
    out.proxies = {address_};
    return out;
  }

  std::uint64_t id_ = 0;  // the script's, until join()
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

TEST_F(BlockingTest, AnEchoServerIsAFewLines) {
  run_proxy([this, ended = false]() mutable {
    if (proxy_.last_service != 0 && id_ == 0) {
      id_ = proxy_.request(proxy_.last_service);
      proxy_.send(id_, "hello ");
      proxy_.send(id_, "ghijklmnopqrstuvwxyzabcdef");
    }
    if (id_ == 0) return;
    if (proxy_.stream(id_).data.size() == 32 && !ended) {
      proxy_.send_close(id_, wire::CloseCode::kFin);
      ended = true;
    }
  });
  auto listener = BlockingListener::open("10.77.0.10:7", options());
  ASSERT_TRUE(listener.ok()) << listener.status().to_string();
  {
    auto stream = listener->accept(20'000);
    ASSERT_TRUE(stream.ok()) << stream.status().to_string();
    EXPECT_EQ(stream->remote().to_string(), "192.0.2.7:4711");
    std::array<std::byte, 10> buffer;
    for (;;) {
      auto n = stream->read(buffer, 20'000);
      ASSERT_TRUE(n.ok()) << n.status().to_string();
      if (*n == 0) break;
      ASSERT_TRUE(stream->write({buffer.data(), *n}).ok());
    }
  }
  EXPECT_EQ(listener->accept(1).status().code(), Code::kTimeout);
  listener = Status();  // goes away once the proxy has confirmed everything
  join();
  EXPECT_EQ(proxy_.stream(id_).data, "hello ghijklmnopqrstuvwxyzabcdef");
  ASSERT_EQ(proxy_.stream(id_).closes.size(), 1u);
  EXPECT_EQ(proxy_.stream(id_).closes[0].first, wire::CloseCode::kFinBoth);
}

TEST_F(BlockingTest, AWriterWaitsForTheWindowAndAReaderLearnsOfAReset) {
  run_proxy([this, reset = false]() mutable {
    if (proxy_.last_service != 0 && id_ == 0) id_ = proxy_.request(proxy_.last_service, 32 * 1024);
    if (id_ != 0 && proxy_.stream(id_).data.size() == 1'000'000 && !reset) {
      reset = true;
      proxy_.send_close(id_, wire::CloseCode::kReset);
    }
  });
  auto listener = BlockingListener::open("10.77.0.10:7", options());
  ASSERT_TRUE(listener.ok());
  auto stream = listener->accept(20'000);
  ASSERT_TRUE(stream.ok());
  ASSERT_TRUE(stream->write(std::string(1'000'000, 'w')).ok());
  std::array<std::byte, 10> buffer;
  EXPECT_EQ(stream->read(buffer, 20'000).status().code(), Code::kDisconnected);
  EXPECT_EQ(stream->write("more").code(), Code::kDisconnected);
  stream = Status();
  listener = Status();
}

TEST_F(BlockingTest, CallsThatDoNotWaitGetOnAllTheSame) {
  run_proxy([this] {
    if (proxy_.last_service == 0 || id_ != 0) return;
    id_ = proxy_.request(proxy_.last_service);
    proxy_.send(id_, "hello");
  });
  auto listener = BlockingListener::open("10.77.0.10:7", options());
  ASSERT_TRUE(listener.ok());
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  const auto again = [&](const Status& status) {
    return status.code() == Code::kTimeout && std::chrono::steady_clock::now() < give_up;
  };
  Result<BlockingStream> stream = Status(Code::kTimeout, "not yet");
  while (again(stream.status())) stream = listener->accept(0);
  ASSERT_TRUE(stream.ok()) << stream.status().to_string();
  std::array<std::byte, 10> buffer;
  Result<std::size_t> n = Status(Code::kTimeout, "not yet");
  while (again(n.status())) n = stream->read(buffer, 0);
  ASSERT_TRUE(n.ok()) << n.status().to_string();
  EXPECT_EQ(*n, 5u);
  EXPECT_EQ(stream->read(buffer, 0).status().code(), Code::kTimeout);
  EXPECT_EQ(stream->read({}, 0).status().code(), Code::kInvalidArgument);
}

TEST_F(BlockingTest, AReaderOfWhatCameLongAgoOpensTheWindow) {
  std::atomic<std::uint64_t> freed{0};
  run_proxy([this, &freed] {
    if (proxy_.last_service != 0 && id_ == 0) {
      id_ = proxy_.request(proxy_.last_service);
      for (int i = 0; i < 4; ++i) proxy_.send_large(id_, 60'000);
    }
    if (id_ != 0) freed = proxy_.stream(id_).freed;
  });
  auto listener = BlockingListener::open("10.77.0.10:7", options());
  ASSERT_TRUE(listener.ok());
  auto stream = listener->accept(20'000);
  ASSERT_TRUE(stream.ok());
  std::array<std::byte, 60'000> buffer;
  std::size_t got = 0;
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  // Stops short of the last byte: each read() finds some.
  while (got < 200'000 && std::chrono::steady_clock::now() < give_up) {
    const auto n = stream->read(std::span(buffer).first(1000), 20'000);
    ASSERT_TRUE(n.ok());
    got += *n;
  }
  while (freed < 150'000 && std::chrono::steady_clock::now() < give_up) {
    ASSERT_TRUE(stream->read(std::span(buffer).first(1)).ok());
    std::this_thread::yield();
  }
  EXPECT_GE(freed, 150'000u);
  join();
}

TEST_F(BlockingTest, StopEndsTheCallsThatWait) {
  run_proxy([this] {
    if (proxy_.last_service != 0 && id_ == 0) {
      id_ = proxy_.request(proxy_.last_service);
      proxy_.send(id_, "hello");
    }
  });
  auto listener = BlockingListener::open("10.77.0.10:7", options());
  ASSERT_TRUE(listener.ok());
  auto stream = listener->accept(20'000);
  ASSERT_TRUE(stream.ok());
  std::array<std::byte, 10> buffer;
  ASSERT_TRUE(stream->read(buffer).ok());
  std::thread other([&] { listener->node().stop(); });
  EXPECT_EQ(stream->read(buffer).status().code(), Code::kDisconnected);
  EXPECT_EQ(listener->accept().status().code(), Code::kDisconnected);
  other.join();
}

TEST_F(BlockingTest, AListenerThatGoesIsToldOfAlthoughAStreamLivesOn) {
  std::atomic<bool> left{false};
  std::atomic<std::size_t> closed{0};
  run_proxy([&, second = std::uint64_t{0}]() mutable {
    if (proxy_.last_service == 0) return;
    if (id_ == 0) {
      id_ = proxy_.request(proxy_.last_service);
      second = proxy_.request(proxy_.last_service);
    }
    closed = proxy_.stream(second).closes.size();
    for (const wire::Message& message : proxy_.messages) {
      left = left || message.type == wire::MessageType::kLeaveService;
    }
  });
  Result<BlockingStream> stream = [&] {
    auto listener = BlockingListener::open("10.77.0.10:7", options());
    EXPECT_TRUE(listener.ok());
    auto first = listener->accept(20'000);
    // The other one has come too.
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (listener->node().connection_count() < 2 && std::chrono::steady_clock::now() < give_up) {
      listener->node().wait(1);
    }
    EXPECT_EQ(listener->node().connection_count(), 2u);
    return first;
  }();
  ASSERT_TRUE(stream.ok());
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while ((!left || closed == 0) && std::chrono::steady_clock::now() < give_up) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(left);
  EXPECT_EQ(closed, 1u) << "who waited to be accepted";
  join();
}

TEST_F(BlockingTest, AnImpossibleServiceIsRefused) {
  EXPECT_EQ(BlockingListener::open("bogus", options()).status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace sanproxy::app::test
