#include "netnode/net/icmp_error.h"

#include <algorithm>
#include <cstring>

#include "netnode/net/checksum.h"

namespace sanproxy::net {
namespace {

constexpr std::size_t kPortsBytes = 8;         // what RFC 792 promises of the transport header
constexpr std::size_t kQuotedBytesMax4 = 548;  // RFC 1812 4.3.2.3: 576 in all

// Where the quoted transport header starts behind the quoted IP header; 0: cannot be told.
std::size_t inner_l4(const std::uint8_t* inner, std::size_t bytes, Family family,
                     std::uint8_t& protocol) {
  if (family == Family::kIpv4) {
    if (bytes < kIpv4HeaderBytesMin || (inner[0] >> 4) != 4) return 0;
    const std::size_t header = (inner[0] & 15U) * 4U;
    const bool later_fragment = (load_be16(inner + 6) & 0x1fffU) != 0;
    if (header < kIpv4HeaderBytesMin || header > bytes || later_fragment) return 0;
    protocol = inner[9];
    return header;
  }
  if (bytes < kIpv6HeaderBytes || (inner[0] >> 4) != 6) return 0;
  std::size_t at = kIpv6HeaderBytes;
  protocol = inner[6];
  for (int i = 0; i < kIpv6ExtensionsMax; ++i) {
    const bool options = protocol == 0 || protocol == 43 || protocol == 60;
    if (!options && protocol != 44) return at;
    if (at + 8 > bytes) return 0;
    if (protocol == 44 && (load_be16(inner + at + 2) & 0xfff8U) != 0) return 0;
    protocol = inner[at];
    at += options ? (inner[at + 1] + std::size_t{1}) * 8 : 8;
  }
  return 0;
}

}  // namespace

bool is_icmp_error(std::span<const std::byte> packet, const ParsedPacket& parsed) {
  if (parsed.l4 != L4::kIcmp && parsed.l4 != L4::kIcmp6) return false;  // there may be no type
  const std::uint8_t type = load_u8(packet.data() + parsed.l3_header_bytes);
  if (parsed.l4 == L4::kIcmp6) return type <= kIcmp6ErrorMax;
  return type == kIcmpUnreachable || type == kIcmpTimeExceeded || type == kIcmpParameterProblem;
}

bool parse_icmp_error(std::span<const std::byte> packet, const ParsedPacket& parsed,
                      IcmpError& out) {
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
  const std::size_t offset = parsed.l3_header_bytes + kIcmpHeaderBytesMin;
  const std::size_t bytes = parsed.total_bytes - offset;
  const std::uint8_t* inner = at + offset;
  std::uint8_t protocol = 0;
  const std::size_t header = inner_l4(inner, bytes, parsed.family, protocol);
  if (header == 0 || header + kPortsBytes > bytes ||
      (protocol != kProtocolTcp && protocol != kProtocolUdp)) {
    return false;
  }
  ParsedPacket quoted;
  quoted.family = parsed.family;
  quoted.src = inner + (parsed.family == Family::kIpv4 ? 12 : 8);
  quoted.dst = inner + (parsed.family == Family::kIpv4 ? 16 : 24);
  quoted.l3_header_bytes = static_cast<std::uint16_t>(header);
  quoted.l4 = protocol == kProtocolTcp ? L4::kTcp : L4::kUdp;
  quoted.protocol = protocol;
  out.inner = flow_key(quoted, inner);
  out.inner_offset = static_cast<std::uint16_t>(offset);
  out.inner_l4_offset = static_cast<std::uint16_t>(offset + header);
  out.inner_bytes = static_cast<std::uint16_t>(std::min<std::size_t>(bytes, 0xffff));
  return true;
}

bool may_answer_too_big(std::span<const std::byte> packet, const ParsedPacket& parsed) {
  if (parsed.l4 == L4::kIcmp || parsed.l4 == L4::kIcmp6) return false;
  return parsed.family == Family::kIpv6 || (load_u8(packet.data() + 6) & 0x40U) != 0;
}

std::size_t build_packet_too_big(std::span<const std::byte> packet, const ParsedPacket& parsed,
                                 std::uint32_t mtu_bytes, std::span<std::byte> out) {
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
  auto* to = reinterpret_cast<std::uint8_t*>(out.data());
  if (out.size() < kPacketTooBigBytesMax || parsed.l4 == L4::kIcmp || parsed.l4 == L4::kIcmp6) {
    return 0;  // errors are not answered with errors
  }
  const bool v4 = parsed.family == Family::kIpv4;
  const std::size_t header = v4 ? kIpv4HeaderBytesMin : kIpv6HeaderBytes;
  const std::size_t room =
      v4 ? kQuotedBytesMax4 : kPacketTooBigBytesMax - kIpv6HeaderBytes - kIcmpHeaderBytesMin;
  const std::size_t quoted = std::min<std::size_t>(parsed.total_bytes, room);
  const std::size_t icmp_bytes = kIcmpHeaderBytesMin + quoted;
  std::memset(to, 0, header + kIcmpHeaderBytesMin);
  std::uint8_t* icmp = to + header;
  std::memcpy(icmp + kIcmpHeaderBytesMin, at, quoted);
  if (v4) {
    to[0] = 0x45;
    store_be16(to + 2, static_cast<std::uint16_t>(header + icmp_bytes));
    to[8] = 64;
    to[9] = kProtocolIcmp;
    std::memcpy(to + 12, parsed.dst, 4);
    std::memcpy(to + 16, parsed.src, 4);
    store_raw16(to + 10, ipv4_header_checksum(to, header));
    icmp[0] = kIcmpUnreachable;
    icmp[1] = kIcmpCodeFragmentationNeeded;
    store_be16(icmp + 6, static_cast<std::uint16_t>(mtu_bytes));
    store_raw16(icmp + 2, finish(sum_bytes(icmp, icmp_bytes)));
    return header + icmp_bytes;
  }
  to[0] = 0x60;
  store_be16(to + 4, static_cast<std::uint16_t>(icmp_bytes));
  to[6] = kProtocolIcmp6;
  to[7] = 64;
  std::memcpy(to + 8, parsed.dst, 16);
  std::memcpy(to + 24, parsed.src, 16);
  icmp[0] = kIcmp6PacketTooBig;
  store_be32(icmp + 4, std::max(mtu_bytes, kIpv6MtuMin));
  store_raw16(icmp + 2,
              finish(sum_bytes(icmp, icmp_bytes,
                               pseudo_header_sum(Family::kIpv6, to + 8, to + 24, kProtocolIcmp6,
                                                 static_cast<std::uint32_t>(icmp_bytes)))));
  return header + icmp_bytes;
}

}  // namespace sanproxy::net
