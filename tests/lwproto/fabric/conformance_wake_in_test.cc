// Sleeping in an epoll set of the caller's, into which doorbells go straight (Fabric::wake_in).
#include <sys/epoll.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/lwproto/fabric/conformance_fixture.h"

namespace sanproxy::fabric::test {
namespace {

INSTANTIATE_TEST_SUITE_P(Fabrics, ThreadedConformance,
                         testing::ValuesIn(fabrics_under_test(&FabricUnderTest::threads)),
                         fabric_name);

class OuterSet {
 public:
  explicit OuterSet(Fabric& fabric) : fabric_(fabric), fd_(::epoll_create1(EPOLL_CLOEXEC)) {
    fabric.wake_in(fd_);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fabric.event_fd();
    EXPECT_EQ(::epoll_ctl(fd_, EPOLL_CTL_ADD, fabric.event_fd(), &event), 0);
  }
  OuterSet(const OuterSet&) = delete;
  OuterSet& operator=(const OuterSet&) = delete;
  ~OuterSet() { close(); }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  // Counts the wake-ups by doorbell. The limit only ends a test that would hang.
  void sleep(int limit_ms = 60'000) {
    if (!fabric_.arm()) limit_ms = 0;
    std::array<epoll_event, 4> events;
    const int count = ::epoll_wait(fd_, events.data(), events.size(), limit_ms);
    if (count == 0 && limit_ms != 0) slept_for_ever_ = true;
    for (int i = 0; i < count; ++i) rung_ += events[static_cast<std::size_t>(i)].data.fd == -1;
    fabric_.disarm();
  }
  bool eventually(const std::function<bool()>& done) {
    while (!done() && !slept_for_ever_) sleep();
    return !slept_for_ever_;
  }
  unsigned rung() const { return rung_; }

 private:
  Fabric& fabric_;
  int fd_ = -1;
  unsigned rung_ = 0;
  bool slept_for_ever_ = false;
};

TEST_P(ThreadedConformance, PingPongsThroughTheCallersSetLoseNoWakeUp) {
  OuterSet server_set(*server_fabric_);
  OuterSet client_set(*client_fabric_);
  connect_pair();
  const unsigned rounds = ping_pongs();
  std::atomic<bool> ponged{false};
  std::thread ponger([&] {
    unsigned count = 0;
    server_.replenish = server_.release_at_once = true;
    ponged = server_set.eventually([&] {
      server_.poll();
      for (; !server_.received.empty(); server_.received.pop_front(), ++count) {
        if (!server_.send(server_.received.front().content).ok()) return true;
      }
      return count == rounds;
    });
  });
  client_.replenish = client_.release_at_once = true;
  unsigned count = 0;
  EXPECT_TRUE(client_.send(pattern(64, 0)).ok());
  EXPECT_TRUE(client_set.eventually([&] {
    client_.poll();
    if (client_.received.empty()) return client_.disconnected.has_value();
    EXPECT_EQ(client_.received.front().content, pattern(64, count));
    client_.received.clear();
    return ++count == rounds || !client_.send(pattern(64, count)).ok();
  }));
  ponger.join();
  EXPECT_TRUE(ponged);
  EXPECT_EQ(count, rounds);
}

TEST_P(ThreadedConformance, AnEndpointMayOutliveTheCallersSetAndItsFabric) {
  auto server_set = std::make_unique<OuterSet>(*server_fabric_);
  connect_pair();
  server_set->close();
  ASSERT_TRUE(client_.send(bytes_of("still")).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  // Whatever gets the number of the set's descriptor meanwhile is not touched.
  OuterSet other(*client_fabric_);
  listener_.reset();
  server_fabric_.reset();
  server_.endpoint.reset();
  ASSERT_TRUE(test::eventually({client_fabric_.get()}, [&] {
    client_.poll();
    return client_.disconnected.has_value();
  }));
}

TEST_P(ThreadedConformance, ASetThatIsGivenTooLateOrIsNoneIsIgnored) {
  client_fabric_->wake_in(-1);
  connect_pair();
  OuterSet late(*server_fabric_);
  server_.release_at_once = true;
  for (unsigned i = 0; i < 100; ++i) {
    ASSERT_TRUE(late.eventually([&] {  // what came with the last one is done with
      const bool idle = server_fabric_->arm();
      server_fabric_->disarm();
      server_.poll();
      return idle;
    }));
    std::thread sender([&] { EXPECT_TRUE(client_.send(bytes_of("x")).ok()); });
    EXPECT_TRUE(late.eventually([&] {
      server_.poll();
      return !server_.received.empty();
    }));
    sender.join();
    server_.received.clear();
    server_.endpoint->replenish();
    server_.endpoint->flush();
    server_.poll();
  }
  EXPECT_EQ(late.rung(), 0u);
  server_.endpoint.reset();
}

}  // namespace
}  // namespace sanproxy::fabric::test
