// Which proxy a packet of a session goes to.
#include <map>

#include "tests/netnode/steer/forwarder_fixture.h"

namespace sanproxy::steer {
namespace {

using namespace testing;  // NOLINT: the test's own

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

// The drain begins while everybody is up, which is how nearly all of them begin.
TEST_F(ForwarderTest, SessionsThatANodeDoesNotKnowStayWithAProxyThatBeginsToDrain) {
  Forwarder other(options());  // another node, which has seen none of them
  std::vector<std::uint16_t> gone;
  other.apply(set_, gone);
  for (std::uint16_t i = 0; i < 4; ++i) other.set_state(i, ProxyState::kUp);
  std::map<int, std::uint16_t> where;
  for (int i = 0; i < 400; ++i) where[i] = steer(packet(i, net::kTcpSyn)).proxy;
  for (int turn = 0; turn < 2; ++turn) {
    other.set_state(1, ProxyState::kDraining);
    const std::uint64_t built = other.tables_built();
    for (int i = 0; i < 200; ++i) {
      EXPECT_EQ(steer(other, packet(turn * 200 + i)).proxy, where[turn * 200 + i]) << i;
      EXPECT_NE(steer(other, packet(i + 1'000, net::kTcpSyn)).proxy, 1);
    }
    other.apply(set_, gone);
    EXPECT_EQ(other.tables_built(), built) << "the same set";
    other.set_state(1, ProxyState::kUp);
  }
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

}  // namespace
}  // namespace sanproxy::steer
