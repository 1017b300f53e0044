// ICMP and ICMPv6: recognising an echo request and turning it into its reply.
//
// Documents: RFC 792, RFC 1122 3.2.2.6, RFC 4443 4.
// Role: lets the owner of an address that no kernel knows answer pings.
// Thread: pure functions.
// Invariants:
//   1. Only a request with a right checksum to a unicast address is answered.
//   2. The reply has the request's length and fills its place; nothing is read or written behind
//      total_bytes.
#pragma once

#include <cstddef>
#include <span>

#include "netnode/net/packet.h"

namespace sanproxy::net {

inline constexpr std::uint8_t kIcmpEchoReply = 0;
inline constexpr std::uint8_t kIcmpEchoRequest = 8;
inline constexpr std::uint8_t kIcmp6EchoRequest = 128;
inline constexpr std::uint8_t kIcmp6EchoReply = 129;
inline constexpr std::uint8_t kReplyHopLimit = 64;

// `parsed` is what parse_packet() said of `packet`. With `checksum_trusted` (the driver vouches
// for it, or it is still to be completed) the request's own checksum is not looked at. True: the
// first total_bytes of `packet` are now the reply. False: not an echo request for us to answer,
// and nothing was changed.
[[nodiscard]] bool make_echo_reply(std::span<std::byte> packet, const ParsedPacket& parsed,
                                   bool checksum_trusted);

}  // namespace sanproxy::net
