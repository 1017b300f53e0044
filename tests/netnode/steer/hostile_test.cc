// Packets that nobody sends in good faith, and proxies that lie: others do not suffer.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "netnode/steer/forwarder.h"
#include "tests/netnode/steer/steer_packets.h"

namespace sanproxy::steer {
namespace {

using namespace testing;  // NOLINT: the test's own

constexpr const char* kService = "10.0.0.10:80";

ForwarderOptions small_options() {
  ForwarderOptions out;
  out.maglev_entries = 1009;
  out.flows.flows_max = 1024;
  out.fragments = {.datagrams_max = 64, .held_max = 16, .timeout_ms = 2'000};
  out.nat.sessions_max = 64;
  out.nat.addresses = {*IpAddress::parse("10.9.9.9")};
  return out;
}

class Hostile : public ::testing::Test {
 protected:
  Hostile() {
    ProxySet set;
    set.services = {{at(kService)}, {at("[fd00::10]:80")}, {at("10.0.0.10:53"), 17}};
    for (int i = 0; i < 4; ++i) {
      ProxyConfig proxy;
      proxy.name = "p" + std::to_string(i);
      proxy.id = static_cast<std::uint16_t>(i + 1);
      proxy.channel = "shm:/run/" + proxy.name;
      set.proxies.push_back(proxy);
    }
    ProxyConfig tunnel;  // which carries datagrams, too
    tunnel.name = "datagrams";
    tunnel.mode = Mode::kTunnel;
    tunnel.targets = {{*IpAddress::parse("10.5.0.1"), 0}};
    set.proxies.push_back(tunnel);
    set.services[0].proxies = set.services[1].proxies = {"p0", "p1", "p2", "p3"};
    std::vector<std::uint16_t> gone;
    forwarder_.apply(set, gone);
    for (std::uint16_t i = 0; i < 5; ++i) forwarder_.set_state(i, ProxyState::kUp);
  }
  Verdict steer(const Bytes& packet, Fragments::Token token = 0) {
    // In an allocation of its own size: a read beyond it is seen by the address sanitizer.
    const auto exact = std::make_unique<std::byte[]>(packet.size());
    std::memcpy(exact.get(), packet.data(), packet.size());
    const Forwarder::Arrival arrival{{exact.get(), packet.size()}, token};
    Verdict out;
    forwarder_.steer({&arrival, 1}, {&out, 1}, now_ms_);
    return out;
  }
  static Bytes segment(int client, std::uint8_t flags = net::kTcpAck) {
    return packet_of({.from = at("10.1." + std::to_string(client / 250) + "." +
                                 std::to_string(client % 250 + 1) + ":4000"),
                      .to = at(kService),
                      .flags = flags});
  }
  std::uint16_t establish(int client) {
    (void)steer(segment(client, net::kTcpSyn));
    return steer(segment(client)).proxy;
  }
  std::uint64_t drops(Drop why) const {
    return forwarder_.counters().drops[static_cast<std::size_t>(why)];
  }
  bool reply(const Bytes& packet, std::uint16_t from) {
    return forwarder_.on_reply(parsed(packet), as_span(packet), from, now_ms_);
  }

  Forwarder forwarder_{small_options()};
  std::uint64_t now_ms_ = 1'000'000;
};

TEST_F(Hostile, AFloodOfSegmentsThatNobodySawBeginDisplacesNoEstablishedFlow) {
  std::map<int, std::uint16_t> where;
  for (int i = 0; i < 300; ++i) where[i] = establish(i);
  forwarder_.set_state(3, ProxyState::kDraining);  // what is forgotten would go elsewhere
  for (int i = 1'000; i < 60'000; ++i) (void)steer(segment(i));
  for (const auto& [client, proxy] : where) EXPECT_EQ(steer(segment(client)).proxy, proxy);
  EXPECT_LE(forwarder_.flows().size(), forwarder_.flows().capacity());
  EXPECT_GT(forwarder_.flows().evicted() + forwarder_.flows().refused(), 0U) << "and it is counted";
}

TEST_F(Hostile, AFloodOfSegmentsThatProxiesGiveBackDisplacesNoEstablishedFlow) {
  for (int i = 0; i < 300; ++i) (void)establish(i);
  now_ms_ += 1'000;  // what comes now has been used later
  for (int i = 1'000; i < 60'000; ++i) {
    const std::uint8_t flags = i % 2 == 0 ? net::kTcpAck : net::kTcpAck | net::kTcpRst;
    const Bytes made_up = segment(i, flags);
    Verdict verdict = steer(made_up);
    while (!verdict.final) forwarder_.retry(as_span(made_up), verdict.proxy, verdict, now_ms_);
  }
  const std::uint64_t known = forwarder_.counters().by_flow;
  for (int i = 0; i < 300; ++i) (void)steer(segment(i));
  EXPECT_EQ(forwarder_.counters().by_flow - known, 300U);
}

TEST_F(Hostile, AProxyMovesNoFlowOfAnotherByForgingWhatComesBack) {
  for (int i = 0; i < 100; ++i) {
    const std::uint16_t owner = establish(i);
    for (std::uint16_t liar = 0; liar < 4; ++liar) {
      if (liar == owner) continue;
      Verdict verdict;
      const Bytes forged = segment(i);
      forwarder_.retry(as_span(forged), liar, verdict, now_ms_);
      EXPECT_EQ(verdict.proxy, owner);
    }
    EXPECT_EQ(steer(segment(i)).proxy, owner);
  }
}

TEST_F(Hostile, AProxyEndsNoFlowOfAnotherAndSpeaksOnlyForServices) {
  const std::uint16_t owner = establish(1);
  const auto liar = static_cast<std::uint16_t>((owner + 1) % 4);
  const SocketAddress client = at("10.1.0.2:4000");
  const Bytes reset = packet_of({.from = at(kService), .to = client, .flags = net::kTcpRst});
  EXPECT_TRUE(reply(reset, liar));
  now_ms_ += 61'000;  // a flow that closes is forgotten by now
  for (int i = 0; i < 4; ++i) forwarder_.age(now_ms_);
  EXPECT_EQ(forwarder_.sessions_of(owner), 1U);
  EXPECT_TRUE(reply(reset, owner));
  now_ms_ += 61'000;
  for (int i = 0; i < 4; ++i) forwarder_.age(now_ms_);
  EXPECT_EQ(forwarder_.sessions_of(owner), 0U);
  EXPECT_FALSE(reply(packet_of({.from = at("10.0.0.11:80"), .to = client}), owner));
}

TEST_F(Hostile, AProtocolWithoutPortsIsForNoService) {
  for (const std::uint8_t protocol : {std::uint8_t{0}, std::uint8_t{4}, std::uint8_t{255}}) {
    for (const std::size_t bytes : {std::size_t{0}, std::size_t{20}}) {
      Bytes packet = net::testing::ipv4(protocol, Bytes(bytes));
      net::store_be32(packet.data() + 16, 0x0a00000a);
      net::testing::fix_ipv4_checksum(packet);
      EXPECT_EQ(steer(packet).drop, Drop::kNoService) << int{protocol};
      Verdict again;
      forwarder_.retry(as_span(packet), 0, again, now_ms_);
      EXPECT_EQ(again.drop, Drop::kNoService) << int{protocol};
      net::store_be32(packet.data() + 16, 0x0a00000b);
      net::testing::fix_ipv4_checksum(packet);
      EXPECT_EQ(steer(packet).drop, Drop::kNotForUs) << int{protocol};
    }
  }
  EXPECT_EQ(forwarder_.flows().size(), 0U);
}

TEST_F(Hostile, PiecesThatBelongToNoDatagramAreDroppedAndCounted) {
  const Bytes tcp = packet_of({.from = at("10.1.1.1:1"), .to = at(kService), .payload = 980});
  EXPECT_EQ(steer(cut(tcp, 0, 8, true)).drop, Drop::kFragmentTiny) << "ports, but no flags";
  EXPECT_EQ(steer(cut(tcp, 8, 400, true)).drop, Drop::kFragmentTiny) << "over the flags (RFC 3128)";
  EXPECT_EQ(steer(cut(tcp, 16, 400, true)).drop, Drop::kFragmentTiny);
  EXPECT_EQ(steer(cut(tcp, 400, 403, true)).drop, Drop::kFragmentMalformed) << "no multiple of 8";
  EXPECT_EQ(steer(cut(tcp, 400, 400, true)).drop, Drop::kFragmentMalformed) << "empty";
  EXPECT_EQ(steer(cut(tcp, 0, 0, true)).drop, Drop::kFragmentMalformed);
  Bytes beyond = cut(tcp, 400, 800, false);
  net::store_be16(beyond.data() + 6, 0x1fff);  // ends behind byte 65,535
  net::testing::fix_ipv4_checksum(beyond);
  EXPECT_EQ(steer(beyond).drop, Drop::kFragmentMalformed);
  EXPECT_EQ(drops(Drop::kFragmentTiny), 3U);
  EXPECT_EQ(drops(Drop::kFragmentMalformed), 4U);
}

TEST_F(Hostile, AFirstFragmentWithHalfAHeaderIsReadNoFurtherThanItGoes) {
  const Bytes tcp =
      packet_of({.from = at("10.1.1.1:1"), .to = at(kService), .tag = 3, .payload = 980});
  EXPECT_EQ(steer(cut(tcp, 0, 24, true)).action, Action::kToProxy);
  EXPECT_EQ(forwarder_.counters().by_tag, 0U);
  EXPECT_EQ(forwarder_.counters().by_maglev, 1U);
}

TEST_F(Hostile, PiecesOfALargeEchoRequestAreDroppedAtOnceAndTakeNoRoomFromThoseOfFlows) {
  Bytes large = packet_of({.from = at("10.1.1.1:1"), .to = at(kService), .payload = 980});
  large[9] = 1;  // ICMP
  for (const auto& [begin, end] : {std::pair{800, 1000}, std::pair{400, 800}, std::pair{0, 400}}) {
    const Bytes piece =
        cut(large, static_cast<std::size_t>(begin), static_cast<std::size_t>(end), true);
    EXPECT_EQ(steer(piece).drop, Drop::kFragmentProtocol);
  }
  EXPECT_EQ(drops(Drop::kFragmentProtocol), 3U);
  EXPECT_EQ(forwarder_.counters().fragments_held, 0U);
}

TEST_F(Hostile, FirstFragmentsForNoServiceAreNotRemembered) {
  const Bytes closed =
      packet_of({.from = at("10.1.1.1:1"), .to = at("10.0.0.10:81"), .payload = 980});
  EXPECT_EQ(steer(cut(closed, 0, 400, true)).drop, Drop::kNoService);
  EXPECT_EQ(steer(cut(closed, 400, 800, true), 5).action, Action::kHeld) << "nobody knows of it";
}

TEST_F(Hostile, AFloodOfDatagramsIsBoundedAndCountedAndLeavesOthersInOrderAlone) {
  for (int i = 0; i < 5'000; ++i) {
    Bytes whole = packet_of(
        {.from = at("10.1." + std::to_string(i / 250) + "." + std::to_string(i % 250 + 1) + ":5"),
         .to = at("10.0.0.10:53"),
         .payload = 1'000,
         .protocol = 17});
    net::store_be16(whole.data() + 4, static_cast<std::uint16_t>(i));
    const Verdict first = steer(cut(whole, 0, 400, true));
    ASSERT_EQ(first.action, Action::kToProxy);
    const Verdict next = steer(cut(whole, 400, 1'008, false));
    ASSERT_EQ(next.action, Action::kToProxy) << i;
    ASSERT_EQ(next.proxy, first.proxy);
  }
  EXPECT_GT(forwarder_.fragments().displaced(), 4'000U);
}

TEST_F(Hostile, FragmentsOfTwoSendersWithOneIdAreTwoDatagrams) {
  const auto datagram = [&](const char* from) {
    return packet_of(
        {.from = at(from), .to = at("10.0.0.10:53"), .payload = 1'000, .protocol = 17});
  };
  const Verdict one = steer(cut(datagram("10.1.1.1:1"), 0, 400, true));
  const Verdict two = steer(cut(datagram("10.1.1.2:2"), 0, 400, true));
  EXPECT_EQ(steer(cut(datagram("10.1.1.1:1"), 400, 1'008, false)).flow, one.flow);
  EXPECT_EQ(steer(cut(datagram("10.1.1.2:2"), 400, 1'008, false)).flow, two.flow);
}

// Seeded: any bytes get one verdict, every token comes back once, and the flows of those who behave
// stay where they are throughout.
class Storm : public Hostile {
 protected:
  std::uint64_t random() { return random_(); }
  std::size_t below(std::size_t n) { return random_() % n; }

  Bytes some_packet() {
    const bool v6 = below(3) == 0;
    const std::string client = v6 ? "[fd01::" + std::to_string(1 + below(200)) + "]:7"
                                  : "10.66.0." + std::to_string(1 + below(250)) + ":7";
    const std::string to = v6 ? "[fd00::10]:80" : below(3) == 0 ? "10.0.0.10:53" : kService;
    const std::uint8_t protocol = to == "10.0.0.10:53" ? 17 : 6;
    const auto flags = static_cast<std::uint8_t>(below(64));
    return packet_of({.from = at(client),
                      .to = at(to),
                      .flags = flags,
                      .tag = static_cast<std::uint16_t>(below(2) * below(1024)),
                      .payload = 8 * below(60),
                      .protocol = protocol});
  }
  Bytes with_options(const Bytes& packet) {
    if ((packet[0] >> 4) != 4) return packet;
    Bytes options(4 * (1 + below(10)));
    for (std::uint8_t& byte : options) byte = static_cast<std::uint8_t>(random());
    Bytes out(packet.begin(), packet.begin() + 20);
    out[0] = static_cast<std::uint8_t>(0x40 | (5 + options.size() / 4));
    net::testing::append(out, options);
    out.insert(out.end(), packet.begin() + 20, packet.end());
    net::store_be16(out.data() + 2, static_cast<std::uint16_t>(out.size()));
    net::testing::fix_ipv4_checksum(out);
    return out;
  }
  Bytes as_fragment(Bytes packet) {
    if ((packet[0] >> 4) == 4) {
      net::store_be16(packet.data() + 4, static_cast<std::uint16_t>(below(16)));
      const std::size_t offset = below(2) == 0 ? below(3) : below(0x2000);
      net::store_be16(packet.data() + 6,
                      static_cast<std::uint16_t>((below(2) == 0 ? 0x2000U : 0U) | offset));
      net::testing::fix_ipv4_checksum(packet);
      return packet;
    }
    Bytes header(8);
    header[0] = packet[6];
    net::store_be16(header.data() + 2, static_cast<std::uint16_t>(
                                           (below(3) == 0 ? 0 : below(0x2000)) << 3 | below(2)));
    net::store_be32(header.data() + 4, static_cast<std::uint32_t>(below(16)));
    packet[6] = 44;
    packet.insert(packet.begin() + 40, header.begin(), header.end());
    net::store_be16(packet.data() + 4, static_cast<std::uint16_t>(packet.size() - 40));
    return packet;
  }
  Bytes damaged(Bytes packet) {
    for (std::size_t flips = below(6); flips > 0; --flips) {
      packet[below(packet.size())] = static_cast<std::uint8_t>(random());
    }
    if (below(3) != 0 && (packet[0] >> 4) == 4 && (packet[0] & 15U) * 4U <= packet.size() &&
        (packet[0] & 15U) >= 5) {
      net::testing::fix_ipv4_checksum(packet);
    }
    if (below(4) == 0) packet.resize(below(packet.size() + 1));
    return packet;
  }
  Bytes anything() {
    Bytes packet = some_packet();
    switch (below(6)) {
      case 0:
        return damaged(icmp_error(*IpAddress::parse("10.7.7.7"),
                                  packet_of({.from = at(kService), .to = at("10.66.0.9:7")}),
                                  below(80)));
      case 1:
        return damaged(with_options(packet));
      case 2:
        return damaged(as_fragment(with_options(packet)));
      case 3:
        return as_fragment(packet);
      case 4:
        return with_options(packet);
      default:
        return damaged(packet);
    }
  }

  std::mt19937_64 random_;
};

TEST_F(Storm, AnyPacketsGetOneVerdictEachAndMoveNobodysFlow) {
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    SCOPED_TRACE(seed);
    random_.seed(seed);
    std::map<int, std::uint16_t> where;
    for (int i = 0; i < 200; ++i) where[i] = establish(i);
    forwarder_.set_state(static_cast<std::uint16_t>(seed % 4), ProxyState::kDraining);
    std::set<Fragments::Token> waiting;
    Fragments::Token next = 1;
    const auto comes_back = [&](Fragments::Token token) {
      EXPECT_EQ(waiting.erase(token), 1U) << "a token that nobody holds";
    };
    for (int i = 0; i < 30'000; ++i) {
      now_ms_ += below(3);
      const Bytes packet = anything();
      const Verdict verdict = steer(packet, next);
      ASSERT_EQ(verdict.action == Action::kDrop, verdict.drop != Drop::kNone);
      if (verdict.action == Action::kHeld) waiting.insert(next++);
      Fragments::Token token = 0;
      if (verdict.first_fragment) {
        while (forwarder_.release_held(verdict, token, now_ms_)) comes_back(token);
      }
      while (forwarder_.expire_held(now_ms_, token)) comes_back(token);
      ASSERT_LE(waiting.size(), 16U);
      if (verdict.action == Action::kToProxy && verdict.has_ports && below(4) == 0 &&
          !verdict.parsed.fragment) {
        Verdict again;
        forwarder_.retry(as_span(packet), static_cast<std::uint16_t>(below(5)), again, now_ms_);
        ASSERT_EQ(again.action == Action::kDrop, again.drop != Drop::kNone);
      }
      if (i % 100 == 0) {
        const int client = static_cast<int>(below(200));
        ASSERT_EQ(steer(segment(client)).proxy, where[client]) << "after " << i;
      }
      if (i % 1'000 == 0) forwarder_.age(now_ms_);
    }
    for (const auto& [client, proxy] : where) EXPECT_EQ(steer(segment(client)).proxy, proxy);
    Fragments::Token token = 0;
    now_ms_ += 10'000;
    while (forwarder_.expire_held(now_ms_, token)) comes_back(token);
    EXPECT_TRUE(waiting.empty());
    forwarder_.set_state(static_cast<std::uint16_t>(seed % 4), ProxyState::kUp);
    now_ms_ += 8'000'000;
    for (int i = 0; i < 10; ++i) forwarder_.age(now_ms_);
  }
}

}  // namespace
}  // namespace sanproxy::steer
