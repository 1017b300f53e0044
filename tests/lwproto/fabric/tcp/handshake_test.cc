// How channels over TCP are set up, with well- and ill-behaved peers.
#include <sys/socket.h>

#include "lwproto/fabric/tcp/listener.h"
#include "tests/lwproto/fabric/tcp/tcp_fixture.h"

namespace sanproxy::fabric::test {
namespace {

using tcp::MessageType;
using tcp::Verdict;

TEST(TcpListen, ThePortThatTheKernelChoseIsInTheAddressAndIsTakenThen) {
  auto fabric = make([] { return make_tcp_fabric(); });
  auto listener = fabric->listen(kAnyPort, {});
  ASSERT_TRUE(listener.ok()) << listener.status().to_string();
  EXPECT_NE((*listener)->address(), kAnyPort);
  EXPECT_EQ(fabric->listen((*listener)->address(), {}).status().code(), Code::kExists);
  const std::string address = (*listener)->address();
  listener->reset();
  EXPECT_TRUE(fabric->listen(address, {}).ok());
}

TEST(TcpListen, ServesIpv6) {
  auto fabric = make([] { return make_tcp_fabric(); });
  auto listener = fabric->listen("tcp://[::1]:0", {});
  if (!listener.ok()) GTEST_SKIP() << "no IPv6: " << listener.status().to_string();
  auto client_fabric = make([] { return make_tcp_fabric(); });
  Side server;
  Side client;
  ASSERT_TRUE(connect_sides(*fabric, **listener, *client_fabric, {}, server, client));
  EXPECT_EQ(server.endpoint->peer().address, "tcp:::1");
}

TEST(TcpOptionsTest, WhatIsOutOfRangeIsRefused) {
  for (const TcpOptions& options :
       {TcpOptions{.certificate_file = "x"}, TcpOptions{.server_name = "x"},
        TcpOptions{.parallel_streams = 0}, TcpOptions{.parallel_streams = 17},
        TcpOptions{.streams_max = 65}, TcpOptions{.send_queue_bytes = 100'000},
        TcpOptions{.half_open_max = 0}, TcpOptions{.tls_handshakes_per_s = 0},
        TcpOptions{.handshake_timeout_ms = 0}, TcpOptions{.lingering_max = 0},
        TcpOptions{.peer_timeout_ms = 999}, TcpOptions{.peer_timeout_ms = 3'600'001}}) {
    EXPECT_EQ(make_tcp_fabric(options).status().code(), Code::kInvalidArgument);
  }
}

class TcpHandshake : public TcpServer {
 protected:
  // Starts with a clock of ours, so that nothing is late unless we say so.
  void start_with_clock(TcpOptions options = {}) {
    options.clock = &clock_;
    options.handshake_timeout_ms = 400;
    start(options);
  }
  void let_time_pass() { clock_.advance_ns(500'000'000); }
};

TEST_F(TcpHandshake, ASilentOrSlowPeerIsDroppedInTime) {
  start_with_clock();
  RawTcpPeer silent;
  RawTcpPeer slow;
  RawTcpPeer joining;
  ASSERT_TRUE(silent.dial(listener_->address()) && slow.dial(listener_->address()) &&
              joining.dial(listener_->address()));
  tcp::Preamble preamble;
  preamble.body_bytes = sizeof(tcp::HelloBody);
  ASSERT_TRUE(slow.send(RawTcpPeer::bytes_in(preamble)));
  ASSERT_TRUE(slow.send(pattern(1, 1)));
  ASSERT_TRUE(joining.say_hello(2));
  ASSERT_TRUE(answered(joining));
  ASSERT_TRUE(counted(counters_.connections, 3));
  EXPECT_EQ(counters_.timeouts, 0u);
  let_time_pass();
  EXPECT_TRUE(counted(counters_.timeouts, 3));
  EXPECT_TRUE(silent.ends() && slow.ends() && joining.ends());
}

TEST_F(TcpHandshake, AFloodOfSilentPeersLeavesRoomForAnHonestOne) {
  start({.half_open_max = 8});
  std::vector<RawTcpPeer> flood(40);
  for (RawTcpPeer& peer : flood) ASSERT_TRUE(peer.dial(listener_->address()));
  ASSERT_TRUE(counted(counters_.connections, 40));
  EXPECT_EQ(counters_.overflows, 32u);
  EXPECT_TRUE(flood[0].ends());
  Side server;
  Side client;
  EXPECT_TRUE(connect_sides(*fabric_, *listener_, *client_fabric_, {}, server, client));
}

// Each newcomer would have to look through them.
TEST_F(TcpHandshake, HandshakesThatAreOverAreForgottenAtOnce) {
  start({.half_open_max = 8});
  const auto held = [&] { return static_cast<tcp::TcpListener&>(*listener_).handshakes(); };
  const Bytes noise = pattern(100, 1);
  for (std::uint64_t i = 1; i <= 40; ++i) {
    RawTcpPeer peer;
    ASSERT_TRUE(peer.dial(listener_->address()) && peer.send(noise));
    ASSERT_TRUE(counted(counters_.malformed, i));
    EXPECT_EQ(held(), 0u);
  }
  std::vector<RawTcpPeer> silent(40);
  for (RawTcpPeer& peer : silent) ASSERT_TRUE(peer.dial(listener_->address()));
  ASSERT_TRUE(counted(counters_.connections, 80));
  EXPECT_EQ(held(), 8u);
}

TEST_F(TcpHandshake, AFloodOfHalfJoinedChannelsLeavesRoomForAnHonestOne) {
  start({.half_open_max = 8});
  std::vector<RawTcpPeer> flood(40);
  for (RawTcpPeer& peer : flood) {
    ASSERT_TRUE(peer.dial(listener_->address()) && peer.say_hello(3));
    ASSERT_TRUE(answered(peer));
  }
  EXPECT_EQ(counters_.overflows, 32u);
  auto client_fabric = make([] { return make_tcp_fabric({.parallel_streams = 3}); });
  Side server;
  Side client;
  EXPECT_TRUE(connect_sides(*fabric_, *listener_, *client_fabric, {}, server, client));
}

TEST_F(TcpHandshake, AFloodFromOneAddressLeavesAloneWhoIsThereFromAnother) {
  start({.half_open_max = 8});
  RawTcpPeer silent;
  RawTcpPeer joining;
  ASSERT_TRUE(silent.dial(listener_->address(), 2) && joining.dial(listener_->address(), 2));
  ASSERT_TRUE(joining.say_hello(2));
  ASSERT_TRUE(answered(joining));
  auto welcome = joining.read_message<tcp::WelcomeBody>(MessageType::kWelcome);
  ASSERT_TRUE(welcome);
  std::vector<RawTcpPeer> flood(80);
  for (std::size_t i = 0; i < flood.size(); ++i) {
    ASSERT_TRUE(flood[i].dial(listener_->address()));
    if (i % 2 == 0) continue;
    ASSERT_TRUE(flood[i].say_hello(3));
    ASSERT_TRUE(answered(flood[i]));
  }
  EXPECT_GT(counters_.overflows, 40u);
  RawTcpPeer second;
  ASSERT_TRUE(second.dial(listener_->address(), 2) && second.say_join(welcome->token, 1));
  accept();
  EXPECT_EQ(victim_.endpoint->link().parallel_streams, 2u);
  ASSERT_TRUE(silent.say_hello());
  accept();
}

TEST(PeerNetworks, ThoseThatHoldNothingAreForgottenBeforeTheyAreMany) {
  tcp::PeerNetworks networks;
  IpAddress address = IpAddress::parse("fd77::1").value();
  tcp::PeerNetwork* held = &networks.of(address);
  held->count(tcp::HandshakeStage::kSilent) = 2;
  for (std::size_t i = 1; i < 10'000; ++i) {
    address.bytes[6] = static_cast<std::uint8_t>(i >> 8);
    address.bytes[7] = static_cast<std::uint8_t>(i);
    networks.of(address);
    EXPECT_LE(networks.size(), tcp::PeerNetworks::kRemembered + 1);
  }
  EXPECT_EQ(&networks.of(IpAddress::parse("fd77::2:3:4:5").value()), held) << "the same /64";
  EXPECT_EQ(networks.most(tcp::HandshakeStage::kSilent), 2u);
  EXPECT_EQ(networks.most(tcp::HandshakeStage::kJoining), 0u);
}

TEST_F(TcpHandshake, WhatIsNoHandshakeIsClosedAndCounted) {
  start();
  const auto with = [](auto change) {
    tcp::Preamble preamble;
    change(preamble);
    return RawTcpPeer::bytes_in(preamble);
  };
  const std::vector<Bytes> noise = {
      bytes_of("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
      pattern(4096, 1),
      with([](tcp::Preamble& p) { p.body_bytes = tcp::kBodyBytesMax + 1; }),
      with([](tcp::Preamble& p) { p.body_bytes = ~0u; }),
      with([](tcp::Preamble& p) { p.body_bytes = 0; }),
      with([](tcp::Preamble& p) { p.type = MessageType{9}; }),
      with([](tcp::Preamble& p) { p.type = MessageType::kAnswer; }),
      with([](tcp::Preamble& p) { p.type = MessageType::kJoin; }),
  };
  for (std::size_t i = 0; i < noise.size(); ++i) {
    RawTcpPeer raw;
    ASSERT_TRUE(raw.dial(listener_->address()) && raw.send(noise[i]));
    EXPECT_TRUE(counted(counters_.malformed, i + 1)) << i;
    EXPECT_TRUE(raw.ends());
  }
  EXPECT_EQ(counters_.channels, 0u);
}

TEST_F(TcpHandshake, AnotherVersionAndOtherSizesAreAnswered) {
  start();
  RawTcpPeer raw;
  tcp::Preamble preamble;
  preamble.version = 2;
  ASSERT_TRUE(raw.dial(listener_->address()) && raw.send(RawTcpPeer::bytes_in(preamble)));
  ASSERT_TRUE(answered(raw));
  auto answer = raw.read_message<tcp::AnswerBody>(MessageType::kAnswer);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->verdict, Verdict::kBadVersion);

  EndpointOptions others;
  others.inline_bytes_max = 4096;
  auto connecting = client_fabric_->connect(listener_->address(), {}, others);
  ASSERT_TRUE(connecting.ok());
  auto connected = finish(**connecting, {fabric_.get(), client_fabric_.get()});
  EXPECT_EQ(connected.status().code(), Code::kProtocol) << connected.status().to_string();
}

TEST_F(TcpHandshake, OnlyTheHolderOfTheTokenJoinsAndEachStreamOnce) {
  start();
  RawTcpPeer first;
  ASSERT_TRUE(first.dial(listener_->address()) && first.say_hello(3));
  ASSERT_TRUE(answered(first));
  auto welcome = first.read_message<tcp::WelcomeBody>(MessageType::kWelcome);
  ASSERT_TRUE(welcome);
  const tcp::Token token = welcome->token;
  tcp::Token wrong = token;
  wrong[15] ^= std::byte{1};

  std::uint64_t refused = 0;
  const auto refuse = [&](const tcp::Token& with, std::uint32_t stream) {
    RawTcpPeer raw;
    ASSERT_TRUE(raw.dial(listener_->address()) && raw.say_join(with, stream));
    EXPECT_TRUE(counted(counters_.wrong_tokens, ++refused)) << stream;
    EXPECT_TRUE(raw.ends());
  };
  refuse(wrong, 1);
  refuse({}, 1);
  refuse(token, 0);
  refuse(token, 3);
  refuse(token, ~0u);
  RawTcpPeer second;
  ASSERT_TRUE(second.dial(listener_->address()) && second.say_join(token, 2));
  ASSERT_TRUE(counted(counters_.connections, 7));
  refuse(token, 2);
  EXPECT_EQ(counters_.channels, 0u);
  RawTcpPeer third;
  ASSERT_TRUE(third.dial(listener_->address()) && third.say_join(token, 1));
  accept();
  EXPECT_EQ(victim_.endpoint->link().parallel_streams, 3u);
  // The token is of no use any more.
  refuse(token, 1);
}

TEST_F(TcpHandshake, TwoTokensHaveNothingInCommon) {
  start();
  RawTcpPeer raws[2];
  tcp::Token tokens[2];
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(raws[i].dial(listener_->address()) && raws[i].say_hello(2));
    ASSERT_TRUE(answered(raws[i]));
    tokens[i] = raws[i].read_message<tcp::WelcomeBody>(MessageType::kWelcome).value().token;
  }
  int same = 0;
  for (std::size_t i = 0; i < tokens[0].size(); ++i) same += tokens[0][i] == tokens[1][i] ? 1 : 0;
  EXPECT_LT(same, 8);
}

TEST_F(TcpHandshake, LinksThatCannotBeAreRefusedToAPeerThatAsksAllTheSame) {
  start();
  struct Case {
    LinkField field;
    std::function<void(tcp::LinkBody&)> ask;
  };
  std::vector<Case> cases = {
      {kLinkStreams, [](tcp::LinkBody& link) { link.streams = 0; }},
      {kLinkStreams, [](tcp::LinkBody& link) { link.streams = 17; }},
      {kLinkStreams, [](tcp::LinkBody& link) { link.streams = ~0u; }},
      {kLinkWindow, [](tcp::LinkBody& link) { link.window_bytes = 100; }},
      {kLinkWindow, [](tcp::LinkBody& link) { link.window_bytes = 300u << 20; }},
      {kLinkCongestion,
       [](tcp::LinkBody& link) {
         link.congestion = {'n', 'o', 'n', 'e'};
       }},
      {kLinkCongestion, [](tcp::LinkBody& link) { link.congestion.fill('x'); }},
      {kLinkQuality, [](tcp::LinkBody& link) { link.quality = QualityClass{77}; }},
      {kLinkSkipSlowStart, [](tcp::LinkBody& link) { link.skip_slow_start = 1; }},
  };
  // Of this burst no sender would ever have earned anything.
  const LinkField unnamed{};
  cases.push_back({unnamed, [](tcp::LinkBody& link) {
                     link.quality = QualityClass::kVariable;
                     link.rate_bytes_per_s = link.peak_bytes_per_s = 1;
                     link.burst_bytes = std::uint64_t{1} << 63;
                   }});
  for (const Case& c : cases) {
    RawTcpPeer raw;
    tcp::HelloBody hello = RawTcpPeer::hello();
    c.ask(hello.link);
    ASSERT_TRUE(raw.dial(listener_->address()));
    ASSERT_TRUE(raw.say(MessageType::kHello, RawTcpPeer::bytes_in(hello)));
    ASSERT_TRUE(answered(raw));
    auto answer = raw.read_message<tcp::AnswerBody>(MessageType::kAnswer);
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->verdict, Verdict::kBadLink);
    EXPECT_EQ(answer->parameter, static_cast<std::uint32_t>(c.field));
    EXPECT_TRUE(raw.ends());
  }
  EXPECT_EQ(counters_.refused_links, cases.size());
}

// --- the connecting side against servers that are none

class TcpConnect : public testing::Test {
 protected:
  void SetUp() override {
    fabric_ =
        make([this] { return make_tcp_fabric({.handshake_timeout_ms = 400, .clock = &clock_}); });
    server_ = UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    ASSERT_EQ(::bind(server_.get(), generic, length), 0);
    ASSERT_EQ(::listen(server_.get(), 8), 0);
    ASSERT_EQ(::getsockname(server_.get(), generic, &length), 0);
    address_ = "tcp://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  }
  void connect(std::uint32_t streams = 1) {
    EndpointOptions options;
    options.link.parallel_streams = streams;
    auto connecting = fabric_->connect(address_, {}, options);
    ASSERT_TRUE(connecting.ok());
    connecting_ = std::move(*connecting);
    raw_.take(UniqueFd(::accept(server_.get(), nullptr, nullptr)));
    // Its hello is on its way.
    pollfd wait{raw_.fd(), POLLIN, 0};
    ASSERT_TRUE(eventually({fabric_.get()}, [&] {
      EXPECT_TRUE(connecting_->poll().status().is_again());
      return ::poll(&wait, 1, 0) == 1;
    }));
    ASSERT_TRUE(raw_.read_message<tcp::HelloBody>(MessageType::kHello));
  }
  Code outcome() { return finish(*connecting_, {fabric_.get()}).status().code(); }

  ManualClock clock_;
  std::unique_ptr<Fabric> fabric_;
  UniqueFd server_;
  std::string address_;
  RawTcpPeer raw_;
  std::unique_ptr<Connecting> connecting_;
};

TEST_F(TcpConnect, AServerThatNeverAnswersIsGivenUpInTime) {
  connect();
  clock_.advance_ns(500'000'000);
  EXPECT_EQ(outcome(), Code::kTimeout);
  EXPECT_TRUE(raw_.ends());
}

TEST_F(TcpConnect, AServerThatClosesOrAnswersNoiseIsAnError) {
  connect();
  raw_.close();
  EXPECT_EQ(outcome(), Code::kDisconnected);
  connect();
  ASSERT_TRUE(raw_.send(pattern(100, 1)));
  EXPECT_EQ(outcome(), Code::kProtocol);
  connect();
  ASSERT_TRUE(raw_.say(MessageType::kAnswer, Bytes(3)));
  EXPECT_EQ(outcome(), Code::kProtocol);
  connect();
  ASSERT_TRUE(raw_.say(MessageType::kHello, RawTcpPeer::bytes_in(RawTcpPeer::hello())));
  EXPECT_EQ(outcome(), Code::kProtocol);
  // A welcome for one stream, or an answer before the others had joined.
  connect();
  ASSERT_TRUE(raw_.say(MessageType::kWelcome, RawTcpPeer::bytes_in(tcp::WelcomeBody{})));
  EXPECT_EQ(outcome(), Code::kProtocol);
  connect(3);
  tcp::AnswerBody answer;
  answer.sizes = tcp::make_sizes({});
  ASSERT_TRUE(raw_.say(MessageType::kAnswer, RawTcpPeer::bytes_in(answer)));
  EXPECT_EQ(outcome(), Code::kProtocol);
}

TEST_F(TcpConnect, EachVerdictHasItsCode) {
  const std::vector<std::pair<Verdict, Code>> verdicts = {
      {Verdict::kRejected, Code::kRefused},
      {Verdict::kBadVersion, Code::kUnsupported},
      {Verdict::kBadHello, Code::kProtocol},
      {Verdict::kBadLink, Code::kRefused},
      {Verdict::kTlsRequired, Code::kPermission},
      {Verdict::kNoRoom, Code::kExhausted},
      {Verdict{99}, Code::kProtocol}};
  for (const auto& [verdict, code] : verdicts) {
    connect();
    tcp::AnswerBody answer;
    answer.verdict = verdict;
    answer.sizes = tcp::make_sizes({});
    ASSERT_TRUE(raw_.say(MessageType::kAnswer, RawTcpPeer::bytes_in(answer)));
    EXPECT_EQ(outcome(), code) << static_cast<int>(verdict);
  }
}

TEST_F(TcpConnect, AServerThatTakesNoFurtherConnectionEndsTheAttempt) {
  connect(3);
  server_.reset();
  ASSERT_TRUE(raw_.say(MessageType::kWelcome, RawTcpPeer::bytes_in(tcp::WelcomeBody{})));
  EXPECT_EQ(outcome(), Code::kNotFound);
  EXPECT_TRUE(raw_.ends());
}

}  // namespace
}  // namespace sanproxy::fabric::test
