// Link parameters on TCP: what the kernel says of the sockets, and what is refused.
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>

#include "lwproto/base/clock.h"
#include "lwproto/fabric/link_parameters.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "tests/lwproto/fabric/channel_pair.h"
#include "tests/lwproto/fabric/tcp/raw_tcp_peer.h"

namespace sanproxy::fabric::test {
namespace {

// The connected TCP sockets of this process.
std::vector<int> connections() {
  std::vector<int> out;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::stoi(entry.path().filename().string());
    tcp_info info{};
    socklen_t length = sizeof(info);
    if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
        info.tcpi_state == TCP_ESTABLISHED) {
      out.push_back(fd);
    }
  }
  return out;
}

template <typename T = int>
T option(int fd, int level, int name) {
  T value{};
  socklen_t length = sizeof(value);
  EXPECT_EQ(::getsockopt(fd, level, name, &value, &length), 0);
  return value;
}

class TcpLink : public testing::Test {
 protected:
  void listen(const TcpOptions& options = {}) {
    server_fabric_ = make([&] { return make_tcp_fabric(options); });
    client_fabric_ = make([] { return make_tcp_fabric(); });
    auto listening = server_fabric_->listen("tcp://127.0.0.1:0", {});
    ASSERT_TRUE(listening.ok());
    listener_ = std::move(*listening);
  }
  Status connect(const char* text) {
    server_ = Side();
    client_ = Side();
    const auto link = parse_link(text);
    EXPECT_TRUE(link.ok()) << text;
    EndpointOptions options;
    options.link = *link;
    auto connecting = client_fabric_->connect(listener_->address(), {}, options);
    if (!connecting.ok()) return connecting.status();
    Result<std::unique_ptr<Endpoint>> answer = Status::again();
    EXPECT_TRUE(eventually({server_fabric_.get(), client_fabric_.get()}, [&] {
      if (auto request = listener_->poll(); request.ok()) {
        if (auto accepted = listener_->accept(*request, {}); accepted.ok()) {
          server_.endpoint = std::move(*accepted);
        }
      }
      answer = (*connecting)->poll();
      return answer.ok() || !answer.status().is_again();
    }));
    if (!answer.ok()) return answer.status();
    client_.endpoint = std::move(*answer);
    return {};
  }
  void expect_both(const char* name, const std::string& value) {
    for (const Side* side : {&server_, &client_}) {
      const auto values = link_values(side->endpoint->link());
      const auto found = std::find_if(values.begin(), values.end(), [&](const auto& one) {
        return std::string(name) == one.first;
      });
      ASSERT_NE(found, values.end()) << name;
      EXPECT_EQ(found->second, value) << name;
    }
  }

  std::unique_ptr<Fabric> server_fabric_;
  std::unique_ptr<Fabric> client_fabric_;
  std::unique_ptr<Listener> listener_;
  Side server_;
  Side client_;
};

TEST_F(TcpLink, EverySocketOfBothEndsHasWhatWasAskedFor) {
  listen();
  ASSERT_TRUE(connect("window=1MiB,streams=4,congestion=reno,quality=cbr,rate=8MiB,dscp=46,"
                      "priority=5")
                  .ok());
  const std::vector<int> fds = connections();
  ASSERT_EQ(fds.size(), 8u);
  for (const int fd : fds) {
    EXPECT_EQ(option(fd, SOL_SOCKET, SO_SNDBUF), 2 * 256 * 1024);
    EXPECT_EQ(option(fd, SOL_SOCKET, SO_RCVBUF), 2 * 256 * 1024);
    EXPECT_STREQ((option<std::array<char, 16>>(fd, IPPROTO_TCP, TCP_CONGESTION).data()), "reno");
    EXPECT_EQ(option<std::uint64_t>(fd, SOL_SOCKET, SO_MAX_PACING_RATE), 2u << 20);
    EXPECT_EQ(option(fd, IPPROTO_IP, IP_TOS) >> 2, 46);
    EXPECT_EQ(option(fd, SOL_SOCKET, SO_PRIORITY), 5);
    EXPECT_EQ(option(fd, IPPROTO_TCP, TCP_NODELAY), 1);
    EXPECT_EQ(option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT), 30'000);
  }
  expect_both("window", std::to_string(1 << 20));
  expect_both("streams", "4");
  expect_both("congestion", "reno");
  expect_both("quality", "cbr");
  expect_both("rate", std::to_string(8 << 20));
  expect_both("dscp", "46");
  expect_both("priority", "5");
}

