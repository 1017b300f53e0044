// Channels with TLS whose bytes come as they like: one by one, and with changes of keys among them.
#include <fcntl.h>
#include <openssl/ssl.h>

#include "lwproto/fabric/link_parameters.h"
#include "tests/lwproto/fabric/tcp/raw_tcp_peer.h"
#include "tests/lwproto/fabric/tcp/test_certificates.h"

namespace sanproxy::fabric::test {
namespace {

// Between two ends of TCP: passes at most one byte of each direction of each connection on in a
// step.
class Trickle {
 public:
  explicit Trickle(const std::string& server) : server_(server) {
    listener_ = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at)), 0);
    EXPECT_EQ(::listen(listener_.get(), 16), 0);
    socklen_t length = sizeof(at);
    EXPECT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&at), &length), 0);
    address_ = "tcp://127.0.0.1:" + std::to_string(ntohs(at.sin_port));
  }
  const std::string& address() const { return address_; }
  std::size_t connections() const { return pairs_.size(); }

  void step() {
    if (UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)); fd.valid()) {
      auto& pair = pairs_.emplace_back();
      pair[0].take(std::move(fd));
      EXPECT_TRUE(pair[1].dial(server_));
    }
    for (auto& pair : pairs_) {
      pass(pair[0], pair[1]);
      pass(pair[1], pair[0]);
    }
  }

 private:
  static void pass(const RawTcpPeer& from, RawTcpPeer& to) {
    std::byte one{};
    if (::recv(from.fd(), &one, 1, MSG_DONTWAIT) != 1) return;
    EXPECT_TRUE(to.send({&one, 1}));
  }

  std::string server_;
  std::string address_;
  UniqueFd listener_;
  std::vector<std::array<RawTcpPeer, 2>> pairs_;
};

class TcpBytes : public testing::TestWithParam<bool> {
 protected:
  static TcpOptions options(const char* name) {
    return GetParam() ? TestCertificates::shared().options(name) : TcpOptions();
  }
};

INSTANTIATE_TEST_SUITE_P(, TcpBytes, testing::Bool(),
                         [](const auto& one) { return one.param ? "Tls" : "Plain"; });

TEST_P(TcpBytes, MayComeOneByOneFromTheFirstToTheLast) {
  TcpOptions server_options = options("server");
  server_options.handshake_timeout_ms = 60'000;
  TcpOptions client_options = options("client");
  client_options.handshake_timeout_ms = 60'000;
  const auto server_fabric = make([&] { return make_tcp_fabric(server_options); });
  const auto client_fabric = make([&] { return make_tcp_fabric(client_options); });
  std::optional<Trickle> relay;
  // Without sleep: nobody tells when the relay has something to pass on.
  const auto passed_on = [&](const std::function<bool()>& done) {
    for (int i = 0; i < 10'000'000 && !done() && !HasFailure(); ++i) {
      relay->step();
      (void)server_fabric->arm();
      (void)client_fabric->arm();
      server_fabric->disarm();
      client_fabric->disarm();
    }
    return done();
  };
  auto listener = server_fabric->listen("tcp://127.0.0.1:0", {});
  ASSERT_TRUE(listener.ok());
  relay.emplace((*listener)->address());
  EndpointOptions wanted;
  wanted.link = parse_link("streams=3").value();
  auto connecting = client_fabric->connect(relay->address(), bytes_of("hello"), wanted);
  ASSERT_TRUE(connecting.ok());
  Side server;
  Side client;
  ASSERT_TRUE(passed_on([&] {
    if (auto request = (*listener)->poll(); request.ok()) {
      EXPECT_EQ(text_of(request->private_data), "hello");
      server.endpoint = (*listener)->accept(*request, bytes_of("answer")).value();
    }
    if (client.endpoint) return server.endpoint != nullptr;
    auto endpoint = (*connecting)->poll();
    EXPECT_TRUE(endpoint.ok() || endpoint.status().is_again()) << endpoint.status().to_string();
    if (endpoint.ok()) client.endpoint = std::move(*endpoint);
    return server.endpoint && client.endpoint;
  }));
  EXPECT_EQ(text_of((*connecting)->private_data()), "answer");
  EXPECT_EQ(relay->connections(), 3u);

  // Inline alone, and with references, each way at once.
  auto region = buffer::MemoryRegion::create("trickle", 4096).value();
  const Bytes referenced = pattern(region.size(), 77);
  std::copy(referenced.begin(), referenced.end(), region.bytes().begin());
  for (Side* side : {&server, &client}) {
    const GatherRef ref{side->endpoint->attach(region).value(), 4096, 0};
    for (unsigned i = 0; i < 6; ++i) {
      ASSERT_TRUE(side->queue(pattern(700, i), std::span(&ref, i % 2), i).ok());
    }
    side->endpoint->flush();
  }
  ASSERT_TRUE(passed_on([&] {
    server.poll();
    client.poll();
    return server.received.size() == 6 && client.received.size() == 6;
  }));
  for (Side* side : {&server, &client}) {
    for (unsigned i = 0; i < 6; ++i) {
      Bytes expected = pattern(700, i);
      if (i % 2 != 0) expected.insert(expected.end(), referenced.begin(), referenced.end());
      EXPECT_EQ(side->received[i].content, expected) << i;
    }
    side->release_all();
  }
  client.endpoint->disconnect({});
  ASSERT_TRUE(passed_on([&] {
    client.poll();
    server.poll();
    return server.disconnected && client.disconnected;
  }));
  EXPECT_EQ(server.disconnected->code(), Code::kDisconnected);
}

