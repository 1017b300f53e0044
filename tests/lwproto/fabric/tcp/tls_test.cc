// Channels over TCP with TLS: who is let in, and what is known of them.
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/ioctl.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/lwproto/fabric/tcp/raw_tcp_peer.h"
#include "tests/lwproto/fabric/tcp/test_certificates.h"
#include "tests/lwproto/fabric/temporary_path.h"

namespace sanproxy::fabric::test {
namespace {

class TcpTls : public testing::Test {
 protected:
  static TestCertificates& certificates() { return TestCertificates::shared(); }
  static TcpOptions plain() { return {}; }

  void listen(TcpOptions options) {
    options.counters = &counters_;
    server_fabric_ = make([&] { return make_tcp_fabric(options); });
    ASSERT_TRUE(server_fabric_);
    auto listening = server_fabric_->listen("tcp://127.0.0.1:0", {});
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    listener_ = std::move(*listening);
  }
  // What comes of an attempt; the server accepts whoever it is shown.
  Status attempt(const TcpOptions& options) {
    server_ = Side();
    client_ = Side();
    client_fabric_ = make([&] { return make_tcp_fabric(options); });
    auto connecting = client_fabric_->connect(listener_->address(), {}, {});
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
  bool tls_failures(std::uint64_t count) {
    return eventually({server_fabric_.get()}, [&] {
      (void)listener_->poll();
      return counters_.tls_failures == count;
    });
  }
  void expect_bytes_go_round() {
    const Bytes question = pattern(5000, 1);
    ASSERT_TRUE(client_.send(question).ok());
    ASSERT_TRUE(eventually({server_fabric_.get(), client_fabric_.get()}, [&] {
      server_.poll();
      return !server_.received.empty();
    }));
    EXPECT_EQ(server_.received.front().content, question);
  }

  TcpCounters counters_;
  std::unique_ptr<Fabric> server_fabric_;
  std::unique_ptr<Fabric> client_fabric_;
  std::unique_ptr<Listener> listener_;
  Side server_;
  Side client_;
};

TEST_F(TcpTls, BothSidesKnowTheOthersNameFromItsCertificate) {
  listen(certificates().options("server"));
  ASSERT_TRUE(attempt(certificates().options("client")).ok());
  EXPECT_EQ(server_.endpoint->peer().certificate_name, "sanproxy://client");
  EXPECT_EQ(client_.endpoint->peer().certificate_name, "server.test");
  expect_bytes_go_round();
}

TEST_F(TcpTls, ARequestShowsTheNameBeforeItIsAnswered) {
  listen(certificates().options("server"));
  client_fabric_ = make([&] { return make_tcp_fabric(certificates().options("client")); });
  auto connecting = client_fabric_->connect(listener_->address(), {}, {});
  ASSERT_TRUE(connecting.ok());
  auto request = next_request(*listener_, {server_fabric_.get(), client_fabric_.get()});
  ASSERT_TRUE(request);
  EXPECT_EQ(request->peer.certificate_name, "sanproxy://client");
}

TEST_F(TcpTls, WithoutAnAlternativeNameTheCommonNameIsIt) {
  auto& made = certificates();
  made.make_certificate("common", "ca", "/CN=node-7", "basicConstraints=CA:FALSE");
  made.make_certificate("address", "ca", "/CN=node-8", "subjectAltName=IP:10.0.0.1,DNS:first.test");
  made.make_certificate("strange", "ca", "/CN=two words", "basicConstraints=CA:FALSE");
  made.make_certificate("none", "ca", "/O=nobody", "basicConstraints=CA:FALSE");
  // The authority has looked at the first name. What else is there may be what somebody wished.
  made.make_certificate("odd", "ca", "/CN=node-9", "subjectAltName=DNS:two words");
  made.make_certificate("long", "ca", "/CN=node-9",
                        "subjectAltName=URI:x://" + std::string(300, 'y'));
  made.make_certificate("several", "ca", "/CN=node-9", "subjectAltName=DNS:two words,DNS:node-9");
  listen(made.options("server"));
  for (const auto& [name, expected] : {std::pair{"common", "node-7"},
                                       {"address", "first.test"},
                                       {"strange", ""},
                                       {"none", ""},
                                       {"odd", ""},
                                       {"long", ""},
                                       {"several", ""}}) {
    ASSERT_TRUE(attempt(made.options(name)).ok()) << name;
    EXPECT_EQ(server_.endpoint->peer().certificate_name, expected) << name;
  }
}

TEST_F(TcpTls, ACertificateOfAnotherAuthorityIsRefusedOnEitherSide) {
  auto& made = certificates();
  made.make_authority("other-ca");
  made.make_certificate("stranger", "other-ca", "/CN=stranger", "subjectAltName=DNS:server.test");
  listen(made.options("server"));
  // The stranger trusts us, we do not trust it.
  const Status stranger = attempt(made.options("stranger"));
  EXPECT_EQ(stranger.code(), Code::kPermission);
  EXPECT_STREQ(stranger.text(), "the peer does not take our certificate: not of its authority");
  EXPECT_TRUE(tls_failures(1));
  // We do not trust the server.
  const Status distrust = attempt(made.options("client", "other-ca"));
  EXPECT_EQ(distrust.code(), Code::kPermission);
  EXPECT_STREQ(distrust.text(), "the peer's certificate is not good: not of our authority");
  EXPECT_TRUE(tls_failures(2));
  EXPECT_EQ(counters_.channels, 0u);
  EXPECT_TRUE(attempt(made.options("client")).ok());
}

TEST_F(TcpTls, AnExpiredCertificateIsRefused) {
  auto& made = certificates();
  made.make_certificate("expired", "ca", "/CN=late", "subjectAltName=DNS:late.test", -1);
  listen(made.options("server"));
  const Status ours = attempt(made.options("expired"));
  EXPECT_EQ(ours.code(), Code::kPermission);
  EXPECT_STREQ(ours.text(), "the peer does not take our certificate: expired, or not valid yet");
  EXPECT_TRUE(tls_failures(1));
  listener_.reset();
  listen(made.options("expired"));
  const Status theirs = attempt(made.options("client"));
  EXPECT_EQ(theirs.code(), Code::kPermission);
  EXPECT_STREQ(theirs.text(), "the peer's certificate is not good: expired");
  EXPECT_EQ(counters_.channels, 0u);
}

TEST_F(TcpTls, ASideWithoutTlsIsToldOrTurnedAway) {
  listen(certificates().options("server"));
  const Status refused = attempt(plain());
  EXPECT_EQ(refused.code(), Code::kPermission);
  EXPECT_STREQ(refused.text(), "the server wants TLS");
  EXPECT_TRUE(tls_failures(1));
  listener_.reset();
  listen(plain());
  EXPECT_EQ(attempt(certificates().options("client")).code(), Code::kDisconnected);
  EXPECT_EQ(counters_.malformed, 1u);
}

TEST_F(TcpTls, AServerWithAnotherNameThanExpectedIsRefused) {
  listen(certificates().options("server"));
  TcpOptions options = certificates().options("client");
  options.server_name = "other.test";
  EXPECT_EQ(attempt(options).code(), Code::kPermission);
  EXPECT_EQ(counters_.channels, 0u) << "it says nothing to a server that it does not want";
  options.server_name = "server.test";
  EXPECT_TRUE(attempt(options).ok());
}

TEST_F(TcpTls, EveryConnectionOfAChannelProvesItself) {
  listen(certificates().options("server"));
  TcpOptions options = certificates().options("client");
  options.parallel_streams = 3;
  ASSERT_TRUE(attempt(options).ok());
  EXPECT_EQ(server_.endpoint->link().parallel_streams, 3u);
  expect_bytes_go_round();
}

// As a program that uses OpenSSL itself does, which reads its errors when it likes.
TEST_F(TcpTls, ErrorsThatOthersLeaveInTheQueueOfTheThreadHarmNoChannel) {
  const auto leave_an_error = [] { ERR_raise(ERR_LIB_PEM, ERR_R_PASSED_NULL_PARAMETER); };
  listen(certificates().options("server"));
  leave_an_error();
  ASSERT_TRUE(attempt(certificates().options("client")).ok());
  // Nothing to read, then nothing more, then no room to write.
  leave_an_error();
  server_.poll();
  client_.poll();
  leave_an_error();
  expect_bytes_go_round();
  server_.received.clear();
  const Bytes bytes = pattern(8000, 2);
  while (client_.send(bytes).ok()) leave_an_error();
  client_.endpoint->flush();
  leave_an_error();
  client_.poll();
  server_.poll();
  EXPECT_FALSE(client_.disconnected) << client_.disconnected->to_string();
  EXPECT_FALSE(server_.disconnected) << server_.disconnected->to_string();
  EXPECT_TRUE(client_.endpoint->connected() && server_.endpoint->connected());
}

TEST_F(TcpTls, FilesThatAreNotWhatTheyShouldBeAreNamed) {
  auto& made = certificates();
  const auto status = [](const TcpOptions& options) { return make_tcp_fabric(options).status(); };
  TcpOptions options = made.options("server");
  options.certificate_file = "/nonexistent";
  EXPECT_NE(status(options).to_string().find("certificate_file"), std::string::npos);
  options = made.options("server");
  options.key_file = made.file("client", ".key");
  EXPECT_NE(status(options).to_string().find("key_file"), std::string::npos);
  options = made.options("server");
  options.authority_file = made.file("server", ".key");
  EXPECT_NE(status(options).to_string().find("authority_file"), std::string::npos);
}

TEST_F(TcpTls, WhatIsWrongWithAFileIsToldToPeople) {
  auto& made = certificates();
  made.make_certificate("over", "ca", "/CN=over", "subjectAltName=DNS:over.test", -1);
  made.make_certificate("open", "ca", "/CN=open", "subjectAltName=DNS:open.test");
  std::filesystem::permissions(made.file("open", ".key"), std::filesystem::perms::others_read,
                               std::filesystem::perm_options::add);
  EXPECT_EQ(tls_files_problem({}), "");
  EXPECT_EQ(tls_files_problem(made.options("server")), "");
  EXPECT_EQ(tls_files_problem(made.options("over")),
            "certificate \"" + made.file("over", ".crt") + "\": expired");
  const std::string open = tls_files_problem(made.options("open"));
  EXPECT_EQ(open.find("key \"" + made.file("open", ".key") + "\": open to everybody"), 0u) << open;
  TcpOptions options = made.options("server");
  options.authority_file = "/nonexistent/ca.pem";
  const std::string missing = tls_files_problem(options);
  EXPECT_EQ(missing.find("ca \"/nonexistent/ca.pem\": "), 0u) << missing;
  EXPECT_NE(missing.find("No such file"), std::string::npos) << missing;
}

// A client of OpenSSL's own, with what it is asked for; true if the handshake was completed and the
// server let it stay.
class OpensslClient {
 public:
  explicit OpensslClient(const std::string& address, std::uint8_t from = 1) {
    connected_ = raw_.dial(address, from);
  }
  ~OpensslClient() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
  }
  OpensslClient(const OpensslClient&) = delete;
  OpensslClient& operator=(const OpensslClient&) = delete;