TEST_F(TcpLink, UnspecifiedQualityGivesWayToAllOthers) {
  listen();
  ASSERT_TRUE(connect("quality=ubr").ok());
  for (const int fd : connections()) {
    EXPECT_EQ(option(fd, IPPROTO_IP, IP_TOS) >> 2, 1) << "lower effort, RFC 8622";
    EXPECT_EQ(option(fd, SOL_SOCKET, SO_PRIORITY), 1);
  }
  expect_both("dscp", "1");
}

TEST_F(TcpLink, VariableQualityPacesAtThePeak) {
  listen();
  ASSERT_TRUE(connect("quality=vbr,rate=1MiB,peak=4MiB,burst=128KiB,streams=2").ok());
  for (const int fd : connections()) {
    EXPECT_EQ(option<std::uint64_t>(fd, SOL_SOCKET, SO_MAX_PACING_RATE), 2u << 20);
  }
  expect_both("rate", std::to_string(1 << 20));
  expect_both("peak", std::to_string(4 << 20));
  expect_both("burst", std::to_string(128 << 10));
}

// By the clock it can only take too long; how much is there at once does not depend on it.
TEST_F(TcpLink, VariableQualityHoldsBackWhatIsBeyondTheBurst) {
  listen();
  ASSERT_TRUE(connect("quality=vbr,rate=1,peak=1GiB,burst=64KiB").ok());
  for (unsigned i = 0; i < 20; ++i) ASSERT_TRUE(client_.queue(pattern(8000, i)).ok());
  client_.endpoint->flush();
  ASSERT_TRUE(eventually({server_fabric_.get(), client_fabric_.get()}, [&] {
    server_.poll();
    return server_.received.size() == 8;
  }));
  for (int i = 0; i < 1000; ++i) {
    client_.poll();
    client_.endpoint->flush();
    server_fabric_->disarm();
    server_.poll();
  }
  EXPECT_EQ(server_.received.size(), 8u) << "65,536 bytes hold eight of 8,016";
}

TEST_F(TcpLink, WhatThisEndCannotHonourIsNamed) {
  listen();
  for (const auto& [text, name] : {std::pair{"queue_pairs=2", "queue_pairs"},
                                   {"service_level=1", "service_level"},
                                   {"traffic_class=1", "traffic_class"},
                                   {"window=64KiB,streams=8", "window"},
                                   {"congestion=nonesuch", "congestion"},
                                   {"quality=cbr,rate=1MiB,burst=1KiB", "burst"},
                                   {"quality=cbr,rate=1MiB,burst=255KiB,streams=4", "burst"},
                                   {"skip_slow_start", "skip_slow_start"}}) {
    const Status status = connect(text);
    EXPECT_EQ(status.code(), Code::kUnsupported) << text << ": " << status.to_string();
    EXPECT_NE(status.to_string().find(name), std::string::npos) << status.to_string();
  }
  EXPECT_TRUE(connect("").ok());
  EXPECT_TRUE(connect("quality=cbr,rate=1MiB,burst=256KiB,streams=4").ok());
}

TEST_F(TcpLink, WhatTheOtherEndCannotHonourIsNamedToo) {
  listen({.streams_max = 2, .window_bytes_max = 1 << 20});
  for (const auto& [text, name] : {std::pair{"streams=3", "streams"}, {"window=2MiB", "window"}}) {
    const Status status = connect(text);
    EXPECT_EQ(status.code(), Code::kRefused) << text << ": " << status.to_string();
    EXPECT_NE(status.to_string().find(name), std::string::npos) << status.to_string();
  }
  EXPECT_TRUE(connect("streams=2,window=1MiB").ok());
}

