// FlowKey: what names a flow, and a hash of it that an attacker cannot steer.
//
// Role: key of connection tables (stack) and of steering (netnode).
// Thread: values.
// Invariants:
//   1. No padding and no unused byte that is not zero: equality is equality of five words.
//   2. hash() depends on the seed; tables that face a network draw theirs at random.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "lwproto/base/socket_address.h"
#include "netnode/net/byte_order.h"
#include "netnode/net/packet.h"

namespace sanproxy::net {

struct FlowKey {
  std::array<std::uint8_t, 16> src{};  // an IPv4 address fills the first four bytes
  std::array<std::uint8_t, 16> dst{};
  std::uint16_t src_port = 0;  // host order
  std::uint16_t dst_port = 0;
  std::uint8_t protocol = 0;
  Family family = Family::kNone;
  std::uint16_t zero = 0;

  FlowKey reversed() const {
    FlowKey key = *this;
    key.src = dst;
    key.dst = src;
    key.src_port = dst_port;
    key.dst_port = src_port;
    return key;
  }
  bool operator==(const FlowKey& other) const {
    const auto a = std::bit_cast<std::array<std::uint64_t, 5>>(*this);
    const auto b = std::bit_cast<std::array<std::uint64_t, 5>>(other);
    return ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4])) == 0;
  }
  std::uint64_t hash(std::uint64_t seed) const;
};
static_assert(sizeof(FlowKey) == 40);

// For TCP and UDP packets that are not fragments; other packets get ports of zero.
inline FlowKey flow_key(const ParsedPacket& packet, const void* packet_start) {
  // Whole words, so that hash() and == can read them back at once.
  std::array<std::uint64_t, 5> words{};
  if (packet.family == Family::kIpv4) {
    words[0] = load_raw32(packet.src);
    words[2] = load_raw32(packet.dst);
  } else {
    words[0] = load_raw64(packet.src);
    words[1] = load_raw64(packet.src + 8);
    words[2] = load_raw64(packet.dst);
    words[3] = load_raw64(packet.dst + 8);
  }
  std::uint64_t ports = 0;
  if (packet.l4 == L4::kTcp || packet.l4 == L4::kUdp) {
    const auto* l4 = static_cast<const std::uint8_t*>(packet_start) + packet.l3_header_bytes;
    ports = load_be16(l4) | std::uint64_t{load_be16(l4 + 2)} << 16;
  }
  words[4] = ports | std::uint64_t{packet.protocol} << 32 |
             static_cast<std::uint64_t>(packet.family) << 40;
  return std::bit_cast<FlowKey>(words);
}

// Both halves of the 128-bit product, folded: one multiplication spreads every input bit.
inline std::uint64_t multiply_mix(std::uint64_t a, std::uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

inline std::uint64_t FlowKey::hash(std::uint64_t seed) const {
  constexpr std::uint64_t k0 = 0x9e3779b97f4a7c15U, k1 = 0xbf58476d1ce4e5b9U,
                          k2 = 0x94d049bb133111ebU, k3 = 0xd6e8feb86659fd93U;
  std::uint64_t w[5];
  std::memcpy(w, this, sizeof(w));
  const std::uint64_t a = multiply_mix(w[0] ^ seed ^ k0, w[4] ^ k1 ^ (seed << 32 | seed >> 32));
  const std::uint64_t b = multiply_mix(w[2] ^ seed ^ k2, a ^ k3);
  if (family == Family::kIpv4) {
    return multiply_mix(a ^ k1, b ^ k0);  // the other words are zero
  }
  const std::uint64_t c = multiply_mix(w[1] ^ b ^ k0, w[3] ^ seed ^ k2);
  return multiply_mix(a ^ k1 ^ c, b ^ k0);
}

// For tables of the standard and abseil kind; the seed is the table's own.
struct FlowKeyHash {
  std::uint64_t seed = 0;
  std::size_t operator()(const FlowKey& key) const { return key.hash(seed); }
};

}  // namespace sanproxy::net
