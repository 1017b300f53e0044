#include "appnode-lib/examples/http_session.h"

#include <chrono>
#include <filesystem>
#include <fstream>

#include "tests/appnode-lib/client/fake_proxy.h"
#include "tests/lwproto/fabric/descriptor_limit.h"

namespace examples {
namespace {

struct OutlivesTheNode {
  HttpSessions sessions_;
};

class HttpSessionTest : public OutlivesTheNode, public app::test::Harness {
 protected:
  void start(bool with_files = false, std::size_t cache_bytes = 1 << 20) {
    proxy_.start();
    make_node();
    if (with_files) {
      root_ = directory_ + "/www";
      std::filesystem::create_directories(root_ + "/sub");
    }
    site_ = std::make_unique<HttpSite>(*node_, root_, cache_bytes);
    auto joined = node_->join("10.77.0.10:80", [&](app::Request& request) {
      HttpSession::accept(request, *site_, sessions_);
    });
    ASSERT_TRUE(joined.ok());
    ASSERT_TRUE(pump_until([&] { return joined->joined_count() == 1; }));
  }
  void write_file(const std::string& name, const std::string& text) {
    std::ofstream(root_ + "/" + name) << text;
  }
  // Sends `request` over a new connection and returns what comes until it is quiet.
  std::string ask(const std::string& request, std::size_t bytes_wanted = 1) {
    id_ = open(1 << 20);
    return more(request, bytes_wanted);
  }
  std::string more(const std::string& request, std::size_t bytes_wanted = 1) {
    proxy_.stream(id_).data.clear();
    for (std::size_t i = 0; i < request.size(); i += 1000) {
      proxy_.send(id_, std::string_view(request).substr(i, 1000));
    }
    EXPECT_TRUE(pump_until([&] { return proxy_.stream(id_).data.size() >= bytes_wanted; }))
        << "only " << proxy_.stream(id_).data.size() << " bytes";
    pump_some();
    return proxy_.stream(id_).data;
  }
  std::string body_of(const std::string& answer) {
    const std::size_t end = answer.find("\r\n\r\n");
    return end == std::string::npos ? "no head" : answer.substr(end + 4);
  }
  bool closed() { return !proxy_.stream(id_).closes.empty(); }

