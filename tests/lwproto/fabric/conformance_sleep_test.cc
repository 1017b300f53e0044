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

// The sender runs out of queue, send depth or credit over and over, and sleeps each time.
TEST_P(Conformance, ABlockedSenderIsWokenWhenThereIsRoom) {
  EndpointOptions options;
  options.receive_depth = 4096;
  options.send_depth = 64;
  options.inline_bytes_max = 65536;
  options.transfer_bytes_max = 131072;
  connect_pair(options);
  regions_.push_back(make_region(65536));
  const GatherRef ref{attach(client_, regions_[0]), 100, 0};
  constexpr unsigned kTransfers = 20'000;
  std::atomic<unsigned> posted{4096};
  std::atomic<bool> received_all{false};
  std::thread receiver([&] {
    server_.release_at_once = true;
    unsigned count = 0;
    received_all = test::eventually({server_fabric_.get()}, [&] {
      server_.poll();
      posted += server_.endpoint->replenish();
      server_.endpoint->flush();
      count += static_cast<unsigned>(server_.received.size());
      server_.received.clear();
      return count == kTransfers || server_.disconnected;
    });
  });
  const Bytes large = pattern(60'000, 1);
  unsigned sent = 0;
  EXPECT_TRUE(test::eventually({client_fabric_.get()}, [&] {
    client_.poll();
    while (sent < kTransfers && sent < posted) {
      const bool by_reference = sent % 8 < 4;
      const std::size_t inline_bytes = by_reference ? 100 : large.size();
      const Status status =
          client_.queue(std::span(large).first(inline_bytes), {&ref, by_reference ? 1u : 0u}, sent);
      if (status.is_again()) break;
      EXPECT_TRUE(status.ok()) << status.to_string();
      if (!status.ok()) return true;
      ++sent;
    }
    client_.endpoint->flush();
    return sent == kTransfers || client_.disconnected.has_value();
  }));
  receiver.join();
  EXPECT_TRUE(received_all);
  EXPECT_EQ(sent, kTransfers);
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