TEST_F(TcpLink, WhatTheOtherEndAllowsIsNotHeldAgainstThisEndsOwnLimits) {
  listen({.streams_max = 64, .window_bytes_max = 512 << 20, .window_total_max = 512 << 20});
  const Status streams = connect("streams=64");
  EXPECT_TRUE(streams.ok()) << streams.to_string();
  expect_both("streams", "64");
  const Status window = connect("window=257MiB,streams=64");
  EXPECT_TRUE(window.ok() || ::geteuid() != 0) << window.to_string();
}

TEST_F(TcpLink, WindowsOfAllChannelsTogetherHaveABoundAndComeBackWithThem) {
  listen({.window_total_max = 3 << 20});
  ASSERT_TRUE(connect("window=1MiB").ok());
  Side first_server = std::move(server_);
  Side first_client = std::move(client_);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(connect("window=2MiB").ok()) << "those before have gone";
    Side server = std::move(server_);
    Side client = std::move(client_);
    const Status status = connect("window=1MiB");
    EXPECT_EQ(status.code(), Code::kRefused);
    EXPECT_NE(status.to_string().find("window"), std::string::npos) << status.to_string();
    EXPECT_TRUE(connect("").ok());
  }
}

// --- skipping slow start, in a network of its own whose settings are ours

bool write_setting(const std::string& name, const std::string& value) {
  std::ofstream file("/proc/sys/net/ipv4/" + name);
  file << value << std::flush;
  return file.good();
}

// Brings a loopback up whose packets are small, so that windows have to grow.
bool enter_own_network() {
  if (::unshare(CLONE_NEWNET) != 0) return false;
  const int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  ifreq request{};
  std::strncpy(request.ifr_name, "lo", IFNAMSIZ - 1);
  request.ifr_flags = IFF_UP | IFF_LOOPBACK | IFF_RUNNING;
  bool good = ::ioctl(fd, SIOCSIFFLAGS, &request) == 0;
  request.ifr_mtu = 1500;
  good = good && ::ioctl(fd, SIOCSIFMTU, &request) == 0;
  ::close(fd);
  return good;
}

