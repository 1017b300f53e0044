// Sleeping and waking: no wake-up is lost, however the two sides interleave.
#include <atomic>
#include <thread>

#include "tests/lwproto/fabric/conformance_fixture.h"

namespace sanproxy::fabric::test {
namespace {

constexpr unsigned kRounds = 100'000;

TEST_P(Conformance, AHundredThousandPingPongsLoseNoWakeUp) {
  connect_pair();
  std::atomic<bool> ponged{false};
  std::thread ponger([&] {
    unsigned count = 0;
    server_.replenish = true;
    ponged = test::eventually({server_fabric_.get()}, [&] {
      server_.poll();
      for (; !server_.received.empty(); server_.received.pop_front(), ++count) {
        if (!server_.send(server_.received.front().content).ok()) return true;
      }
      return count == kRounds;
    });
  });
  client_.replenish = true;
  unsigned count = 0;
  EXPECT_TRUE(client_.send(pattern(64, 0)).ok());
  EXPECT_TRUE(test::eventually({client_fabric_.get()}, [&] {
    client_.poll();
    if (client_.received.empty()) return client_.disconnected.has_value();
    EXPECT_EQ(client_.received.front().content, pattern(64, count));
    client_.received.clear();
    return ++count == kRounds || !client_.send(pattern(64, count)).ok();
  }));
  ponger.join();
  EXPECT_TRUE(ponged);
  EXPECT_EQ(count, kRounds);
}

// The sender runs out of queue or send depth over and over, and sleeps each time.
class BlockedSender : public Conformance {
 protected:
  static constexpr unsigned kTransfers = 20'000;

  void connect() {
    EndpointOptions options;
    options.receive_depth = kTransfers;
    options.send_depth = 64;
    options.inline_bytes_max = 65536;
    options.transfer_bytes_max = 131072;
    connect_pair(options);
    regions_.push_back(make_region(65536));
    key_ = attach(client_, regions_[0]);
  }
  void receive_all() {
    server_.release_at_once = true;
    unsigned count = 0;
    received_all_ = test::eventually({server_fabric_.get()}, [&] {
      server_.poll();
      server_.endpoint->flush();
      count += static_cast<unsigned>(server_.received.size());
      server_.received.clear();
      return count == kTransfers || server_.disconnected;
    });
  }
  // Sends until there is no room; true at the end.
  bool send_some() {
    const GatherRef ref{key_, 100, 0};
    while (sent_ < kTransfers) {
      const bool by_reference = sent_ % 8 < 4;
      const std::size_t inline_bytes = by_reference ? 100 : large_.size();
      const Status status = client_.queue(std::span(large_).first(inline_bytes),
                                          {&ref, by_reference ? 1u : 0u}, sent_);
      if (status.is_again()) break;
      EXPECT_TRUE(status.ok()) << status.to_string();
      if (!status.ok()) return true;
      ++sent_;
    }
    client_.endpoint->flush();
    return sent_ == kTransfers || client_.disconnected.has_value();
  }

  RegionKey key_ = 0;
  const Bytes large_ = pattern(60'000, 1);
  unsigned sent_ = 0;
  std::atomic<bool> received_all_{false};
};
INSTANTIATE_TEST_SUITE_P(Fabrics, BlockedSender, testing::ValuesIn(fabrics_under_test()),
                         [](const auto& fabric) { return fabric.param.name; });

TEST_P(BlockedSender, IsWokenWhenThereIsRoom) {
  connect();
  std::thread receiver([&] { receive_all(); });
  EXPECT_TRUE(test::eventually({client_fabric_.get()}, [&] {
    client_.poll();
    return send_some();
  }));
  receiver.join();
  EXPECT_TRUE(received_all_);
  EXPECT_EQ(sent_, kTransfers);
}

// Room that the last poll() before a sleep has found must not be slept over.
TEST_P(BlockedSender, IsWokenAlsoWhenItPollsAfterItsLastAttempt) {
  connect();
  std::thread receiver([&] { receive_all(); });
  EXPECT_TRUE(test::eventually({client_fabric_.get()}, [&] {
    const bool done = send_some();
    client_.poll();
    return done;
  }));
  receiver.join();
  EXPECT_TRUE(received_all_);
  EXPECT_EQ(sent_, kTransfers);
}

TEST_P(Conformance, ArmingPublishesWhatWasNotFlushed) {
  connect_pair();
  ASSERT_TRUE(client_.queue(bytes_of("lazy")).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  EXPECT_EQ(text_of(server_.received[0].content), "lazy");
}

TEST_P(Conformance, ArmRefusesToSleepOverWorkAndAnIdleFabricSleeps) {
  connect_pair();
  ASSERT_TRUE(client_.send(bytes_of("work")).ok());
  ASSERT_TRUE(eventually([&] {
    const bool idle = server_fabric_->arm();
    server_fabric_->disarm();
    return !idle;
  }));
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  server_.poll();
  pollfd fd{server_fabric_->event_fd(), POLLIN, 0};
  // Wake-ups of the past may still be there once.
  ASSERT_TRUE(eventually([&] {
    server_.poll();
    const bool idle = server_fabric_->arm() && ::poll(&fd, 1, 0) == 0;
    server_fabric_->disarm();
    return idle;
  }));
}

}  // namespace
}  // namespace sanproxy::fabric::test
