// The endpoint answers from the worker's thread, and never hangs when that does not.
#include "lwproto/daemon/admin_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <mutex>
#include <set>
#include <string_view>
#include <thread>
#include <vector>

#include "lwproto/base/unique_fd.h"
#include "lwproto/daemon/http_listener.h"

namespace sanproxy::daemon::testing {
namespace {

SocketAddress loopback(std::uint16_t port) { return {*IpAddress::parse("127.0.0.1"), port}; }

// A port of the loopback address that nobody has just now.
std::uint16_t free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);
  ::close(fd);
  return ntohs(address.sin_port);
}

class Endpoint : public ::testing::Test {
 protected:
  void SetUp() override {
    for (int attempt = 0; attempt < 5 && server_ == nullptr; ++attempt) {
      port_ = free_port();  // somebody may take it in between
      auto started = AdminServer::start(loopback(port_));
      if (started.ok()) server_ = std::move(started).value();
    }
    ASSERT_NE(server_, nullptr);
    ASSERT_EQ(get("/ready"), "/ready 100");
  }
  UniqueFd connected() const {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port_);
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    return fd;
  }
  std::unique_ptr<httplib::Client> client() const {
    auto out = std::make_unique<httplib::Client>("127.0.0.1", port_);
    out->set_read_timeout(30);
    return out;
  }
  // Serves, as a worker would, while `job` runs in a thread of its own.
  void serve_while(const std::function<void()>& job, const AdminServer::Render& render) {
    std::atomic<bool> done = false;
    std::thread thread([&] {
      job();
      done = true;
    });
    while (!done) {
      pollfd fd{server_->fd(), POLLIN, 0};
      if (::poll(&fd, 1, 10) == 1) server_->serve(render);
    }
    thread.join();
  }
  static Page echo(const PageRequest& request) {
    return {200, "text/plain", request.path + " " + std::to_string(request.limit)};
  }
  std::string get(const std::string& path) {
    std::string body;
    serve_while(
        [&] {
          const auto result = client()->Get(path.c_str());
          body = result ? result->body : "no answer";
        },
        echo);
    return body;
  }

  std::uint16_t port_ = 0;
  std::unique_ptr<AdminServer> server_;
};

TEST_F(Endpoint, GivesThePageThatTheWorkerRenders) {
  serve_while(
      [&] {
        const auto result = client()->Get("/some/page");
        ASSERT_TRUE(result);
        EXPECT_EQ(result->status, 418);
        EXPECT_EQ(result->body, "short and stout\n");
        EXPECT_EQ(result->get_header_value("Content-Type"), "text/tea");
      },
      [](const PageRequest& request) {
        EXPECT_EQ(request.path, "/some/page");
        return Page{418, "text/tea", "short and stout\n"};
      });
}

TEST_F(Endpoint, ReadsTheLimitAndNothingElseInstead) {
  EXPECT_EQ(get("/connections"), "/connections 100");
  EXPECT_EQ(get("/connections?limit=7"), "/connections 7");
  EXPECT_EQ(get("/connections?limit=0"), "/connections 0");
  EXPECT_EQ(get("/connections?limit=100000"), "/connections 100000");
  EXPECT_EQ(get("/connections?limit="), "/connections 100");
  EXPECT_EQ(get("/connections?other=7"), "/connections 100");
}

TEST_F(Endpoint, ParametersThatSayNothingSensibleAreRefusedWithTheReason) {
  std::string many = "/connections?a0=1";
  for (int i = 1; i < 17; ++i) many += "&a" + std::to_string(i) + "=1";
  const std::string bad_limit = "limit is a number from 0 to 100000\n";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"/connections?limit=abc", bad_limit},
      {"/connections?limit=7x", bad_limit},
      {"/connections?limit=-1", bad_limit},
      {"/connections?limit=100001", bad_limit},
      {"/connections?limit=99999999999999999999", bad_limit},
      {"/connections?node=a&node=b", "a parameter is given twice\n"},
      {"/connections?node=" + std::string(257, 'x'), "a parameter of more than 256 bytes\n"},
      {many, "more than 16 parameters\n"},
  };
  for (const auto& [path, reason] : cases) {
    const auto result = client()->Get(path.c_str());  // nobody serves: the worker is not troubled
    ASSERT_TRUE(result) << path;
    EXPECT_EQ(result->status, 400) << path;
    EXPECT_EQ(result->body, reason) << path;
  }
}

TEST_F(Endpoint, WithoutAWorkerTheAnswerIs503AndTheNextOneIsRight) {
  const auto result = client()->Get("/status");  // nobody serves
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 503);
  EXPECT_EQ(get("/metrics"), "/metrics 100");
}

