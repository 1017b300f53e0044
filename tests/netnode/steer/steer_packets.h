// Packets between clients and services, with right checksums, and checks of them.
#pragma once

#include <string>

#include "netnode/net/checksum.h"
#include "netnode/net/flow_key.h"
#include "netnode/net/packet.h"
#include "netnode/net/session_tag.h"
#include "netnode/net/tcp_header.h"
#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::steer::testing {

using net::testing::as_span;
using net::testing::Bytes;

inline SocketAddress at(const std::string& text) { return *SocketAddress::parse(text); }

struct Segment {
  SocketAddress from, to;
  std::uint8_t flags = net::kTcpAck;
  std::uint16_t tag = 0;  // in TSecr; 0: no timestamps
  std::size_t payload = 10;
  std::uint8_t protocol = net::kProtocolTcp;
};

inline void fix_transport(Bytes& packet, std::size_t l3) {
  const bool v4 = (packet[0] >> 4) == 4;
  const std::uint8_t protocol = v4 ? packet[9] : packet[6];
  const std::size_t field = l3 + (protocol == net::kProtocolTcp ? 16 : 6);
  const Family family = v4 ? Family::kIpv4 : Family::kIpv6;
  net::store_raw16(packet.data() + field, 0);
  const std::uint64_t pseudo =
      net::pseudo_header_sum(family, packet.data() + (v4 ? 12 : 8), packet.data() + (v4 ? 16 : 24),
                             protocol, static_cast<std::uint32_t>(packet.size() - l3));
  net::store_raw16(packet.data() + field,
                   net::finish(net::sum_bytes(packet.data() + l3, packet.size() - l3, pseudo)));
}

// The packet that a segment (or datagram) is.
inline Bytes packet_of(const Segment& s) {
  const bool tcp = s.protocol == net::kProtocolTcp;
  Bytes l4 = tcp ? net::testing::tcp(s.payload, s.tag != 0 ? 8 : 5) : Bytes(8 + s.payload);
  net::store_be16(l4.data(), s.from.port);
  net::store_be16(l4.data() + 2, s.to.port);
  if (tcp) {
    l4[13] = s.flags;
    // As if everybody had begun at the same number and got all of it.
    net::store_be32(l4.data() + 8, net::load_be32(l4.data() + 4) + 1);
    if (s.tag != 0) {
      net::store_be32(l4.data() + 20, 0x0101080a);
      net::store_be32(l4.data() + 28, net::tagged_timestamp(99, s.tag));
    }
  } else {
    net::store_be16(l4.data() + 4, static_cast<std::uint16_t>(l4.size()));
  }
  for (std::size_t i = l4.size() - s.payload; i < l4.size(); ++i) {
    l4[i] = static_cast<std::uint8_t>(i * 7);
  }
  const bool v4 = s.from.ip.family == Family::kIpv4;
  Bytes packet = v4 ? net::testing::ipv4(s.protocol, l4) : net::testing::ipv6(s.protocol, l4);
  const std::size_t bytes = v4 ? 4 : 16;
  std::copy_n(s.from.ip.bytes.begin(), bytes, packet.begin() + (v4 ? 12 : 8));
  std::copy_n(s.to.ip.bytes.begin(), bytes, packet.begin() + (v4 ? 16 : 24));
  if (v4) net::testing::fix_ipv4_checksum(packet);
  fix_transport(packet, v4 ? 20 : 40);
  return packet;
}

// A piece of `whole`, an IPv4 packet without options: bytes [from, to) of what it carries.
inline Bytes cut(const Bytes& whole, std::size_t from, std::size_t to, bool more) {
  Bytes out(whole.begin(), whole.begin() + 20);
  net::store_be16(out.data() + 6, static_cast<std::uint16_t>((more ? 0x2000U : 0U) | (from / 8)));
  out.insert(out.end(), whole.begin() + 20 + static_cast<std::ptrdiff_t>(from),
             whole.begin() + 20 + static_cast<std::ptrdiff_t>(to));
  net::store_be16(out.data() + 2, static_cast<std::uint16_t>(out.size()));
  net::testing::fix_ipv4_checksum(out);
  return out;
}

inline net::ParsedPacket parsed(const Bytes& packet) {
  net::ParsedPacket out;
  EXPECT_EQ(net::parse_packet(as_span(packet), out), net::DropReason::kNone);
  return out;
}

// "10.0.0.1:5 -> 10.0.0.2:80", and whether all checksums are right.
inline std::string told(const Bytes& packet) {
  net::ParsedPacket p;
  if (net::parse_packet(as_span(packet), p) != net::DropReason::kNone) return "malformed";
  const net::FlowKey key = net::flow_key(p, packet.data());
  const SocketAddress from{p.src_address(), key.src_port}, to{p.dst_address(), key.dst_port};
  const std::uint64_t pseudo =
      net::pseudo_header_sum(p.family, p.src, p.dst, p.protocol, p.l4_bytes());
  const bool right =
      net::finish(net::sum_bytes(packet.data() + p.l3_header_bytes, p.l4_bytes(), pseudo)) == 0;
  return from.to_string() + " -> " + to.to_string() + (right ? "" : " with a wrong checksum");
}

inline net::FlowKey flow_of(const Bytes& packet) {
  return net::flow_key(parsed(packet), packet.data());
}

// An ICMP error from `reporter` that quotes the first `quoted` bytes of `packet`.
inline Bytes icmp_error(const IpAddress& reporter, const Bytes& packet, std::size_t quoted) {
  const bool v4 = (packet[0] >> 4) == 4;
  Bytes icmp(8);
  icmp[0] = v4 ? 3 : 2;
  icmp[1] = v4 ? 4 : 0;
  net::store_be16(icmp.data() + 6, 1300);
  icmp.insert(icmp.end(), packet.begin(),
              packet.begin() + static_cast<std::ptrdiff_t>(std::min(quoted, packet.size())));
  Bytes out = v4 ? net::testing::ipv4(net::kProtocolIcmp, icmp)
                 : net::testing::ipv6(net::kProtocolIcmp6, icmp);
  const std::size_t bytes = v4 ? 4 : 16, l3 = v4 ? 20 : 40;
  std::copy_n(reporter.bytes.begin(), bytes, out.begin() + (v4 ? 12 : 8));
  std::copy_n(packet.begin() + (v4 ? 12 : 8), bytes, out.begin() + (v4 ? 16 : 24));
  if (v4) net::testing::fix_ipv4_checksum(out);
  const std::uint64_t pseudo =
      v4 ? 0
         : net::pseudo_header_sum(Family::kIpv6, out.data() + 8, out.data() + 24,
                                  net::kProtocolIcmp6, static_cast<std::uint32_t>(out.size() - l3));
  net::store_raw16(out.data() + l3 + 2, 0);
  net::store_raw16(out.data() + l3 + 2,
                   net::finish(net::sum_bytes(out.data() + l3, out.size() - l3, pseudo)));
  return out;
}

}  // namespace sanproxy::steer::testing
