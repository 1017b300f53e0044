#include "netnode/steer/nat.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "tests/netnode/steer/steer_packets.h"

namespace sanproxy::steer {
namespace {

using namespace testing;  // NOLINT: the test's own

NatOptions options(std::uint32_t sessions = 1000) {
  NatOptions out;
  out.addresses = {*IpAddress::parse("10.9.9.9"), *IpAddress::parse("fd99::9")};
  out.sessions_max = sessions;
  return out;
}

class NatTest : public ::testing::Test {
 protected:
  NatResult to_proxy(Bytes& packet, const std::string& target = "10.5.0.1:8080",
                     std::uint16_t proxy = 3) {
    const net::ParsedPacket p = parsed(packet);
    return nat.to_proxy({std::as_writable_bytes(std::span(packet)), p, true, partial},
                        flow_of(packet), proxy, at(target), now_s);
  }
  NatResult to_client(Bytes& packet) {
    const net::ParsedPacket p = parsed(packet);
    return nat.to_client({std::as_writable_bytes(std::span(packet)), p, true, partial},
                         flow_of(packet), now_s);
  }
  // What the proxy answers to a packet that was translated.
  static Bytes answer(const Bytes& translated, std::uint8_t flags = net::kTcpAck) {
    const net::FlowKey k = flow_of(translated);
    const net::ParsedPacket p = parsed(translated);
    return packet_of({.from = {p.dst_address(), k.dst_port},
                      .to = {p.src_address(), k.src_port},
                      .flags = flags,
                      .protocol = p.protocol});
  }

