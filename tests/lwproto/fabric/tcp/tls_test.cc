// Channels over TCP with TLS: who is let in, and what is known of them.
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/ioctl.h>

#include <fstream>

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
  listen(made.options("server"));
  for (const auto& [name, expected] :
       {std::pair{"common", "node-7"}, {"address", "first.test"}, {"strange", ""}, {"none", ""}}) {
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
  EXPECT_EQ(attempt(made.options("stranger")).code(), Code::kPermission);
  EXPECT_TRUE(tls_failures(1));
  // We do not trust the server.
  EXPECT_EQ(attempt(made.options("client", "other-ca")).code(), Code::kPermission);
  EXPECT_TRUE(tls_failures(2));
  EXPECT_EQ(counters_.channels, 0u);
  EXPECT_TRUE(attempt(made.options("client")).ok());
}

TEST_F(TcpTls, AnExpiredCertificateIsRefused) {
  auto& made = certificates();
  made.make_certificate("expired", "ca", "/CN=late", "subjectAltName=DNS:late.test", -1);
  listen(made.options("server"));
  EXPECT_EQ(attempt(made.options("expired")).code(), Code::kPermission);
  EXPECT_TRUE(tls_failures(1));
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

// A client of OpenSSL's own, with what it is asked for; true if the handshake was completed and the
// server let it stay.
class OpensslClient {
 public:
  explicit OpensslClient(const std::string& address) { connected_ = raw_.dial(address); }
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

}  // namespace
}  // namespace sanproxy::fabric::test
