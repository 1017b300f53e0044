#include "netnode/net/tunnel.h"

#include <gtest/gtest.h>

#include "netnode/net/segments.h"
#include "netnode/net/session_tag.h"
#include "netnode/net/tcp_header.h"
#include "tests/netnode/steer/steer_packets.h"

namespace sanproxy::net {
namespace {

using namespace steer::testing;  // NOLINT: the test's own

constexpr const char* kAddresses[2][2] = {{"10.9.0.1", "10.9.0.2"}, {"fd09::1", "fd09::2"}};

TunnelSpec spec(TunnelKind kind, bool outer6) {
  return {kind, *IpAddress::parse(kAddresses[outer6][0]), *IpAddress::parse(kAddresses[outer6][1])};
}

Bytes wrap(const TunnelSpec& tunnel, const Bytes& inner) {
  Bytes out(kTunnelHeaderBytesMax);
  const std::size_t header = write_tunnel_header(std::as_writable_bytes(std::span(out)), tunnel,
                                                 parsed(inner), inner.size(), 0x1234567);
  EXPECT_EQ(header, tunnel.overhead_bytes());
  out.resize(header);
  out.insert(out.end(), inner.begin(), inner.end());
  return out;
}

Decapsulation unwrap(Bytes& packet, InnerPacket& inner) {
  const ParsedPacket outer = parsed(packet);
  return decapsulate(std::as_writable_bytes(std::span(packet)), outer, kGuePort, inner);
}

Bytes inner_of(bool six, std::size_t payload = 33) {
  return packet_of({.from = at(six ? "[fd01::7]:5" : "10.1.2.3:5"),
                    .to = at(six ? "[fd00::10]:80" : "10.0.0.10:80"),
                    .payload = payload});
}

TEST(Tunnel, EveryMixOfFamiliesAndKindsComesOutAsItWentIn) {
  for (const TunnelKind kind : {TunnelKind::kIp, TunnelKind::kGue}) {
    for (const bool outer6 : {false, true}) {
      for (const bool inner6 : {false, true}) {
        const Bytes inner = inner_of(inner6);
        Bytes packet = wrap(spec(kind, outer6), inner);
        const ParsedPacket outer = parsed(packet);
        EXPECT_EQ(outer.total_bytes, packet.size());
        EXPECT_EQ(outer.src_address().to_string(), kAddresses[outer6][0]);
        EXPECT_EQ(outer.dst_address().to_string(), kAddresses[outer6][1]);
        EXPECT_EQ(outer.protocol, kind == TunnelKind::kGue ? 17 : inner6 ? 41 : 4);
        InnerPacket found;
        ASSERT_EQ(unwrap(packet, found), Decapsulation::kOk);
        EXPECT_EQ(
            Bytes(packet.begin() + found.offset, packet.begin() + found.offset + found.length),
            inner);
      }
    }
  }
}

TEST(Tunnel, GueSpreadsFlowsOverSourcePorts) {
  const Bytes packet = wrap(spec(TunnelKind::kGue, false), inner_of(false));
  EXPECT_EQ(load_be16(packet.data() + 20), 0xc000 | (0x1234567 & 0x3fff));
  EXPECT_EQ(load_be16(packet.data() + 22), kGuePort);
}

TEST(Tunnel, WhatIsNoTunnelIsLeftAloneAndWhatIsBrokenIsSaidSo) {
  InnerPacket found;
  Bytes plain = inner_of(false);
  EXPECT_EQ(unwrap(plain, found), Decapsulation::kNotTunneled);
  Bytes other_port = wrap(spec(TunnelKind::kGue, false), inner_of(false));
  store_be16(other_port.data() + 22, 53);
  EXPECT_EQ(unwrap(other_port, found), Decapsulation::kNotTunneled);
  struct Case {
    const char* what;
    TunnelKind kind;
    std::size_t at;
    std::uint8_t value;
  };
  for (const Case& c :
       {Case{"inner version", TunnelKind::kIp, 20, 0x65},
        Case{"inner longer than outer", TunnelKind::kIp, 22, 0xff},
        Case{"inner shorter than its header", TunnelKind::kIp, 23, 10},
        Case{"variant", TunnelKind::kGue, 28, 0x40},
        Case{"control message", TunnelKind::kGue, 28, 0x20},
        Case{"header longer than the packet", TunnelKind::kGue, 28, 0x1f},
        Case{"protocol", TunnelKind::kGue, 29, 6}, Case{"flags", TunnelKind::kGue, 30, 1}}) {
    Bytes packet = wrap(spec(c.kind, false), inner_of(false));
    packet[c.at] = c.value;
    EXPECT_EQ(unwrap(packet, found), Decapsulation::kMalformed) << c.what;
  }
}

TEST(Tunnel, AnyBytesBehindAnOuterHeaderStayInsideThePacket) {
  std::uint64_t seed = 5;
  const auto random = [&] { return seed = multiply_mix(seed + 1, 0x9e3779b97f4a7c15U); };
  for (int i = 0; i < 100'000; ++i) {
    Bytes packet = wrap(spec(i % 2 == 0 ? TunnelKind::kIp : TunnelKind::kGue, i % 3 == 0),
                        inner_of(i % 5 == 0, 4));
    const std::size_t outer = i % 3 == 0 ? 40 : 20;
    for (int flips = 0; flips < 3; ++flips) {
      packet[outer + random() % (packet.size() - outer)] = static_cast<std::uint8_t>(random());
    }
    InnerPacket found;
    if (unwrap(packet, found) == Decapsulation::kOk) {
      EXPECT_LE(found.offset + found.length, packet.size());
      EXPECT_GE(found.length, kIpv4HeaderBytesMin);
    }
  }
}

TEST(Tunnel, CongestionOnTheWayIsPassedOnToThoseWhoUnderstandIt) {
  for (const bool six : {false, true}) {
    Bytes inner = inner_of(six);
    if (six) {
      inner[1] |= 0x20;  // ECT(0)
    } else {
      inner[1] = 2;
      testing::fix_ipv4_checksum(inner);
    }
    Bytes packet = wrap(spec(TunnelKind::kIp, false), inner);
    packet[1] |= 3;
    testing::fix_ipv4_checksum(packet);
    InnerPacket found;
    ASSERT_EQ(unwrap(packet, found), Decapsulation::kOk);
    const Bytes out(packet.begin() + found.offset, packet.end());
    EXPECT_EQ(parsed(out).traffic_class & 3, 3);
  }
  Bytes packet = wrap(spec(TunnelKind::kIp, false), inner_of(false));  // not ECN-capable
  packet[1] |= 3;
  testing::fix_ipv4_checksum(packet);
  InnerPacket found;
  EXPECT_EQ(unwrap(packet, found), Decapsulation::kMalformed);
}

TEST(TcpSegments, CutASuperPacketIntoSegmentsThatAddUpToIt) {
  for (const bool six : {false, true}) {
    Bytes packet = inner_of(six, 4000);
    const std::size_t l3 = six ? 40 : 20;
    packet[l3 + 13] = kTcpAck | kTcpPsh | kTcpFin | kTcpCwr;
    const ParsedPacket p = parsed(packet);
    TcpSegments segments(as_span(packet), p, 1460);
    ASSERT_TRUE(segments.possible());
    Bytes header(kSegmentHeaderBytesMax), all;
    std::span<const std::byte> payload;
    std::uint32_t seq = load_be32(packet.data() + l3 + 4);
    int count = 0;
    while (segments.next(std::as_writable_bytes(std::span(header)), payload)) {
      Bytes one(header.begin(),
                header.begin() + static_cast<std::ptrdiff_t>(segments.header_bytes()));
      const auto* at = reinterpret_cast<const std::uint8_t*>(payload.data());
      one.insert(one.end(), at, at + payload.size());
      all.insert(all.end(), at, at + payload.size());
      EXPECT_EQ(told(one).find("wrong"), std::string::npos) << told(one);
      EXPECT_EQ(parsed(one).total_bytes, one.size());
      EXPECT_EQ(load_be32(one.data() + l3 + 4), seq);
      seq += static_cast<std::uint32_t>(payload.size());
      const bool last = all.size() == 4000;
      EXPECT_EQ((one[l3 + 13] & (kTcpFin | kTcpPsh)) != 0, last);
      EXPECT_EQ((one[l3 + 13] & kTcpCwr) != 0, count == 0);
      ++count;
    }
    EXPECT_EQ(count, 3);
    EXPECT_EQ(all, Bytes(packet.end() - 4000, packet.end()));
  }
}

TEST(TcpSegments, ASegmentWithoutPayloadIsOneSegment) {
  const Bytes packet = inner_of(false, 0);
  TcpSegments segments(as_span(packet), parsed(packet), 1460);
  Bytes header(kSegmentHeaderBytesMax);
  std::span<const std::byte> payload;
  EXPECT_TRUE(segments.next(std::as_writable_bytes(std::span(header)), payload));
  EXPECT_TRUE(payload.empty());
  header.resize(40);
  EXPECT_EQ(header, packet);
  EXPECT_FALSE(segments.next(std::as_writable_bytes(std::span(header)), payload));
}

TEST(ClampMss, LowersTheOptionAtAnyPlaceAndKeepsTheChecksumRight) {
  for (const int pad : {0, 1}) {  // the value at an even and at an odd place
    Bytes l4(28);
    store_be16(l4.data(), 5);
    store_be16(l4.data() + 2, 80);
    l4[12] = 7 << 4;
    l4[13] = kTcpSyn;
    std::size_t at = 20;
    for (int i = 0; i < pad; ++i) l4[at++] = kTcpOptionNop;
    l4[at] = kTcpOptionMss;
    l4[at + 1] = 4;
    store_be16(l4.data() + at + 2, 1460);
    Bytes packet = testing::ipv4(kProtocolTcp, l4);
    fix_transport(packet, 20);
    const auto clamp = [&](std::uint16_t mss) {
      return clamp_mss(std::as_writable_bytes(std::span(packet)), parsed(packet), mss, false);
    };
    EXPECT_FALSE(clamp(1460));
    EXPECT_TRUE(clamp(1300));
    EXPECT_EQ(load_be16(packet.data() + 20 + at + 2), 1300);
    EXPECT_EQ(told(packet).find("wrong"), std::string::npos) << told(packet);
    packet[33] = kTcpAck;
    EXPECT_FALSE(clamp(1200));
  }
}

}  // namespace
}  // namespace sanproxy::net
