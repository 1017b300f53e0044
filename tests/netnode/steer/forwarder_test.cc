#include "netnode/steer/forwarder.h"

#include <gtest/gtest.h>

#include <map>

#include "netnode/net/tunnel.h"
#include "tests/netnode/steer/steer_packets.h"

namespace sanproxy::steer {
namespace {

using namespace testing;  // NOLINT: the test's own

constexpr const char* kService = "10.0.0.10:80";

class ForwarderTest : public ::testing::Test {
 protected:
  ForwarderTest() {
    set_.services = {{at(kService)}, {at("[fd00::10]:80")}, {at("10.0.0.10:53"), 17}};
    for (int i = 0; i < 4; ++i) add("p" + std::to_string(i), static_cast<std::uint16_t>(i + 1));
    apply();
    for (std::uint16_t i = 0; i < 4; ++i) steering_.set_state(i, ProxyState::kUp);
  }
  static ForwarderOptions options() {
    ForwarderOptions out;
    out.maglev_entries = 5003;
    out.flows.flows_max = 4096;
    out.nat.sessions_max = 1024;
    out.nat.addresses = {*IpAddress::parse("10.9.9.9")};
    return out;
  }
  void add(const std::string& name, std::uint16_t id) {
    ProxyConfig proxy;
    proxy.name = name;
    proxy.id = id;
    proxy.mode = Mode::kTunnel;  // carries all that there is
    proxy.targets = {{*IpAddress::parse("10.5.0.1"), 0}};
    set_.proxies.push_back(proxy);
  }
  std::vector<std::uint16_t> apply() {
    std::vector<std::uint16_t> gone;
    EXPECT_EQ(check(set_), "");
    steering_.apply(set_, gone);
    return gone;
  }
  Verdict steer(const Bytes& packet, Fragments::Token token = 0) {
    return steer(steering_, packet, token);
  }
  Verdict steer(Forwarder& forwarder, const Bytes& packet, Fragments::Token token = 0) {
    const Forwarder::Arrival arrival{as_span(packet), token};
    Verdict out;
    forwarder.steer({&arrival, 1}, {&out, 1}, now_ms_);
    return out;
  }
  static Bytes packet(int client, std::uint8_t flags = net::kTcpAck, std::uint16_t tag = 0) {
    return packet_of({.from = at("10.1." + std::to_string(client / 250) + "." +
                                 std::to_string(client % 250 + 1) + ":4000"),
                      .to = at(kService),
                      .flags = flags,
                      .tag = tag});
  }

