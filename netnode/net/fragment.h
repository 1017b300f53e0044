// FragmentView: what a fragment says of the datagram that it is a part of.
//
// Documents: RFC 791 3.2, RFC 8200 4.5; RFC 1858 and 3128 (tiny and overlapping first fragments).
// Role: parse_packet() says that a packet is a fragment; this says which one.
// Thread: pure functions.
// Invariants:
//   1. Nothing behind the packet's total_bytes is read.
//   2. What it yields is a piece that can belong to a datagram: it has bytes, ends on a multiple of
//      eight unless it is the last, and not behind byte 65,535.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "netnode/net/packet.h"

namespace sanproxy::net {

struct FragmentView {
  std::uint32_t id = 0;
  std::uint32_t offset_bytes = 0;  // 0: the first, which has the transport header
  bool more = false;
};

[[nodiscard]] inline bool fragment_fits(const ParsedPacket& parsed, const FragmentView& view) {
  constexpr std::uint32_t kDatagramBytesMax = 65'535;
  const std::uint32_t bytes = parsed.l4_bytes();
  return bytes != 0 && (!view.more || bytes % 8 == 0) &&
         view.offset_bytes + bytes <= kDatagramBytesMax;
}

// `parsed` is what parse_packet() said of `packet`, with `fragment` set. False: no fragment header
// where one should be, or a piece that fits nowhere.
[[nodiscard]] inline bool parse_fragment(std::span<const std::byte> packet,
                                         const ParsedPacket& parsed, FragmentView& out) {
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
  if (parsed.family == Family::kIpv4) {
    const std::uint16_t word = load_be16(at + 6);
    out = {load_be16(at + 4), (word & 0x1fffU) * 8U, (word & 0x2000U) != 0};
    return fragment_fits(parsed, out);
  }
  // parse_packet() stops behind the fragment header.
  if (parsed.l3_header_bytes < kIpv6HeaderBytes + 8) return false;
  const std::uint8_t* header = at + parsed.l3_header_bytes - 8;
  const std::uint16_t word = load_be16(header + 2);
  out = {load_be32(header + 4), word & 0xfff8U, (word & 1U) != 0};
  return fragment_fits(parsed, out);
}

}  // namespace sanproxy::net
