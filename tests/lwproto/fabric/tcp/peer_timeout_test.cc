// Peers that are there no more, or take nothing, without a word of it.
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "tests/lwproto/fabric/tcp/tcp_fixture.h"

namespace sanproxy::fabric::test {
namespace {

constexpr std::uint32_t kShortest = kTcpPeerTimeoutMsMin;

class TcpPeerTimeout : public TcpServer {};

// Nothing tells of it but the kernel, which gives the connection up.
TEST_F(TcpPeerTimeout, EndsAChannelOfWhichOneConnectionStandsStill) {
  start({.peer_timeout_ms = kShortest});
  RawTcpPeer first;
  RawTcpPeer still;
  ASSERT_NO_FATAL_FAILURE(join(first, {&still}));
  auto region = buffer::MemoryRegion::create("still", 65536).value();
  const GatherRef ref{victim_.endpoint->attach(region).value(), 65536, 0};
  std::uint64_t cookies = 0;
  // The first connection is read all the time, the other never.
  const auto read_the_first = [&] {
    std::array<std::byte, 65536> taken;
    while (::recv(first.fd(), taken.data(), taken.size(), MSG_DONTWAIT) > 0) {
    }
  };
  ASSERT_TRUE(eventually([&] {
    read_the_first();
    victim_.poll();
    // More than the connection that stands still holds; a channel would have no credits for more.
    while (!victim_.disconnected && cookies < 400 &&
           victim_.send(bytes_of("x"), {&ref, 1}, cookies).ok()) {
      ++cookies;
      read_the_first();
    }
    return victim_.disconnected.has_value();
  }));
  EXPECT_EQ(victim_.disconnected->code(), Code::kDisconnected);
  EXPECT_EQ(victim_.sent.size(), cookies);
  EXPECT_FALSE(victim_.sent.back().second.ok());
}

bool set_loopback(bool up) {
  const UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strncpy(request.ifr_name, "lo", IFNAMSIZ - 1);
  request.ifr_flags = static_cast<short>(IFF_LOOPBACK | IFF_RUNNING | (up ? IFF_UP : 0));
  return ::ioctl(fd.get(), SIOCSIFFLAGS, &request) == 0;
}

TEST(TcpVanished, EndsTheChannelsWithItWhetherAnythingWasSaidOrNot) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (::unshare(CLONE_NEWNET) != 0 || !set_loopback(true)) ::_exit(77);
    const auto fabric = make([] { return make_tcp_fabric({.peer_timeout_ms = kShortest}); });
    auto listener = fabric->listen("tcp://127.0.0.1:0", {}).value();
    std::array<Side, 2> silent;
    std::array<Side, 2> busy;
    for (auto* sides : {&silent, &busy}) {
      EXPECT_TRUE(connect_sides(*fabric, *listener, *fabric, {}, (*sides)[0], (*sides)[1]));
    }
    EXPECT_TRUE(set_loopback(false));
    EXPECT_TRUE(busy[0].send(bytes_of("nobody hears this")).ok());
    for (Side* side : {&busy[0], &silent[0], &silent[1]}) {
      EXPECT_TRUE(eventually({fabric.get()}, [&] {
        side->poll();
        return side->disconnected.has_value();
      }));
      ASSERT_TRUE(!side->disconnected || side->disconnected->code() == Code::kDisconnected);
    }
    ::_exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "needs CAP_SYS_ADMIN for a network namespace";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace sanproxy::fabric::test