  ProxySet set_;
  Forwarder steering_{options()};
  std::uint64_t now_ms_ = 1'000'000;
};

TEST_F(ForwarderTest, EveryKindOfPacketGetsItsVerdict) {
  struct Case {
    const char* what;
    Bytes packet;
    Action action;
    Drop drop;
  };
  Bytes broken = packet(1);
  broken[3] = 255;
  Bytes echo = net::testing::ipv4(net::kProtocolIcmp, {8, 0, 0, 0, 0, 0, 0, 0});
  net::store_be32(echo.data() + 16, 0x0a00000a);
  net::testing::fix_ipv4_checksum(echo);
  Bytes query = echo;
  query[20] = 13;
  const Case cases[] = {
      {"a SYN", packet(1, net::kTcpSyn), Action::kToProxy, Drop::kNone},
      {"a segment", packet(2), Action::kToProxy, Drop::kNone},
      {"a UDP datagram",
       packet_of({.from = at("10.1.1.1:1"), .to = at("10.0.0.10:53"), .protocol = 17}),
       Action::kToProxy, Drop::kNone},
      {"another port", packet_of({.from = at("10.1.1.1:1"), .to = at("10.0.0.10:81")}),
       Action::kDrop, Drop::kNoService},
      {"another protocol",
       packet_of({.from = at("10.1.1.1:1"), .to = at("10.0.0.10:80"), .protocol = 17}),
       Action::kDrop, Drop::kNoService},
      {"somebody else", packet_of({.from = at("10.1.1.1:1"), .to = at("10.0.0.11:80")}),
       Action::kDrop, Drop::kNotForUs},
      {"an answer to us", packet_of({.from = at("10.5.0.1:80"), .to = at("10.9.9.9:2000")}),
       Action::kToClient, Drop::kNone},
      {"a malformed one", broken, Action::kDrop, Drop::kMalformed},
      {"nothing", {}, Action::kDrop, Drop::kMalformed},
      {"an echo request", echo, Action::kEcho, Drop::kNone},
      {"an ICMP query", query, Action::kDrop, Drop::kIcmpUnknown},
  };
  for (const Case& one : cases) {
    const Verdict verdict = steer(one.packet);
    EXPECT_EQ(verdict.action, one.action) << one.what;
    EXPECT_EQ(verdict.drop, one.drop) << one.what << ": " << drop_name(verdict.drop);
  }
  EXPECT_EQ(steering_.counters().drops[static_cast<std::size_t>(Drop::kMalformed)], 2U);
}

TEST_F(ForwarderTest, TwoNodesChooseTheSameProxyForEverySession) {
  Forwarder other(options());
  std::vector<std::uint16_t> gone;
  ProxySet reversed = set_;
  std::reverse(reversed.proxies.begin(), reversed.proxies.end());
  other.apply(reversed, gone);
  for (std::uint16_t i = 0; i < 4; ++i) other.set_state(i, ProxyState::kUp);
  for (int i = 0; i < 1000; ++i) {
    const Bytes syn = packet(i, net::kTcpSyn);
    EXPECT_EQ(steering_.proxies()[steer(syn).proxy].config.name,
              other.proxies()[steer(other, syn).proxy].config.name);
  }
}

TEST_F(ForwarderTest, EstablishedFlowsStayWhenTheSetChanges) {
  std::map<int, std::uint16_t> where;
  for (int i = 0; i < 500; ++i) where[i] = steer(packet(i, net::kTcpSyn)).proxy;
  for (int i = 0; i < 500; ++i) ASSERT_EQ(steer(packet(i)).proxy, where[i]);
  add("p4", 5);
  apply();
  steering_.set_state(4, ProxyState::kUp);
  steering_.set_state(1, ProxyState::kDraining);
  for (int i = 0; i < 500; ++i) EXPECT_EQ(steer(packet(i)).proxy, where[i]) << i;
  for (int i = 500; i < 1000; ++i) EXPECT_NE(steer(packet(i, net::kTcpSyn)).proxy, 1);
}

TEST_F(ForwarderTest, ANodeThatHasSeenNothingFindsTheProxyByTheTag) {
  steering_.set_state(2, ProxyState::kDraining);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(steer(packet(i, net::kTcpAck, 3)).proxy, 2);  // also one that drains
  }
  EXPECT_EQ(steering_.counters().by_tag, 100U);
  const Verdict unknown = steer(packet(101, net::kTcpAck, 900));
  EXPECT_EQ(unknown.action, Action::kToProxy);  // a tag of nobody's is no reason to give up
  // A SYN carries an old TSecr at most: it goes by Maglev.
  for (int i = 200; i < 300; ++i) EXPECT_NE(steer(packet(i, net::kTcpSyn, 3)).proxy, 2);
}

// Servers without tags have timestamps, too.
TEST_F(ForwarderTest, ATagNamesNobodyOutsideOfTheServicesProxies) {
  set_.services[0].proxies = {"p2", "p3"};
  set_.proxies[2].id = 0;
  apply();
  for (std::uint16_t i = 0; i < 400; ++i) {
    const auto tag = static_cast<std::uint16_t>(i % 3);
    const Bytes segment = packet(i, net::kTcpAck, tag);
    EXPECT_GE(steer(segment).proxy, 2) << tag;
    Bytes sent = packet_of(
        {.from = at(kService), .to = {parsed(packet(i + 500)).src_address(), 4000}, .tag = tag});
    if (tag != 0) net::store_be32(sent.data() + 44, net::tagged_timestamp(99, tag));
    const Verdict error = steer(icmp_error(*IpAddress::parse("10.7.7.7"), sent, 60));
    ASSERT_EQ(error.action, Action::kErrorToProxy);
    EXPECT_GE(error.proxy, 2) << tag;
    EXPECT_EQ(steer(packet(i + 1'000, net::kTcpAck, 4)).proxy, 3) << "one of its own";
  }
  EXPECT_EQ(steering_.counters().by_tag, 400U);
}

TEST_F(ForwarderTest, ATagFindsItsNodeByTheWayThatTheServiceGoes) {
  set_.services[0].proxies = {"p2", "p3"};
  set_.proxies[3].id = 0;
  set_.proxies[3].node = "p0";
  apply();
  steering_.set_tag(3, 0);  // it tells none
  for (int i = 0; i < 100; ++i) EXPECT_EQ(steer(packet(i, net::kTcpAck, 1)).proxy, 3);
}

TEST_F(ForwarderTest, ANodeThatHasSeenNothingFindsTheSessionsOfProxiesThatDrain) {
  constexpr std::uint16_t kAllBut1[] = {0, 2, 3};
  Forwarder fresh(options());
  std::vector<std::uint16_t> gone;
  fresh.apply(set_, gone);
  fresh.set_state(1, ProxyState::kDraining);
  for (const std::uint16_t i : kAllBut1) fresh.set_state(i, ProxyState::kUp);
  int at_one = 0;
  for (int i = 0; i < 400; ++i) {
    const std::uint16_t owner = steer(packet(i, net::kTcpSyn)).proxy;
    EXPECT_EQ(steer(fresh, packet(i)).proxy, owner) << i;
    at_one += owner == 1 ? 1 : 0;
    EXPECT_NE(steer(fresh, packet(i + 1'000, net::kTcpSyn)).proxy, 1);
    const SocketAddress client = at("10.1.1.1:" + std::to_string(1000 + i));
    const Bytes datagram = packet_of({.from = client, .to = at("10.0.0.10:53"), .protocol = 17});
    EXPECT_NE(steer(fresh, datagram).proxy, 1) << "it may be the first one";
  }
  EXPECT_GT(at_one, 50);
  // A session that began after the drain is found as well where proxies can say that they have it
  // not.
  const Bytes later = packet(1'500);
  const std::uint16_t owner = steer(fresh, packet(1'500, net::kTcpSyn)).proxy;
  Forwarder other(options());
  other.apply(set_, gone);
  other.set_state(1, ProxyState::kDraining);
  for (const std::uint16_t i : kAllBut1) other.set_state(i, ProxyState::kUp);
  Verdict verdict = steer(other, later);
  while (verdict.proxy != owner && !verdict.final) {
    other.retry(as_span(later), verdict.proxy, verdict, now_ms_);
  }
  EXPECT_EQ(verdict.proxy, owner);
  // Nobody takes new sessions.
  Forwarder last(options());
  last.apply(set_, gone);
  for (std::uint16_t i = 0; i < 4; ++i) last.set_state(i, ProxyState::kDraining);
  EXPECT_EQ(steer(last, packet(1)).proxy, steer(packet(1)).proxy);
  EXPECT_EQ(steer(last, packet(2, net::kTcpSyn)).drop, Drop::kNoProxy);
}

TEST_F(ForwarderTest, ASegmentInFragmentsFindsItsProxyByTheTagInTheFirst) {
  for (int i = 0; i < 100; ++i) {
    Bytes whole = packet_of({.from = at("10.1.1.1:" + std::to_string(1000 + i)),
                             .to = at(kService),
                             .tag = 3,
                             .payload = 60});
    net::store_be16(whole.data() + 4, static_cast<std::uint16_t>(i));
    EXPECT_EQ(steer(cut(whole, 0, 48, true)).proxy, 2);
    EXPECT_EQ(steer(cut(whole, 48, 88, false)).proxy, 2);
  }
  EXPECT_EQ(steering_.counters().by_tag, 100U);
}

TEST_F(ForwarderTest, ADeadProxyGetsNothingNotEvenItsOwnFlows) {
  for (int i = 0; i < 200; ++i) (void)steer(packet(i));
  steering_.set_state(0, ProxyState::kDown);
  for (int i = 0; i < 200; ++i) {
    EXPECT_NE(steer(packet(i)).proxy, 0);
    EXPECT_NE(steer(packet(i, net::kTcpAck, 1)).proxy, 0);
  }
  for (std::uint16_t i = 1; i < 4; ++i) steering_.set_state(i, ProxyState::kDown);
  EXPECT_EQ(steer(packet(1)).drop, Drop::kNoProxy);
  EXPECT_EQ(steer(packet(1, net::kTcpSyn)).drop, Drop::kNoProxy);
}

// What a flow without timestamps has when its node was lost and the set has changed meanwhile.
TEST_F(ForwarderTest, ASecondChanceGoesThroughFormerGenerationsAndEndsAsFinal) {
  Forwarder before(options());
  std::vector<std::uint16_t> gone;
  before.apply(set_, gone);
  for (std::uint16_t i = 0; i < 4; ++i) before.set_state(i, ProxyState::kUp);
  add("p4", 5);
  apply();
  steering_.set_state(4, ProxyState::kUp);  // a new generation
  int moved = 0;
  for (int i = 0; i < 400; ++i) {
    const Bytes segment = packet(i);
    const std::uint16_t owner = steer(before, segment).proxy;
    Verdict verdict = steer(segment);
    int asked = 1;
    while (verdict.proxy != owner && !verdict.final) {
      steering_.retry(as_span(segment), verdict.proxy, verdict, now_ms_);
      ASSERT_EQ(verdict.action, Action::kToProxy);
      ASSERT_LE(++asked, 6);
    }
    EXPECT_EQ(verdict.proxy, owner) << i;
    moved += asked > 1 ? 1 : 0;
    EXPECT_EQ(steer(segment).proxy, owner);  // learned
  }
  EXPECT_GT(moved, 50);
  // Nobody's flow: refused by all, it comes to an end.
  const Bytes stray = packet(5000);
  Verdict verdict = steer(stray);
  for (int i = 0; i < 10 && !verdict.final; ++i) {
    steering_.retry(as_span(stray), verdict.proxy, verdict, now_ms_);
  }
  EXPECT_TRUE(verdict.final);
}

TEST_F(ForwarderTest, ASynThatIsNotServedGoesToTheOtherProxiesUntilOneServesItOrAllHaveRefused) {
  for (int i = 0; i < 300; ++i) {
    const Bytes syn = packet(i, net::kTcpSyn);
    const auto serves = static_cast<std::uint16_t>(i % 4);
    Verdict verdict = steer(syn);
    std::map<std::uint16_t, int> asked{{verdict.proxy, 1}};
    while (verdict.proxy != serves && !verdict.final) {
      steering_.retry(as_span(syn), verdict.proxy, verdict, now_ms_);
      ASSERT_EQ(verdict.action, Action::kToProxy);
      if (!verdict.final || asked.size() < 4) ++asked[verdict.proxy];
    }
    EXPECT_EQ(verdict.proxy, serves) << i;
    for (const auto& [proxy, times] : asked) EXPECT_EQ(times, 1) << proxy;
    EXPECT_EQ(steer(packet(i)).proxy, serves);  // where the rest of the session goes
  }
  // Nobody serves it: the last one asked answers.
  const Bytes syn = packet(5000, net::kTcpSyn);
  Verdict verdict = steer(syn);
  int asked = 1;
  for (; asked < 10 && !verdict.final; ++asked) {
    steering_.retry(as_span(syn), verdict.proxy, verdict, now_ms_);
  }
  EXPECT_TRUE(verdict.final);
  EXPECT_EQ(asked, 4);
  // One that drains is not among those that are asked.
  steering_.set_state(2, ProxyState::kDraining);
  verdict = steer(packet(5001, net::kTcpSyn));
  while (!verdict.final) {
    steering_.retry(as_span(syn), verdict.proxy, verdict, now_ms_);
    EXPECT_NE(verdict.proxy, 2);
  }
}

TEST_F(ForwarderTest, ASynThatSomebodyMadeUpDoesNotMoveAnEstablishedFlow) {
  add("p4", 5);
  apply();
  int kept = 0;
  for (int i = 0; i < 200; ++i) {
    const std::uint16_t where = steer(packet(i, net::kTcpSyn)).proxy;
    (void)steer(packet(i));
    steering_.set_state(4, i % 2 == 0 ? ProxyState::kUp : ProxyState::kDown);
    (void)steer(packet(i, net::kTcpSyn));
    if (where != 4) kept += steer(packet(i)).proxy == where ? 1 : 0;
    if (where == 4) ++kept;
  }
  EXPECT_EQ(kept, 200);
}

TEST_F(ForwarderTest, ASynThatSomebodyMadeUpDoesNotMoveAnEstablishedFlowOffAProxyThatDrains) {
  for (int i = 0; i < 200; ++i) {
    const std::uint16_t where = steer(packet(i, net::kTcpSyn)).proxy;
    if (i % 2 == 0) (void)steer(packet(i));
    steering_.set_state(where, ProxyState::kDraining);
    const std::uint16_t then = steer(packet(i, net::kTcpSyn)).proxy;
    // A handshake that never got further is begun anew, and elsewhere.
    EXPECT_EQ(then == where, i % 2 == 0) << i;
    EXPECT_EQ(steer(packet(i)).proxy, then);
    // So is what has ended.
    (void)steer(packet(i, net::kTcpAck | net::kTcpFin));
    if (then == where) {
      EXPECT_NE(steer(packet(i, net::kTcpSyn)).proxy, where);
    }
    steering_.set_state(where, ProxyState::kUp);
  }
}

TEST_F(ForwarderTest, LaterFragmentsFollowTheFirstAlsoWhenTheyComeBeforeIt) {
  const Bytes whole = packet_of(
      {.from = at("10.1.1.1:1"), .to = at("10.0.0.10:53"), .payload = 1000, .protocol = 17});
  EXPECT_EQ(steer(cut(whole, 400, 800, true), 11).action, Action::kHeld);
  EXPECT_EQ(steer(cut(whole, 800, 1008, false), 12).action, Action::kHeld);
  const Verdict first = steer(cut(whole, 0, 400, true), 13);
  ASSERT_EQ(first.action, Action::kToProxy);
  ASSERT_TRUE(first.first_fragment);
  for (const Fragments::Token expected : {11U, 12U}) {
    Fragments::Token token = 0;
    ASSERT_TRUE(steering_.release_held(first, token, now_ms_));
    EXPECT_EQ(token, expected);
  }
  const Verdict again = steer(cut(whole, 400, 800, true), 11);
  EXPECT_EQ(again.action, Action::kToProxy);
  EXPECT_EQ(again.proxy, first.proxy);
  EXPECT_FALSE(again.has_ports);
  EXPECT_EQ(again.flow, first.flow);
  now_ms_ += 10'000;
  EXPECT_EQ(steer(cut(whole, 400, 800, true), 14).action, Action::kHeld);
  Fragments::Token token = 0;
  EXPECT_FALSE(steering_.expire_held(now_ms_, token));
  EXPECT_TRUE(steering_.expire_held(now_ms_ + 2'001, token));
  EXPECT_EQ(token, 14U);
}

TEST_F(ForwarderTest, AHeldFragmentIsNotHeldAgainWhenItsFirstOneIsForgottenInTheSameBurst) {
  const auto fragment = [](int datagram, std::uint16_t flags_and_offset) {
    Bytes out = packet_of(
        {.from = at("10.1.1.1:1"), .to = at("10.0.0.10:53"), .payload = 392, .protocol = 17});
    net::store_be16(out.data() + 4, static_cast<std::uint16_t>(datagram));
    net::store_be16(out.data() + 6, flags_and_offset);
    net::testing::fix_ipv4_checksum(out);
    return out;
  };
  ASSERT_EQ(steer(fragment(1, 50), 11).action, Action::kHeld);
  const Verdict first = steer(fragment(1, 0x2000));
  ASSERT_EQ(first.action, Action::kToProxy);
  // More than are remembered: whatever the hash says, datagram 1 is not among them any more.
  for (int i = 2; i < 20'000; ++i) (void)steer(fragment(i, 0x2000));
  Fragments::Token token = 0;
  ASSERT_TRUE(steering_.release_held(first, token, now_ms_));
  EXPECT_EQ(token, 11U);
  const Verdict later = steer(fragment(1, 50), 11);
  EXPECT_EQ(later.action, Action::kToProxy);
  EXPECT_EQ(later.proxy, first.proxy);
  EXPECT_FALSE(steering_.release_held(first, token, now_ms_));
}

TEST_F(ForwarderTest, HoldsNoMoreFragmentsThanItMay) {
  int held = 0;
  for (int i = 0; i < 200; ++i) {
    Bytes fragment = packet(i);
    net::store_be16(fragment.data() + 6, 100);
    net::testing::fix_ipv4_checksum(fragment);
    held += steer(fragment, static_cast<Fragments::Token>(i)).action == Action::kHeld ? 1 : 0;
  }
  EXPECT_EQ(held, 64);
  EXPECT_EQ(steering_.counters().drops[static_cast<std::size_t>(Drop::kFragmentHeld)], 136U);
}

TEST_F(ForwarderTest, IcmpErrorsReachTheProxyOfTheFlowThatTheyAreAbout) {
  for (int i = 0; i < 50; ++i) {
    const std::uint16_t owner = steer(packet(i)).proxy;
    const Bytes segment = packet(i);
    const IpAddress client = parsed(segment).src_address();
    const Bytes sent = packet_of({.from = at(kService), .to = {client, 4000}});
    const Verdict verdict = steer(icmp_error(*IpAddress::parse("10.7.7.7"), sent, 28));
    ASSERT_EQ(verdict.action, Action::kErrorToProxy);
    EXPECT_EQ(verdict.proxy, owner);
  }
  const Bytes cut_short = icmp_error(*IpAddress::parse("10.7.7.7"), packet(1), 24);
  EXPECT_NE(steer(cut_short).action, Action::kErrorToProxy);
}

TEST_F(ForwarderTest, AnIcmpErrorThatItsProxyDoesNotKnowIsOfferedToTheOthersThatMayHaveTheFlow) {
  Forwarder before(options());
  std::vector<std::uint16_t> gone;
  before.apply(set_, gone);
  for (std::uint16_t i = 0; i < 4; ++i) before.set_state(i, ProxyState::kUp);
  add("p4", 5);
  apply();
  steering_.set_state(4, ProxyState::kUp);  // a new generation
  int moved = 0;
  for (int i = 0; i < 400; ++i) {
    const std::uint16_t owner = steer(before, packet(i)).proxy;
    const Bytes sent =
        packet_of({.from = at(kService), .to = {parsed(packet(i)).src_address(), 4000}});
    const Bytes error = icmp_error(*IpAddress::parse("10.7.7.7"), sent, 28);
    Verdict verdict = steer(error);
    int asked = 1;
    while (verdict.action == Action::kErrorToProxy && verdict.proxy != owner) {
      ASSERT_LE(++asked, 6);
      steering_.retry(as_span(error), verdict.proxy, verdict, now_ms_);
    }
    ASSERT_EQ(verdict.action, Action::kErrorToProxy) << i;
    EXPECT_EQ(verdict.proxy, owner) << i;
    moved += asked > 1 ? 1 : 0;
  }
  EXPECT_GT(moved, 50);
  EXPECT_EQ(steering_.flows().size(), 0u) << "errors are no proof of a flow";
  // Refused by all, it goes nowhere.
  const Bytes sent = packet_of({.from = at(kService), .to = at("10.3.3.3:4000")});
  const Bytes stray = icmp_error(*IpAddress::parse("10.7.7.7"), sent, 28);
  Verdict verdict = steer(stray);
  for (int i = 0; i < 10 && verdict.action == Action::kErrorToProxy; ++i) {
    steering_.retry(as_span(stray), verdict.proxy, verdict, now_ms_);
  }
  EXPECT_EQ(verdict.drop, Drop::kIcmpUnclaimed);
}

TEST_F(ForwarderTest, RoutersTellWhatFitsOnThePathOfATunnel) {
  for (const bool gue : {false, true}) {
    ForwarderOptions with = options();
    with.tunnel_addresses = {*IpAddress::parse("10.9.9.1"), *IpAddress::parse("fd99::1")};
    Forwarder forwarder(with);
    ProxySet set = set_;
    for (ProxyConfig& proxy : set.proxies) {
      if (gue) proxy.tunnel = net::TunnelKind::kGue;
    }
    set.proxies[1].targets = {at("10.5.0.2:0"), at("[fd05::2]:0")};
    std::vector<std::uint16_t> gone;
    forwarder.apply(set, gone);
    // An error about a packet of the tunnel from `local` to `remote`, with an MTU of 1,300.
    const auto error = [&](const char* local, const char* remote) {
      net::TunnelSpec spec{gue ? net::TunnelKind::kGue : net::TunnelKind::kIp,
                           *IpAddress::parse(local), *IpAddress::parse(remote)};
      const Bytes inner = packet(1);
      Bytes outer(spec.overhead_bytes() + inner.size());
      const std::size_t header = net::write_tunnel_header(std::as_writable_bytes(std::span(outer)),
                                                          spec, parsed(inner), inner.size(), 7);
      std::copy(inner.begin(), inner.end(), outer.begin() + static_cast<std::ptrdiff_t>(header));
      const bool v6 = spec.remote.family == Family::kIpv6;
      return icmp_error(*IpAddress::parse(v6 ? "fd07::7" : "10.7.7.7"), outer, 60);
    };
    const auto mtu = [&](std::uint16_t proxy, Family family = Family::kIpv4) {
      return forwarder.path_mtu(proxy, family, now_ms_);
    };
    EXPECT_EQ(steer(forwarder, error("10.9.9.2", "10.5.0.2")).drop, Drop::kNotForUs);
    EXPECT_EQ(steer(forwarder, error("10.9.9.1", "10.5.0.9")).drop, Drop::kNotForUs);
    Bytes spoiled = error("10.9.9.1", "10.5.0.2");
    spoiled[30] ^= 1;
    EXPECT_EQ(steer(forwarder, spoiled).drop, Drop::kNotForUs);
    EXPECT_EQ(mtu(1), UINT32_MAX);
    EXPECT_EQ(steer(forwarder, error("10.9.9.1", "10.5.0.2")).action, Action::kNoted);
    EXPECT_EQ(mtu(1), 1'300U);
    EXPECT_EQ(mtu(0), UINT32_MAX) << "that of another one";
    EXPECT_EQ(mtu(1, Family::kIpv6), UINT32_MAX);
    EXPECT_EQ(steer(forwarder, error("fd99::1", "fd05::2")).action, Action::kNoted);
    EXPECT_EQ(mtu(1, Family::kIpv6), 1'300U);
    // None that is larger than what is known, and none that is smaller than anybody's.
    Bytes tiny = error("10.9.9.1", "10.5.0.2");
    net::store_be16(tiny.data() + 26, 68);
    net::store_raw16(tiny.data() + 22, 0);
    net::store_raw16(tiny.data() + 22,
                     net::finish(net::sum_bytes(tiny.data() + 20, tiny.size() - 20)));
    EXPECT_EQ(steer(forwarder, tiny).action, Action::kNoted);
    EXPECT_EQ(mtu(1), 576U);
    EXPECT_EQ(steer(forwarder, error("10.9.9.1", "10.5.0.2")).action, Action::kNoted);
    EXPECT_EQ(mtu(1), 576U);
    now_ms_ += 600'000;
    EXPECT_EQ(mtu(1), UINT32_MAX) << "the path may be another one";
  }
}

TEST_F(ForwarderTest, WhatAProxyTellsOfItsWeightHoldsUnlessSomebodyElseSaysOne) {
  set_.proxies[1].weight_said = true;
  apply();
  const auto share = [&](std::uint16_t proxy) {
    int count = 0;
    for (int i = 0; i < 4'000; ++i) {
      count += steer(packet(i, net::kTcpSyn)).proxy == proxy ? 1 : 0;
    }
    return count;
  };
  for (std::uint16_t i = 0; i < 4; ++i) steering_.set_told_weight(i, i < 2 ? 97 : 1);
  EXPECT_GT(share(0), 3'700) << "97 of 100";
  EXPECT_LT(share(1), 150) << "the file says 1";
  const std::uint64_t built = steering_.tables_built();
  apply();
  EXPECT_EQ(steering_.tables_built(), built) << "and stays as it was told";
  steering_.set_told_weight(0, 1'000'000);
  EXPECT_EQ(steering_.proxies()[0].weight(), kWeightMax);
}

TEST_F(ForwarderTest, WhatChangesNothingOfAPoolBuildsNoTables) {
  const std::uint64_t built = steering_.tables_built();
  const std::uint64_t generation = steering_.generation();
  apply();
  set_.services.push_back({at("10.0.0.99:80")});
  apply();
  EXPECT_EQ(steering_.tables_built(), built);
  set_.proxies[1].weight = 3;
  apply();
  EXPECT_EQ(steering_.tables_built(), built + 3) << "TCP and UDP over IPv4, TCP over IPv6";
  set_.services.push_back({at("10.0.0.98:80"), net::kProtocolTcp, {"p0", "p2"}});
  apply();
  EXPECT_EQ(steering_.tables_built(), built + 4) << "one more pool";
  steering_.set_state(1, ProxyState::kDown);
  EXPECT_EQ(steering_.tables_built(), built + 7) << "of the pools that it is in";
  EXPECT_GT(steering_.generation(), generation);
  for (int i = 0; i < 50; ++i) EXPECT_NE(steer(packet(i, net::kTcpSyn)).proxy, 1);
}

TEST_F(ForwarderTest, AProxyThatHasLeftIsForgottenAndItsPlaceIsGivenAway) {
  for (int i = 0; i < 100; ++i) (void)steer(packet(i));
  EXPECT_GT(steering_.sessions_of(1), 0U);
  set_.proxies.erase(set_.proxies.begin() + 1);
  EXPECT_EQ(apply(), std::vector<std::uint16_t>{1});
  EXPECT_EQ(steering_.sessions_of(1), 0U);
  add("new", 9);
  apply();
  EXPECT_EQ(steering_.find("new"), 1);
  for (int i = 0; i < 200; ++i) EXPECT_NE(steer(packet(i)).proxy, 1);  // it is not up yet
}

TEST_F(ForwarderTest, ServicesWithProxiesOfTheirOwnGoToThoseAlone) {
  set_.services[0].proxies = {"p2"};
  apply();
  for (int i = 0; i < 100; ++i) EXPECT_EQ(steer(packet(i, net::kTcpSyn)).proxy, 2);
}

TEST_F(ForwarderTest, AServiceGoesToProxiesThatCanServeItAlone) {
  set_.proxies[0].mode = Mode::kChannel;
  set_.proxies[0].targets.clear();
  set_.proxies[0].channel = "shm:/run/p0";
  set_.proxies[1].mode = Mode::kNat;
  set_.proxies[1].targets = {at("10.5.0.1:80")};
  set_.proxies[2].mode = Mode::kNat;
  set_.proxies[2].targets = {at("[fd05::1]:80")};
  apply();
  std::map<std::string, std::map<std::uint16_t, int>> seen;
  for (int i = 1; i < 400; ++i) {
    const std::string port = ":" + std::to_string(i);
    ++seen["tcp4"][steer(packet(i, net::kTcpSyn)).proxy];
    ++seen["tcp6"][steer(packet_of({.from = at("[fd01::1]" + port),
                                    .to = at("[fd00::10]:80"),
                                    .flags = net::kTcpSyn}))
                       .proxy];
    ++seen["udp4"]
          [steer(
               packet_of({.from = at("10.1.1.1" + port), .to = at("10.0.0.10:53"), .protocol = 17}))
               .proxy];
  }
  const auto who = [&](const char* what) {
    std::string out;
    for (const auto& [proxy, count] : seen[what]) out += std::to_string(proxy);
    return out;
  };
  EXPECT_EQ(who("tcp4"), "013");
  EXPECT_EQ(who("tcp6"), "023");
  EXPECT_EQ(who("udp4"), "13");
}

TEST_F(ForwarderTest, FlowsEndWithTheirTimers) {
  (void)steer(packet(1, net::kTcpSyn));
  (void)steer(packet(2));
  (void)steer(packet(2));  // the first one could be anybody's
  EXPECT_EQ(steering_.flows().size(), 2U);
  now_ms_ += 61'000;
  for (int i = 0; i < 4; ++i) steering_.age(now_ms_);
  EXPECT_EQ(steering_.flows().size(), 1U);
  (void)steer(packet(2, net::kTcpFin | net::kTcpAck));
  now_ms_ += 61'000;
  for (int i = 0; i < 4; ++i) steering_.age(now_ms_);
  EXPECT_EQ(steering_.flows().size(), 0U);
}

// Whatever bytes come, there is a verdict for them and nothing else happens.
TEST_F(ForwarderTest, AnyBytesGetAVerdict) {
  std::uint64_t seed = 1;
  const auto random = [&] { return seed = net::multiply_mix(seed + 1, 0x9e3779b97f4a7c15U); };
  for (int i = 0; i < 100'000; ++i) {
    Bytes bytes = i % 3 == 0 ? packet(i % 50, net::kTcpAck, 7)
                             : icmp_error(*IpAddress::parse("10.7.7.7"), packet(i % 50), 60);
    for (std::uint64_t flips = random() % 8; flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<std::uint8_t>(random());
    }
    if (bytes[0] == 0x45) net::testing::fix_ipv4_checksum(bytes);
    bytes.resize(random() % 4 == 0 ? random() % (bytes.size() + 1) : bytes.size());
    const Verdict verdict = steer(bytes, static_cast<Fragments::Token>(i));
    EXPECT_EQ(verdict.action == Action::kDrop, verdict.drop != Drop::kNone);
    Fragments::Token token = 0;
    while (steering_.expire_held(now_ms_ + 10'000, token)) continue;
  }
}

}  // namespace
}  // namespace sanproxy::steer
