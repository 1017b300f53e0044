// IpAddress and SocketAddress: plain values naming an IPv4 or IPv6 endpoint.
//
// Role: shared by the wire format, the stack, the service table and the application library, so
//   that none of them needs another's headers. Bytes are in network order; an IPv4 address sits
//   in the first four bytes and the rest is zero, so that equality is a memcmp.
// Thread: values.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>

#include "lwproto/base/status.h"

namespace sanproxy {

enum class Family : std::uint8_t { kNone = 0, kIpv4 = 4, kIpv6 = 6 };

struct IpAddress {
  Family family = Family::kNone;
  std::array<std::uint8_t, 16> bytes{};

  // Accepts dotted quad or RFC 4291 text, without port or brackets.
  static Result<IpAddress> parse(std::string_view text);
  static IpAddress any(Family family) { return IpAddress{family, {}}; }
  bool is_any() const { return bytes == std::array<std::uint8_t, 16>{}; }
  // One host's: no group's, not the limited broadcast, not IPv4's "this network" or its class E.
  bool is_unicast() const;
  std::size_t size() const { return family == Family::kIpv6 ? 16 : 4; }
  std::string to_string() const;
  auto operator<=>(const IpAddress&) const = default;
};

// What a host has to itself: an IPv4 address, or the /64 of an IPv6 address, in which it may take
// any. For whoever counts by peer.
IpAddress network_of(const IpAddress& address);

struct SocketAddress {
  IpAddress ip;
  std::uint16_t port = 0;  // host order

  // Accepts "10.0.0.1:80" or "[fd77::1]:80".
  static Result<SocketAddress> parse(std::string_view text);
  std::string to_string() const;
  auto operator<=>(const SocketAddress&) const = default;
};

struct IpPrefix {
  IpAddress ip;
  std::uint8_t length_bits = 0;

  // Accepts "10.0.0.1/24" or "fd77::1/64"; the host bits are kept.
  static Result<IpPrefix> parse(std::string_view text);
  bool contains(const IpAddress& address) const;
};

}  // namespace sanproxy