TEST_F(Endpoint, AWorkerThatIsTooLateAnswersNobodyElsesQuestion) {
  ASSERT_EQ(client()->Get("/first")->status, 503);
  int rendered = 0;
  server_->serve([&](const PageRequest& request) {
    ++rendered;
    return echo(request);
  });
  EXPECT_EQ(rendered, 0) << "its question is withdrawn";
  EXPECT_EQ(get("/second"), "/second 100");
}

TEST_F(Endpoint, ServingWithoutAQuestionRendersNothing) {
  for (int i = 0; i < 3; ++i) {
    server_->serve([](const PageRequest&) -> Page {
      ADD_FAILURE() << "nobody has asked";
      return {};
    });
  }
}

TEST_F(Endpoint, EveryOneOfManyAtOnceGetsItsOwnPage) {
  constexpr int kClients = 16, kEach = 10;
  std::atomic<int> right = 0;
  serve_while(
      [&] {
        std::vector<std::thread> threads;
        threads.reserve(kClients);
        for (int c = 0; c < kClients; ++c) {
          threads.emplace_back([&, c] {
            for (int i = 0; i < kEach; ++i) {
              const std::string path = "/p" + std::to_string(c) + "-" + std::to_string(i);
              const auto result = client()->Get(path.c_str());
              if (result && result->status == 200 && result->body == path + " 100") ++right;
            }
          });
        }
        for (std::thread& thread : threads) thread.join();
      },
      echo);
  EXPECT_EQ(right, kClients * kEach);
}

TEST_F(Endpoint, AChangeFromHereReachesTheWorkerWithItsMethodAndParameters) {
  PageRequest seen;
  serve_while(
      [&] { EXPECT_EQ(client()->Post("/drain?why=x%20y", "", "application/json")->status, 200); },
      [&](const PageRequest& request) {
        seen = request;
        return Page{};
      });
  EXPECT_EQ(seen.method, "POST");
  EXPECT_EQ(seen.path, "/drain");
  EXPECT_EQ(seen.parameters.at("why"), "x y");
}

// A web page can send a form to any address, but not JSON without asking first.
TEST_F(Endpoint, NeitherFormsNorOtherMethodsReachTheWorker) {
  serve_while(
      [&] {
        EXPECT_EQ(client()->Post("/drain", "x", "text/plain")->status, 403);
        EXPECT_EQ(client()->Post("/drain", "x=1", "application/x-www-form-urlencoded")->status,
                  403);
        EXPECT_EQ(client()->Delete("/status")->status, 405);
        EXPECT_EQ(client()->Options("/drain")->status, 405);
        EXPECT_EQ(client()->Post("/drain", std::string(5000, 'x'), "application/json")->status,
                  413);
      },
      [](const PageRequest& request) {
        ADD_FAILURE() << "asked for " << request.path;
        return Page{};
      });
}

