// parse_packet(): where the headers of an IP packet are, checked against its bounds.
//
// Documents: RFC 791, RFC 1122 3.2.1 (IPv4); RFC 8200, RFC 6946, RFC 5095 (IPv6 and its
//   extension headers); RFC 9293 3.1 (TCP).
// Role: the first thing that touches bytes from the network. Afterwards l3 header, l4 header and
//   payload may be read without further checks, as stated by each field.
// Thread: pure functions.
// Invariants:
//   1. On kNone, [0, total_bytes) lies inside the span; the l3 header, and for an unfragmented
//      packet of a known l4 its minimal header (TCP: the whole header with options), lie inside
//      [0, total_bytes).
//   2. On any other reason `out` is unspecified.
//   3. At most kIpv6ExtensionsMax extension headers are followed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "lwproto/base/socket_address.h"
#include "netnode/net/byte_order.h"

namespace sanproxy::net {

inline constexpr std::uint8_t kProtocolIcmp = 1;
inline constexpr std::uint8_t kProtocolTcp = 6;
inline constexpr std::uint8_t kProtocolUdp = 17;
inline constexpr std::uint8_t kProtocolIcmp6 = 58;

inline constexpr std::size_t kIpv4HeaderBytesMin = 20;
inline constexpr std::size_t kIpv6HeaderBytes = 40;
inline constexpr std::size_t kTcpHeaderBytesMin = 20;
inline constexpr std::size_t kUdpHeaderBytes = 8;
inline constexpr std::size_t kIcmpHeaderBytesMin = 8;
inline constexpr int kIpv6ExtensionsMax = 8;

enum class L4 : std::uint8_t { kOther, kTcp, kUdp, kIcmp, kIcmp6 };

enum class DropReason : std::uint8_t {
  kNone = 0,
  kShort,              // ends inside a fixed header
  kBadVersion,         // neither IPv4 nor IPv6
  kBadHeaderLength,    // IHL or TCP data offset impossible
  kBadTotalLength,     // the header claims more bytes than there are, or fewer than headers
  kBadHeaderChecksum,  // IPv4 only
  kBadExtension,       // IPv6: too many, cut off, or a routing header that is not finished
};
const char* drop_reason_name(DropReason reason);

struct ParsedPacket {
  const std::uint8_t* src = nullptr;  // 4 or 16 bytes
  const std::uint8_t* dst = nullptr;
  std::uint32_t total_bytes = 0;      // as the IP header says; what is behind it is padding
  std::uint16_t l3_header_bytes = 0;  // with options or extension headers; the l4 offset
  std::uint16_t l4_header_bytes = 0;  // TCP with options, UDP, ICMP: 8; 0 for a fragment or kOther
  Family family = Family::kNone;
  L4 l4 = L4::kOther;
  std::uint8_t protocol = 0;  // of the last header
  std::uint8_t hop_limit = 0;
  std::uint8_t traffic_class = 0;
  bool fragment = false;  // any but an atomic one; l4 is not looked at
  bool has_l3_options = false;

  std::uint32_t l4_bytes() const { return total_bytes - l3_header_bytes; }
  IpAddress src_address() const { return address(src); }
  IpAddress dst_address() const { return address(dst); }
  IpAddress address(const std::uint8_t* at) const {
    IpAddress result{family, {}};
    std::memcpy(result.bytes.data(), at, family == Family::kIpv4 ? 4 : 16);
    return result;
  }
};

// The general case: options, extension headers, fragments, all refusals.
[[nodiscard]] DropReason parse_packet_slowly(std::span<const std::byte> packet, ParsedPacket& out);

// Likewise for a packet of `length` bytes of which only the beginning is at hand: headers that are
// not wholly in `first` count as short.
[[nodiscard]] DropReason parse_first_piece(std::span<const std::byte> first, std::size_t length,
                                           ParsedPacket& out);

// Parses and checks. Plain IPv4 and IPv6 TCP is decided here, the rest out of line.
[[nodiscard]] inline DropReason parse_packet(std::span<const std::byte> packet, ParsedPacket& out) {
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
  std::size_t l3 = 0;
  std::size_t total = 0;
  if (packet.size() < kIpv4HeaderBytesMin + kTcpHeaderBytesMin) {
    return parse_packet_slowly(packet, out);
  }
  if (at[0] == 0x45) {
    // Seen as 64-bit words so that header checksum and fields cost a handful of loads.
    const std::uint64_t w0 = load_raw64(at), w1 = load_raw64(at + 8);
    std::uint64_t sum =
        (w0 & 0xffffffffU) + (w0 >> 32) + (w1 & 0xffffffffU) + (w1 >> 32) + load_raw32(at + 16);
    sum = (sum & 0xffffU) + ((sum >> 16) & 0xffffU) + (sum >> 32);
    sum = (sum & 0xffffU) + (sum >> 16);
    sum = (sum & 0xffffU) + (sum >> 16);
    l3 = kIpv4HeaderBytesMin;
    total = load_be16(at + 2);
    const bool fragment = (load_be16(at + 6) & 0x3fffU) != 0;
    if (sum != 0xffffU || fragment || at[9] != kProtocolTcp) {
      return parse_packet_slowly(packet, out);
    }
    out.src = at + 12;
    out.dst = at + 16;
    out.family = Family::kIpv4;
    out.hop_limit = at[8];
    out.traffic_class = at[1];
  } else if ((at[0] >> 4) == 6 && at[6] == kProtocolTcp &&
             packet.size() >= kIpv6HeaderBytes + kTcpHeaderBytesMin) {
    l3 = kIpv6HeaderBytes;
    total = std::size_t{load_be16(at + 4)} + kIpv6HeaderBytes;
    out.src = at + 8;
    out.dst = at + 24;
    out.family = Family::kIpv6;
    out.hop_limit = at[7];
    out.traffic_class = static_cast<std::uint8_t>(load_be16(at) >> 4);
  } else {
    return parse_packet_slowly(packet, out);
  }
  const std::size_t tcp_header = (at[l3 + 12] >> 4) * 4U;
  if (total > packet.size() || tcp_header < kTcpHeaderBytesMin || l3 + tcp_header > total) {
    return parse_packet_slowly(packet, out);
  }
  out.total_bytes = static_cast<std::uint32_t>(total);
  out.l3_header_bytes = static_cast<std::uint16_t>(l3);
  out.l4_header_bytes = static_cast<std::uint16_t>(tcp_header);
  out.l4 = L4::kTcp;
  out.protocol = kProtocolTcp;
  out.fragment = false;
  out.has_l3_options = false;
  return DropReason::kNone;
}

}  // namespace sanproxy::net
