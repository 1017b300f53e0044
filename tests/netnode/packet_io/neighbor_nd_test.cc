#include <random>

#include "tests/netnode/packet_io/neighbor_fixture.h"

namespace sanproxy::packet_io::testing {
namespace {

NdMessage solicitation(const char* target) {
  return {kNdSolicitation, 0,    ip("fd00::1"), solicited_node_address(ip(target)),
          ip(target),      true, mac(1)};
}

NdMessage advertisement(std::uint8_t flags, const net::MacAddress& from) {
  return {kNdAdvertisement, flags, ip("fd00::1"), ip("fd00::10"), ip("fd00::1"), true, from};
}

Bytes packet_of(const NdMessage& message) {
  const NdFrame frame = build_nd(message, kOurs, message.mac);
  return Bytes(reinterpret_cast<const std::uint8_t*>(frame.data()) + 14,
               reinterpret_cast<const std::uint8_t*>(frame.data()) + frame.size());
}

void fix_icmp6_checksum(Bytes& packet) {
  net::store_raw16(packet.data() + 42, 0);
  const auto length = static_cast<std::uint32_t>(packet.size() - 40);
  const std::uint64_t pseudo =
      net::pseudo_header_sum(Family::kIpv6, packet.data() + 8, packet.data() + 24, 58, length);
  net::store_raw16(packet.data() + 42,
                   net::finish(net::sum_bytes(packet.data() + 40, length, pseudo)));
}

TEST(NeighborFrames, LinkLocalAndGroupAddressesFollowTheirRfcs) {
  EXPECT_EQ(link_local_address({{0x02, 0x11, 0x22, 0x33, 0x44, 0x55}}).to_string(),
            "fe80::11:22ff:fe33:4455");
  EXPECT_EQ(solicited_node_address(ip("fd00::1234:5678")).to_string(), "ff02::1:ff34:5678");
  EXPECT_EQ(ipv6_multicast_mac(ip("ff02::1:ff34:5678")),
            (net::MacAddress{{0x33, 0x33, 0xff, 0x34, 0x56, 0x78}}));
}

TEST_F(NeighborTest, SolicitationsForOurAddressesAloneAreAnswered) {
  start();
  for (const std::string& target : {std::string("fd00::10"), neighbor->link_local().to_string()}) {
    sink.frames.clear();
    nd(solicitation(target.c_str()));
    ASSERT_EQ(sink.frames.size(), 1U) << target;
    const NdMessage answer = last_nd();
    EXPECT_EQ(answer.type, kNdAdvertisement);
    EXPECT_EQ(answer.flags, kNdSolicited | kNdOverride);
    EXPECT_EQ(answer.target, ip(target.c_str()));
    EXPECT_EQ(answer.mac, kOurs);
    EXPECT_EQ(answer.dst, ip("fd00::1"));
    EXPECT_EQ(frame_dst(0), mac(1));
  }
  sink.frames.clear();
  nd(solicitation("fd00::11"));
  EXPECT_TRUE(sink.frames.empty());
  net::MacAddress to;
  ASSERT_TRUE(resolve("fd00::1", to)) << "who asked is known";
  EXPECT_EQ(to, mac(1));
}

// As Linux answers a question that was sent to it alone.
Bytes without_option(const NdMessage& message) {
  Bytes packet = packet_of(message);
  packet.resize(64);
  net::store_be16(packet.data() + 4, 24);
  fix_icmp6_checksum(packet);
  return packet;
}

TEST_F(NeighborTest, DuplicateAddressDetectionIsAnsweredToAllNodes) {
  start();
  NdMessage probe = solicitation("fd00::10");
  probe.src = IpAddress::any(Family::kIpv6);
  nd_bytes(without_option(probe));  // as RFC 4861 7.1.1 demands
  ASSERT_EQ(sink.frames.size(), 1U);
  EXPECT_EQ(last_nd().dst, all_nodes_address());
  EXPECT_EQ(last_nd().flags, kNdOverride);
  EXPECT_EQ(frame_dst(0), (net::MacAddress{{0x33, 0x33, 0, 0, 0, 1}}));
}

TEST_F(NeighborTest, UnknownIpv6NeighboursAreSolicitedAndTheirAnswerTaken) {
  start();
  net::MacAddress to;
  EXPECT_FALSE(resolve("fd00::1", to));
  ASSERT_EQ(sink.frames.size(), 1U);
  const NdMessage question = last_nd();
  EXPECT_EQ(question.type, kNdSolicitation);
  EXPECT_EQ(question.src, neighbor->link_local());
  EXPECT_EQ(question.dst, solicited_node_address(ip("fd00::1")));
  EXPECT_EQ(question.mac, kOurs);
  EXPECT_EQ(frame_dst(0), (net::MacAddress{{0x33, 0x33, 0xff, 0, 0, 1}}));
  nd(advertisement(kNdSolicited | kNdOverride, mac(3)));
  ASSERT_EQ(sink.frames.size(), 2U) << "the packet that waited";
  EXPECT_EQ(frame_dst(1), mac(3));
  ASSERT_TRUE(resolve("fd00::1", to));
  EXPECT_EQ(to, mac(3));
}

TEST_F(NeighborTest, UnaskedAdvertisementsMakeNoEntriesAndChangeOnlyOldOnes) {
  start();
  net::MacAddress to;
  nd(advertisement(kNdSolicited | kNdOverride, mac(3)));
  EXPECT_FALSE(resolve("fd00::1", to));
  nd(advertisement(kNdSolicited | kNdOverride, mac(3)));
  nd(advertisement(kNdOverride, mac(4)));
  ASSERT_TRUE(resolve("fd00::1", to));
  EXPECT_EQ(to, mac(3)) << "fresh";
  later(2);
  nd(advertisement(0, mac(4)));
  ASSERT_TRUE(resolve("fd00::1", to));
  EXPECT_EQ(to, mac(3)) << "without the override flag";
  nd(advertisement(kNdOverride, mac(4)));
  ASSERT_TRUE(resolve("fd00::1", to));
  EXPECT_EQ(to, mac(4));
}

TEST_F(NeighborTest, AnAnswerWithoutAMacConfirmsTheOneThatWasAsked) {
  start();
  net::MacAddress to;
  EXPECT_FALSE(resolve("fd00::1", to));
  nd_bytes(without_option(advertisement(kNdSolicited, mac(3))));
  EXPECT_FALSE(resolve("fd00::1", to)) << "no MAC is known yet";
  nd(advertisement(kNdSolicited | kNdOverride, mac(3)));
  for (int round = 0; round < 3; ++round) {
    later(31);
    sink.frames.clear();
    ASSERT_TRUE(resolve("fd00::1", to));
    ASSERT_EQ(sink.frames.size(), 1U);
    EXPECT_EQ(frame_dst(0), mac(3)) << "asked by unicast";
    nd_bytes(without_option(advertisement(0, mac(3))));
    later(1);
    EXPECT_EQ(sink.frames.size(), 2U) << "an announcement is no answer";
    nd_bytes(without_option(advertisement(kNdSolicited, mac(3))));
    for (int i = 0; i < 8; ++i) {
      later(1);
    }
    EXPECT_EQ(sink.frames.size(), 2U) << "it answered: quiet";
    ASSERT_TRUE(resolve("fd00::1", to));
    EXPECT_EQ(to, mac(3));
  }
}

TEST_F(NeighborTest, AnAnswerWithoutOverrideConfirmsButReplacesNoMac) {
  start();
  net::MacAddress to;
  EXPECT_FALSE(resolve("fd00::1", to));
  nd(advertisement(kNdSolicited, mac(3)));
  ASSERT_TRUE(resolve("fd00::1", to)) << "any MAC is better than none";
  later(31);
  ASSERT_TRUE(resolve("fd00::1", to));
  sink.frames.clear();
  nd(advertisement(kNdSolicited, mac(4)));
  ASSERT_TRUE(resolve("fd00::1", to));
  EXPECT_EQ(to, mac(3));
  later(1);
  EXPECT_EQ(sink.frames.size(), 1U) << "nor does it confirm";
  nd(advertisement(kNdSolicited, mac(3)));
  later(1);
  EXPECT_EQ(sink.frames.size(), 1U);
  later(30);
  ASSERT_TRUE(resolve("fd00::1", to));
  nd(advertisement(kNdSolicited | kNdOverride, mac(4)));
  ASSERT_TRUE(resolve("fd00::1", to));
  EXPECT_EQ(to, mac(4));
}

TEST_F(NeighborTest, AnotherMacForAFreshIpv6EntryHasTheGroupAskedAtOnce) {
  start();
  net::MacAddress to;
  EXPECT_FALSE(resolve("fd00::1", to));
  nd(advertisement(kNdSolicited | kNdOverride, mac(3)));
  sink.frames.clear();
  nd(advertisement(kNdSolicited | kNdOverride, mac(4)));
  EXPECT_TRUE(sink.frames.empty()) << "a second answer to our question";
  nd(advertisement(kNdOverride, mac(4)));
  ASSERT_EQ(sink.frames.size(), 1U);
  EXPECT_EQ(last_nd().dst, solicited_node_address(ip("fd00::1")));
  nd(advertisement(kNdSolicited | kNdOverride, mac(4)));
  ASSERT_TRUE(resolve("fd00::1", to));
  EXPECT_EQ(to, mac(4));
}

TEST_F(NeighborTest, LinkLocalPeersAreAlwaysOnLink) {
  start({ip("fd00::fe")});
  net::MacAddress to;
  EXPECT_FALSE(resolve("fe80::1", to));
  EXPECT_EQ(last_nd().target, ip("fe80::1"));
  EXPECT_FALSE(resolve("2001:db8::1", to));
  EXPECT_EQ(last_nd().target, ip("fd00::fe"));
}

TEST_F(NeighborTest, SolicitationsThatBreakTheRfcAreIgnored) {
  start();
  struct Row {
    const char* description;
    std::size_t at;
    std::uint8_t value;
    bool fix_checksum;
  };
  const Row table[] = {
      {"hop limit below 255: it came through a router", 7, 254, true},
      {"code", 41, 1, true},
      {"checksum", 42, 0x77, false},
      {"multicast target", 48, 0xff, true},
      {"option of length zero", 65, 0, true},
      {"option longer than the message", 65, 2, true},
      {"sender with a group MAC", 66, 0x01, true},
  };
  for (const Row& row : table) {
    Bytes packet = packet_of(solicitation("fd00::10"));
    ASSERT_NE(packet[row.at], row.value);
    packet[row.at] = row.value;
    if (row.fix_checksum) {
      fix_icmp6_checksum(packet);
    }
    nd_bytes(packet);
    EXPECT_TRUE(sink.frames.empty()) << row.description;
  }
  NdMessage from_nobody = solicitation("fd00::10");
  from_nobody.src = IpAddress::any(Family::kIpv6);
  nd(from_nobody);
  EXPECT_TRUE(sink.frames.empty()) << "unspecified source with a link-layer option";
}

TEST_F(NeighborTest, RandomDamageNeverConfusesDiscovery) {
  start();
  std::mt19937 random(5);
  const Bytes good = packet_of(solicitation("fd00::10"));
  for (int round = 0; round < 50'000; ++round) {
    Bytes packet = good;
    packet[random() % packet.size()] = static_cast<std::uint8_t>(random());
    packet[40 + random() % 32] = static_cast<std::uint8_t>(random());
    if (random() % 2 == 0) {
      packet.resize(40 + random() % 33);
      net::store_be16(packet.data() + 4, static_cast<std::uint16_t>(packet.size() - 40));
    }
    packet.shrink_to_fit();
    if (packet.size() >= 44) {
      fix_icmp6_checksum(packet);
    }
    nd_bytes(packet);
    sink.frames.clear();
  }
  later(1);  // neighbours whose MAC was damaged are asked
  sink.frames.clear();
  nd(solicitation("fd00::10"));
  EXPECT_EQ(last_nd().type, kNdAdvertisement);
  EXPECT_EQ(last_nd().dst, ip("fd00::1"));
}

}  // namespace
}  // namespace sanproxy::packet_io::testing
