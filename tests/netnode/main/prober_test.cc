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
  // Answers the next one.
  void answer(const std::string& text) const {
    pollfd ready{fd_, POLLIN, 0};
    ASSERT_EQ(poll(&ready, 1, 20'000), 1);
    const int fd = accept(fd_, nullptr, nullptr);
    ASSERT_GE(fd, 0);
    pollfd asked{fd, POLLIN, 0};
    ASSERT_EQ(poll(&asked, 1, 20'000), 1);
    char request[1024];
    EXPECT_GT(recv(fd, request, sizeof(request), 0), 0);
    EXPECT_EQ(send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
    close(fd);
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
  // An answer may have been taken before its signal was.
  std::vector<Prober::Answer> out;
  while (out.empty()) {
    pollfd ready{prober.fd(), POLLIN, 0};
    const int count = poll(&ready, 1, 20'000);
    EXPECT_EQ(count, 1) << "no answer came";
    if (count != 1) break;
    out = prober.take();
  }
  return out;
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
  for (const Prober::Answer& one : all) {
    EXPECT_EQ(one.result == Prober::Result::kGood, one.proxy == 1);
    EXPECT_EQ(one.why, one.proxy == 1 ? "" : "Connection refused");
  }
}

TEST(Prober, AnAnswerTellsWhoIsDrainingFromWhoIsNotWell) {
  using Result = Prober::Result;
  const Listener proxy;
  const std::string headers = "Content-Length: 9\r\n\r\n";
  const struct {
    std::string answer;
    Result result;
    std::string why = "";
  } cases[] = {
      {"HTTP/1.1 200 OK\r\n" + headers + "ok", Result::kGood},
      {"HTTP/1.1 302 Found\r\n" + headers, Result::kGood},
      {"HTTP/1.1 503 Service Unavailable\r\n" + headers + "draining\n", Result::kDraining},
      {"HTTP/1.1 503 No\r\nX: " + std::string(9'000, 'x') + "\r\n\r\ndraining", Result::kDraining},
      {"HTTP/1.1 503 Service Unavailable\r\n" + headers + "a worker does not serve\n", Result::kBad,
       "status 503"},
      {"HTTP/1.1 503 Service Unavailable\r\nX: draining\r\n\r\n", Result::kBad, "status 503"},
      {"HTTP/1.1 503 " + std::string(5'000, 'x'), Result::kBad, "status 503"},
      {"HTTP/1.1 500 No\r\n" + headers + "draining\n", Result::kBad, "status 500"},
      {"HTTP/1.1 50", Result::kBad, "closed without an answer"},
      {"draining, draining, draining", Result::kBad, "not HTTP"},
      {"", Result::kBad, "closed without an answer"},
  };
  Prober prober;
  std::uint16_t place = 0;
  for (const auto& one : cases) {
    Prober::Target asked = target(++place, proxy);
    asked.settings.kind = steer::ProbeKind::kHttp;
    asked.settings.timeout_ms = 20'000;
    prober.set_targets({asked});
    proxy.answer(one.answer);
    const auto got = answers(prober);
    ASSERT_EQ(got.size(), 1u);
    EXPECT_EQ(got[0].proxy, place);
    EXPECT_EQ(got[0].result, one.result) << one.answer.substr(0, 80);
    EXPECT_EQ(got[0].why, one.why) << one.answer.substr(0, 80);
  }
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
