#include "lwproto/cluster/etcd_client.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/lwproto/cluster/fake_etcd.h"

namespace sanproxy::cluster {
namespace {

using testing::FakeEtcd;

// A port of loopback where connections are taken by the kernel and nobody ever answers.
class SilentPort {
 public:
  SilentPort() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(at);
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&at), size), 0);
    EXPECT_EQ(listen(fd_, 128), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&at), &size), 0);
    port_ = ntohs(at.sin_port);
  }
  ~SilentPort() { close(fd_); }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  int port() const { return port_; }
  int fd() const { return fd_; }

 private:
  int fd_;
  int port_ = 0;
};

// A member that answers lists, and carries out transactions but hangs up instead of answering.
class HangingUp {
 public:
  HangingUp() : thread_([this] { serve(); }) {}
  ~HangingUp() {
    shutdown(port_.fd(), SHUT_RDWR);
    thread_.join();
  }
  std::string url() const { return port_.url(); }
  int transactions() const { return transactions_; }

 private:
  void serve() {
    std::vector<pollfd> all = {{port_.fd(), POLLIN, 0}};
    while (poll(all.data(), all.size(), -1) > 0) {
      if (all[0].revents != 0) {
        const int fd = accept4(port_.fd(), nullptr, nullptr, SOCK_CLOEXEC);
        if (fd < 0) break;
        all.push_back({fd, POLLIN, 0});
        continue;
      }
      for (std::size_t i = 1; i < all.size(); ++i) {
        if (all[i].revents == 0 || answers(all[i].fd)) continue;
        close(all[i].fd);
        all.erase(all.begin() + static_cast<std::ptrdiff_t>(i--));
      }
    }
    for (std::size_t i = 1; i < all.size(); ++i) close(all[i].fd);
  }
  bool answers(int fd) {
    static constexpr std::string_view kList =
        "HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n{\"header\":{\"revision\":\"7\"}}";
    char request[4096];
    const ssize_t n = read(fd, request, sizeof(request));
    if (n <= 0) return false;
    const std::string_view text(request, static_cast<std::size_t>(n));
    if (text.starts_with("POST /v3/kv/range")) {
      return write(fd, kList.data(), kList.size()) == static_cast<ssize_t>(kList.size());
    }
    if (text.starts_with("POST /v3/kv/txn")) ++transactions_;
    return !text.starts_with("POST /v3/kv/txn");
  }

  SilentPort port_;
  std::atomic<int> transactions_{0};
  std::thread thread_;
};

// Of what answers, however slow the machine is; a test of silence says what it waits for.
EtcdOptions at(std::vector<std::string> endpoints, std::uint32_t timeout_ms = 60'000) {
  EtcdOptions out;
  out.endpoints = std::move(endpoints);
  out.timeout_ms = timeout_ms;
  return out;
}

const nlohmann::json kAll = range_request("/", "0");

TEST(EtcdClient, ListsKeysInPagesOfOneRevision) {
  FakeEtcd etcd;
  for (int i = 0; i < 2'500; ++i) etcd.put("/k/" + std::to_string(10'000 + i), "v");
  EtcdClient client(at({etcd.url()}));
  const auto all = client.list("/k/", prefix_end("/k/"));
  ASSERT_TRUE(all.ok()) << client.last_error();
  EXPECT_EQ(all->values.size(), 2'500u);
  EXPECT_EQ(all->revision, etcd.revision());
  EXPECT_EQ(etcd.requests("/v3/kv/range"), 3u);
}

TEST(EtcdClient, AListBeyondItsBoundIsCutShortAndSaysSo) {
  FakeEtcd etcd;
  for (int i = 10; i < 40; ++i) etcd.put("/k/" + std::to_string(i), "v");
  EtcdClient client(at({etcd.url()}));
  const auto cut = client.list("/k/", prefix_end("/k/"), 29);
  ASSERT_TRUE(cut.ok()) << client.last_error();
  EXPECT_EQ(cut->values.size(), 29u);
  EXPECT_TRUE(cut->truncated);
  EXPECT_FALSE(client.list("/k/", prefix_end("/k/"), 30)->truncated);
}