  void begin(int version, const TcpOptions* own) {
    context_ = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context_, version);
    SSL_CTX_set_max_proto_version(context_, version);
    if (own != nullptr) {
      SSL_CTX_use_certificate_file(context_, own->certificate_file.c_str(), SSL_FILETYPE_PEM);
      SSL_CTX_use_PrivateKey_file(context_, own->key_file.c_str(), SSL_FILETYPE_PEM);
    }
    ssl_ = SSL_new(context_);
    SSL_set_fd(ssl_, raw_.fd());
    SSL_set_connect_state(ssl_);
    ::signal(SIGPIPE, SIG_IGN);
  }
  // Both halves of the conversation in one thread: `serve` lets the server work.
  bool stays(const std::function<void()>& serve) {
    int flags = 1;
    ::ioctl(raw_.fd(), FIONBIO, &flags);
    for (int i = 0; i < 100'000; ++i) {
      serve();
      char byte = 0;
      const int result =
          SSL_is_init_finished(ssl_) != 0 ? SSL_read(ssl_, &byte, 1) : SSL_do_handshake(ssl_);
      if (result > 0 && SSL_is_init_finished(ssl_) == 0) continue;
      const int reason = SSL_get_error(ssl_, result);
      if (reason == SSL_ERROR_WANT_READ || reason == SSL_ERROR_WANT_WRITE ||
          reason == SSL_ERROR_NONE) {
        // Long enough for the server to have looked at our certificate.
        if (SSL_is_init_finished(ssl_) != 0 && ++quiet_ > 1000) return true;
        continue;
      }
      return false;
    }
    return false;
  }
  bool connected() const { return connected_; }
  // Sends the first message of TLS.
  void call() {
    int flags = 1;
    ::ioctl(raw_.fd(), FIONBIO, &flags);
    SSL_do_handshake(ssl_);
  }
  bool answered() const {
    pollfd wait{raw_.fd(), POLLIN, 0};
    return ::poll(&wait, 1, 0) == 1;
  }
  void change_keys(int times) {
    for (int i = 0; i < times; ++i) {
      SSL_key_update(ssl_, SSL_KEY_UPDATE_NOT_REQUESTED);
      SSL_do_handshake(ssl_);
    }
  }
  bool say_hello() {
    tcp::Preamble preamble;
    const tcp::HelloBody body = RawTcpPeer::hello();
    preamble.body_bytes = sizeof(body);
    Bytes out = RawTcpPeer::bytes_in(preamble);
    const Bytes rest = RawTcpPeer::bytes_in(body);
    out.insert(out.end(), rest.begin(), rest.end());
    return SSL_write(ssl_, out.data(), static_cast<int>(out.size())) ==
           static_cast<int>(out.size());
  }

