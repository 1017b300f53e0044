// Frames of ARP and of IPv6 neighbour discovery: parsing and building.
//
// Documents: RFC 826 (ARP), RFC 5227 (announcements), RFC 4861 4.3, 4.4, 7.1 (neighbour
//   solicitation and advertisement), RFC 2464 (IPv6 over Ethernet), RFC 4291 2.7.1.
// Thread: pure functions.
// Invariants:
//   1. What parses has been checked as its RFC demands (for ND: hop limit 255, code 0, checksum,
//      lengths, options of non-zero length).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "lwproto/base/socket_address.h"
#include "netnode/net/ethernet.h"
#include "netnode/net/packet.h"

namespace sanproxy::packet_io {

inline constexpr std::size_t kArpFrameBytes = net::kEthernetHeaderBytes + 28;
inline constexpr std::size_t kNdFrameBytes =
    net::kEthernetHeaderBytes + net::kIpv6HeaderBytes + 24 + 8;  // with one link-layer option
using ArpFrame = std::array<std::byte, kArpFrameBytes>;
using NdFrame = std::array<std::byte, kNdFrameBytes>;

inline constexpr std::uint16_t kArpRequest = 1;
inline constexpr std::uint16_t kArpReply = 2;

struct ArpMessage {
  std::uint16_t operation = 0;
  net::MacAddress sender_mac;
  IpAddress sender_ip;
  net::MacAddress target_mac;
  IpAddress target_ip;
};

[[nodiscard]] bool parse_arp(std::span<const std::byte> frame, ArpMessage& out);
ArpFrame build_arp(const ArpMessage& message, const net::MacAddress& frame_dst,
                   const net::MacAddress& frame_src);

inline constexpr std::uint8_t kNdRouterSolicitation = 133;
inline constexpr std::uint8_t kNdSolicitation = 135;
inline constexpr std::uint8_t kNdAdvertisement = 136;
inline constexpr std::uint8_t kNdRedirect = 137;

inline constexpr std::uint8_t kNdSolicited = 0x40;  // flags of an advertisement
inline constexpr std::uint8_t kNdOverride = 0x20;

struct NdMessage {
  std::uint8_t type = 0;
  std::uint8_t flags = 0;  // advertisement only
  IpAddress src;
  IpAddress dst;
  IpAddress target;
  bool has_mac = false;  // source (solicitation) or target (advertisement) link-layer address
  net::MacAddress mac;
};

// True for the ICMPv6 types that belong to neighbour discovery, whether well-formed or not: they
// are never for the stack.
inline bool is_nd(std::span<const std::byte> packet, const net::ParsedPacket& parsed) {
  if (parsed.l4 != net::L4::kIcmp6) {
    return false;
  }
  const std::uint8_t type = net::load_u8(packet.data() + parsed.l3_header_bytes);
  return type >= kNdRouterSolicitation && type <= kNdRedirect;
}
[[nodiscard]] bool parse_nd(std::span<const std::byte> packet, const net::ParsedPacket& parsed,
                            NdMessage& out);
// `message.mac` always rides along as the option that fits the type.
NdFrame build_nd(const NdMessage& message, const net::MacAddress& frame_dst,
                 const net::MacAddress& frame_src);

IpAddress link_local_address(const net::MacAddress& mac);  // modified EUI-64
IpAddress solicited_node_address(const IpAddress& ip);
IpAddress all_nodes_address();
net::MacAddress ipv6_multicast_mac(const IpAddress& group);

}  // namespace sanproxy::packet_io