class TcpSlowStart : public TcpLink {
 protected:
  // In a child, which has a network of its own. Its exit status is that of the assertions.
  void in_own_network(const std::function<void()>& body) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      if (!enter_own_network()) ::_exit(77);
      body();
      ::_exit(HasFailure() ? 1 : 0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "needs CAP_SYS_ADMIN for a network namespace";
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
  static std::uint64_t congestion_window(int fd) {
    const auto info = option<tcp_info>(fd, IPPROTO_TCP, TCP_INFO);
    return std::uint64_t{info.tcpi_snd_cwnd} * info.tcpi_snd_mss;
  }
  void expect_transfers() {
    server_.replenish = client_.replenish = true;
    for (Side* side : {&client_, &server_}) {
      Side* other = side == &client_ ? &server_ : &client_;
      for (unsigned i = 0; i < 50; ++i) ASSERT_TRUE(side->send(pattern(3000, i)).ok());
      ASSERT_TRUE(eventually({server_fabric_.get(), client_fabric_.get()}, [&] {
        other->poll();
        return other->received.size() == 50;
      }));
      for (unsigned i = 0; i < 50; ++i) EXPECT_EQ(other->received[i].content, pattern(3000, i));
    }
  }
};

TEST_F(TcpSlowStart, WindowsAreOpenInBothDirectionsWhenTheChannelIsHandedOver) {
  in_own_network([this] {
    ASSERT_TRUE(write_setting("tcp_slow_start_after_idle", "0"));
    ASSERT_TRUE(write_setting("tcp_congestion_control", "reno"));
    listen();
    ASSERT_TRUE(connect("window=1MiB").ok());
    for (const int fd : connections()) EXPECT_LT(congestion_window(fd), 64u * 1024);
    for (const char* text :
         {"window=1MiB,skip_slow_start", "window=2MiB,skip_slow_start,streams=4"}) {
      // On a machine so busy that TCP takes silence for loss it is refused, as it should be.
      Status status = connect(text);
      for (int tries = 1; !status.ok() && tries < 5; ++tries) status = connect(text);
      ASSERT_TRUE(status.ok()) << status.to_string();
      const std::vector<int> fds = connections();
      const std::uint64_t share = server_.endpoint->link().window_bytes * 2 / fds.size();
      for (const int fd : fds) EXPECT_GE(congestion_window(fd), share) << text;
      expect_both("skip_slow_start", "true");
      expect_transfers();
    }
  });
}

TEST_F(TcpSlowStart, AWindowBeyondTheScaleOfAnAcceptedConnectionIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs CAP_NET_ADMIN for a window of 20 MB";
  std::ifstream file("/proc/sys/net/core/rmem_max");
  std::uint64_t rmem_max = 0;
  file >> rmem_max;
  if (rmem_max >= 8 << 20) GTEST_SKIP() << "net.core.rmem_max is large";
  in_own_network([this] {
    ASSERT_TRUE(write_setting("tcp_rmem", "4096 131072 6291456"));
    listen();
    const Status status = connect("window=20MiB");
    EXPECT_EQ(status.code(), Code::kRefused);
    EXPECT_NE(status.to_string().find("window"), std::string::npos) << status.to_string();
    EXPECT_TRUE(connect("window=20MiB,streams=4").ok());
  });
}

// Against a server that says yes and reads nothing.
TEST_F(TcpSlowStart, HasTheTimeThatItsRateTakesAndIsNamedWhenThatIsOver) {
  in_own_network([] {
    ASSERT_TRUE(write_setting("tcp_slow_start_after_idle", "0"));
    ASSERT_TRUE(write_setting("tcp_congestion_control", "reno"));
    const UniqueFd server(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(7471);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::bind(server.get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at)), 0);
    ASSERT_EQ(::listen(server.get(), 1), 0);
    ManualClock clock;
    auto fabric =
        make([&] { return make_tcp_fabric({.handshake_timeout_ms = 400, .clock = &clock}); });
    EndpointOptions options;
    options.link = parse_link("window=64KiB,skip_slow_start,quality=cbr,rate=64KiB").value();
    auto connecting = fabric->connect("tcp://127.0.0.1:7471", {}, options);
    ASSERT_TRUE(connecting.ok()) << connecting.status().to_string();
    RawTcpPeer raw;
    raw.take(UniqueFd(::accept(server.get(), nullptr, nullptr)));
    pollfd said{raw.fd(), POLLIN, 0};
    ASSERT_TRUE(eventually({fabric.get()}, [&] {
      EXPECT_TRUE((*connecting)->poll().status().is_again());
      return ::poll(&said, 1, 0) == 1;
    }));
    ASSERT_TRUE(raw.read_message<tcp::HelloBody>(tcp::MessageType::kHello));
    tcp::AnswerBody answer;
    answer.sizes = tcp::make_sizes({});
    ASSERT_TRUE(raw.say(tcp::MessageType::kAnswer, RawTcpPeer::bytes_in(answer)));
    pollfd padded{raw.fd(), POLLIN, 0};
    ASSERT_TRUE(eventually({fabric.get()}, [&] {
      EXPECT_TRUE((*connecting)->poll().status().is_again());
      return ::poll(&padded, 1, 0) == 1;
    }));
    clock.advance_ns(7'000'000'000);
    EXPECT_TRUE((*connecting)->poll().status().is_again()) << "eight windows take eight seconds";
    clock.advance_ns(60'000'000'000);
    const Status late = (*connecting)->poll().status();
    EXPECT_EQ(late.code(), Code::kTimeout);
    EXPECT_NE(late.to_string().find("skip_slow_start"), std::string::npos) << late.to_string();
  });
}

TEST_F(TcpSlowStart, IsRefusedWhereAWindowDoesNotOutliveAPause) {
  in_own_network([this] {
    ASSERT_TRUE(write_setting("tcp_slow_start_after_idle", "1"));
    ASSERT_TRUE(write_setting("tcp_congestion_control", "reno"));
    listen();
    const Status status = connect("window=1MiB,skip_slow_start");
    EXPECT_EQ(status.code(), Code::kUnsupported);
    EXPECT_NE(status.to_string().find("skip_slow_start"), std::string::npos) << status.to_string();
  });
}

}  // namespace
}  // namespace sanproxy::fabric::test
