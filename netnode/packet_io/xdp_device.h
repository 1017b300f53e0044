// What an interface's driver says of itself, as far as AF_XDP has to know.
//
// Documents: ethtool(8); docs/packet_io.md "AF_XDP". Thread: start-up only.
#pragma once

#include <cstdint>
#include <string>

namespace sanproxy::packet_io {

struct DeviceFacts {
  bool veth = false;
  std::uint32_t queues = 1;
};

DeviceFacts facts_of(const std::string& name);

}  // namespace sanproxy::packet_io
