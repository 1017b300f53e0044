#include "netnode/packet_io/neighbor_frames.h"

#include <algorithm>

#include "netnode/net/checksum.h"

namespace sanproxy::packet_io {
namespace {

constexpr std::uint8_t kSourceLinkLayerOption = 1;
constexpr std::uint8_t kTargetLinkLayerOption = 2;
constexpr std::size_t kNdFixedBytes = 24;

IpAddress ipv4_at(const std::uint8_t* at) {
  IpAddress ip{Family::kIpv4, {}};
  std::copy_n(at, 4, ip.bytes.begin());
  return ip;
}
IpAddress ipv6_at(const std::uint8_t* at) {
  IpAddress ip{Family::kIpv6, {}};
  std::copy_n(at, 16, ip.bytes.begin());
  return ip;
}
bool is_multicast6(const IpAddress& ip) { return ip.bytes[0] == 0xff; }

// Finds the link-layer option. False: an option is malformed and the message must be dropped.
bool parse_options(const std::uint8_t* at, const std::uint8_t* end, NdMessage& out) {
  const std::uint8_t wanted =
      out.type == kNdSolicitation ? kSourceLinkLayerOption : kTargetLinkLayerOption;
  while (at < end) {
    if (end - at < 2 || at[1] == 0 || end - at < at[1] * 8) {
      return false;
    }
    if (at[0] == wanted && at[1] == 1) {
      out.has_mac = true;
      out.mac = net::MacAddress::from(at + 2);
    }
    at += at[1] * 8;
  }
  return true;
}

}  // namespace

bool parse_arp(std::span<const std::byte> frame, ArpMessage& out) {
  if (frame.size() < kArpFrameBytes) {
    return false;
  }
  const auto* at = reinterpret_cast<const std::uint8_t*>(frame.data()) + net::kEthernetHeaderBytes;
  if (net::load_be16(at) != 1 || net::load_be16(at + 2) != net::kEtherTypeIpv4 || at[4] != 6 ||
      at[5] != 4) {
    return false;
  }
  out.operation = net::load_be16(at + 6);
  out.sender_mac = net::MacAddress::from(at + 8);
  out.sender_ip = ipv4_at(at + 14);
  out.target_mac = net::MacAddress::from(at + 18);
  out.target_ip = ipv4_at(at + 24);
  return out.operation == kArpRequest || out.operation == kArpReply;
}

ArpFrame build_arp(const ArpMessage& message, const net::MacAddress& frame_dst,
                   const net::MacAddress& frame_src) {
  ArpFrame frame{};
  net::write_ethernet(frame.data(), frame_dst, frame_src, net::kEtherTypeArp);
  auto* at = reinterpret_cast<std::uint8_t*>(frame.data()) + net::kEthernetHeaderBytes;
  net::store_be16(at, 1);
  net::store_be16(at + 2, net::kEtherTypeIpv4);
  at[4] = 6;
  at[5] = 4;
  net::store_be16(at + 6, message.operation);
  std::copy_n(message.sender_mac.bytes.begin(), 6, at + 8);
  std::copy_n(message.sender_ip.bytes.begin(), 4, at + 14);
  std::copy_n(message.target_mac.bytes.begin(), 6, at + 18);
  std::copy_n(message.target_ip.bytes.begin(), 4, at + 24);
  return frame;
}

bool parse_nd(std::span<const std::byte> packet, const net::ParsedPacket& parsed, NdMessage& out) {
  out = NdMessage{};
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
  const std::uint8_t* icmp = at + parsed.l3_header_bytes;
  const std::uint32_t length = parsed.l4_bytes();
  out.type = icmp[0];
  if ((out.type != kNdSolicitation && out.type != kNdAdvertisement) || icmp[1] != 0 ||
      length < kNdFixedBytes || parsed.hop_limit != 255) {
    return false;
  }
  const std::uint64_t pseudo =
      net::pseudo_header_sum(Family::kIpv6, parsed.src, parsed.dst, net::kProtocolIcmp6, length);
  if (net::finish(net::sum_bytes(icmp, length, pseudo)) != 0) {
    return false;
  }
  out.flags = icmp[4];
  out.src = ipv6_at(parsed.src);
  out.dst = ipv6_at(parsed.dst);
  out.target = ipv6_at(icmp + 8);
  if (is_multicast6(out.target) || is_multicast6(out.src) ||
      !parse_options(icmp + kNdFixedBytes, icmp + length, out)) {
    return false;
  }
  if (out.type == kNdAdvertisement) {
    return !(is_multicast6(out.dst) && (out.flags & kNdSolicited) != 0);
  }
  // A solicitation from nobody is duplicate address detection: RFC 4861 7.1.1.
  return !out.src.is_any() || (!out.has_mac && out.dst == solicited_node_address(out.target));
}

NdFrame build_nd(const NdMessage& message, const net::MacAddress& frame_dst,
                 const net::MacAddress& frame_src) {
  constexpr std::uint16_t kIcmpBytes = kNdFixedBytes + 8;
  NdFrame frame{};
  net::write_ethernet(frame.data(), frame_dst, frame_src, net::kEtherTypeIpv6);
  auto* ip = reinterpret_cast<std::uint8_t*>(frame.data()) + net::kEthernetHeaderBytes;
  ip[0] = 0x60;
  net::store_be16(ip + 4, kIcmpBytes);
  ip[6] = net::kProtocolIcmp6;
  ip[7] = 255;
  std::copy_n(message.src.bytes.begin(), 16, ip + 8);
  std::copy_n(message.dst.bytes.begin(), 16, ip + 24);
  std::uint8_t* icmp = ip + net::kIpv6HeaderBytes;
  icmp[0] = message.type;
  icmp[4] = message.flags;
  std::copy_n(message.target.bytes.begin(), 16, icmp + 8);
  icmp[kNdFixedBytes] =
      message.type == kNdSolicitation ? kSourceLinkLayerOption : kTargetLinkLayerOption;
  icmp[kNdFixedBytes + 1] = 1;
  std::copy_n(message.mac.bytes.begin(), 6, icmp + kNdFixedBytes + 2);
  const std::uint64_t pseudo =
      net::pseudo_header_sum(Family::kIpv6, ip + 8, ip + 24, net::kProtocolIcmp6, kIcmpBytes);
  net::store_raw16(icmp + 2, net::finish(net::sum_bytes(icmp, kIcmpBytes, pseudo)));
  return frame;
}

IpAddress link_local_address(const net::MacAddress& mac) {
  const auto& m = mac.bytes;
  return IpAddress{Family::kIpv6,
                   {0xfe, 0x80, 0, 0, 0, 0, 0, 0, static_cast<std::uint8_t>(m[0] ^ 2), m[1], m[2],
                    0xff, 0xfe, m[3], m[4], m[5]}};
}

IpAddress solicited_node_address(const IpAddress& ip) {
  return IpAddress{
      Family::kIpv6,
      {0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, ip.bytes[13], ip.bytes[14], ip.bytes[15]}};
}

IpAddress all_nodes_address() {
  return IpAddress{Family::kIpv6, {0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}};
}

net::MacAddress ipv6_multicast_mac(const IpAddress& group) {
  return {{0x33, 0x33, group.bytes[12], group.bytes[13], group.bytes[14], group.bytes[15]}};
}

}  // namespace sanproxy::packet_io
