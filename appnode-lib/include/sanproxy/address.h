// Address: an IP address and a port, as a plain value.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "sanproxy/status.h"

namespace sanproxy::app {

struct Address {
  std::uint8_t family = 0;               // 4, 6, or 0 for "none"
  std::array<std::uint8_t, 16> bytes{};  // network order; IPv4 in the first four, the rest 0
  std::uint16_t port = 0;                // host order

  // "10.0.0.1:80" or "[fd77::1]:80".
  static Result<Address> parse(std::string_view text);
  std::string to_string() const;
  bool operator==(const Address&) const = default;
};

}  // namespace sanproxy::app
