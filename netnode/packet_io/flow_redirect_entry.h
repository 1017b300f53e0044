// What a FlowRedirect and its programs share, besides the time.
//
// Role: layouts of the kernel's tables.
// Owner: FlowRedirect.
#pragma once

#include <array>
#include <cstdint>

namespace sanproxy::packet_io {

// What the programs look up by a net::FlowKey.
struct RedirectEntry {
  std::uint32_t generation = 0, since_s = 0;
  std::array<std::uint8_t, 16> source{}, destination{};
  std::uint32_t ports = 0;  // as they are in the header
  std::uint32_t mtu_bytes = 0;
  std::uint32_t addresses_delta = 0, ports_delta = 0;
  std::uint32_t ipv4_delta = 0;  // of IPv4's own checksum: the addresses and a hop
  std::uint32_t interface_index = 0, redirect_flags = 0;
  std::uint32_t ethernet = 0, to_client = 0;
  std::array<std::uint8_t, 16> frame{};
};
static_assert(sizeof(RedirectEntry) == 92);

struct RedirectCarried {
  std::uint64_t to_proxy = 0, to_client = 0, dropped = 0;
};

}  // namespace sanproxy::packet_io
