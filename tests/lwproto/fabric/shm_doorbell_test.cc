// A connected peer that lies about its sleep, or treats its doorbell badly: it harms nobody but
// itself.
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <csignal>
#include <thread>

#include "tests/lwproto/fabric/shm_fixture.h"

namespace sanproxy::fabric::test {
namespace {

using ShmDoorbell = ShmServer;

TEST_F(ShmDoorbell, LyingAboutSleepAndReceivesHarmsOnlyTheLiar) {
  start();
  RawShmPeer raw;
  join(raw);
  auto& epoch = reinterpret_cast<shm::SleepPage*>(raw.sleep)->epoch;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    epoch.store(2 * i + 1);
    ASSERT_TRUE(victim_.send(bytes_of("x")).ok());
    ASSERT_TRUE(raw.take());
  }
  raw.control().room.posted.store(0);
  raw.control().room.waiting.store(~0u);
  ASSERT_TRUE(victim_.send(bytes_of("x")).ok());
  expect_the_others_work();
}

// Publishes to a peer that claims to sleep anew each time, so that each send rings.
void ring_often(RawShmPeer& raw, Side& victim, unsigned times) {
  auto& epoch = reinterpret_cast<shm::SleepPage*>(raw.sleep)->epoch;
  for (unsigned i = 0; i < times; ++i) {
    epoch.store((epoch.load() + 2) | 1);
    ASSERT_TRUE(victim.send(bytes_of("x")).ok());
    ASSERT_TRUE(raw.take());
  }
}

TEST_F(ShmDoorbell, ADoorbellFilledInBothDirectionsDisturbsNoOtherChannel) {
  start();
  RawShmPeer raw;
  join(raw);
  const Bytes rings(4096);
  const auto fill = [&] {
    while (::send(raw.doorbell_fd, rings.data(), rings.size(), MSG_DONTWAIT) > 0) {
    }
  };
  fill();
  ::fcntl(raw.doorbell_fd, F_SETFL, 0);
  ring_often(raw, victim_, 5000);  // more than the queue of a socket holds
  for (int i = 0; i < 200; ++i) {
    fill();
    expect_the_others_work();
  }
  raw.put_transfer(bytes_of("late"));
  raw.publish();
  EXPECT_TRUE(eventually([&] { return victim_.poll() != 0; }));
}

TEST_F(ShmDoorbell, ADoorbellThatIsShutOrClosedKillsNobody) {
  start();
  ASSERT_EQ(::signal(SIGPIPE, SIG_DFL), SIG_DFL) << "the test wants the default";
  RawShmPeer raw;
  join(raw);
  for (const int how : {SHUT_RD, SHUT_WR, SHUT_RDWR}) {
    ASSERT_EQ(::shutdown(raw.doorbell_fd, how), 0);
    ring_often(raw, victim_, 100);
    expect_the_others_work();
  }
  ::close(raw.doorbell_fd);
  std::erase(raw.owned_fds, raw.doorbell_fd);
  ring_often(raw, victim_, 100);
  expect_the_others_work();
}

// What arrives at the doorbell beside rings is thrown away.
TEST_F(ShmDoorbell, DescriptorsInADoorbellAreDropped) {
  start();
  RawShmPeer raw;
  join(raw);
  std::swap(raw.socket, raw.doorbell_fd);
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(raw.send_raw(bytes_of("x"), {raw.sleep_fd}));
  std::swap(raw.socket, raw.doorbell_fd);
  for (int i = 0; i < 200; ++i) expect_the_others_work();
}

// A reader of a pipe holds its lock while it faults, which would stop even a non-blocking write.
TEST_F(ShmDoorbell, APeerThatFaultsForEverWhileItReadsItsDoorbellHoldsNobodyUp) {
  const int faults = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC));
  if (faults < 0) GTEST_SKIP() << "needs userfaultfd";
  start();
  RawShmPeer raw;
  join(raw);
  uffdio_api api{};
  api.api = UFFD_API;
  ASSERT_EQ(::ioctl(faults, UFFDIO_API, &api), 0);
  void* page =
      ::mmap(nullptr, shm::kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  uffdio_register watch{};
  watch.range = {reinterpret_cast<std::uintptr_t>(page), shm::kPageBytes};
  watch.mode = UFFDIO_REGISTER_MODE_MISSING;
  ASSERT_EQ(::ioctl(faults, UFFDIO_REGISTER, &watch), 0);
  ring_often(raw, victim_, 1);
  std::thread reader([&] { EXPECT_GE(::read(raw.doorbell_fd, page, 1), 0); });
  uffd_msg message{};
  EXPECT_EQ(::read(faults, &message, sizeof(message)), static_cast<ssize_t>(sizeof(message)));
  ring_often(raw, victim_, 1000);
  victim_.endpoint.reset();
  expect_the_others_work();
  uffdio_zeropage zero{};
  zero.range = watch.range;
  EXPECT_EQ(::ioctl(faults, UFFDIO_ZEROPAGE, &zero), 0);
  reader.join();
  ::munmap(page, shm::kPageBytes);
  ::close(faults);
}

// Both on one processor: the peer publishes and rings while arm() looks, and nobody sleeps.
TEST_F(ShmDoorbell, RingsThatNobodySleptThroughDoNotFillTheDoorbell) {
  constexpr unsigned kEpochs = 2'000;  // a socket's queue holds some 270 rings
  start();
  RawShmPeer raw;
  join(raw);
  for (unsigned i = 0; i < kEpochs; ++i) {
    raw.put_transfer(bytes_of("x"));
    raw.control().published.ring_head.store(raw.head);
    ASSERT_FALSE(fabric_->arm());
    ASSERT_EQ(::send(raw.doorbell_fd, "r", 1, MSG_DONTWAIT | MSG_NOSIGNAL), 1) << i;
    fabric_->disarm();
    victim_.poll();
    ASSERT_EQ(victim_.received.size(), 1u);
    victim_.received.clear();
    victim_.endpoint->replenish();
    victim_.endpoint->flush();
  }
}

}  // namespace
}  // namespace sanproxy::fabric::test
