#include "netnode/net/packet.h"

#include <algorithm>

#include "netnode/net/checksum.h"

namespace sanproxy::net {
namespace {

constexpr std::uint8_t kHopByHop = 0;
constexpr std::uint8_t kRouting = 43;
constexpr std::uint8_t kFragment = 44;
constexpr std::uint8_t kAuthentication = 51;
constexpr std::uint8_t kDestinationOptions = 60;

// `packet` is what may be read of `length` bytes.
DropReason parse_ipv4(std::span<const std::byte> packet, std::size_t length, ParsedPacket& out) {
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
  if (packet.size() < kIpv4HeaderBytesMin) {
    return DropReason::kShort;
  }
  const std::size_t header = (at[0] & 0x0fU) * 4U;
  if (header < kIpv4HeaderBytesMin) {
    return DropReason::kBadHeaderLength;
  }
  const std::size_t total = load_be16(at + 2);
  if (total < header || total > length) {
    return DropReason::kBadTotalLength;
  }
  if (header > packet.size()) {
    return DropReason::kShort;
  }
  if (finish(sum_bytes(at, header)) != 0) {
    return DropReason::kBadHeaderChecksum;
  }
  out.src = at + 12;
  out.dst = at + 16;
  out.total_bytes = static_cast<std::uint32_t>(total);
  out.l3_header_bytes = static_cast<std::uint16_t>(header);
  out.family = Family::kIpv4;
  out.protocol = at[9];
  out.hop_limit = at[8];
  out.traffic_class = at[1];
  out.fragment = (load_be16(at + 6) & 0x3fffU) != 0;  // offset or "more fragments"
  out.has_l3_options = header > kIpv4HeaderBytesMin;
  return DropReason::kNone;
}

// Follows the chain to the upper-layer header or to a fragment.
DropReason walk_extensions(const std::uint8_t* at, std::size_t limit, ParsedPacket& out) {
  std::uint8_t next = at[6];
  std::size_t offset = kIpv6HeaderBytes;
  for (int followed = 0;; ++followed) {
    const bool known = next == kHopByHop || next == kRouting || next == kFragment ||
                       next == kAuthentication || next == kDestinationOptions;
    if (!known) {
      break;
    }
    if (followed == kIpv6ExtensionsMax || offset + 8 > limit) {
      return DropReason::kBadExtension;
    }
    if (next == kHopByHop && followed != 0) {
      return DropReason::kBadExtension;  // RFC 8200 4.1: only right behind the IPv6 header
    }
    // RFC 5095 and 8200 4.4: we are an end point, so nothing may be left to visit.
    if (next == kRouting && at[offset + 3] != 0) {
      return DropReason::kBadExtension;
    }
    std::size_t bytes = (at[offset + 1] + std::size_t{1}) * 8;
    if (next == kAuthentication) {
      bytes = (at[offset + 1] + std::size_t{2}) * 4;
    } else if (next == kFragment) {
      bytes = 8;
      out.fragment = (load_be16(at + offset + 2) & 0xfff9U) != 0;  // RFC 6946: else it is atomic
    }
    if (offset + bytes > limit) {
      return DropReason::kBadExtension;
    }
    next = at[offset];
    offset += bytes;
    if (out.fragment) {
      break;
    }
  }
  out.protocol = next;
  out.l3_header_bytes = static_cast<std::uint16_t>(offset);  // 8 headers of 2 KB at most
  out.has_l3_options = offset > kIpv6HeaderBytes;
  return DropReason::kNone;
}

DropReason parse_ipv6(std::span<const std::byte> packet, std::size_t length, ParsedPacket& out) {
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
  if (packet.size() < kIpv6HeaderBytes) {
    return DropReason::kShort;
  }
  const std::size_t total = std::size_t{load_be16(at + 4)} + kIpv6HeaderBytes;
  if (total > length) {
    return DropReason::kBadTotalLength;
  }
  out.src = at + 8;
  out.dst = at + 24;
  out.total_bytes = static_cast<std::uint32_t>(total);
  out.family = Family::kIpv6;
  out.hop_limit = at[7];
  out.traffic_class = static_cast<std::uint8_t>(load_be16(at) >> 4);
  out.fragment = false;
  return walk_extensions(at, std::min(total, packet.size()), out);
}

DropReason parse_l4(std::span<const std::byte> packet, ParsedPacket& out) {
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
  const std::size_t room =
      std::min<std::size_t>(out.total_bytes, packet.size()) - out.l3_header_bytes;
  std::size_t header = 0;
  switch (out.protocol) {
    case kProtocolTcp:
      if (room < kTcpHeaderBytesMin) {
        return DropReason::kShort;
      }
      header = (at[out.l3_header_bytes + 12] >> 4) * 4U;
      if (header < kTcpHeaderBytesMin || header > room) {
        return DropReason::kBadHeaderLength;
      }
      out.l4 = L4::kTcp;
      break;
    case kProtocolUdp:
      header = kUdpHeaderBytes;
      out.l4 = L4::kUdp;
      break;
    case kProtocolIcmp:
    case kProtocolIcmp6:
      // ICMP over the wrong version of IP is nothing we know.
      if ((out.protocol == kProtocolIcmp) != (out.family == Family::kIpv4)) {
        return DropReason::kNone;
      }
      header = kIcmpHeaderBytesMin;
      out.l4 = out.protocol == kProtocolIcmp ? L4::kIcmp : L4::kIcmp6;
      break;
    default:
      return DropReason::kNone;
  }
  if (header > room) {
    return DropReason::kShort;
  }
  out.l4_header_bytes = static_cast<std::uint16_t>(header);
  return DropReason::kNone;
}

}  // namespace

DropReason parse_first_piece(std::span<const std::byte> packet, std::size_t length,
                             ParsedPacket& out) {
  if (packet.empty()) {
    return DropReason::kShort;
  }
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.data());
  out.l4 = L4::kOther;
  out.l4_header_bytes = 0;
  DropReason reason = DropReason::kBadVersion;
  if ((at[0] >> 4) == 4) {
    reason = parse_ipv4(packet, length, out);
  } else if ((at[0] >> 4) == 6) {
    reason = parse_ipv6(packet, length, out);
  }
  if (reason != DropReason::kNone || out.fragment) {
    return reason;
  }
  return parse_l4(packet, out);
}

DropReason parse_packet_slowly(std::span<const std::byte> packet, ParsedPacket& out) {
  return parse_first_piece(packet, packet.size(), out);
}

const char* drop_reason_name(DropReason reason) {
  switch (reason) {
    case DropReason::kNone:
      return "none";
    case DropReason::kShort:
      return "short";
    case DropReason::kBadVersion:
      return "bad-version";
    case DropReason::kBadHeaderLength:
      return "bad-header-length";
    case DropReason::kBadTotalLength:
      return "bad-total-length";
    case DropReason::kBadHeaderChecksum:
      return "bad-header-checksum";
    case DropReason::kBadExtension:
      return "bad-extension";
  }
  return "unknown";
}

}  // namespace sanproxy::net
