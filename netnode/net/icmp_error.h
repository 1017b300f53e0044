// IcmpError: an ICMP error and the packet that it quotes.
//
// Documents: RFC 792, RFC 1191 (next-hop MTU), RFC 4443 3, RFC 4884 (what is quoted), RFC 5508.
// Role: finds the flow that an error is about; builds "packet too big".
// Thread: pure functions.
// Invariants:
//   1. Nothing outside the packet is read; a quoted packet may be cut anywhere behind its ports.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "netnode/net/flow_key.h"
#include "netnode/net/packet.h"

namespace sanproxy::net {

inline constexpr std::uint8_t kIcmpUnreachable = 3;
inline constexpr std::uint8_t kIcmpCodeFragmentationNeeded = 4;
inline constexpr std::uint8_t kIcmpTimeExceeded = 11;
inline constexpr std::uint8_t kIcmpParameterProblem = 12;
inline constexpr std::uint8_t kIcmp6Unreachable = 1;
inline constexpr std::uint8_t kIcmp6PacketTooBig = 2;
inline constexpr std::uint8_t kIcmp6ErrorMax = 127;

struct IcmpError {
  std::uint16_t inner_offset = 0;     // of the quoted IP header, from the start of the packet
  std::uint16_t inner_l4_offset = 0;  // of the quoted transport header, likewise
  std::uint16_t inner_bytes = 0;      // quoted in all
  FlowKey inner;                      // as the quoted packet says: source is who had sent it
};

// True for the types that report on a packet (the rest is queries, or nothing for us).
bool is_icmp_error(std::span<const std::byte> packet, const ParsedPacket& parsed);

// False: the quoted packet is cut before its ports, is a later fragment, or is not TCP or UDP.
[[nodiscard]] bool parse_icmp_error(std::span<const std::byte> packet, const ParsedPacket& parsed,
                                    IcmpError& out);

inline constexpr std::size_t kPacketTooBigBytesMax = 1280;
// What every way of IPv6 carries (RFC 8200 5). Who is told of less takes no notice (RFC 8201 4).
inline constexpr std::uint32_t kIpv6MtuMin = 1280;

// Whether the sender of a packet that is too big may be told: it forbade to cut it, and it reports
// on nothing itself (RFC 1122 3.2.2, RFC 4443 2.4 e).
bool may_answer_too_big(std::span<const std::byte> packet, const ParsedPacket& parsed);

// Answers `packet` with "fragmentation needed" or "packet too big", from its destination to its
// source. Returns the bytes written to `out` (at least kPacketTooBigBytesMax); 0 when the packet
// must not be answered.
std::size_t build_packet_too_big(std::span<const std::byte> packet, const ParsedPacket& parsed,
                                 std::uint32_t mtu_bytes, std::span<std::byte> out);

}  // namespace sanproxy::net
