#include "netnode/net/tunnel.h"

#include <cstring>

#include "netnode/net/checksum.h"
#include "netnode/net/icmp_error.h"

namespace sanproxy::net {
namespace {

constexpr std::uint8_t kHopLimit = 64;
constexpr std::uint8_t kEcnMask = 3;
constexpr std::uint8_t kEcnCongestion = 3;

// RFC 6040 4.2. False: the packet is to be dropped.
bool copy_congestion(std::uint8_t outer_class, std::uint8_t* inner) {
  if ((outer_class & kEcnMask) != kEcnCongestion) return true;
  if ((inner[0] >> 4) == 4) {
    if ((inner[1] & kEcnMask) == 0) return false;
    const std::uint16_t before = load_raw16(inner);
    inner[1] |= kEcnCongestion;
    store_raw16(inner + 10, update16(load_raw16(inner + 10), before, load_raw16(inner)));
    return true;
  }
  if (((inner[1] >> 4) & kEcnMask) == 0) return false;
  inner[1] |= kEcnCongestion << 4;
  return true;
}

}  // namespace

std::size_t write_tunnel_header(std::span<std::byte> out, const TunnelSpec& spec,
                                const ParsedPacket& inner, std::size_t inner_bytes,
                                std::uint64_t entropy) {
  auto* at = reinterpret_cast<std::uint8_t*>(out.data());
  const std::uint8_t inner_protocol = inner.family == Family::kIpv4 ? kProtocolIpv4 : kProtocolIpv6;
  const bool gue = spec.kind == TunnelKind::kGue;
  const std::uint8_t protocol = gue ? kProtocolUdp : inner_protocol;
  const std::size_t payload = inner_bytes + (gue ? kUdpHeaderBytes + kGueHeaderBytes : 0);
  std::size_t header = kIpv4HeaderBytesMin;
  if (spec.remote.family == Family::kIpv4) {
    std::memset(at, 0, header);
    at[0] = 0x45;
    at[1] = inner.traffic_class;
    store_be16(at + 2, static_cast<std::uint16_t>(header + payload));
    at[6] = 0x40;  // do not fragment
    at[8] = kHopLimit;
    at[9] = protocol;
    std::memcpy(at + 12, spec.local.bytes.data(), 4);
    std::memcpy(at + 16, spec.remote.bytes.data(), 4);
    store_raw16(at + 10, ipv4_header_checksum(at, header));
  } else {
    header = kIpv6HeaderBytes;
    store_be32(at, 0x60000000U | std::uint32_t{inner.traffic_class} << 20);
    store_be16(at + 4, static_cast<std::uint16_t>(payload));
    at[6] = protocol;
    at[7] = kHopLimit;
    std::memcpy(at + 8, spec.local.bytes.data(), 16);
    std::memcpy(at + 24, spec.remote.bytes.data(), 16);
  }
  if (!gue) return header;
  std::uint8_t* udp = at + header;
  store_be16(udp, static_cast<std::uint16_t>(0xc000U | (entropy & 0x3fffU)));
  store_be16(udp + 2, spec.gue_port);
  store_be16(udp + 4, static_cast<std::uint16_t>(payload));
  store_raw16(udp + 6, 0);  // the inner packet has checksums of its own
  std::uint8_t* shim = udp + kUdpHeaderBytes;
  shim[0] = 0;  // variant 0, no extension
  shim[1] = inner_protocol;
  store_raw16(shim + 2, 0);
  return header + kUdpHeaderBytes + kGueHeaderBytes;
}

bool parse_tunnel_too_big(std::span<const std::byte> packet, const ParsedPacket& parsed,
                          TunnelTooBig& out) {
  const bool v4 = parsed.l4 == L4::kIcmp;
  const std::size_t header = v4 ? kIpv4HeaderBytesMin : kIpv6HeaderBytes;
  const std::size_t bytes = parsed.l4_bytes();
  if ((!v4 && parsed.l4 != L4::kIcmp6) || bytes < kIcmpHeaderBytesMin + header + 4) return false;
  const auto* icmp = reinterpret_cast<const std::uint8_t*>(packet.data()) + parsed.l3_header_bytes;
  const std::uint8_t* outer = icmp + kIcmpHeaderBytesMin;
  if (icmp[0] != (v4 ? kIcmpUnreachable : kIcmp6PacketTooBig) ||
      icmp[1] != (v4 ? kIcmpCodeFragmentationNeeded : 0) || outer[0] != (v4 ? 0x45 : outer[0]) ||
      (!v4 && (outer[0] >> 4) != 6)) {
    return false;
  }
  const std::uint64_t pseudo =
      v4 ? 0
         : pseudo_header_sum(parsed.family, parsed.src, parsed.dst, kProtocolIcmp6,
                             static_cast<std::uint32_t>(bytes));
  if (finish(sum_bytes(icmp, bytes, pseudo)) != 0) return false;
  out = {};
  out.local.family = out.remote.family = parsed.family;
  const std::size_t address = v4 ? 4 : 16;
  std::memcpy(out.local.bytes.data(), outer + (v4 ? 12 : 8), address);
  std::memcpy(out.remote.bytes.data(), outer + (v4 ? 16 : 24), address);
  out.protocol = outer[v4 ? 9 : 6];
  out.udp_port = load_be16(outer + header + 2);
  out.mtu_bytes = v4 ? load_be16(icmp + 6) : load_be32(icmp + 4);
  return out.mtu_bytes != 0;
}

Decapsulation decapsulate(std::span<std::byte> packet, const ParsedPacket& outer,
                          std::uint16_t gue_port, InnerPacket& out) {
  auto* at = reinterpret_cast<std::uint8_t*>(packet.data());
  std::size_t offset = outer.l3_header_bytes;
  std::uint8_t protocol = outer.protocol;
  const bool plain = protocol == kProtocolIpv4 || protocol == kProtocolIpv6;
  if (!plain && (protocol != kProtocolUdp || outer.fragment || outer.l4 != L4::kUdp)) {
    return Decapsulation::kNotTunneled;
  }
  if (!plain && load_be16(at + offset + 2) != gue_port) return Decapsulation::kNotTunneled;
  if (outer.fragment) return Decapsulation::kMalformed;  // the sender keeps within the MTU
  if (!plain) {
    const std::size_t shim = offset + kUdpHeaderBytes;
    if (load_be16(at + offset + 4) != outer.total_bytes - offset ||
        shim + kGueHeaderBytes > outer.total_bytes) {
      return Decapsulation::kMalformed;
    }
    // Variant 0, a data packet, no flags that we would have to understand.
    if ((at[shim] & 0xe0U) != 0 || load_raw16(at + shim + 2) != 0) return Decapsulation::kMalformed;
    protocol = at[shim + 1];
    offset = shim + kGueHeaderBytes + (at[shim] & 0x1fU) * 4U;
  }
  const std::size_t minimum = protocol == kProtocolIpv4   ? kIpv4HeaderBytesMin
                              : protocol == kProtocolIpv6 ? kIpv6HeaderBytes
                                                          : SIZE_MAX;
  if (offset > outer.total_bytes || outer.total_bytes - offset < minimum) {
    return Decapsulation::kMalformed;
  }
  std::uint8_t* inner = at + offset;
  const bool v4 = protocol == kProtocolIpv4;
  const std::size_t length = v4 ? load_be16(inner + 2) : load_be16(inner + 4) + kIpv6HeaderBytes;
  if ((inner[0] >> 4) != (v4 ? 4 : 6) || length < minimum || length > outer.total_bytes - offset ||
      !copy_congestion(outer.traffic_class, inner)) {
    return Decapsulation::kMalformed;
  }
  out = {static_cast<std::uint32_t>(offset), static_cast<std::uint32_t>(length)};
  return Decapsulation::kOk;
}

}  // namespace sanproxy::net