TEST_F(Endpoint, BytesThatAreNoHttpHarmNobody) {
  for (const std::string& bytes :
       {std::string("\x16\x03\x01 not http\r\n\r\n"), std::string(100'000, 'A'),
        std::string("GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"), std::string()}) {
    const UniqueFd fd = connected();
    (void)!::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  EXPECT_EQ(get("/still-here"), "/still-here 100");
}

// What nobody could use is not kept: the connection ends long before all of it is there.
TEST_F(Endpoint, ALineOrHeadersWithoutAnEndAreCutOff) {
  constexpr std::size_t kFarTooMuch = std::size_t{256} << 20;
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", std::string(65536, 'A')}, {"GET / HTTP/1.1\r\n", std::string(8192, 'a') + ": b\r\n"}};
  for (const auto& [begin, more] : cases) {
    const UniqueFd fd = connected();
    (void)!::send(fd.get(), begin.data(), begin.size(), MSG_NOSIGNAL);
    std::size_t sent = 0;
    while (sent < kFarTooMuch) {
      const ssize_t n = ::send(fd.get(), more.data(), more.size(), MSG_NOSIGNAL);
      if (n <= 0) break;
      sent += static_cast<std::size_t>(n);
    }
    EXPECT_LT(sent, kFarTooMuch);
  }
  EXPECT_EQ(get("/still-here"), "/still-here 100");
}

TEST_F(Endpoint, ThoseWhoAskForNothingShutNobodyOut) {
  std::vector<UniqueFd> silent;
  for (int i = 0; i < 200; ++i) {
    silent.push_back(connected());
    (void)!::send(silent.back().get(), "GET /", 5, MSG_NOSIGNAL);
  }
  EXPECT_EQ(get("/still-here"), "/still-here 100");
}

TEST_F(Endpoint, WhoHasGoneMakesRoomBeforeWhoIsStillAsking) {
  const auto send = [](const UniqueFd& fd, std::string_view text) {
    EXPECT_EQ(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  };
  const auto wait_for_question = [&] {
    pollfd asked{server_->fd(), POLLIN, 0};
    ASSERT_EQ(::poll(&asked, 1, -1), 1);
  };
  const auto read_answer = [](const UniqueFd& fd) {
    std::array<char, 1024> answer;
    EXPECT_GT(::recv(fd.get(), answer.data(), answer.size(), 0), 0);
  };
  constexpr std::string_view kAll = "GET /all HTTP/1.1\r\nHost: a\r\n\r\n";
  std::vector<UniqueFd> asking;
  while (asking.size() < HttpListener::kConnectionsMax - 2) {
    asking.push_back(connected());
    send(asking.back(), "GET /slowly HTTP/1.1\r\n");
  }
  UniqueFd leaving = connected();
  const UniqueFd busy = connected();
  send(busy, kAll);
  wait_for_question();
  server_->serve(echo);
  read_answer(busy);  // so all of them have been taken: that is the bound
  send(busy, kAll);
  wait_for_question();  // the listener waits for our answer, and sees nothing of what comes now
  leaving = UniqueFd();
  const UniqueFd newcomer = connected();
  send(newcomer, kAll);
  server_->serve(echo);
  wait_for_question();
  server_->serve(echo);
  read_answer(newcomer);
  for (const UniqueFd& fd : asking) {
    char byte = 0;
    EXPECT_EQ(::recv(fd.get(), &byte, 1, MSG_DONTWAIT), -1) << "it was ended";
  }
}

TEST_F(Endpoint, WhileOthersHaveTooMuchToReadThereIsA503) {
  UniqueFd slow = connected();
  const std::string request = "GET /all HTTP/1.1\r\nHost: a\r\n\r\n";
  ASSERT_EQ(::send(slow.get(), request.data(), request.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(request.size()));
  pollfd asked{server_->fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&asked, 1, -1), 1);
  server_->serve([](const PageRequest&) {
    return Page{200, "text/plain", std::string(HttpListener::kPageBytesMax, 'x')};
  });
  EXPECT_EQ(get("/more"), "too many pages are being read\n");
  slow = UniqueFd();
  while (get("/more") != "/more 100") {
  }
}

TEST_F(Endpoint, ItsEndWaitsForNoPeer) {
  const UniqueFd fd = connected();
  std::atomic<bool> begun = false;
  std::thread slow([&] {  // never at the end of its request, and never silent
    while (::send(fd.get(), "G", 1, MSG_NOSIGNAL) == 1) {
      begun = true;
      pollfd end{fd.get(), POLLRDHUP, 0};
      (void)::poll(&end, 1, 1);
    }
  });
  while (!begun) std::this_thread::yield();
  server_.reset();
  slow.join();  // its connection has ended
}

TEST_F(Endpoint, ItsEndWaitsForNoAnswer) {
  std::thread asker([&] { (void)client()->Get("/never"); });
  pollfd asked{server_->fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&asked, 1, -1), 1);
  server_.reset();
  asker.join();
}

TEST_F(Endpoint, AnAddressInUseIsAnError) {
  const auto second = AdminServer::start(loopback(port_));
  EXPECT_FALSE(second.ok());
}

TEST_F(Endpoint, AnAddressThatIsNotOursIsAnError) {
  EXPECT_FALSE(AdminServer::start({*IpAddress::parse("192.0.2.1"), port_}).ok());
}

TEST_F(Endpoint, MayEndRightAfterItsStart) {
  for (int i = 0; i < 50; ++i) {
    auto started = AdminServer::start(loopback(free_port()));
    ASSERT_TRUE(started.ok());
  }
}

TEST_F(Endpoint, AlsoListensOnIpv6) {
  auto started = AdminServer::start({*IpAddress::parse("::1"), port_});
  if (!started.ok()) GTEST_SKIP() << "no IPv6 on this host";
  server_ = std::move(started).value();
  std::string body;
  serve_while(
      [&] {
        httplib::Client six("::1", port_);
        const auto result = six.Get("/six");
        body = result ? result->body : "no answer";
      },
      echo);
  EXPECT_EQ(body, "/six 100");
}

}  // namespace
}  // namespace sanproxy::daemon::testing