TEST(EtcdClient, AListOfLongValuesComesInSmallerPages) {
  FakeEtcd etcd;
  for (int i = 10; i < 40; ++i) etcd.put("/k/" + std::to_string(i), std::string(10'000, 'x'));
  EtcdOptions options = at({etcd.url()});
  options.bounds.answer_bytes_max = 65'536;
  EtcdClient client(options);
  const auto all = client.list("/k/", prefix_end("/k/"));
  ASSERT_TRUE(all.ok()) << client.last_error();
  EXPECT_EQ(all->values.size(), 30u);
  EXPECT_EQ(all->values.back().value.size(), 10'000u);
}

TEST(EtcdClient, AListKeepsNoMoreThanTheTotalOfItsValuesAndWhatIsWanted) {
  FakeEtcd etcd;
  for (int i = 10; i < 40; ++i) etcd.put("/k/" + std::to_string(i), std::string(100, 'x'));
  EtcdOptions options = at({etcd.url()});
  options.bounds.total_bytes_max = 1'000;
  EtcdClient client(options);
  const auto all = client.list("/k/", prefix_end("/k/"), 100, 0,
                               [](const std::string& key) { return key >= "/k/20"; });
  ASSERT_TRUE(all.ok()) << client.last_error();
  EXPECT_EQ(all->values.size(), 20u);
  EXPECT_EQ(std::count_if(all->values.begin(), all->values.end(),
                          [](const auto& value) { return value.fault == Fault::kTotalTooLong; }),
            10);
}

TEST(EtcdClient, ATokenThatIsNoHeadersValueIsRefused) {
  FakeEtcd etcd;
  etcd.answer("/v3/auth/authenticate", 100, 200, R"({"token":"a\r\nHost: elsewhere"})");
  EtcdOptions options = at({etcd.url()});
  options.user = "sanproxy";
  options.password = "secret";
  EtcdClient client(options);
  EXPECT_EQ(client.call("/v3/kv/range", kAll).code, Code::kProtocol);
  EXPECT_EQ(etcd.requests("/v3/kv/range"), 0u);
}

TEST(EtcdClient, AnEndpointThatIsAwayIsLeftForTheNext) {
  FakeEtcd away, here;
  here.put("/k", "v");
  away.stop();
  EtcdClient client(at({away.url(), here.url()}));
  EXPECT_TRUE(client.call("/v3/kv/range", kAll).ok);
  EXPECT_EQ(client.endpoint(), here.url()) << "and stays left";
}

TEST(EtcdClient, AnEndpointThatIsSilentIsLeftForTheNext) {
  SilentPort silent;
  FakeEtcd here;
  EtcdClient client(at({silent.url(), here.url()}, 3'000));  // the second has as long to answer
  EXPECT_TRUE(client.call("/v3/kv/range", kAll).ok);
}

// Two members behind one name, as behind a headless service: the first takes connections and says
// nothing. libcurl knows both addresses of names in ".localhost".
struct OneName {
  static constexpr int kCallsMax = 20;  // each tries twice, and takes either
  SilentPort silent;
  FakeEtcd here{"::1", silent.port()};
  EtcdClient client{at({"http://etcd.localhost:" + std::to_string(silent.port())}, 1'000)};

  bool answers() {
    for (int i = 0; i < kCallsMax; ++i) {
      if (client.call("/v3/kv/range", kAll).ok) return true;
    }
    return false;
  }
};

TEST(EtcdClient, AMemberOfANameThatIsSilentIsLeftForTheOthers) {
  OneName name;
  ASSERT_TRUE(name.answers()) << name.client.last_error();
  EXPECT_TRUE(name.client.call("/v3/kv/range", kAll).ok) << "and stays left";
  name.client.watch("/k", "", 1, [](const WatchAnswer&) {});
  EXPECT_TRUE(name.client.await_watch()) << "it is at the same member";
}

TEST(EtcdClient, AWatchAtAMemberOfANameThatWasLeftCountsAsEnded) {
  OneName name;
  ASSERT_TRUE(name.answers()) << name.client.last_error();
  name.client.watch("/k", "", 1, [](const WatchAnswer&) {});
  EXPECT_TRUE(name.client.watching());
  name.here.answer("/v3/kv/range", 1, 503, R"({"error":"etcdserver: no leader"})");
  (void)name.client.call("/v3/kv/range", kAll);
  EXPECT_FALSE(name.client.watching());
}

TEST(EtcdClient, WhatMayHaveBeenDoneIsNotDoneAgainUnlessItMayBe) {
  SilentPort silent;
  FakeEtcd here;
  EtcdClient client(at({silent.url(), here.url()}, 300));
  const Answer answer =
      client.call("/v3/kv/txn", transaction(nlohmann::json::array(), nlohmann::json::array()),
                  /*repeatable=*/false);
  EXPECT_FALSE(answer.ok);
  EXPECT_TRUE(answer.may_be_done);
  EXPECT_EQ(answer.code, Code::kTimeout);
  EXPECT_EQ(here.requests("/v3/kv/txn"), 0u);
}

TEST(EtcdClient, WhatMayHaveBeenDoneIsNotDoneAgainOnAConnectionThatWasUsedBefore) {
  HangingUp etcd;
  EtcdClient client(at({etcd.url()}));
  ASSERT_TRUE(client.call("/v3/kv/range", kAll).ok);
  const Answer answer =
      client.call("/v3/kv/txn", transaction(nlohmann::json::array(), nlohmann::json::array()),
                  /*repeatable=*/false);
  EXPECT_TRUE(answer.may_be_done) << answer.error;
  EXPECT_EQ(etcd.transactions(), 1);
}

TEST(EtcdClient, AMemberWithoutALeaderIsLeftForTheNext) {
  FakeEtcd lost, here;
  lost.answer("/v3/kv/range", 100, 503, R"({"error":"etcdserver: no leader"})");
  EtcdClient client(at({lost.url(), here.url()}));
  EXPECT_TRUE(client.call("/v3/kv/range", kAll).ok);
}

TEST(EtcdClient, AMemberThatIsNotReachedByWhatStandsBeforeItIsLeftForTheNext) {
  FakeEtcd lost, here;
  for (const char* path : {"/v3/kv/range", "/v3/kv/txn"}) {
    lost.answer(path, 100, 502, "<html><h1>502 Bad Gateway</h1></html>");
  }
  EtcdClient client(at({lost.url(), here.url()}));
  const auto none = nlohmann::json::array();
  const Answer answer = client.call("/v3/kv/txn", transaction(none, none), /*repeatable=*/false);
  EXPECT_FALSE(answer.ok);
  EXPECT_TRUE(answer.may_be_done) << "its answer may be what was lost";
  EXPECT_TRUE(client.call("/v3/kv/range", kAll).ok);
}

TEST(EtcdClient, WhatEtcdRefusesIsNotAskedAgain) {
  FakeEtcd etcd, other;
  etcd.answer("/v3/kv/range", 1, 400, R"({"error":"etcdserver: key is not provided"})");
  EtcdClient client(at({etcd.url(), other.url()}));
  const Answer answer = client.call("/v3/kv/range", kAll);
  EXPECT_EQ(answer.code, Code::kRefused);
  EXPECT_NE(answer.error.find("key is not provided"), std::string::npos);
  EXPECT_EQ(other.requests("/v3/kv/range"), 0u);
}

TEST(EtcdClient, AnAnswerBeyondItsBoundIsRefused) {
  FakeEtcd etcd;
  etcd.put("/k", std::string(100'000, 'x'));
  EtcdOptions options = at({etcd.url()});
  options.bounds.answer_bytes_max = 50'000;
  EtcdClient client(options);
  EXPECT_EQ(client.call("/v3/kv/range", kAll).code, Code::kProtocol);
}

TEST(EtcdClient, AnAnswerThatIsNoJsonIsRefused) {
  FakeEtcd etcd;
  etcd.answer("/v3/kv/range", 1, 200, "<html>");
  EtcdClient client(at({etcd.url()}));
  EXPECT_EQ(client.call("/v3/kv/range", kAll).code, Code::kProtocol);
}

TEST(EtcdClient, AUserGetsATokenAndAnotherWhenItHasExpired) {
  FakeEtcd etcd;
  etcd.answer("/v3/auth/authenticate", 1, 200, R"({"token":"one"})");
  EtcdOptions options = at({etcd.url()});
  options.user = "sanproxy";
  options.password = "secret";
  EtcdClient client(options);
  ASSERT_TRUE(client.call("/v3/kv/range", kAll).ok);
  EXPECT_EQ(etcd.last_header("/v3/kv/range", "Authorization"), "one");
  EXPECT_NE(etcd.last_body("/v3/auth/authenticate").find("secret"), std::string::npos);
  etcd.answer("/v3/auth/authenticate", 1, 200, R"({"token":"two"})");
  etcd.answer("/v3/kv/range", 1, 401, R"({"error":"etcdserver: invalid auth token"})");
  ASSERT_TRUE(client.call("/v3/kv/range", kAll).ok);
  EXPECT_EQ(etcd.last_header("/v3/kv/range", "Authorization"), "two");
  etcd.answer("/v3/auth/authenticate", 1, 200, R"({"token":"three"})");
  etcd.answer("/v3/kv/range", 1, 400, R"({"error":"etcdserver: revision of auth store is old"})");
  ASSERT_TRUE(client.call("/v3/kv/range", kAll).ok) << "somebody has granted a role something";
  EXPECT_EQ(etcd.last_header("/v3/kv/range", "Authorization"), "three");
}

TEST(EtcdClient, AWrongPasswordIsSaidAndNotTriedForEver) {
  FakeEtcd etcd;
  etcd.answer("/v3/auth/authenticate", 100, 400,
              R"({"error":"etcdserver: authentication failed, invalid user ID or password"})");
  EtcdOptions options = at({etcd.url()});
  options.user = "sanproxy";
  options.password = "wrong";
  EtcdClient client(options);
  const Answer answer = client.call("/v3/kv/range", kAll);
  EXPECT_EQ(answer.code, Code::kRefused);
  EXPECT_EQ(etcd.requests("/v3/auth/authenticate"), 1u);
}

TEST(EtcdClient, AWatchBringsEveryEventFromItsRevision) {
  FakeEtcd etcd;
  etcd.put("/k/1", "old");
  const auto from = etcd.revision() + 1;
  etcd.put("/k/1", "a");
  EtcdClient client(at({etcd.url()}));
  std::vector<std::string> seen;
  client.watch("/k/", prefix_end("/k/"), from, [&](const WatchAnswer& answer) {
    for (const auto& event : answer.events) {
      seen.push_back((event.deleted ? "-" : "+") + event.value.key + "=" + event.value.value);
    }
  });
  etcd.put("/k/2", "b");
  etcd.put("/other", "x");
  etcd.erase("/k/1");
  EXPECT_TRUE(etcd.wait_for([&] {
    client.wait(1);
    return seen.size() >= 3;
  }));
  EXPECT_EQ(seen, (std::vector<std::string>{"+/k/1=a", "+/k/2=b", "-/k/1="}));
  EXPECT_TRUE(client.watching());
}

TEST(EtcdClient, AWatchAtAMemberThatWasLeftCountsAsEnded) {
  FakeEtcd lost, here;
  EtcdClient client(at({lost.url(), here.url()}));
  client.watch("/k", "", 1, [](const WatchAnswer&) {});
  EXPECT_TRUE(client.watching());
  lost.answer("/v3/kv/range", 100, 503, R"({"error":"etcdserver: no leader"})");
  ASSERT_TRUE(client.call("/v3/kv/range", kAll).ok);
  EXPECT_FALSE(client.watching()) << "its connection is still open, and may be silent for ever";
}

TEST(EtcdClient, AWatchOfWhatIsCompactedEndsAndSaysSo) {
  FakeEtcd etcd;
  etcd.put("/k", "1");
  etcd.compact();
  EtcdClient client(at({etcd.url()}));
  std::int64_t compacted = 0;
  client.watch("/k", "", 1,
               [&](const WatchAnswer& answer) { compacted = answer.compact_revision; });
  EXPECT_TRUE(etcd.wait_for([&] {
    client.wait(1);
    return !client.watching();
  }));
  EXPECT_EQ(compacted, etcd.revision());
}

TEST(EtcdClient, AnInterruptEndsACallThatWaits) {
  SilentPort silent;
  EtcdClient client(at({silent.url()}, 600'000));
  std::thread other([&] { client.interrupt(); });
  EXPECT_FALSE(client.call("/v3/kv/range", kAll).ok);
  other.join();
}

TEST(EtcdClient, AnEndpointIsAUrlOfAHost) {
  EXPECT_TRUE(check_endpoint("http://127.0.0.1:2379").ok());
  for (const char* url : {"https://[fd77::1]:2379", "https://[fd77::1]", "http://h:65535"}) {
    EXPECT_TRUE(check_endpoint(url).ok()) << url;
  }
  for (const char* url : {"", "127.0.0.1:2379", "ftp://h", "http://", "http://h/v3", "http://u@h",
                          "http://h:99999", "http://h:0", "http://h:abc", "http://h:", "http://:1",
                          "http://h:1:2", "http://[fd77::1", "http://[fd77::1]1", "http://[:1"}) {
    EXPECT_FALSE(check_endpoint(url).ok()) << url;
  }
}

}  // namespace
}  // namespace sanproxy::cluster
