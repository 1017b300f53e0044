// Who we are: which host this is, for those who ask whether shared memory can be a way between two
// processes; and which run of a program.
//
// Thread: any.
#pragma once

#include <array>
#include <cstddef>
#include <fstream>
#include <string>

#include "lwproto/base/random.h"

namespace sanproxy::cluster {

// The same in all processes that share a kernel; "" where that cannot be told.
inline std::string host_id() {
  std::ifstream in("/proc/sys/kernel/random/boot_id");
  std::string out;
  std::getline(in, out);
  return out;
}

// Another for every run of a program: 16 hexadecimal digits.
inline std::string new_instance() {
  static constexpr char kHex[] = "0123456789abcdef";
  std::array<std::byte, 8> bytes;
  fill_random(bytes);
  std::string out;
  for (const std::byte byte : bytes) {
    out += {kHex[static_cast<unsigned>(byte) >> 4], kHex[static_cast<unsigned>(byte) & 15]};
  }
  return out;
}

}  // namespace sanproxy::cluster
