// IP tunnels: IPv4 and IPv6 in either, and GUE.
//
// Documents: RFC 2003 (IPv4 in IPv4), RFC 2473 and 4213 (IPv6 in IPv6, and mixed), RFC 6040 (ECN),
//   draft-ietf-intarea-gue-09 variant 0, RFC 6935 (UDP over IPv6 without a checksum);
//   docs/netnode.md "Tunnels".
// Role: a network node writes the outer header; a proxy finds the inner packet.
// Thread: pure functions.
// Invariants:
//   1. decapsulate() reads and writes nothing outside the packet, and what it yields has a whole IP
//      header and lies inside the outer packet.
//   2. Outer headers have no options, are not to be fragmented, and copy DSCP and ECN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "lwproto/base/socket_address.h"
#include "netnode/net/packet.h"

namespace sanproxy::net {

inline constexpr std::uint8_t kProtocolIpv4 = 4;
inline constexpr std::uint8_t kProtocolIpv6 = 41;
inline constexpr std::uint16_t kGuePort = 6080;
inline constexpr std::size_t kGueHeaderBytes = 4;
inline constexpr std::size_t kTunnelHeaderBytesMax =
    kIpv6HeaderBytes + kUdpHeaderBytes + kGueHeaderBytes;

enum class TunnelKind : std::uint8_t { kIp, kGue };

struct TunnelSpec {
  TunnelKind kind = TunnelKind::kIp;
  IpAddress local;
  IpAddress remote;
  std::uint16_t gue_port = kGuePort;

  std::size_t overhead_bytes() const {
    return (remote.family == Family::kIpv6 ? kIpv6HeaderBytes : kIpv4HeaderBytesMin) +
           (kind == TunnelKind::kGue ? kUdpHeaderBytes + kGueHeaderBytes : 0);
  }
};

// Writes the outer header for an inner packet of `inner_bytes` that is described by `inner`.
// `entropy` (of the flow) becomes GUE's source port. Returns overhead_bytes(), which `out` has.
std::size_t write_tunnel_header(std::span<std::byte> out, const TunnelSpec& spec,
                                const ParsedPacket& inner, std::size_t inner_bytes,
                                std::uint64_t entropy);

enum class Decapsulation : std::uint8_t { kNotTunneled, kOk, kMalformed };

struct InnerPacket {
  std::uint32_t offset = 0;
  std::uint32_t length = 0;
};

// `outer` is what parse_packet() said of `packet`. An outer mark of congestion is copied into the
// inner header. kMalformed: a tunnel's packet that must be dropped.
[[nodiscard]] Decapsulation decapsulate(std::span<std::byte> packet, const ParsedPacket& outer,
                                        std::uint16_t gue_port, InnerPacket& out);

// What a router says of a packet that was too big for the path of a tunnel.
struct TunnelTooBig {
  IpAddress local, remote;     // of the outer header that it quotes
  std::uint8_t protocol = 0;   // of that header; UDP for GUE
  std::uint16_t udp_port = 0;  // GUE's
  std::uint32_t mtu_bytes = 0;
};

// False: `packet` says nothing like that, or its checksum is wrong.
[[nodiscard]] bool parse_tunnel_too_big(std::span<const std::byte> packet,
                                        const ParsedPacket& parsed, TunnelTooBig& out);

}  // namespace sanproxy::net
