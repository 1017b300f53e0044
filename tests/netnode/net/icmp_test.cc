#include "netnode/net/icmp.h"

#include <gtest/gtest.h>

#include "netnode/net/icmp_error.h"
#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::net {
namespace {

using testing::as_span;
using testing::Bytes;

Bytes echo_request(Family family, std::size_t data) {
  Bytes icmp(8 + data);
  icmp[0] = family == Family::kIpv4 ? 8 : 128;
  icmp[5] = 7;  // identifier
  for (std::size_t i = 8; i < icmp.size(); ++i) {
    icmp[i] = static_cast<std::uint8_t>(i * 31);
  }
  Bytes packet = family == Family::kIpv4 ? testing::ipv4(1, icmp) : testing::ipv6(58, icmp);
  const std::size_t header = packet.size() - icmp.size();
  std::uint64_t pseudo = 0;
  if (family == Family::kIpv6) {
    pseudo = pseudo_header_sum(family, packet.data() + 8, packet.data() + 24, 58,
                               static_cast<std::uint32_t>(icmp.size()));
  }
  store_raw16(packet.data() + header + 2,
              finish(sum_bytes(packet.data() + header, icmp.size(), pseudo)));
  return packet;
}

bool reply(Bytes& packet, bool trusted = false) {
  ParsedPacket parsed;
  EXPECT_EQ(parse_packet(as_span(packet), parsed), DropReason::kNone);
  return make_echo_reply(std::as_writable_bytes(std::span(packet)), parsed, trusted);
}

TEST(Icmp, EchoRequestBecomesAValidReplyInPlace) {
  for (const Family family : {Family::kIpv4, Family::kIpv6}) {
    for (const std::size_t data : {0U, 1U, 56U, 1400U}) {
      const Bytes request = echo_request(family, data);
      Bytes packet = request;
      ASSERT_TRUE(reply(packet)) << data;
      ParsedPacket before, after;
      ASSERT_EQ(parse_packet(as_span(request), before), DropReason::kNone);
      ASSERT_EQ(parse_packet(as_span(packet), after), DropReason::kNone);
      EXPECT_EQ(after.src_address(), before.dst_address());
      EXPECT_EQ(after.dst_address(), before.src_address());
      const std::size_t l3 = after.l3_header_bytes;
      EXPECT_EQ(packet[l3], family == Family::kIpv4 ? 0 : 129);
      const std::uint64_t pseudo =
          family == Family::kIpv4
              ? 0
              : pseudo_header_sum(family, after.src, after.dst, 58, after.l4_bytes());
      EXPECT_EQ(finish(sum_bytes(packet.data() + l3, after.l4_bytes(), pseudo)), 0);
      EXPECT_TRUE(std::equal(packet.begin() + static_cast<long>(l3) + 4, packet.end(),
                             request.begin() + static_cast<long>(l3) + 4))
          << "identifier, sequence number and data come back";
    }
  }
}

TEST(Icmp, OnlyAnswerableRequestsAreAnswered) {
  struct Row {
    const char* description;
    Bytes packet;
  };
  Bytes damaged = echo_request(Family::kIpv4, 10);
  damaged.back() ^= 1;
  Bytes damaged6 = echo_request(Family::kIpv6, 10);
  damaged6.back() ^= 1;
  Bytes is_reply = echo_request(Family::kIpv4, 10);
  is_reply[20] = 0;
  Bytes to_multicast = echo_request(Family::kIpv4, 10);
  to_multicast[16] = 224;
  testing::fix_ipv4_checksum(to_multicast);
  Bytes to_multicast6 = echo_request(Family::kIpv6, 10);
  to_multicast6[24] = 0xff;
  const Row table[] = {{"wrong ICMP checksum", damaged},
                       {"wrong ICMPv6 checksum", damaged6},
                       {"a reply", is_reply},
                       {"to a multicast group", to_multicast},
                       {"to an IPv6 multicast group", to_multicast6},
                       {"TCP", testing::ipv4(6, testing::tcp())}};
  for (const Row& row : table) {
    Bytes packet = row.packet;
    EXPECT_FALSE(reply(packet)) << row.description;
    EXPECT_EQ(packet, row.packet) << row.description << ": must stay as it was";
  }
}

TEST(Icmp, ATrustedRequestIsNotSummedButItsReplyIs) {
  Bytes packet = echo_request(Family::kIpv4, 10);
  store_raw16(packet.data() + 22, 0);
  ASSERT_TRUE(reply(packet, true));
  EXPECT_EQ(finish(sum_bytes(packet.data() + 20, packet.size() - 20)), 0);
}

// Of what is no ICMP not even the type is there: a read behind the packet, for the sanitizer.
TEST(Icmp, APacketThatEndsBehindItsIpHeaderIsNoError) {
  for (const Bytes& packet : {testing::ipv4(47, {}), testing::ipv6(59, {})}) {
    const Bytes exact(packet.begin(), packet.end());
    ParsedPacket parsed;
    ASSERT_EQ(parse_packet(as_span(exact), parsed), DropReason::kNone);
    EXPECT_FALSE(is_icmp_error(as_span(exact), parsed));
  }
}

}  // namespace
}  // namespace sanproxy::net