// A peer of the fabric's that runs OpenSSL itself.
class TlsPeer {
 public:
  TlsPeer(const std::string& address, const TcpOptions& own)
      : context_(SSL_CTX_new(TLS_client_method())) {
    EXPECT_TRUE(raw_.dial(address));
    SSL_CTX_use_certificate_file(context_, own.certificate_file.c_str(), SSL_FILETYPE_PEM);
    SSL_CTX_use_PrivateKey_file(context_, own.key_file.c_str(), SSL_FILETYPE_PEM);
    ssl_ = SSL_new(context_);
    SSL_set_fd(ssl_, raw_.fd());
    SSL_set_connect_state(ssl_);
    const int flags = ::fcntl(raw_.fd(), F_GETFL);
    ::fcntl(raw_.fd(), F_SETFL, flags | O_NONBLOCK);
  }
  ~TlsPeer() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
  }
  TlsPeer(const TlsPeer&) = delete;
  TlsPeer& operator=(const TlsPeer&) = delete;

  bool shake_hands() { return SSL_do_handshake(ssl_) == 1; }
  // Also that the other side is to change its own.
  void change_keys() {
    EXPECT_EQ(SSL_key_update(ssl_, SSL_KEY_UPDATE_REQUESTED), 1);
    EXPECT_EQ(SSL_do_handshake(ssl_), 1);
  }
  void write(const Bytes& bytes) {
    EXPECT_EQ(SSL_write(ssl_, bytes.data(), static_cast<int>(bytes.size())),
              static_cast<int>(bytes.size()));
  }
  // Everything that has come so far.
  const Bytes& read() {
    std::array<std::byte, 4096> some;
    for (int n = 0; (n = SSL_read(ssl_, some.data(), some.size())) > 0;) {
      read_.insert(read_.end(), some.begin(), some.begin() + n);
    }
    return read_;
  }
  void forget() { read_.clear(); }

 private:
  RawTcpPeer raw_;
  SSL_CTX* context_;
  SSL* ssl_ = nullptr;
  Bytes read_;
};

Bytes joined(const Bytes& head, const Bytes& body) {
  Bytes out = head;
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

TEST(TcpTlsKeys, MayBeChangedInBothDirectionsWhileTransfersFlow) {
  const auto fabric =
      make([] { return make_tcp_fabric(TestCertificates::shared().options("server")); });
  const std::vector<Fabric*> fabrics = {fabric.get()};
  auto listener = fabric->listen("tcp://127.0.0.1:0", {});
  ASSERT_TRUE(listener.ok());
  TlsPeer peer((*listener)->address(), TestCertificates::shared().options("client"));
  const auto serve = [&](const std::function<bool()>& done) {
    for (int i = 0; i < 1'000'000 && !done(); ++i) {
      fabric->disarm();
      (void)(*listener)->poll();
    }
    return done();
  };
  ASSERT_TRUE(serve([&] { return peer.shake_hands(); }));
  tcp::Preamble preamble;
  preamble.body_bytes = sizeof(tcp::HelloBody);
  peer.write(joined(RawTcpPeer::bytes_in(preamble), RawTcpPeer::bytes_in(RawTcpPeer::hello())));
  const auto request = next_request(**listener, fabrics);
  ASSERT_TRUE(request);
  Side side;
  side.endpoint = (*listener)->accept(*request, {}).value();
  side.replenish = true;
  ASSERT_TRUE(
      serve([&] { return peer.read().size() == sizeof(tcp::Preamble) + sizeof(tcp::AnswerBody); }));
  for (std::uint64_t number = 0; number < 50; ++number) {
    peer.forget();
    peer.change_keys();
    const Bytes body = pattern(3000, static_cast<unsigned>(number));
    const auto frame = tcp::FrameHeader::make(tcp::FrameKind::kTransfer, number, 3000, 3000);
    peer.write(joined(RawTcpPeer::bytes_in(frame), body));
    ASSERT_TRUE(eventually(fabrics, [&] {
      side.poll();
      return side.received.size() == number + 1 || side.disconnected;
    }));
    ASSERT_FALSE(side.disconnected) << number << ": " << side.disconnected->to_string();
    EXPECT_EQ(side.received.back().content, body);
    ASSERT_TRUE(side.send(body).ok());
    ASSERT_TRUE(serve([&] { return peer.read().size() == sizeof(frame) + body.size(); })) << number;
    EXPECT_EQ(Bytes(peer.read().begin() + sizeof(frame), peer.read().end()), body);
  }
}

}  // namespace
}  // namespace sanproxy::fabric::test