  Nat nat{options(), 42};
  std::uint32_t now_s = 1000;
  bool partial = false;
};

TEST_F(NatTest, TranslatesThereAndBackWithRightChecksums) {
  struct Case {
    const char *client, *service, *target, *from;
    std::uint8_t protocol;
  };
  for (const Case& c : {Case{"10.1.2.3:5555", "10.0.0.10:80", "10.5.0.1:8080", "10.9.9.9:", 6},
                        Case{"10.1.2.3:5555", "10.0.0.10:53", "10.5.0.1:0", "10.9.9.9:", 17},
                        Case{"[fd01::7]:1", "[fd00::10]:443", "[fd05::1]:4", "[fd99::9]:", 6},
                        Case{"[fd01::7]:1", "[fd00::10]:443", "[fd05::1]:4", "[fd99::9]:", 17}}) {
    Bytes packet = packet_of({.from = at(c.client), .to = at(c.service), .protocol = c.protocol});
    ASSERT_EQ(to_proxy(packet, c.target), NatResult::kOk) << c.client;
    SocketAddress target = at(c.target);
    if (target.port == 0) target.port = at(c.service).port;
    EXPECT_EQ(told(packet).rfind(c.from, 0), 0U) << told(packet);
    EXPECT_NE(told(packet).find(" -> " + target.to_string()), std::string::npos);
    EXPECT_EQ(told(packet).find("wrong"), std::string::npos) << told(packet);
    Bytes back = answer(packet);
    ASSERT_EQ(to_client(back), NatResult::kOk);
    EXPECT_EQ(told(back), at(c.service).to_string() + " -> " + at(c.client).to_string());
  }
}

// Property: whatever the addresses, ports and bytes, checksums stay right both ways.
TEST_F(NatTest, KeepsEveryChecksumRight) {
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    const auto byte = [&] { return std::to_string(random() % 254 + 1); };
    Bytes packet = packet_of({.from = at("10." + byte() + "." + byte() + "." + byte() + ":" +
                                         std::to_string(random() % 65535 + 1)),
                              .to = at("10.0.0." + byte() + ":" + byte()),
                              .payload = random() % 100,
                              .protocol = random() % 2 == 0 ? std::uint8_t{6} : std::uint8_t{17}});
    const std::string before = told(packet);
    ASSERT_EQ(to_proxy(packet), NatResult::kOk);
    ASSERT_EQ(told(packet).find("wrong"), std::string::npos) << before << " " << told(packet);
    Bytes back = answer(packet);
    ASSERT_EQ(to_client(back), NatResult::kOk);
    ASSERT_EQ(told(back).find("wrong"), std::string::npos) << told(back);
    nat.erase_proxy(3);
  }
}

TEST_F(NatTest, KeepsAChecksumThatTheDeviceIsToComplete) {
  Bytes packet = packet_of({.from = at("10.1.2.3:5555"), .to = at("10.0.0.10:80")});
  const auto pseudo_of = [](const Bytes& b) {
    return net::fold(net::pseudo_header_sum(Family::kIpv4, b.data() + 12, b.data() + 16, 6,
                                            static_cast<std::uint32_t>(b.size() - 20)));
  };
  net::store_raw16(packet.data() + 36, pseudo_of(packet));
  partial = true;
  ASSERT_EQ(to_proxy(packet), NatResult::kOk);
  EXPECT_EQ(net::load_raw16(packet.data() + 36), pseudo_of(packet));
}

TEST_F(NatTest, MapsAnEndpointOfAClientTheSameWayTowardsEveryProxyAndInEveryLife) {
  Bytes one = packet_of({.from = at("10.1.2.3:5555"), .to = at("10.0.0.10:80")});
  Bytes two = packet_of({.from = at("10.1.2.3:5555"), .to = at("10.0.0.11:81")});
  Bytes again = one;
  ASSERT_EQ(to_proxy(one), NatResult::kOk);
  ASSERT_EQ(to_proxy(two, "10.5.0.2:8080", 4), NatResult::kOk);
  EXPECT_EQ(flow_of(one).src_port, flow_of(two).src_port);
  Nat after_restart(options(), 42);
  const net::ParsedPacket p = parsed(again);
  ASSERT_EQ(after_restart.to_proxy({std::as_writable_bytes(std::span(again)), p}, flow_of(again), 3,
                                   at("10.5.0.1:8080"), 0),
            NatResult::kOk);
  EXPECT_EQ(again, one);
}

TEST_F(NatTest, TheSeedOfTheTablesChangesNoPort) {
  NatOptions other = options();
  other.table_seed = 4711;
  Nat second(other, 42);
  for (int i = 1; i < 300; ++i) {
    Bytes one = packet_of({.from = at("10.1.2.3:" + std::to_string(i)), .to = at("10.0.0.10:80")});
    Bytes two = one;
    ASSERT_EQ(to_proxy(one), NatResult::kOk);
    const net::ParsedPacket p = parsed(two);
    ASSERT_EQ(second.to_proxy({std::as_writable_bytes(std::span(two)), p}, flow_of(two), 3,
                              at("10.5.0.1:8080"), 0),
              NatResult::kOk);
    EXPECT_EQ(one, two);
    EXPECT_EQ(second.proxy_of(flow_of(one)), nat.proxy_of(flow_of(one)));
  }
}

TEST_F(NatTest, FindsEveryPortOfASmallRange) {
  for (std::uint16_t ports = 1; ports <= 60; ++ports) {
    NatOptions few = options();
    few.port_min = 2'000;
    few.port_max = static_cast<std::uint16_t>(few.port_min + ports - 1);
    nat = Nat(few, 1);
    for (int i = 1; i <= ports; ++i, ++now_s) {
      Bytes packet = packet_of({.from = at("10.1.2.3:" + std::to_string(i)),
                                .to = at("10.0.0.10:80"),
                                .flags = net::kTcpSyn});
      ASSERT_EQ(to_proxy(packet), NatResult::kOk);
    }
    EXPECT_EQ(nat.sessions(), ports);
    EXPECT_EQ(nat.counters().displaced, 0U) << "of " << ports;
  }
}

TEST_F(NatTest, NeverGivesTwoSessionsTheSameTuple) {
  NatOptions few = options();
  few.port_min = 2000;
  few.port_max = 2199;
  nat = Nat(few, 1);
  std::map<std::string, net::FlowKey> who;
  for (int i = 0; i < 400; ++i) {
    Bytes packet =
        packet_of({.from = at("10.1.2.3:" + std::to_string(1 + i)), .to = at("10.0.0.10:80")});
    const net::FlowKey client = flow_of(packet);
    ASSERT_EQ(to_proxy(packet), NatResult::kOk);
    const auto [known, fresh] = who.try_emplace(told(packet), client);
    if (!fresh) {
      EXPECT_EQ(nat.proxy_of(known->second), Nat::kNoProxy) << told(packet);
      known->second = client;
    }
  }
  EXPECT_EQ(nat.sessions(), who.size());
  EXPECT_LE(nat.sessions(), 200U);
  EXPECT_GE(nat.sessions(), 190U);  // a bounded number of tries finds nearly all
}

TEST_F(NatTest, LetsInNothingButThePeer) {
  Bytes packet = packet_of({.from = at("10.1.2.3:5555"), .to = at("10.0.0.10:80")});
  ASSERT_EQ(to_proxy(packet), NatResult::kOk);
  const std::uint16_t port = flow_of(packet).src_port;
  for (const char* from : {"10.5.0.2:8080", "10.5.0.1:8081"}) {
    Bytes other = packet_of({.from = at(from), .to = {*IpAddress::parse("10.9.9.9"), port}});
    EXPECT_EQ(to_client(other), NatResult::kNoSession) << from;
  }
}

TEST_F(NatTest, EndsSessionsByTheTimersOfTheirState) {
  Bytes syn =
      packet_of({.from = at("10.1.2.3:5555"), .to = at("10.0.0.10:80"), .flags = net::kTcpSyn});
  const Bytes ack = packet_of({.from = at("10.1.2.3:5555"), .to = at("10.0.0.10:80")});
  const Bytes fin = packet_of({.from = at("10.1.2.3:5555"),
                               .to = at("10.0.0.10:80"),
                               .flags = net::kTcpFin | net::kTcpAck});
  ASSERT_EQ(to_proxy(syn), NatResult::kOk);
  now_s += 240;
  nat.age(now_s);
  EXPECT_EQ(nat.sessions(), 1U);
  Bytes reply = answer(syn, net::kTcpSyn | net::kTcpAck);
  ASSERT_EQ(to_client(reply), NatResult::kOk);
  Bytes third = ack;
  ASSERT_EQ(to_proxy(third), NatResult::kOk);
  now_s += 7440;  // established: two hours and four minutes
  nat.age(now_s);
  EXPECT_EQ(nat.sessions(), 1U);
  Bytes last = fin;
  ASSERT_EQ(to_proxy(last), NatResult::kOk);
  Bytes their_fin = answer(syn, net::kTcpFin | net::kTcpAck);
  ASSERT_EQ(to_client(their_fin), NatResult::kOk);
  now_s += 241;
  nat.age(now_s);
  EXPECT_EQ(nat.sessions(), 0U);
  EXPECT_EQ(nat.counters().expired, 1U);
}

TEST_F(NatTest, GivesUpTheOldestThatIsNotEstablishedWhenFullAndRefusesWithoutOne) {
  nat = Nat(options(2), 1);
  const auto open = [&](int port, std::uint8_t flags) {
    Bytes packet = packet_of(
        {.from = at("10.1.2.3:" + std::to_string(port)), .to = at("10.0.0.10:80"), .flags = flags});
    const NatResult result = to_proxy(packet);
    if (result == NatResult::kOk && flags == net::kTcpAck) {
      Bytes back = answer(packet);
      EXPECT_EQ(to_client(back), NatResult::kOk);
      Bytes once_more =
          packet_of({.from = at("10.1.2.3:" + std::to_string(port)), .to = at("10.0.0.10:80")});
      EXPECT_EQ(to_proxy(once_more), NatResult::kOk);
    }
    return result;
  };
  EXPECT_EQ(open(1, net::kTcpAck), NatResult::kOk);
  EXPECT_EQ(open(2, net::kTcpSyn), NatResult::kOk);
  EXPECT_EQ(open(3, net::kTcpAck), NatResult::kOk);  // takes the place of the second
  EXPECT_EQ(nat.counters().displaced, 1U);
  EXPECT_EQ(open(4, net::kTcpSyn), NatResult::kFull);
  EXPECT_EQ(nat.sessions_of(3), 2U);
}

TEST_F(NatTest, AFloodOfDatagramsDisplacesNoHandshakeAndOneOfSynsNoDatagrams) {
  for (const std::uint8_t flood : {net::kProtocolUdp, net::kProtocolTcp}) {
    const std::uint8_t other = flood == net::kProtocolUdp ? net::kProtocolTcp : net::kProtocolUdp;
    nat = Nat(options(64), 1);
    const auto send = [&](int client, std::uint8_t protocol) {
      Bytes packet = packet_of({.from = at("10.1.2.3:" + std::to_string(client)),
                                .to = at("10.0.0.10:80"),
                                .flags = net::kTcpSyn,
                                .protocol = protocol});
      const net::FlowKey flow = flow_of(packet);
      EXPECT_EQ(to_proxy(packet), NatResult::kOk) << client;
      return flow;
    };
    for (int i = 1; i <= 200; ++i, ++now_s) (void)send(i, flood);
    for (int client = 1; client <= 20; ++client) {
      const net::FlowKey flow = send(client, other);
      for (int i = 1'000; i < 1'200; ++i) (void)send(client * 200 + i, flood);
      EXPECT_EQ(nat.proxy_of(flow), 3) << client;
    }
    EXPECT_EQ(nat.sessions(), 64U);
  }
}

TEST_F(NatTest, AFloodOfSynsTakesAllPortsButKeepsNobodyOut) {
  NatOptions few = options();
  few.port_min = 2'000;
  few.port_max = 2'063;
  nat = Nat(few, 1);
  const auto packet = [&](int client, std::uint8_t flags, std::uint8_t protocol) {
    return packet_of({.from = at("10.1." + std::to_string(client / 200) + "." +
                                 std::to_string(client % 200 + 1) + ":5"),
                      .to = at("10.0.0.10:80"),
                      .flags = flags,
                      .protocol = protocol});
  };
  const auto send = [&](int client, std::uint8_t flags, std::uint8_t protocol = 6) {
    Bytes out = packet(client, flags, protocol);
    return to_proxy(out);
  };
  for (int i = 0; i < 64; ++i, ++now_s) ASSERT_EQ(send(i, net::kTcpSyn), NatResult::kOk);
  ASSERT_EQ(nat.counters().displaced, 0U);
  // Each newcomer gets the port of the one that is unused for longest, and becomes established.
  for (int i = 100; i < 164; ++i, ++now_s) {
    Bytes syn = packet(i, net::kTcpSyn, 6);
    ASSERT_EQ(to_proxy(syn), NatResult::kOk) << i;
    if (i < 108) {  // later on not all are looked at
      EXPECT_EQ(nat.proxy_of(flow_of(packet(i - 100, net::kTcpSyn, 6))), Nat::kNoProxy) << i;
    }
    Bytes back = answer(syn, net::kTcpSyn | net::kTcpAck);
    ASSERT_EQ(to_client(back), NatResult::kOk);
    ASSERT_EQ(send(i, net::kTcpAck), NatResult::kOk);
  }
  EXPECT_EQ(nat.counters().displaced, 64U);
  EXPECT_EQ(nat.sessions(), 64U);
  EXPECT_EQ(send(200, net::kTcpSyn), NatResult::kNoPort) << "none of these gives way";
  // One that ends goes before one that begins, though it was used later.
  now_s += 10;
  ASSERT_EQ(send(100, net::kTcpFin | net::kTcpRst), NatResult::kOk);
  EXPECT_EQ(send(200, net::kTcpSyn), NatResult::kOk);
  EXPECT_EQ(nat.counters().reused_closing, 1U);
  // UDP has ports of its own, and no beginning or end.
  for (int i = 0; i < 65; ++i, ++now_s) ASSERT_EQ(send(i, 0, 17), NatResult::kOk);
  EXPECT_EQ(nat.counters().displaced, 65U);
}

TEST_F(NatTest, TranslatesIcmpErrorsAndThePacketsThatTheyQuote) {
  for (const bool v6 : {false, true}) {
    const SocketAddress client = at(v6 ? "[fd01::7]:5555" : "10.1.2.3:5555");
    const SocketAddress service = at(v6 ? "[fd00::10]:80" : "10.0.0.10:80");
    const char* target = v6 ? "[fd05::1]:8080" : "10.5.0.1:8080";
    const IpAddress router = *IpAddress::parse(v6 ? "fd77::1" : "10.7.7.7");
    const std::size_t l3 = v6 ? 40 : 20;
    for (const std::size_t quoted : {l3 + 8, l3 + 20, std::size_t{500}}) {
      Bytes sent = packet_of({.from = client, .to = service, .payload = 200});
      const Bytes original = sent;
      ASSERT_EQ(to_proxy(sent, target), NatResult::kOk);
      // A router between us and the proxy complains about what we sent.
      Bytes error = icmp_error(router, sent, quoted);
      net::ParsedPacket p = parsed(error);
      net::IcmpError what;
      ASSERT_TRUE(net::parse_icmp_error(as_span(error), p, what));
      ASSERT_EQ(nat.error_to_client({std::as_writable_bytes(std::span(error)), p}, what),
                NatResult::kOk);
      p = parsed(error);
      EXPECT_EQ(p.dst_address(), client.ip);
      EXPECT_EQ(p.src_address(), service.ip);
      // What it quotes is the client's own packet again, hop limit and IP checksum aside.
      Bytes inner(error.begin() + static_cast<std::ptrdiff_t>(l3 + 8), error.end());
      if (quoted > original.size()) {
        EXPECT_EQ(told(inner), told(original));
      }
      EXPECT_TRUE(std::equal(inner.begin() + static_cast<std::ptrdiff_t>(l3), inner.end(),
                             original.begin() + static_cast<std::ptrdiff_t>(l3)));
      const std::uint64_t pseudo =
          v6 ? net::pseudo_header_sum(Family::kIpv6, p.src, p.dst, 58, p.l4_bytes()) : 0;
      EXPECT_EQ(net::finish(net::sum_bytes(error.data() + l3, p.l4_bytes(), pseudo)), 0);
      // And a client's router about what the proxy sent.
      Bytes back = answer(sent);
      ASSERT_EQ(to_client(back), NatResult::kOk);
      Bytes second = icmp_error(router, back, quoted);
      p = parsed(second);
      ASSERT_TRUE(net::parse_icmp_error(as_span(second), p, what));
      ASSERT_EQ(nat.error_to_proxy({std::as_writable_bytes(std::span(second)), p}, what),
                NatResult::kOk);
      EXPECT_EQ(parsed(second).dst_address(), at(target).ip);
      EXPECT_EQ(nat.sessions(), v6 ? 2U : 1U);  // an error ends nothing
    }
  }
}

TEST_F(NatTest, DoesNotLaunderAnIcmpErrorWithAWrongChecksum) {
  Bytes sent = packet_of({.from = at("10.1.2.3:5555"), .to = at("10.0.0.10:80")});
  ASSERT_EQ(to_proxy(sent), NatResult::kOk);
  Bytes error = icmp_error(*IpAddress::parse("10.7.7.7"), sent, 100);
  error.back() ^= 1;
  const net::ParsedPacket p = parsed(error);
  net::IcmpError what;
  ASSERT_TRUE(net::parse_icmp_error(as_span(error), p, what));
  EXPECT_EQ(nat.error_to_client({std::as_writable_bytes(std::span(error)), p}, what),
            NatResult::kMalformed);
}

TEST_F(NatTest, SpendsAHopAndDropsAPacketThatHasNone) {
  Bytes packet = packet_of({.from = at("10.1.2.3:5555"), .to = at("10.0.0.10:80")});
  packet[8] = 1;
  net::testing::fix_ipv4_checksum(packet);
  EXPECT_EQ(to_proxy(packet), NatResult::kHopLimit);
  EXPECT_EQ(nat.sessions(), 0U);
}

TEST_F(NatTest, HasNoAddressForAFamilyThatItWasNotGiven) {
  NatOptions only4 = options();
  only4.addresses.pop_back();
  nat = Nat(only4, 1);
  Bytes packet = packet_of({.from = at("[fd01::7]:1"), .to = at("[fd00::10]:443")});
  EXPECT_EQ(to_proxy(packet, "[fd05::1]:4"), NatResult::kNoAddress);
  Bytes mixed = packet_of({.from = at("10.1.2.3:1"), .to = at("10.0.0.10:443")});
  EXPECT_EQ(to_proxy(mixed, "[fd05::1]:4"), NatResult::kNoAddress);
}

// What an attacker can send who sees nothing of the connection.
TEST_F(NatTest, AHandshakeThatIsGuessedMakesNoEstablishedSession) {
  nat = Nat(options(2), 1);
  const auto from = [](int port) { return at("10.1.2.3:" + std::to_string(port)); };
  const auto opened = [&](int port) {
    Bytes syn = packet_of({.from = from(port), .to = at("10.0.0.10:80"), .flags = net::kTcpSyn});
    const NatResult result = to_proxy(syn);
    if (result != NatResult::kOk) return result;
    Bytes back = answer(syn, net::kTcpSyn | net::kTcpAck);
    EXPECT_EQ(to_client(back), NatResult::kOk);
    return result;
  };
  const auto acked = [&](int port, std::uint32_t off_by) {
    Bytes ack = packet_of({.from = from(port), .to = at("10.0.0.10:80")});
    net::store_be32(ack.data() + 28, net::load_be32(ack.data() + 28) + off_by);
    fix_transport(ack, 20);
    return to_proxy(ack);
  };
  std::mt19937 random(5);
  for (int port = 1; port <= 50; ++port) {  // each takes the place of one before it
    ASSERT_EQ(opened(port), NatResult::kOk) << port;
    ASSERT_EQ(acked(port, static_cast<std::uint32_t>(0x0100'0000U + random() % 0xe000'0000U)),
              NatResult::kOk);
  }
  ASSERT_EQ(opened(100), NatResult::kOk);
  ASSERT_EQ(acked(100, 0), NatResult::kOk);
  ASSERT_EQ(opened(101), NatResult::kOk);
  ASSERT_EQ(acked(101, 0), NatResult::kOk);
  EXPECT_EQ(opened(102), NatResult::kFull) << "two who really shook hands keep their places";
}

TEST_F(NatTest, AForgedResetDoesNotShortenASessionThatGoesOn) {
  const auto segment = [](std::uint8_t flags) {
    return packet_of({.from = at("10.1.2.3:5"), .to = at("10.0.0.10:80"), .flags = flags});
  };
  Bytes syn = segment(net::kTcpSyn);
  ASSERT_EQ(to_proxy(syn), NatResult::kOk);
  const auto exchange = [&] {
    Bytes back = answer(syn);
    ASSERT_EQ(to_client(back), NatResult::kOk);
    Bytes ack = segment(net::kTcpAck);
    ASSERT_EQ(to_proxy(ack), NatResult::kOk);
  };
  exchange();
  Bytes forged = segment(net::kTcpRst);
  ASSERT_EQ(to_proxy(forged), NatResult::kOk);
  exchange();
  now_s += 7'000;
  nat.age(now_s);
  EXPECT_EQ(nat.sessions(), 1U);
  Bytes real = segment(net::kTcpRst);
  ASSERT_EQ(to_proxy(real), NatResult::kOk);
  now_s += 241;
  nat.age(now_s);
  EXPECT_EQ(nat.sessions(), 0U);
}

TEST_F(NatTest, OnlyASynThatTheProxyTakesBeginsAnEstablishedSessionAnew) {
  const auto segment = [](std::uint8_t flags) {
    return packet_of({.from = at("10.1.2.3:5"), .to = at("10.0.0.10:80"), .flags = flags});
  };
  Bytes syn = segment(net::kTcpSyn);
  ASSERT_EQ(to_proxy(syn), NatResult::kOk);
  const auto proxy_says = [&](std::uint8_t flags) {
    Bytes back = answer(syn, flags);
    ASSERT_EQ(to_client(back), NatResult::kOk);
  };
  const auto client_says = [&](std::uint8_t flags) {
    Bytes out = segment(flags);
    ASSERT_EQ(to_proxy(out), NatResult::kOk);
  };
  const auto sessions_after = [&](std::uint32_t s) {
    now_s += s;
    nat.age(now_s);
    return nat.sessions();
  };
  proxy_says(net::kTcpSyn | net::kTcpAck);
  client_says(net::kTcpAck);
  client_says(net::kTcpSyn);  // of anybody
  proxy_says(net::kTcpAck);   // says that it has the connection (RFC 5961)
  EXPECT_EQ(sessions_after(7'000), 1U);
  client_says(net::kTcpSyn);
  proxy_says(net::kTcpSyn | net::kTcpAck);
  EXPECT_EQ(sessions_after(200), 1U);
  client_says(net::kTcpAck);
  EXPECT_EQ(sessions_after(7'000), 1U) << "established again";
  client_says(net::kTcpSyn);
  proxy_says(net::kTcpSyn | net::kTcpAck);
  EXPECT_EQ(sessions_after(241), 0U) << "a handshake that nobody ended";
}

TEST_F(NatTest, ManyThatEndAtOnceEndInBoundedSteps) {
  nat = Nat(options(20'000), 1);
  for (int i = 0; i < 20'000; ++i) {
    Bytes packet = packet_of(
        {.from = at("10.1." + std::to_string(i / 200) + "." + std::to_string(i % 200 + 1) + ":5"),
         .to = at("10.0.0.10:80"),
         .flags = net::kTcpSyn});
    ASSERT_EQ(to_proxy(packet), NatResult::kOk);
  }
  now_s += 1'000;
  std::uint32_t before = nat.sessions();
  int calls = 0;
  for (; nat.sessions() != 0; ++calls) {
    nat.age(now_s);
    EXPECT_LE(before - nat.sessions(), 8'192U);
    before = nat.sessions();
    ASSERT_LT(calls, 10);
  }
  EXPECT_EQ(calls, 3);
}

// Property: the tables agree with a plain list of what was opened and closed, in any order.
TEST_F(NatTest, FindsEverySessionAfterAnyOrderOfOpeningsAndEndings) {
  std::mt19937 random(3);
  std::map<int, std::string> open;
  for (int step = 0; step < 20'000; ++step) {
    const int port = static_cast<int>(random() % 600) + 1;
    const auto proxy = static_cast<std::uint16_t>(port % 7);
    if (random() % 200 == 0) {
      nat.erase_proxy(proxy);
      std::erase_if(open, [&](const auto& one) { return one.first % 7 == proxy; });
    }
    Bytes packet =
        packet_of({.from = at("10.1.2.3:" + std::to_string(port)), .to = at("10.0.0.10:80")});
    ASSERT_EQ(to_proxy(packet, "10.5.0." + std::to_string(proxy + 1) + ":80", proxy),
              NatResult::kOk);
    const std::string now = told(packet);
    const auto known = open.find(port);
    if (known != open.end()) {
      ASSERT_EQ(known->second, now);
    }
    open[port] = now;
    ASSERT_EQ(nat.sessions(), open.size());
  }
}

}  // namespace
}  // namespace sanproxy::steer