  std::string root_;
  std::unique_ptr<HttpSite> site_;
  std::uint64_t id_ = 0;
};

TEST_F(HttpSessionTest, AnswersHelloAndKeepsTheConnection) {
  start();
  EXPECT_TRUE(ask("GET /healthz HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200"));
  const std::string answer = ask("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200 OK\r\n")) << answer;
  EXPECT_NE(answer.find("\r\nDate: "), std::string::npos);
  EXPECT_EQ(body_of(answer), "Hello from an application node that does no TCP.\n");
  EXPECT_FALSE(closed());
}

TEST_F(HttpSessionTest, OldClientsAreClosedUnlessTheyAskOtherwise) {
  start();
  EXPECT_NE(ask("GET /hello HTTP/1.0\r\n\r\n").find("\r\nConnection: close\r\n"),
            std::string::npos);
  EXPECT_TRUE(closed());
  EXPECT_NE(ask("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                .find("\r\nConnection: keep-alive\r\n"),
            std::string::npos);
  EXPECT_FALSE(closed());
}

TEST_F(HttpSessionTest, PipelinedRequestsAreAnsweredInOrderThoughAnswersBlock) {
  start();
  std::string requests;
  for (int i = 0; i < 20; ++i) {
    requests += "GET /bytes/" + std::to_string(100'000 + i) + " HTTP/1.1\r\nHost: x\r\n\r\n";
  }
  id_ = open(100'000);
  const std::string all = more(requests, 20 * 100'000 + 190);
  std::size_t at = 0;
  for (int i = 0; i < 20; ++i) {
    const std::size_t head_end = all.find("\r\n\r\n", at);
    ASSERT_NE(head_end, std::string::npos);
    const std::size_t length = static_cast<std::size_t>(100'000 + i);
    EXPECT_NE(all.substr(at, head_end - at).find("Content-Length: " + std::to_string(length)),
              std::string::npos);
    at = head_end + 4;
    for (std::size_t k = 0; k < length; ++k) {
      ASSERT_EQ(static_cast<std::byte>(all[at + k]), pattern_byte(k)) << i << " " << k;
    }
    at += length;
  }
  EXPECT_EQ(at, all.size());
}

TEST_F(HttpSessionTest, HeadSendsNoBodyAndSmallBytesComeInOnePiece) {
  start();
  EXPECT_EQ(body_of(ask("HEAD /bytes/500000 HTTP/1.1\r\nHost: x\r\n\r\n")), "");
  const std::string small = body_of(more("GET /bytes/5 HTTP/1.1\r\nHost: x\r\n\r\n"));
  EXPECT_EQ(small.size(), 5u);
}

TEST_F(HttpSessionTest, UploadsAreCountedAndHashed) {
  start();
  const std::string body(50'000, 'u');
  std::string answer =
      ask("POST /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n" + body);
  EXPECT_EQ(body_of(answer), "{\"received\":50000}\n");
  answer = more(
      "PUT /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
      "6\r\nfoobar\r\n0\r\n\r\n");
  EXPECT_EQ(body_of(answer), "{\"received\":6,\"fnv1a64\":\"85944171f73967e8\"}\n");
  answer = more("POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
  EXPECT_EQ(body_of(answer), "{\"received\":0,\"fnv1a64\":\"cbf29ce484222325\"}\n");
}

TEST_F(HttpSessionTest, AClientThatExpects100ContinueGetsIt) {
  start();
  EXPECT_EQ(ask("POST /sink HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                "Content-Length: 3\r\n\r\n"),
            "HTTP/1.1 100 Continue\r\n\r\n");
  EXPECT_EQ(body_of(more("abc")), "{\"received\":3}\n");
}

TEST_F(HttpSessionTest, WrongRequestsAreRefusedWithTheirStatus) {
  start();
  const struct {
    std::string request;
    const char* status;
    bool closes;
  } kCases[] = {
      {"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", "404", false},
      {"GET /bytes/many HTTP/1.1\r\nHost: x\r\n\r\n", "400", false},
      {"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab", "405", false},
      {"GET /sink HTTP/1.1\r\nHost: x\r\n\r\n", "405", false},
      {"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", "501", false},
      {"GET / HTTP/1.1\r\nHost: x\r\nX: " + std::string(9000, 'x') + "\r\n\r\n", "431", true},
      {"GET / HTTP/1.1\n\n", "400", true},
      {"GET / HTTP/1.1\r\n\r\n", "400", true},
      {"POST /sink HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "400", true},
  };
  for (const auto& c : kCases) {
    const std::string answer = ask(c.request);
    EXPECT_EQ(answer.substr(9, 3), c.status) << c.request;
    EXPECT_EQ(closed(), c.closes) << c.request;
  }
}

TEST_F(HttpSessionTest, ARequestThatTricklesInIsAnswered) {
  start();
  id_ = open();
  const std::string request = "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n";
  for (const char c : request) {
    proxy_.send(id_, std::string_view(&c, 1));
    pump();
  }
  ASSERT_TRUE(pump_until([&] { return !proxy_.stream(id_).data.empty(); }));
}

TEST_F(HttpSessionTest, AHalfClosedClientStillGetsItsAnswer) {
  start();
  id_ = open(50'000);
  proxy_.send(id_, "GET /bytes/200000 HTTP/1.1\r\nHost: x\r\n\r\n");
  proxy_.send_close(id_, sanproxy::wire::CloseCode::kFin);
  ASSERT_TRUE(pump_until([&] { return proxy_.stream(id_).data.size() > 200'000; }));
  ASSERT_TRUE(pump_until([&] { return closed(); }));
}

TEST_F(HttpSessionTest, FilesAreServedWithTheirTypesAndNothingOutsideTheRootIs) {
  start(true);
  write_file("index.html", "<h1>top</h1>");
  write_file("sub/index.html", "<h1>sub</h1>");
  write_file("a b.css", "css");
  std::ofstream(directory_ + "/secret") << "secret";
  std::filesystem::create_symlink(directory_ + "/secret", root_ + "/link");
  const auto get = [&](const std::string& path) {
    return ask("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
  };
  std::string answer = get("/");
  EXPECT_EQ(body_of(answer), "<h1>top</h1>");
  EXPECT_NE(answer.find("Content-Type: text/html"), std::string::npos);
  EXPECT_EQ(body_of(get("/sub/")), "<h1>sub</h1>");
  EXPECT_NE(get("/sub").find("Location: /sub/\r\n"), std::string::npos);
  EXPECT_NE(get("/a%20b.css?v=1").find("text/css"), std::string::npos);
  for (const char* path : {"/../secret", "/sub/../../secret", "/%2e%2e/secret", "/link",
                           "//etc/passwd", "/sub/..%2f..%2fsecret"}) {
    EXPECT_EQ(get(path).substr(9, 3), "404") << path;
  }
  EXPECT_EQ(get("/bad%2").substr(9, 3), "400");
}

TEST_F(HttpSessionTest, FilesLargerThanTheCacheAreSentAsTheyAreRead) {
  start(true, 64 * 1024);
  std::string text;
  for (int i = 0; i < 60'000; ++i) text += std::to_string(i);
  write_file("large.txt", text);
  const std::string request = "GET /large.txt HTTP/1.1\r\nHost: x\r\n\r\n";
  EXPECT_EQ(body_of(ask(request, text.size())), text);
}

TEST_F(HttpSessionTest, AChangedFileIsServedAnewAndAFullCacheStartsOver) {
  start(true, 64 * 1024);
  for (int round = 0; round < 5; ++round) {
    const std::string name = "f" + std::to_string(round);
    const std::string text(30'000, static_cast<char>('a' + round));
    write_file(name, text);
    EXPECT_EQ(body_of(ask("GET /" + name + " HTTP/1.1\r\nHost: x\r\n\r\n", text.size())), text);
  }
}

TEST_F(HttpSessionTest, WhatIsCachedStaysWhileAnAnswerWithItIsStillToCome) {
  start(true);
  const std::size_t half = 500'000;
  for (const char name : {'a', 'b', 'c'}) write_file({name}, std::string(half, name));
  const std::uint64_t slow = open(1 << 20);
  proxy_.send(slow, "GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n");
  pump_some();
  for (const char name : {'b', 'c'}) {
    const std::string request = std::string("GET /") + name + " HTTP/1.1\r\nHost: x\r\n\r\n";
    EXPECT_EQ(body_of(ask(request, half)), std::string(half, name));
  }
  id_ = slow;
  EXPECT_TRUE(body_of(more("!", half)) == std::string(half, 'a'));
}

TEST_F(HttpSessionTest, AnotherFileInItsPlaceIsServedThoughAsLongAndAsOld) {
  start(true);
  for (const char* version : {"1", "2"}) {
    std::filesystem::create_directories(root_ + "/v" + version);
    write_file(std::string("v") + version + "/f", version);
  }
  std::filesystem::last_write_time(root_ + "/v2/f",
                                   std::filesystem::last_write_time(root_ + "/v1/f"));
  const std::string request = "GET /now/f HTTP/1.1\r\nHost: x\r\n\r\n";
  std::filesystem::create_directory_symlink("v1", root_ + "/now");
  EXPECT_EQ(body_of(ask(request)), "1");
  std::filesystem::remove(root_ + "/now");
  std::filesystem::create_directory_symlink("v2", root_ + "/now");
  // It is looked at once a second.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (body_of(more(request)) != "2" && std::chrono::steady_clock::now() < end) {
  }
  EXPECT_EQ(body_of(more(request)), "2");
}

TEST_F(HttpSessionTest, TargetsWithoutASlashAndAbsoluteOnes) {
  start(true);
  write_file("index.html", "top");
  const auto get = [&](const std::string& target) {
    return ask("GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n");
  };
  for (const char* target : {"?x", "*", "x", "?", "http:/x", "ftp://x/y"}) {
    EXPECT_EQ(get(target).substr(9, 3), "400") << target;
  }
  EXPECT_EQ(body_of(get("http://10.77.0.10/hello?x")),
            "Hello from an application node that does no TCP.\n");
  for (const char* target : {"HTTP://x", "http://x?y=/hello", "http://x/"}) {
    EXPECT_EQ(body_of(get(target)), "top") << target;
  }
}

TEST_F(HttpSessionTest, AnEmptyLineInFrontOfARequestMayComeInPieces) {
  start();
  id_ = open(1 << 20);
  proxy_.send(id_, "\r");
  pump_some();
  EXPECT_EQ(more("\nGET /hello HTTP/1.1\r\nHost: x\r\n\r\n").substr(9, 3), "200");
  proxy_.send(id_, "\r");
  pump_some();
  EXPECT_EQ(more("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").substr(9, 3), "400");
}

TEST_F(HttpSessionTest, WithoutAFreeDescriptorItIsNotTheFileThatIsMissing) {
  start(true);
  write_file("there", "x");
  const std::string request = "GET /there HTTP/1.1\r\nHost: x\r\n\r\n";
  {
    const sanproxy::fabric::test::DescriptorLimit full(
        sanproxy::fabric::test::lowest_free_descriptor());
    EXPECT_EQ(ask(request).substr(9, 3), "503");
  }
  EXPECT_EQ(more(request).substr(9, 3), "200");
}

TEST_F(HttpSessionTest, WhoStopsEndsConnectionsThatAskForNothing) {
  start();
  (void)ask("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
  const std::uint64_t idle = id_;
  const std::uint64_t asking = open(1 << 20);
  proxy_.send(asking, "GET /hel");
  pump_some();
  EXPECT_EQ(sessions_.size(), 2u);
  HttpSession::end_idle(sessions_);
  ASSERT_TRUE(pump_until([&] { return !proxy_.stream(idle).closes.empty(); }));
  EXPECT_TRUE(proxy_.stream(asking).closes.empty());
  id_ = asking;
  EXPECT_EQ(more("lo HTTP/1.1\r\nHost: x\r\n\r\n").substr(9, 3), "200");
}

TEST_F(HttpSessionTest, WhoStopsEndsBusyConnectionsAfterTheirLastAnswer) {
  start();
  proxy_.options.free_at_once = false;
  const std::uint64_t taking = open(50'000);
  id_ = taking;
  (void)more("GET /bytes/100000 HTTP/1.1\r\nHost: x\r\n\r\n", 50'000);
  const std::uint64_t giving = open(1 << 20);
  id_ = giving;
  proxy_.send(giving, "POST /sink HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello");
  pump_some();
  node_->stop();
  HttpSession::end_idle(sessions_);
  pump_some();
  EXPECT_TRUE(proxy_.stream(taking).closes.empty());
  EXPECT_TRUE(proxy_.stream(giving).closes.empty());
  proxy_.send_credit(taking, 50'000, 50'000);
  pump_some();
  proxy_.send_credit(taking, 100'000, 100'000);
  proxy_.send(giving, "world");
  ASSERT_TRUE(pump_until([&] {
    return !proxy_.stream(taking).closes.empty() && !proxy_.stream(giving).closes.empty();
  }));
  EXPECT_GT(proxy_.stream(taking).data.size(), 100'000u);
  EXPECT_EQ(proxy_.stream(giving).data.substr(9, 3), "200");
}

}  // namespace
}  // namespace examples