 private:
  RawTcpPeer raw_;
  bool connected_ = false;
  SSL_CTX* context_ = nullptr;
  SSL* ssl_ = nullptr;
  int quiet_ = 0;
};

TEST_F(TcpTls, OnlyTls13WithACertificateIsSpoken) {
  listen(certificates().options("server"));
  const TcpOptions own = certificates().options("client");
  const auto stays = [&](int version, const TcpOptions* with) {
    OpensslClient client(listener_->address());
    EXPECT_TRUE(client.connected());
    client.begin(version, with);
    return client.stays([&] {
      server_fabric_->disarm();
      (void)listener_->poll();
    });
  };
  EXPECT_FALSE(stays(TLS1_2_VERSION, &own));
  EXPECT_FALSE(stays(TLS1_3_VERSION, nullptr)) << "no certificate";
  EXPECT_TRUE(stays(TLS1_3_VERSION, &own));
  EXPECT_EQ(counters_.tls_failures, 2u);
}

// OpenSSL would go on for as long as such messages come, and the fabric's thread with it.
TEST_F(TcpTls, APeerThatChangesItsKeysAgainAndAgainIsTurnedAway) {
  listen(certificates().options("server"));
  const TcpOptions own = certificates().options("client");
  const auto serve = [&] {
    server_fabric_->disarm();
    (void)listener_->poll();
  };
  OpensslClient sparing(listener_->address());
  sparing.begin(TLS1_3_VERSION, &own);
  ASSERT_TRUE(sparing.stays(serve));
  sparing.change_keys(10);
  ASSERT_TRUE(sparing.say_hello());
  EXPECT_TRUE(next_request(*listener_, {server_fabric_.get()}));
  OpensslClient talkative(listener_->address());
  talkative.begin(TLS1_3_VERSION, &own);
  ASSERT_TRUE(talkative.stays(serve));
  talkative.change_keys(1000);
  ASSERT_TRUE(eventually({server_fabric_.get()}, [&] {
    (void)listener_->poll();
    return counters_.malformed + counters_.timeouts != 0;
  }));
  EXPECT_EQ(counters_.malformed, 1u);
  EXPECT_TRUE(attempt(own).ok());
}

TEST_F(TcpTls, NoiseBeforeInsideAndAfterTheHandshakeIsTurnedAway) {
  listen(certificates().options("server"));
  std::uint64_t failures = 0;
  for (unsigned seed = 1; seed < 50; ++seed) {
    RawTcpPeer raw;
    ASSERT_TRUE(raw.dial(listener_->address()));
    Bytes noise = pattern(600, seed);
    // Half of them look like the beginning of a handshake.
    if (seed % 2 == 0) noise[0] = std::byte{0x16};
    if (seed % 4 == 0) noise[1] = std::byte{3};
    ASSERT_TRUE(raw.send(noise));
    raw.close();
    EXPECT_TRUE(tls_failures(++failures)) << seed;
  }
  EXPECT_TRUE(attempt(certificates().options("client")).ok());
}

class TcpTlsCrowd : public TcpTls {
 protected:
  OpensslClient& call(std::uint8_t from = 1) {
    OpensslClient& client =
        *crowd_.emplace_back(std::make_unique<OpensslClient>(listener_->address(), from));
    client.begin(TLS1_3_VERSION, nullptr);
    client.call();
    return client;
  }
  std::ptrdiff_t answered() const {
    return std::count_if(crowd_.begin(), crowd_.end(),
                         [](const auto& client) { return client->answered(); });
  }
  std::ptrdiff_t answered_after(int rounds) {
    for (int i = 0; i < rounds; ++i) {
      server_fabric_->disarm();
      (void)listener_->poll();
    }
    return answered();
  }

