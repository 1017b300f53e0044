// Cuts whole packets into fragments, as a router or a sender would.
#pragma once

#include <algorithm>
#include <vector>

#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::net::testing {

// Bytes [from, to) of what is behind the IPv4 header of `whole`, as a fragment.
inline Bytes fragment4(const Bytes& whole, std::size_t from, std::size_t to, bool more,
                       std::uint16_t id) {
  const std::size_t header = (whole[0] & 15U) * 4U;
  Bytes out(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(header));
  out.insert(out.end(), whole.begin() + static_cast<std::ptrdiff_t>(header + from),
             whole.begin() + static_cast<std::ptrdiff_t>(header + to));
  store_be16(out.data() + 2, static_cast<std::uint16_t>(out.size()));
  store_be16(out.data() + 4, id);
  store_be16(out.data() + 6, static_cast<std::uint16_t>(from / 8 | (more ? 0x2000U : 0U)));
  fix_ipv4_checksum(out);
  return out;
}

// Likewise of IPv6, behind its first `header` bytes, whose last byte that names what follows is at
// `next_at`.
inline Bytes fragment6(const Bytes& whole, std::size_t from, std::size_t to, bool more,
                       std::uint32_t id, std::size_t header = 40, std::size_t next_at = 6) {
  Bytes out(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(header));
  Bytes fragment(8);
  fragment[0] = std::exchange(out[next_at], std::uint8_t{44});
  store_be16(fragment.data() + 2, static_cast<std::uint16_t>(from | (more ? 1U : 0U)));
  store_be32(fragment.data() + 4, id);
  append(out, fragment);
  out.insert(out.end(), whole.begin() + static_cast<std::ptrdiff_t>(header + from),
             whole.begin() + static_cast<std::ptrdiff_t>(header + to));
  store_be16(out.data() + 4, static_cast<std::uint16_t>(out.size() - 40));
  return out;
}

inline Bytes fragment_of(const Bytes& whole, std::size_t from, std::size_t to, bool more,
                         std::uint16_t id) {
  return (whole[0] >> 4) == 4 ? fragment4(whole, from, to, more, id)
                              : fragment6(whole, from, to, more, id);
}

// All of `whole` (IPv6: without extension headers) in pieces that end at `cuts`: multiples of eight
// in ascending order.
inline std::vector<Bytes> in_fragments(const Bytes& whole, const std::vector<std::size_t>& cuts,
                                       std::uint16_t id) {
  const std::size_t header = (whole[0] >> 4) == 4 ? (whole[0] & 15U) * 4U : 40;
  const std::size_t payload = whole.size() - header;
  std::vector<Bytes> out;
  std::size_t from = 0;
  for (const std::size_t to : cuts) {
    out.push_back(fragment_of(whole, from, to, true, id));
    from = to;
  }
  out.push_back(fragment_of(whole, from, payload, false, id));
  return out;
}

}  // namespace sanproxy::net::testing
