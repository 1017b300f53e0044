#include "netnode/main/prober.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace sanproxy::netnode {
namespace {

// A listener that accepts when it is told to.
class Listener {
 public:
  Listener() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)) {
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(any);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&any), length), 0);
    EXPECT_EQ(listen(fd_, 16), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&any), &length), 0);
    port_ = ntohs(any.sin_port);
  }
  ~Listener() { close(fd_); }
  SocketAddress address() const {
    return *SocketAddress::parse("127.0.0.1:" + std::to_string(port_));
  }
  // Connections that have come since the last call.
  int came() const {
    int count = 0;
    for (int fd = accept(fd_, nullptr, nullptr); fd >= 0; fd = accept(fd_, nullptr, nullptr)) {
      close(fd);
      ++count;
    }
    return count;
  }

 private:
  int fd_;
  std::uint16_t port_ = 0;
};

Prober::Target target(std::uint16_t place, const Listener& listener) {
  Prober::Target out;
  out.proxy = place;
  out.settings.kind = steer::ProbeKind::kTcp;
  out.settings.address = listener.address();
  out.settings.interval_ms = 3'600'000;  // once, as far as a test can tell
  return out;
}

// The next answers, at least one.
std::vector<Prober::Answer> answers(Prober& prober) {
  pollfd ready{prober.fd(), POLLIN, 0};
  EXPECT_EQ(poll(&ready, 1, 20'000), 1) << "no answer came";
  return prober.take();
}

TEST(Prober, TellsWhoAnswersAndWhoDoesNot) {
  Prober prober;
  const Listener well;
  Prober::Target away = target(2, well);
  {
    const Listener gone;
    away.settings.address = gone.address();
  }
  prober.set_targets({target(1, well), away});
  std::vector<Prober::Answer> all;
  while (all.size() < 2) {
    for (const Prober::Answer& one : answers(prober)) all.push_back(one);
  }
  for (const Prober::Answer& one : all) EXPECT_EQ(one.good, one.proxy == 1);
}

TEST(Prober, TargetsThatStayAreNotAskedAgainWhenOthersChange) {
  Prober prober;
  const Listener stays, comes, goes;
  prober.set_targets({target(1, stays), target(2, goes)});
  std::size_t got = 0;
  while (got < 2) got += answers(prober).size();
  EXPECT_EQ(stays.came(), 1);
  prober.set_targets({target(1, stays), target(3, comes)});
  const auto next = answers(prober);
  ASSERT_EQ(next.size(), 1u);
  EXPECT_EQ(next[0].proxy, 3);
  EXPECT_EQ(stays.came(), 0) << "it was asked an interval too early";
  // The same again is nothing; one with other settings begins anew.
  prober.set_targets({target(1, stays), target(3, comes)});
  Prober::Target other = target(1, stays);
  other.settings.timeout_ms = 500;
  prober.set_targets({other, target(3, comes)});
  EXPECT_EQ(answers(prober)[0].proxy, 1);
  EXPECT_EQ(stays.came(), 1);
  EXPECT_EQ(comes.came(), 1);
}

}  // namespace
}  // namespace sanproxy::netnode