  std::vector<std::unique_ptr<OpensslClient>> crowd_;
};

TEST_F(TcpTlsCrowd, OneHandshakeARoundIsWorkedOnAndNoneIsForgotten) {
  listen(certificates().options("server"));
  for (int i = 0; i < 20; ++i) call();
  const auto waits = [this] {
    const bool something = !server_fabric_->arm();
    server_fabric_->disarm();
    return something;
  };
  for (std::ptrdiff_t round = 1; round <= 20; ++round) {
    // A hello, or an answer, may still be on its way through the kernel.
    EXPECT_TRUE(eventually({server_fabric_.get()}, waits)) << "somebody waits for a turn";
    (void)listener_->poll();
    const auto give_up = std::chrono::steady_clock::now() + kGiveUp;
    while (answered() < round && std::chrono::steady_clock::now() < give_up) {
      std::this_thread::yield();
    }
    ASSERT_EQ(answered(), round);
  }
}

TEST_F(TcpTlsCrowd, OneAddressBeginsNoMoreHandshakesThanItsRate) {
  ManualClock clock;
  TcpOptions options = certificates().options("server");
  options.tls_handshakes_per_s = 2;
  options.clock = &clock;
  listen(options);
  for (int i = 0; i < 20; ++i) call();
  EXPECT_EQ(answered_after(100), 8) << "four seconds' worth at once";
  EXPECT_TRUE(server_fabric_->arm()) << "until the time comes";
  EXPECT_TRUE(call(2).answered() || answered_after(10) == 9) << "another address";
  clock.advance_ns(1'000'000'000);
  EXPECT_FALSE(server_fabric_->arm());
  EXPECT_EQ(answered_after(100), 11);
}

}  // namespace
}  // namespace sanproxy::fabric::test
