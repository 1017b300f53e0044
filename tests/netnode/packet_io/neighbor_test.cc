#include "netnode/packet_io/neighbor.h"

#include "tests/netnode/packet_io/neighbor_fixture.h"

namespace sanproxy::packet_io::testing {
namespace {

TEST_F(NeighborTest, ArpRequestsForOurAddressesAloneAreAnswered) {
  start();
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.10");
  ASSERT_EQ(sink.frames.size(), 1U);
  const ArpMessage reply = last_arp();
  EXPECT_EQ(reply.operation, kArpReply);
  EXPECT_EQ(reply.sender_mac, kOurs);
  EXPECT_EQ(reply.sender_ip, ip("10.0.0.10"));
  EXPECT_EQ(reply.target_mac, mac(1));
  EXPECT_EQ(frame_dst(0), mac(1));
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.11");
  EXPECT_EQ(sink.frames.size(), 1U) << "not ours";
  ASSERT_TRUE(neighbor->add_local(ip("10.0.0.11")));
  EXPECT_EQ(sink.frames.size(), 2U) << "a new address is announced";
  EXPECT_EQ(last_arp().sender_ip, last_arp().target_ip);
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.11");
  EXPECT_EQ(sink.frames.size(), 3U);
  neighbor->remove_local(ip("10.0.0.11"));
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.11");
  EXPECT_EQ(sink.frames.size(), 3U) << "no longer ours";
}

TEST_F(NeighborTest, AGatewaysAddressIsNeverOurs) {
  start({ip("10.0.0.1"), ip("fd00::1")});
  EXPECT_FALSE(neighbor->add_local(ip("10.0.0.1")));
  EXPECT_FALSE(neighbor->add_local(ip("fd00::1")));
  EXPECT_TRUE(sink.frames.empty()) << "nobody else is to believe it";
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.10");
  ASSERT_EQ(sink.frames.size(), 1U);
  EXPECT_EQ(last_arp().operation, kArpReply);
}

TEST_F(NeighborTest, WhoAsksForUsIsKnownWithoutAsking) {
  start();
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.10");
  sink.frames.clear();
  net::MacAddress to;
  ASSERT_TRUE(resolve("10.0.0.1", to));
  EXPECT_EQ(to, mac(1));
  EXPECT_TRUE(sink.frames.empty());
}

TEST_F(NeighborTest, PacketsToAnUnknownNeighbourWaitForItsReplyAndLeaveInOrder) {
  start();
  net::MacAddress to;
  Outgoing first(ip("10.0.0.10"), ip("10.0.0.1"), 4), second(ip("10.0.0.10"), ip("10.0.0.1"), 8);
  first.packet.offload.checksum_partial = true;
  first.packet.offload.checksum_start = 20;
  EXPECT_FALSE(neighbor->resolve(first.packet, to));
  EXPECT_FALSE(neighbor->resolve(second.packet, to));
  ASSERT_EQ(sink.frames.size(), 1U) << "one request for both";
  EXPECT_EQ(frame_dst(0), net::MacAddress::broadcast());
  EXPECT_EQ(last_arp().target_ip, ip("10.0.0.1"));
  EXPECT_EQ(last_arp().sender_ip, ip("10.0.0.10"));
  arp(kArpReply, mac(1), "10.0.0.1", kOurs, "10.0.0.10");
  ASSERT_EQ(sink.frames.size(), 3U);
  EXPECT_EQ(frame_dst(1), mac(1));
  EXPECT_EQ(sink.frames[1].size(), 14 + first.bytes.size());
  EXPECT_TRUE(std::equal(first.bytes.begin(), first.bytes.end(), sink.frames[1].begin() + 14));
  EXPECT_EQ(sink.frames[2].size(), 14 + second.bytes.size());
  EXPECT_TRUE(sink.offloads[1].checksum_partial);
  EXPECT_EQ(counters.tx_packets, 2U);
  EXPECT_EQ(counters.tx_dropped_unresolved, 0U);
}

TEST_F(NeighborTest, QuestionsAreAskedInTheNameOfAnAddressOfOurs) {
  start();
  Outgoing of_a_service(ip("10.0.0.99"), ip("10.0.0.1"));
  net::MacAddress ignored;
  EXPECT_FALSE(neighbor->resolve(of_a_service.packet, ignored));
  EXPECT_EQ(last_arp().sender_ip, ip("10.0.0.10"));
}

TEST_F(NeighborTest, TheFirstGatewayIsAskedThoughTheSecondIsKnownAlready) {
  start({ip("10.0.0.254"), ip("10.0.0.253")});
  arp(kArpRequest, mac(2), "10.0.0.253", {}, "10.0.0.10");
  sink.frames.clear();
  net::MacAddress to;
  ASSERT_TRUE(resolve("192.0.2.1", to));
  EXPECT_EQ(to, mac(2));
  EXPECT_EQ(last_arp().target_ip, ip("10.0.0.254"));
  arp(kArpReply, mac(1), "10.0.0.254", kOurs, "10.0.0.10");
  ASSERT_TRUE(resolve("192.0.2.1", to));
  EXPECT_EQ(to, mac(1));
}

TEST_F(NeighborTest, WaitingPacketsAreBoundedAndDroppedWithACountWhenNobodyAnswers) {
  start();
  net::MacAddress to;
  for (std::size_t i = 0; i < kHeldPerHopMax + 3; ++i) {
    EXPECT_FALSE(resolve("10.0.0.1", to));
  }
  EXPECT_EQ(counters.tx_dropped_unresolved, 3U);
  Outgoing large(ip("10.0.0.10"), ip("10.0.0.2"), kHeldPacketBytesMax);
  EXPECT_FALSE(neighbor->resolve(large.packet, to));
  EXPECT_EQ(counters.tx_dropped_unresolved, 4U) << "too large to wait";
  for (int i = 0; i < 200; ++i) {
    EXPECT_FALSE(resolve(("10.0.0." + std::to_string(20 + i)).c_str(), to));
  }
  EXPECT_EQ(counters.tx_dropped_unresolved, 4U + 200U - (kHeldPacketsMax - kHeldPerHopMax));
  for (int i = 0; i < 4; ++i) {
    later(1);
  }
  EXPECT_EQ(counters.tx_dropped_unresolved, 3U + 1U + kHeldPerHopMax + 200U)
      << "all are gone after three questions";
  const std::size_t asked = sink.frames.size();
  EXPECT_FALSE(resolve("10.0.0.1", to));
  EXPECT_EQ(sink.frames.size(), asked) << "a silent neighbour is left alone for a while";
  later(4);
  EXPECT_FALSE(resolve("10.0.0.1", to));
  EXPECT_EQ(sink.frames.size(), asked + 1) << "and asked again later";
}

TEST_F(NeighborTest, RequestsPerSecondAreBounded) {
  start();
  flood(2000);
  EXPECT_EQ(sink.frames.size(), kRequestsPerSecondMax);
}

TEST_F(NeighborTest, AFloodOfStrangersTakesNeitherTheGatewayNorWhoIsKnownAway) {
  start({ip("10.0.0.254")});
  net::MacAddress to;
  EXPECT_FALSE(resolve("192.0.2.1", to));
  arp(kArpReply, mac(9), "10.0.0.254", kOurs, "10.0.0.10");
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.10");
  for (int second = 0; second < 100; ++second) {
    clock.advance_ns(kNeighborSecondNs);
    sink.frames.clear();
    flood(2000);
    neighbor->on_time();
    ASSERT_TRUE(resolve("192.0.2.1", to)) << second;
    ASSERT_TRUE(resolve("10.0.0.1", to)) << second;
    EXPECT_LE(sink.frames.size(), kRequestsPerSecondMax + 2);
    arp_answer(mac(9), "10.0.0.254");
    arp_answer(mac(1), "10.0.0.1");
  }
}

TEST_F(NeighborTest, AGatewayThatIsGoneIsFoundAgainInAFlood) {
  start({ip("10.0.0.254")});
  net::MacAddress to;
  flood(2000);
  EXPECT_FALSE(resolve("192.0.2.1", to));
  EXPECT_EQ(last_arp().target_ip, ip("10.0.0.254"));
  for (int second = 0; second < 20; ++second) {
    clock.advance_ns(kNeighborSecondNs);
    flood(2000);
    neighbor->on_time();
    (void)resolve("192.0.2.1", to);
  }
  sink.frames.clear();
  for (int second = 0; second < 7 && !resolve("192.0.2.1", to); ++second) {
    arp_answer(mac(9), "10.0.0.254");
    clock.advance_ns(kNeighborSecondNs);
    flood(2000);
    neighbor->on_time();
  }
  EXPECT_TRUE(resolve("192.0.2.1", to));
}

TEST_F(NeighborTest, AQuestionThatWasNotSentIsNotTakenForUnanswered) {
  start();
  flood(600);
  nd({kNdAdvertisement, kNdSolicited, ip("fd00::1:0:0"), ip("fd00::10"), ip("fd00::1:0:0"), true,
      mac(3)});
  EXPECT_EQ(counters.tx_packets, 1U) << "there is room for a packet that waits";
  sink.frames.clear();
  const std::uint64_t dropped = counters.tx_dropped_unresolved;
  net::MacAddress to;
  EXPECT_FALSE(resolve("10.0.0.1", to));
  EXPECT_TRUE(sink.frames.empty()) << "no room for a question in this second";
  EXPECT_EQ(counters.tx_dropped_unresolved, dropped + 1) << "none waits without a question";
  int asked = 0;
  for (int second = 0; second < 20; ++second) {
    sink.frames.clear();
    later(1);
    asked += asks_for("10.0.0.1");
  }
  EXPECT_EQ(asked, kNeighborProbesMax);
}

TEST_F(NeighborTest, UnaskedAnnouncementsMakeNoEntriesAndChangeOnlyOldOnes) {
  start();
  net::MacAddress to;
  arp(kArpReply, mac(1), "10.0.0.1", kOurs, "10.0.0.10");
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.1");
  EXPECT_FALSE(resolve("10.0.0.1", to)) << "nobody had asked";
  arp(kArpReply, mac(1), "10.0.0.1", kOurs, "10.0.0.10");
  ASSERT_TRUE(resolve("10.0.0.1", to));
  arp(kArpReply, mac(6), "10.0.0.1", kOurs, "10.0.0.10");
  ASSERT_TRUE(resolve("10.0.0.1", to));
  EXPECT_EQ(to, mac(1)) << "fresh: not replaced";
  later(2);
  arp(kArpRequest, mac(2), "10.0.0.1", {}, "10.0.0.1");
  ASSERT_TRUE(resolve("10.0.0.1", to));
  EXPECT_EQ(to, mac(2)) << "gratuitous change of an existing entry";
}

TEST_F(NeighborTest, AnotherMacForAFreshEntryHasEverybodyAskedAtOnce) {
  start();
  net::MacAddress to;
  EXPECT_FALSE(resolve("10.0.0.1", to));
  arp(kArpReply, mac(1), "10.0.0.1", kOurs, "10.0.0.10");
  sink.frames.clear();
  arp(kArpReply, mac(2), "10.0.0.1", kOurs, "10.0.0.10");
  EXPECT_TRUE(sink.frames.empty()) << "a second answer to our question";
  arp(kArpRequest, mac(2), "10.0.0.1", {}, "10.0.0.1");
  ASSERT_EQ(sink.frames.size(), 1U);
  EXPECT_EQ(frame_dst(0), net::MacAddress::broadcast());
  EXPECT_EQ(asks_for("10.0.0.1"), 1);
  ASSERT_TRUE(resolve("10.0.0.1", to));
  EXPECT_EQ(to, mac(1)) << "until somebody answers";
  arp(kArpReply, mac(2), "10.0.0.1", kOurs, "10.0.0.10");
  ASSERT_TRUE(resolve("10.0.0.1", to));
  EXPECT_EQ(to, mac(2));
  for (int i = 0; i < 1000; ++i) {
    arp(kArpRequest, mac(6), "10.0.0.1", {}, "10.0.0.1");
    arp(kArpReply, mac(2), "10.0.0.1", kOurs, "10.0.0.10");
  }
  EXPECT_EQ(sink.frames.size(), 1U) << "a question a second at most";
  ASSERT_TRUE(resolve("10.0.0.1", to));
  EXPECT_EQ(to, mac(2));
}

TEST_F(NeighborTest, DoubtThatNobodyAnswersEndsTheEntry) {
  start();
  net::MacAddress to;
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.10");
  sink.frames.clear();
  arp(kArpRequest, mac(2), "10.0.0.1", {}, "10.0.0.1");
  for (int i = 0; i < 4; ++i) {
    later(1);
  }
  EXPECT_EQ(asks_for("10.0.0.1"), kNeighborProbesMax);
  EXPECT_FALSE(resolve("10.0.0.1", to));
}

TEST_F(NeighborTest, AnAnnouncedMacIsAskedAndLostWhenItDoesNotAnswer) {
  start();
  net::MacAddress to;
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.10");
  later(2);
  sink.frames.clear();
  arp(kArpRequest, mac(6), "10.0.0.1", {}, "10.0.0.1");
  ASSERT_TRUE(resolve("10.0.0.1", to));
  EXPECT_EQ(to, mac(6));
  ASSERT_EQ(sink.frames.size(), 1U);
  EXPECT_EQ(frame_dst(0), mac(6));
  for (int i = 0; i < 3; ++i) {
    later(1);
  }
  EXPECT_EQ(frame_dst(sink.frames.size() - 1), net::MacAddress::broadcast());
  arp(kArpReply, mac(1), "10.0.0.1", kOurs, "10.0.0.10");
  ASSERT_TRUE(resolve("10.0.0.1", to));
  EXPECT_EQ(to, mac(1));
}

TEST_F(NeighborTest, AnswersInOurNameAndGroupAddressesAreIgnored) {
  start();
  net::MacAddress to;
  EXPECT_FALSE(resolve("10.0.0.1", to));
  sink.frames.clear();
  arp(kArpReply, net::MacAddress::broadcast(), "10.0.0.1", kOurs, "10.0.0.10");
  arp(kArpReply, {}, "10.0.0.1", kOurs, "10.0.0.10");
  arp(kArpReply, mac(1), "10.0.0.1", mac(7), "10.0.0.10");
  EXPECT_FALSE(resolve("10.0.0.1", to));
  arp(kArpRequest, mac(1), "10.0.0.10", {}, "10.0.0.10");
  EXPECT_TRUE(sink.frames.empty()) << "somebody else claims our address: no answer";
}

TEST_F(NeighborTest, OldEntriesAreUsedWhileAskedAgainAndForgottenWhenSilent) {
  start();
  net::MacAddress to;
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.10");
  sink.frames.clear();
  later(29);
  ASSERT_TRUE(resolve("10.0.0.1", to));
  EXPECT_TRUE(sink.frames.empty());
  later(2);
  ASSERT_TRUE(resolve("10.0.0.1", to));
  ASSERT_EQ(sink.frames.size(), 1U);
  EXPECT_EQ(frame_dst(0), mac(1)) << "asked by unicast";
  ASSERT_TRUE(resolve("10.0.0.1", to));
  arp(kArpReply, mac(1), "10.0.0.1", kOurs, "10.0.0.10");
  later(5);
  EXPECT_EQ(sink.frames.size(), 1U) << "it answered: quiet";
  later(30);
  ASSERT_TRUE(resolve("10.0.0.1", to));
  for (int i = 0; i < 3; ++i) {
    later(1);
  }
  EXPECT_FALSE(resolve("10.0.0.1", to));
  EXPECT_EQ(frame_dst(sink.frames.size() - 1), net::MacAddress::broadcast());
}

TEST_F(NeighborTest, OffLinkPacketsGoToTheGatewayOfTheirFamily) {
  start({ip("10.0.0.254")});
  net::MacAddress to;
  EXPECT_FALSE(resolve("192.0.2.1", to));
  EXPECT_EQ(last_arp().target_ip, ip("10.0.0.254"));
  arp(kArpReply, mac(9), "10.0.0.254", kOurs, "10.0.0.10");
  ASSERT_TRUE(resolve("198.51.100.1", to));
  EXPECT_EQ(to, mac(9));
  neighbor->learn(ip("192.0.2.1"), mac(66));
  ASSERT_TRUE(resolve("192.0.2.1", to));
  EXPECT_EQ(to, mac(9)) << "a gateway is not overridden by who sends";
}

TEST_F(NeighborTest, TheSecondGatewayStandsInForAFirstThatIsSilent) {
  start({ip("10.0.0.253"), ip("fd00::fe"), ip("10.0.0.254")});
  net::MacAddress to;
  EXPECT_FALSE(resolve("192.0.2.1", to));
  EXPECT_FALSE(resolve("192.0.2.1", to));
  EXPECT_EQ(sink.frames.size(), 1U) << "the first alone";
  later(1);
  EXPECT_FALSE(resolve("192.0.2.1", to));
  EXPECT_EQ(last_arp().target_ip, ip("10.0.0.254"));
  arp_answer(mac(9), "10.0.0.254");
  int asked = 0;
  for (int second = 0; second < 20; ++second) {
    sink.frames.clear();
    ASSERT_TRUE(resolve("192.0.2.1", to));
    EXPECT_EQ(to, mac(9));
    later(1);
    asked += asks_for("10.0.0.253");
  }
  EXPECT_GE(asked, 2 * kNeighborProbesMax) << "it may come back";
  while (asks_for("10.0.0.253") == 0) {
    later(1);
    (void)resolve("192.0.2.1", to);
  }
  arp_answer(mac(8), "10.0.0.253");
  ASSERT_TRUE(resolve("192.0.2.1", to));
  EXPECT_EQ(to, mac(8)) << "the first is preferred";
}

TEST_F(NeighborTest, OfTwoSilentGatewaysEitherIsFoundWhenItComesBack) {
  for (const char* back : {"10.0.0.253", "10.0.0.254"}) {
    start({ip("10.0.0.253"), ip("10.0.0.254")});
    net::MacAddress to;
    for (int second = 0; second < 30; ++second) {
      EXPECT_FALSE(resolve("192.0.2.1", to));
      later(1);
    }
    sink.frames.clear();
    for (int second = 0; second < 10 && !resolve("192.0.2.1", to); ++second) {
      later(1);
      arp_answer(mac(9), back);
    }
    EXPECT_TRUE(resolve("192.0.2.1", to)) << back;
  }
}

TEST_F(NeighborTest, TellsAMacThatWasConfirmedAloneAndWhenItChanges) {
  start({ip("10.0.0.254"), ip("10.0.0.253")});
  net::MacAddress to;
  EXPECT_FALSE(neighbor->confirmed(ip("10.0.0.1"), to)) << "nobody has asked";
  EXPECT_TRUE(sink.frames.empty());
  arp(kArpRequest, mac(1), "10.0.0.1", {}, "10.0.0.10");
  ASSERT_TRUE(neighbor->confirmed(ip("10.0.0.1"), to));
  EXPECT_EQ(to, mac(1));
  EXPECT_FALSE(neighbor->confirmed(ip("192.0.2.1"), to)) << "no gateway answers";
  const std::uint64_t before = neighbor->changes();
  for (std::uint8_t one = 10; one < 30; ++one) {
    arp(kArpRequest, mac(one), ("10.0.0." + std::to_string(100 + one)).c_str(), {}, "10.0.0.10");
  }
  EXPECT_EQ(neighbor->changes(), before) << "of strangers nothing was told";
  arp(kArpRequest, mac(8), "10.0.0.253", {}, "10.0.0.10");
  EXPECT_GT(neighbor->changes(), before) << "another next hop";
  ASSERT_TRUE(neighbor->confirmed(ip("192.0.2.1"), to));
  EXPECT_EQ(to, mac(8));
  const std::uint64_t second = neighbor->changes();
  arp(kArpRequest, mac(7), "10.0.0.254", {}, "10.0.0.10");
  EXPECT_GT(neighbor->changes(), second) << "the first gateway is back";
  ASSERT_TRUE(neighbor->confirmed(ip("192.0.2.1"), to));
  EXPECT_EQ(to, mac(7));
  later(2);
  const std::uint64_t third = neighbor->changes();
  arp(kArpReply, mac(1), "10.0.0.1", kOurs, "10.0.0.10");
  EXPECT_EQ(neighbor->changes(), third) << "nothing has changed";
  arp(kArpReply, mac(2), "10.0.0.1", mac(0x77), "10.0.0.1");
  EXPECT_GT(neighbor->changes(), third) << "announced";
  EXPECT_FALSE(neighbor->confirmed(ip("10.0.0.1"), to)) << "not yet";
  arp(kArpReply, mac(2), "10.0.0.1", kOurs, "10.0.0.10");
  ASSERT_TRUE(neighbor->confirmed(ip("10.0.0.1"), to));
  EXPECT_EQ(to, mac(2));
}

TEST_F(NeighborTest, WithoutAGatewayPacketsGoBackWhereTheyCameFrom) {
  start();
  net::MacAddress to;
  EXPECT_FALSE(resolve("192.0.2.1", to));
  EXPECT_TRUE(sink.frames.empty()) << "nobody to ask";
  EXPECT_EQ(counters.tx_dropped_unresolved, 1U);
  neighbor->learn(ip("192.0.2.1"), mac(5));
  ASSERT_TRUE(resolve("192.0.2.1", to));
  EXPECT_EQ(to, mac(5));
  neighbor->learn(ip("192.0.2.1"), mac(4));
  ASSERT_TRUE(resolve("192.0.2.1", to));
  EXPECT_EQ(to, mac(4));
  neighbor->learn(ip("10.0.0.77"), mac(5));
  EXPECT_FALSE(resolve("10.0.0.77", to)) << "on link: only ARP decides";
}

TEST_F(NeighborTest, AnswersToMorePeersThanTheTableHoldsGoByTheRouterOfTheirFamily) {
  start();
  net::MacAddress to;
  const auto peer = [](const char* first, std::size_t number) {
    IpAddress at = ip(first);
    net::store_be16(at.bytes.data() + at.size() - 2, static_cast<std::uint16_t>(number));
    return at;
  };
  for (std::size_t i = 0; i < 3 * kNeighborsMax; ++i) {
    neighbor->learn(peer("198.18.0.0", i), mac(5));
    neighbor->learn(peer("2001:db8::", i), mac(6));
  }
  for (std::size_t i = 0; i < 3 * kNeighborsMax; ++i) {
    Outgoing v4(ip("10.0.0.10"), peer("198.18.0.0", i));
    ASSERT_TRUE(neighbor->resolve(v4.packet, to)) << i;
    ASSERT_EQ(to, mac(5));
    Outgoing v6(ip("fd00::10"), peer("2001:db8::", i));
    ASSERT_TRUE(neighbor->resolve(v6.packet, to)) << i;
    ASSERT_EQ(to, mac(6));
  }
  EXPECT_FALSE(resolve("10.0.0.1", to)) << "on link: asked for";
  EXPECT_FALSE(resolve("255.255.255.255", to));
  EXPECT_FALSE(resolve("ff02::1", to));
}

TEST_F(NeighborTest, MalformedArpIsIgnored) {
  start();
  const ArpMessage message{kArpRequest, mac(1), ip("10.0.0.1"), {}, ip("10.0.0.10")};
  const ArpFrame good = build_arp(message, kOurs, mac(1));
  struct Row {
    const char* description;
    std::size_t at;
    std::uint8_t value;
  };
  const Row table[] = {{"hardware type", 15, 2},
                       {"protocol type", 16, 7},
                       {"hardware length", 18, 8},
                       {"protocol length", 19, 16},
                       {"operation", 21, 3}};
  for (const Row& row : table) {
    ArpFrame bad = good;
    bad[row.at] = static_cast<std::byte>(row.value);
    neighbor->input_arp(bad);
    EXPECT_TRUE(sink.frames.empty()) << row.description;
  }
  for (std::size_t length = 0; length < good.size(); ++length) {
    neighbor->input_arp(std::span(good).first(length));
  }
  EXPECT_TRUE(sink.frames.empty()) << "cut";
  EXPECT_EQ(counters.arp_in, std::size(table) + good.size());
}

}  // namespace
}  // namespace sanproxy::packet_io::testing
