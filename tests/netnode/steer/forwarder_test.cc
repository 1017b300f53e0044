#include "netnode/steer/forwarder.h"

#include <gtest/gtest.h>

#include <map>

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
    proxy.channel = "shm:/run/" + name;
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
  EXPECT_NE(unknown.proxy, 2);
  // A SYN carries an old TSecr at most: it goes by Maglev.
  for (int i = 200; i < 300; ++i) EXPECT_NE(steer(packet(i, net::kTcpSyn, 3)).proxy, 2);
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
  steering_.set_state(3, ProxyState::kDraining);  // a new generation
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

TEST_F(ForwarderTest, LaterFragmentsFollowTheFirstAlsoWhenTheyComeBeforeIt) {
  const Bytes whole = packet_of(
      {.from = at("10.1.1.1:1"), .to = at("10.0.0.10:53"), .payload = 1000, .protocol = 17});
  const auto cut = [&](std::size_t from, std::size_t to, bool more) {
    Bytes out(whole.begin(), whole.begin() + 20);
    net::store_be16(out.data() + 6, static_cast<std::uint16_t>((more ? 0x2000U : 0U) | (from / 8)));
    out.insert(out.end(), whole.begin() + 20 + static_cast<std::ptrdiff_t>(from),
               whole.begin() + 20 + static_cast<std::ptrdiff_t>(to));
    net::store_be16(out.data() + 2, static_cast<std::uint16_t>(out.size()));
    net::testing::fix_ipv4_checksum(out);
    return out;
  };
  EXPECT_EQ(steer(cut(400, 800, true), 11).action, Action::kHeld);
  EXPECT_EQ(steer(cut(800, 1008, false), 12).action, Action::kHeld);
  const Verdict first = steer(cut(0, 400, true), 13);
  ASSERT_EQ(first.action, Action::kToProxy);
  ASSERT_TRUE(first.first_fragment);
  for (const Fragments::Token expected : {11U, 12U}) {
    Fragments::Token token = 0;
    ASSERT_TRUE(steering_.release_held(first, token, now_ms_));
    EXPECT_EQ(token, expected);
  }
  const Verdict again = steer(cut(400, 800, true), 11);
  EXPECT_EQ(again.action, Action::kToProxy);
  EXPECT_EQ(again.proxy, first.proxy);
  EXPECT_FALSE(again.has_ports);
  EXPECT_EQ(again.flow, first.flow);
  now_ms_ += 10'000;
  EXPECT_EQ(steer(cut(400, 800, true), 14).action, Action::kHeld);
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
  steering_.set_state(3, ProxyState::kDraining);  // a new generation
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
  EXPECT_EQ(steering_.tables_built(), built + 1);
  set_.services.push_back({at("10.0.0.98:80"), net::kProtocolTcp, {"p0", "p2"}});
  apply();
  EXPECT_EQ(steering_.tables_built(), built + 2) << "one more pool";
  steering_.set_state(1, ProxyState::kDown);
  EXPECT_EQ(steering_.tables_built(), built + 3) << "of the pool that it is in";
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
