// Builders of small packets for tests: right by default, so that a test shows only what is wrong.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "netnode/net/checksum.h"
#include "netnode/net/packet.h"

namespace sanproxy::net::testing {

using Bytes = std::vector<std::uint8_t>;

inline std::span<const std::byte> as_span(const Bytes& bytes) {
  return std::as_bytes(std::span(bytes));
}

inline void append(Bytes& to, const Bytes& tail) { to.insert(to.end(), tail.begin(), tail.end()); }

inline void fix_ipv4_checksum(Bytes& packet) {
  const std::size_t header = (packet[0] & 15U) * 4U;
  store_raw16(packet.data() + 10, 0);
  store_raw16(packet.data() + 10, ipv4_header_checksum(packet.data(), header));
}

// 10.0.0.1 -> 10.0.0.2; `options` in multiples of four bytes.
inline Bytes ipv4(std::uint8_t protocol, const Bytes& payload, const Bytes& options = {}) {
  const std::size_t header = 20 + options.size();
  Bytes packet(20);
  packet[0] = static_cast<std::uint8_t>(0x40 | (header / 4));
  store_be16(packet.data() + 2, static_cast<std::uint16_t>(header + payload.size()));
  packet[8] = 64;
  packet[9] = protocol;
  store_be32(packet.data() + 12, 0x0a000001);
  store_be32(packet.data() + 16, 0x0a000002);
  append(packet, options);
  fix_ipv4_checksum(packet);
  append(packet, payload);
  return packet;
}

// fd00::1 -> fd00::2
inline Bytes ipv6(std::uint8_t next, const Bytes& payload) {
  Bytes packet(40);
  packet[0] = 0x60;
  store_be16(packet.data() + 4, static_cast<std::uint16_t>(payload.size()));
  packet[6] = next;
  packet[7] = 64;
  packet[8] = packet[24] = 0xfd;
  packet[23] = 1;
  packet[39] = 2;
  append(packet, payload);
  return packet;
}

// A TCP header of 1000 -> 80 with `words` 32-bit words, and `data` bytes behind it.
inline Bytes tcp(std::size_t data = 0, std::size_t words = 5) {
  Bytes segment(words * 4 + data);
  store_be16(segment.data(), 1000);
  store_be16(segment.data() + 2, 80);
  store_be32(segment.data() + 4, 0x01020304);
  segment[12] = static_cast<std::uint8_t>(words << 4);
  segment[13] = 0x10;
  store_be16(segment.data() + 14, 0xfffe);
  return segment;
}

}  // namespace sanproxy::net::testing
