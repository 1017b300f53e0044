// The internet checksum: sums over bytes, pseudo-header sums, incremental updates.
//
// Documents: RFC 1071 (definition, and why any word size and order will do), RFC 1624
//   (incremental update), RFC 8200 8.1 (IPv6 pseudo-header).
// Role: used wherever a header is checked, built or rewritten.
// Thread: pure functions.
// Invariants:
//   1. Sums are kept in memory order: the 16 bits that come out of finish() or fold() are stored
//      with store_raw16(), never byte-swapped.
//   2. A `sum` argument is a sum over an even number of bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lwproto/base/socket_address.h"
#include "netnode/net/byte_order.h"

namespace sanproxy::net {

// Where the checksum stands in a TCP and in a UDP header.
inline constexpr std::uint16_t kTcpChecksumOffset = 16;
inline constexpr std::uint16_t kUdpChecksumOffset = 6;

// a + b with the carry added back in: addition of one's complement.
inline std::uint64_t add_carry(std::uint64_t a, std::uint64_t b) {
  a += b;
  return a + (a < b ? 1 : 0);
}

// Sum over `length` bytes, added to `sum`.
std::uint64_t sum_bytes(const void* bytes, std::size_t length, std::uint64_t sum = 0);

// The 16-bit one's complement sum.
inline std::uint16_t fold(std::uint64_t sum) {
  sum = (sum & 0xffffffffU) + (sum >> 32);
  sum = (sum & 0xffffffffU) + (sum >> 32);
  std::uint32_t small = static_cast<std::uint32_t>(sum);
  small = (small & 0xffffU) + (small >> 16);
  small = (small & 0xffffU) + (small >> 16);
  return static_cast<std::uint16_t>(small);
}
// What goes into a checksum field.
inline std::uint16_t finish(std::uint64_t sum) { return static_cast<std::uint16_t>(~fold(sum)); }

// Sum of the pseudo-header; `protocol` and `length_bytes` (of the transport header and payload)
// in host order. fold(pseudo_header_sum(...)) is what Offload::checksum_partial expects in the
// checksum field.
inline std::uint64_t pseudo_header_sum(Family family, const std::uint8_t* src,
                                       const std::uint8_t* dst, std::uint8_t protocol,
                                       std::uint32_t length_bytes) {
  std::uint64_t sum = std::uint64_t{__builtin_bswap32(length_bytes)} +
                      (std::uint64_t{protocol} << 8);  // network order: the low byte comes last
  if (family == Family::kIpv4) {
    return sum + load_raw32(src) + load_raw32(dst);
  }
  sum = add_carry(sum, load_raw64(src));
  sum = add_carry(sum, load_raw64(src + 8));
  sum = add_carry(sum, load_raw64(dst));
  return add_carry(sum, load_raw64(dst + 8));
}

// The checksum field after a 16-bit field changed; all three in memory order (RFC 1624 eqn. 3).
inline std::uint16_t update16(std::uint16_t checksum, std::uint16_t before, std::uint16_t after) {
  const std::uint32_t sum = std::uint32_t{static_cast<std::uint16_t>(~checksum)} +
                            std::uint32_t{static_cast<std::uint16_t>(~before)} + after;
  return finish(sum);
}
inline std::uint16_t update32(std::uint16_t checksum, std::uint32_t before, std::uint32_t after) {
  const std::uint64_t sum = std::uint64_t{static_cast<std::uint16_t>(~checksum)} +
                            std::uint64_t{static_cast<std::uint32_t>(~before)} + after;
  return finish(sum);
}

// The checksum of a fresh IPv4 header (20 bytes, or more with options), for its zeroed field.
inline std::uint16_t ipv4_header_checksum(const void* header, std::size_t header_bytes) {
  return finish(sum_bytes(header, header_bytes));
}

}  // namespace sanproxy::net
