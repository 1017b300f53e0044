// Sleeping and waking: no wake-up is lost, however the two sides interleave.
#include <atomic>
#include <thread>

#include "tests/lwproto/fabric/conformance_fixture.h"

namespace sanproxy::fabric::test {
namespace {

TEST_P(Conformance, PingPongsLoseNoWakeUp) {
  const unsigned rounds = ping_pongs();
  connect_pair();
  server_.replenish = client_.replenish = true;
  server_.release_at_once = client_.release_at_once = true;
  unsigned answered = 0;
  unsigned count = 0;
  bool to_send = true;
  const auto ponger = [&] {
    server_.poll();
    while (!server_.received.empty()) {
      const Status sent = server_.send(server_.received.front().content);
      if (sent.is_again()) return false;
      EXPECT_TRUE(sent.ok()) << sent.to_string();
      server_.received.pop_front();
      ++answered;
    }
    return answered == rounds || server_.disconnected.has_value();
  };
  const auto pinger = [&] {
    client_.poll();
    if (!client_.received.empty()) {
      EXPECT_EQ(client_.received.front().content, pattern(64, count));
      client_.received.clear();
      ++count;
      to_send = count < rounds;
    }
    if (to_send) {
      const Status sent = client_.send(pattern(64, count));
      EXPECT_TRUE(sent.ok() || sent.is_again()) << sent.to_string();
      to_send = sent.is_again();
    }
    return count == rounds || client_.disconnected.has_value();
  };
  run_apart(ponger, pinger);
  EXPECT_EQ(answered, rounds);
  EXPECT_EQ(count, rounds);
}

// A hint that stays true after the ring would have each message of a burst ring again.
TEST_P(Conformance, AHintOfASleeperEndsWithTheRing) {
  connect_pair();
  EXPECT_FALSE(client_.endpoint->peer_sleeps()) << "nobody has armed";
  if (std::string(client_fabric_->name()) != "shm") return;  // the others never have the hint
  ASSERT_TRUE(eventually([&] { return server_fabric_->arm(); }));
  EXPECT_TRUE(client_.endpoint->peer_sleeps());
  ASSERT_TRUE(send(client_, pattern(64, 1)).ok());
  EXPECT_FALSE(client_.endpoint->peer_sleeps());
  server_fabric_->disarm();
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  EXPECT_FALSE(client_.endpoint->peer_sleeps());
}

// The sender runs out of queue or send depth over and over, and sleeps each time.
class BlockedSender : public Conformance {
 protected:
  void connect() {
    transfers_ = GetParam().scaled(20'000 / sanproxy::test::kSanitizedShare);
    EndpointOptions with;
    with.receive_depth = 128;
    with.send_depth = 16;
    with.inline_bytes_max = 65536;
    with.transfer_bytes_max = 131072;
    connect_pair(with);
    credits_ = with.receive_depth;
    regions_.push_back(make_region(65536));
    key_ = attach(client_, regions_[0]);
  }
  bool receive_all() {
    server_.release_at_once = true;
    server_.poll();
    got_ += static_cast<unsigned>(server_.received.size());
    server_.received.clear();
    const std::uint32_t posted = server_.endpoint->replenish();
    // The sender learns of credits by a transfer, which also wakes it.
    owed_ += posted;
    if (owed_ >= 32 && server_.queue(std::as_bytes(std::span(&owed_, 1))).ok()) owed_ = 0;
    server_.endpoint->flush();
    return got_ == transfers_ || server_.disconnected;
  }
  bool take_credits() {
    client_.release_at_once = client_.replenish = true;
    const std::size_t polled = client_.poll();
    for (; !client_.received.empty(); client_.received.pop_front()) {
      std::uint32_t more = 0;
      std::memcpy(&more, client_.received.front().content.data(), sizeof(more));
      credits_ += more;
    }
    return polled != 0;
  }
  // Sends until there is no room; true at the end.
  bool send_some() {
    const GatherRef ref{key_, 100, 0};
    while (sent_ < transfers_ && credits_ > 0) {
      const bool by_reference = sent_ % 8 < 4;
      const std::size_t inline_bytes = by_reference ? 100 : large_.size();
      const Status status = client_.queue(std::span(large_).first(inline_bytes),
                                          {&ref, by_reference ? 1u : 0u}, sent_);
      if (status.is_again()) break;
      EXPECT_TRUE(status.ok()) << status.to_string();
      if (!status.ok()) return true;
      ++sent_;
      --credits_;
    }
    client_.endpoint->flush();
    return sent_ == transfers_ || client_.disconnected.has_value();
  }
  // The client has sent all, but its fabric may not have: it goes on until the last has arrived.
  void linger() {
    const auto give_up = std::chrono::steady_clock::now() + kGiveUp;
    while (GetParam().threads && got_ < transfers_ && !client_.disconnected &&
           std::chrono::steady_clock::now() < give_up) {
      client_.poll();
      std::this_thread::yield();
    }
  }

  RegionKey key_ = 0;
  const Bytes large_ = pattern(60'000, 1);
  unsigned transfers_ = 0;
  unsigned sent_ = 0;
  std::uint32_t credits_ = 0;
  std::uint32_t owed_ = 0;
  std::atomic<unsigned> got_{0};
};
INSTANTIATE_TEST_SUITE_P(Fabrics, BlockedSender, testing::ValuesIn(fabrics_under_test()),
                         fabric_name);

TEST_P(BlockedSender, IsWokenWhenThereIsRoom) {
  connect();
  run_apart([&] { return receive_all(); },
            [&] {
              (void)take_credits();
              if (!send_some()) return false;
              linger();
              return true;
            });
  EXPECT_EQ(got_, transfers_);
}

// Room that the last poll() before a sleep has found must not be slept over, if that was all.
TEST_P(BlockedSender, IsWokenAlsoWhenItPollsAfterItsLastAttempt) {
  connect();
  run_apart([&] { return receive_all(); },
            [&] {
              bool done = send_some();
              while (take_credits()) done = send_some();
              if (!done) return false;
              linger();
              return true;
            });
  EXPECT_EQ(got_, transfers_);
}

TEST_P(Conformance, ArmingPublishesWhatWasNotFlushed) {
  connect_pair();
  ASSERT_TRUE(queue(client_, bytes_of("lazy")).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  EXPECT_EQ(text_of(server_.received[0].content), "lazy");
}

TEST_P(Conformance, ArmRefusesToSleepOverWorkAndAnIdleFabricSleeps) {
  connect_pair();
  ASSERT_TRUE(send(client_, bytes_of("work")).ok());
  ASSERT_TRUE(eventually([&] {
    const bool idle = server_fabric_->arm();
    server_fabric_->disarm();
    return !idle;
  }));
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  server_.release_all();
  pollfd fd{server_fabric_->event_fd(), POLLIN, 0};
  // Wake-ups of the past may still be there for some time, but not for ever.
  bool idle = false;
  for (const auto give_up = std::chrono::steady_clock::now() + kGiveUp;
       !idle && std::chrono::steady_clock::now() < give_up;) {
    poll_both();
    (void)client_fabric_->arm();
    client_fabric_->disarm();
    idle = server_fabric_->arm() && ::poll(&fd, 1, 0) == 0;
    server_fabric_->disarm();
  }
  EXPECT_TRUE(idle);
}

}  // namespace
}  // namespace sanproxy::fabric::test
