// SessionTag: the proxy's id inside its TCP timestamps, which every client sends back.
//
// Documents: RFC 7323 3 (timestamps), 5.4 (what a timestamp clock may look like);
//   docs/netnode.md "Where an established session goes".
// Role: lets a network node that has never seen a connection find the proxy that has it. A proxy
//   writes TSval = (seconds << kSessionTagBits) | id; the client echoes it as TSecr in every packet
//   but its first SYN.
// Thread: pure functions.
// Invariants:
//   1. Values of one proxy never go back while its seconds do not: 1,024 ticks a second, as a
//      millisecond clock read once a second, and within the 1 ms to 1 s of RFC 7323.
//   2. A tag is a hint: whoever reads one checks that it names a proxy that it knows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "netnode/net/byte_order.h"

namespace sanproxy::net {

inline constexpr unsigned kSessionTagBits = 10;
inline constexpr std::uint16_t kSessionTagNone = 0;
inline constexpr std::uint16_t kSessionTagMax = (1U << kSessionTagBits) - 1;

// The upper bits of `seconds` are lost: the value wraps every 48 days, which PAWS allows for.
constexpr std::uint32_t tagged_timestamp(std::uint64_t seconds, std::uint16_t tag) {
  return static_cast<std::uint32_t>(seconds << kSessionTagBits) | (tag & kSessionTagMax);
}
constexpr std::uint16_t session_tag_of(std::uint32_t timestamp) {
  return static_cast<std::uint16_t>(timestamp & kSessionTagMax);
}

inline constexpr std::uint8_t kTcpOptionEnd = 0;
inline constexpr std::uint8_t kTcpOptionNop = 1;
inline constexpr std::uint8_t kTcpOptionMss = 2;
inline constexpr std::uint8_t kTcpOptionTimestamps = 8;
inline constexpr std::size_t kTcpTimestampsBytes = 10;

// Where the option of `kind` starts, from the start of the TCP header; 0 when there is none or the
// options are malformed before it. `length` is the one that it must have. `header_bytes` (20 to 60)
// are there.
inline std::size_t find_tcp_option(const std::uint8_t* tcp, std::size_t header_bytes,
                                   std::uint8_t kind, std::uint8_t length) {
  std::size_t at = 20;
  while (at < header_bytes) {
    if (tcp[at] == kTcpOptionEnd) return 0;
    if (tcp[at] == kTcpOptionNop) {
      ++at;
      continue;
    }
    if (at + 1 >= header_bytes || tcp[at + 1] < 2 || at + tcp[at + 1] > header_bytes) return 0;
    if (tcp[at] == kind) return tcp[at + 1] == length ? at : 0;
    at += tcp[at + 1];
  }
  return 0;
}

// The tag in TSecr, kSessionTagNone when the packet has no timestamps.
inline std::uint16_t echoed_session_tag(const std::uint8_t* tcp, std::size_t header_bytes) {
  // What practically every packet of an established connection looks like: NOP NOP timestamps.
  if (header_bytes >= 32 && load_be32(tcp + 20) == 0x0101080aU) {
    return session_tag_of(load_be32(tcp + 28));
  }
  const std::size_t at =
      find_tcp_option(tcp, header_bytes, kTcpOptionTimestamps, kTcpTimestampsBytes);
  return at == 0 ? kSessionTagNone : session_tag_of(load_be32(tcp + at + 6));
}

}  // namespace sanproxy::net
