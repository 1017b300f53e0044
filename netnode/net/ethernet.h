// Ethernet: frame header, MAC addresses, recognising VLAN tags.
//
// Documents: IEEE 802.3, 802.1Q; RFC 894, RFC 2464 (multicast mapping).
// Thread: values and pure functions.
// Invariants:
//   1. parse_ethernet() reads nothing behind the span.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "netnode/net/byte_order.h"

namespace sanproxy::net {

inline constexpr std::size_t kEthernetHeaderBytes = 14;
inline constexpr std::uint16_t kEtherTypeIpv4 = 0x0800;
inline constexpr std::uint16_t kEtherTypeArp = 0x0806;
inline constexpr std::uint16_t kEtherTypeVlan = 0x8100;
inline constexpr std::uint16_t kEtherTypeServiceVlan = 0x88a8;
inline constexpr std::uint16_t kEtherTypeIpv6 = 0x86dd;
// Of a VLAN's tag, which Linux keeps beside the frame, and which is 0 where there is none. VLAN 0
// is none: its tag bears a priority alone (IEEE 802.1Q).
inline constexpr std::uint16_t kVlanNumberMask = 0xfff;

struct MacAddress {
  std::array<std::uint8_t, 6> bytes{};

  static MacAddress from(const void* at) {
    MacAddress mac;
    std::memcpy(mac.bytes.data(), at, 6);
    return mac;
  }
  static constexpr MacAddress broadcast() { return {{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}; }
  bool is_group() const { return (bytes[0] & 1) != 0; }  // multicast or broadcast
  bool is_zero() const { return bytes == std::array<std::uint8_t, 6>{}; }
  auto operator<=>(const MacAddress&) const = default;
};

struct EthernetView {
  MacAddress dst;
  MacAddress src;
  std::uint16_t ether_type = 0;  // host order; of the outermost tag when there is one

  bool is_vlan() const {
    return ether_type == kEtherTypeVlan || ether_type == kEtherTypeServiceVlan;
  }
};

// False: shorter than a header.
[[nodiscard]] inline bool parse_ethernet(std::span<const std::byte> frame, EthernetView& out) {
  if (frame.size() < kEthernetHeaderBytes) {
    return false;
  }
  out.dst = MacAddress::from(frame.data());
  out.src = MacAddress::from(frame.data() + 6);
  out.ether_type = load_be16(frame.data() + 12);
  return true;
}

// Writes kEthernetHeaderBytes.
inline void write_ethernet(void* at, const MacAddress& dst, const MacAddress& src,
                           std::uint16_t ether_type) {
  auto* out = static_cast<std::uint8_t*>(at);
  std::memcpy(out, dst.bytes.data(), 6);
  std::memcpy(out + 6, src.bytes.data(), 6);
  store_be16(out + 12, ether_type);
}

}  // namespace sanproxy::net
