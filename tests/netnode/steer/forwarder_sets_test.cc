// Fragments, what ICMP tells, and sets of proxies and services that change.
#include <map>
#include <utility>

#include "netnode/net/tunnel.h"
#include "tests/netnode/steer/forwarder_fixture.h"

namespace sanproxy::steer {
namespace {

using namespace testing;  // NOLINT: the test's own

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

// Whoever has passed packets of a session on to somebody else asks again then.
TEST_F(ForwarderTest, SaysWhenPacketsMayBeAnothersOrNobodys) {
  std::uint64_t before = steering_.changes();
  const auto has_changed = [&] {
    const std::uint64_t now = steering_.changes();
    return std::exchange(before, now) != now;
  };
  steering_.set_state(0, ProxyState::kUp);
  EXPECT_FALSE(has_changed()) << "nothing has";
  for (const ProxyState state : {ProxyState::kDraining, ProxyState::kDown, ProxyState::kUp}) {
    steering_.set_state(0, state);
    EXPECT_TRUE(has_changed()) << proxy_state_name(state);
  }
  set_.services[0].address = at("10.0.0.11:80");
  apply();
  EXPECT_TRUE(has_changed()) << "a service is gone, another is there";
  set_.proxies[0].targets[0] = {*IpAddress::parse("10.5.0.2"), 0};
  apply();
  EXPECT_TRUE(has_changed()) << "a proxy is elsewhere";
  set_.proxies[1].id = 0;
  apply();
  EXPECT_TRUE(has_changed());
  steering_.set_tag(1, 99);
  EXPECT_TRUE(has_changed());
  steering_.set_told_weight(0, 7);
  EXPECT_TRUE(has_changed());
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
