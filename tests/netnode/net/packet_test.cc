#include "netnode/net/packet.h"

#include <gtest/gtest.h>

#include <random>

#include "netnode/net/tcp_header.h"
#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::net {
namespace {

using testing::append;
using testing::as_span;
using testing::Bytes;
using testing::fix_ipv4_checksum;
using testing::ipv4;
using testing::ipv6;
using testing::tcp;

struct Accepted {
  const char* description;
  Bytes packet;
  L4 l4;
  std::uint32_t total_bytes;
  std::uint16_t l3_header_bytes;
  std::uint16_t l4_header_bytes;
  bool fragment;
};

Bytes joined(Bytes head, const Bytes& tail) {
  append(head, tail);
  return head;
}
Bytes with_byte(Bytes packet, std::size_t at, std::uint8_t value) {
  packet[at] = value;
  return packet;
}
Bytes ipv4_with_byte(Bytes packet, std::size_t at, std::uint8_t value) {
  packet[at] = value;
  fix_ipv4_checksum(packet);
  return packet;
}
Bytes padded(Bytes packet, std::size_t bytes) {
  packet.resize(packet.size() + bytes);
  return packet;
}
Bytes cut(Bytes packet, std::size_t bytes) {
  packet.resize(packet.size() - bytes);
  return packet;
}
// An extension header of eight bytes: next header, length 0, then `third` and `fourth`.
Bytes extension(std::uint8_t next, std::uint8_t third = 0, std::uint8_t fourth = 0) {
  return {next, 0, third, fourth, 0, 0, 0, 0};
}

TEST(ParsePacket, AcceptsWhatIsWellFormed) {
  const Accepted table[] = {
      {"IPv4 TCP", ipv4(6, tcp()), L4::kTcp, 40, 20, 20, false},
      {"IPv4 TCP with options and data", ipv4(6, tcp(100, 10)), L4::kTcp, 160, 20, 40, false},
      {"IPv4 with options", ipv4(6, tcp(), {1, 1, 1, 0}), L4::kTcp, 44, 24, 20, false},
      {"IPv4 padded by Ethernet", padded(ipv4(6, tcp()), 6), L4::kTcp, 40, 20, 20, false},
      {"IPv4 with DF set", ipv4_with_byte(ipv4(6, tcp()), 6, 0x40), L4::kTcp, 40, 20, 20, false},
      {"IPv4 first fragment", ipv4_with_byte(ipv4(6, tcp()), 6, 0x20), L4::kOther, 40, 20, 0, true},
      {"IPv4 later fragment", ipv4_with_byte(ipv4(6, tcp()), 7, 5), L4::kOther, 40, 20, 0, true},
      {"IPv4 UDP", ipv4(17, Bytes(8)), L4::kUdp, 28, 20, 8, false},
      {"IPv4 ICMP", ipv4(1, Bytes(8)), L4::kIcmp, 28, 20, 8, false},
      {"IPv4 of an unknown protocol", ipv4(99, {}), L4::kOther, 20, 20, 0, false},
      {"ICMPv6 inside IPv4", ipv4(58, Bytes(8)), L4::kOther, 28, 20, 0, false},
      {"IPv6 TCP", ipv6(6, tcp(7)), L4::kTcp, 67, 40, 20, false},
      {"IPv6 ICMPv6", ipv6(58, Bytes(8)), L4::kIcmp6, 48, 40, 8, false},
      {"IPv6 hop-by-hop then TCP", ipv6(0, joined(extension(6), tcp())), L4::kTcp, 68, 48, 20,
       false},
      {"IPv6 destination options, routing done, TCP",
       ipv6(60, joined(joined(extension(43), extension(6)), tcp())), L4::kTcp, 76, 56, 20, false},
      {"IPv6 atomic fragment", ipv6(44, joined(extension(6), tcp())), L4::kTcp, 68, 48, 20, false},
      {"IPv6 first fragment", ipv6(44, joined(extension(6, 0, 1), tcp())), L4::kOther, 68, 48, 0,
       true},
      {"IPv6 later fragment", ipv6(44, joined(extension(6, 1), Bytes(4))), L4::kOther, 52, 48, 0,
       true},
      {"IPv6 without a next header", ipv6(59, {}), L4::kOther, 40, 40, 0, false},
  };
  for (const Accepted& row : table) {
    ParsedPacket parsed;
    const DropReason reason = parse_packet(as_span(row.packet), parsed);
    EXPECT_EQ(reason, DropReason::kNone) << row.description << ": " << drop_reason_name(reason);
    EXPECT_EQ(parsed.l4, row.l4) << row.description;
    EXPECT_EQ(parsed.total_bytes, row.total_bytes) << row.description;
    EXPECT_EQ(parsed.l3_header_bytes, row.l3_header_bytes) << row.description;
    EXPECT_EQ(parsed.l4_header_bytes, row.l4_header_bytes) << row.description;
    EXPECT_EQ(parsed.fragment, row.fragment) << row.description;
    EXPECT_EQ(parsed.hop_limit, 64) << row.description;
  }
}

TEST(ParsePacket, RefusesWhatIsMalformedWithItsReason) {
  struct Refused {
    const char* description;
    Bytes packet;
    DropReason reason;
  };
  Bytes nine_headers;
  for (int i = 0; i < 8; ++i) {
    append(nine_headers, extension(60));
  }
  append(nine_headers, extension(6));
  append(nine_headers, tcp());
  const Refused table[] = {
      {"nothing", {}, DropReason::kShort},
      {"one byte of IPv4", {0x45}, DropReason::kShort},
      {"IPv4 header cut", cut(ipv4(99, {}), 1), DropReason::kShort},
      {"IPv6 header cut", cut(ipv6(59, {}), 1), DropReason::kShort},
      {"version 5", with_byte(ipv4(6, tcp()), 0, 0x55), DropReason::kBadVersion},
      {"IHL of four words", with_byte(ipv4(6, tcp()), 0, 0x44), DropReason::kBadHeaderLength},
      {"IHL beyond the total length", with_byte(ipv4(99, {}), 0, 0x4f),
       DropReason::kBadTotalLength},
      {"IPv4 payload cut", cut(ipv4(6, tcp(10)), 1), DropReason::kBadTotalLength},
      {"IPv4 wrong header checksum", with_byte(ipv4(6, tcp()), 10, 0xee),
       DropReason::kBadHeaderChecksum},
      {"IPv4 too short for TCP", ipv4(6, Bytes(19)), DropReason::kShort},
      {"IPv4 too short for UDP", ipv4(17, Bytes(7)), DropReason::kShort},
      {"TCP offset below five words", with_byte(ipv4(6, tcp()), 32, 0x40),
       DropReason::kBadHeaderLength},
      {"TCP offset beyond the packet", with_byte(ipv4(6, tcp()), 32, 0x60),
       DropReason::kBadHeaderLength},
      {"TCP offset inside the padding only", with_byte(padded(ipv4(6, tcp()), 20), 32, 0x60),
       DropReason::kBadHeaderLength},
      {"IPv6 payload cut", cut(ipv6(6, tcp(10)), 1), DropReason::kBadTotalLength},
      {"IPv6 extension cut", ipv6(0, {6, 0, 0, 0}), DropReason::kBadExtension},
      {"IPv6 extension longer than the packet", ipv6(60, {6, 9, 0, 0, 0, 0, 0, 0}),
       DropReason::kBadExtension},
      {"IPv6 hop-by-hop in second place", ipv6(60, joined(extension(0), extension(6))),
       DropReason::kBadExtension},
      {"IPv6 routing header with segments left", ipv6(43, joined(extension(6, 0, 1), tcp())),
       DropReason::kBadExtension},
      {"IPv6 with nine extension headers", ipv6(60, nine_headers), DropReason::kBadExtension},
  };
  for (const Refused& row : table) {
    ParsedPacket parsed;
    const DropReason reason = parse_packet(as_span(row.packet), parsed);
    EXPECT_EQ(reason, row.reason) << row.description << ": got " << drop_reason_name(reason);
  }
}

// Whatever is cut off, nothing behind it is read (the address sanitizer looks), and what is said is
// what the whole packet would have said.
TEST(ParseFirstPiece, SaysTheSameOfTheBeginningOrThatItIsShort) {
  for (const Bytes& whole :
       {ipv4(6, tcp(40)), ipv4(6, tcp(40, 15), Bytes(40)), ipv6(6, tcp(40, 8)),
        ipv6(60, joined(extension(0x2c), joined(extension(6), tcp(30)))), ipv4(17, Bytes(60))}) {
    ParsedPacket expected;
    const DropReason right = parse_packet(as_span(whole), expected);
    std::size_t same = 0;
    for (std::size_t first = 1; first <= whole.size(); ++first) {
      const auto exact = std::make_unique<std::byte[]>(first);
      std::memcpy(exact.get(), whole.data(), first);
      ParsedPacket parsed;
      const DropReason reason = parse_first_piece({exact.get(), first}, whole.size(), parsed);
      if (reason != right) continue;
      ++same;
      if (right != DropReason::kNone) continue;
      EXPECT_EQ(parsed.total_bytes, expected.total_bytes);
      EXPECT_EQ(parsed.l3_header_bytes, expected.l3_header_bytes);
      EXPECT_EQ(parsed.l4_header_bytes, expected.l4_header_bytes);
      EXPECT_LE(std::size_t{parsed.l3_header_bytes} + parsed.l4_header_bytes, first);
    }
    EXPECT_GT(same, 10U);
  }
}

TEST(ParsePacket, ReportsAddressesAndTcpFields) {
  ParsedPacket parsed;
  const Bytes v6 = ipv6(6, tcp());
  ASSERT_EQ(parse_packet(as_span(v6), parsed), DropReason::kNone);
  EXPECT_EQ(parsed.src_address().to_string(), "fd00::1");
  EXPECT_EQ(parsed.dst_address().to_string(), "fd00::2");
  const Bytes v4 = ipv4(6, tcp());
  ASSERT_EQ(parse_packet(as_span(v4), parsed), DropReason::kNone);
  EXPECT_EQ(parsed.src_address().to_string(), "10.0.0.1");
  EXPECT_EQ(parsed.dst_address().to_string(), "10.0.0.2");
  const TcpHeader header = load_tcp_header(v4.data() + parsed.l3_header_bytes);
  EXPECT_EQ(header.src_port, 1000);
  EXPECT_EQ(header.dst_port, 80);
  EXPECT_EQ(header.seq, 0x01020304U);
  EXPECT_EQ(header.window, 0xfffe);
  EXPECT_EQ(header.flags, kTcpAck);
  EXPECT_EQ(header.header_bytes, 20);
}

// What invariant 1 of packet.h promises, for whatever was accepted.
void expect_inside(const Bytes& packet, const ParsedPacket& parsed) {
  ASSERT_LE(parsed.total_bytes, packet.size());
  ASSERT_LE(parsed.l3_header_bytes + parsed.l4_header_bytes, parsed.total_bytes);
  const std::size_t address = parsed.family == Family::kIpv4 ? 4 : 16;
  ASSERT_GE(parsed.src, packet.data());
  ASSERT_LE(parsed.dst + address, packet.data() + packet.size());
  if (parsed.l4 == L4::kTcp) {
    ASSERT_GE(parsed.l4_header_bytes, kTcpHeaderBytesMin);
  }
}

TEST(ParsePacket, NeverReadsOutsideWhateverTheBytesSay) {
  std::mt19937 random(20240607);
  const Bytes seeds[] = {
      ipv4(6, tcp(20, 8)), ipv4(6, tcp(), {1, 1, 1, 0}), ipv6(6, tcp(20)),
      ipv6(0, joined(joined(extension(60), extension(44)), joined(extension(6), tcp())))};
  int accepted = 0;
  for (int round = 0; round < 200'000; ++round) {
    Bytes packet = seeds[random() % std::size(seeds)];
    for (auto flips = random() % 4; flips > 0; --flips) {
      packet[random() % packet.size()] = static_cast<std::uint8_t>(random());
    }
    if (random() % 3 == 0) {
      packet.resize(random() % (packet.size() + 1));
    }
    packet.shrink_to_fit();  // so that the sanitizer sees the end
    ParsedPacket parsed;
    if (parse_packet(as_span(packet), parsed) == DropReason::kNone) {
      ++accepted;
      expect_inside(packet, parsed);
    }
  }
  EXPECT_GT(accepted, 1000);
}

TEST(ParsePacket, FastAndGeneralPathAgree) {
  std::mt19937 random(7);
  const Bytes seeds[] = {ipv4(6, tcp(20, 8)), ipv6(6, tcp(20, 6))};
  for (int round = 0; round < 100'000; ++round) {
    Bytes packet = seeds[random() % std::size(seeds)];
    packet[random() % 60] = static_cast<std::uint8_t>(random());
    if (packet[0] >> 4 == 4 && random() % 2 == 0 && (packet[0] & 15U) * 4U <= packet.size() &&
        (packet[0] & 15U) >= 5) {
      fix_ipv4_checksum(packet);
    }
    ParsedPacket fast, general;
    const DropReason fast_reason = parse_packet(as_span(packet), fast);
    const DropReason general_reason = parse_packet_slowly(as_span(packet), general);
    ASSERT_EQ(fast_reason, general_reason);
    if (fast_reason == DropReason::kNone) {
      ASSERT_EQ(fast.total_bytes, general.total_bytes);
      ASSERT_EQ(fast.l3_header_bytes, general.l3_header_bytes);
      ASSERT_EQ(fast.l4_header_bytes, general.l4_header_bytes);
      ASSERT_EQ(fast.fragment, general.fragment);
      ASSERT_EQ(fast.l4, general.l4);
      ASSERT_EQ(fast.src, general.src);
      ASSERT_EQ(fast.dst, general.dst);
      ASSERT_EQ(fast.hop_limit, general.hop_limit);
      ASSERT_EQ(fast.traffic_class, general.traffic_class);
    }
  }
}

}  // namespace
}  // namespace sanproxy::net
