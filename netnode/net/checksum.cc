#include "netnode/net/checksum.h"

namespace sanproxy::net {

std::uint64_t sum_bytes(const void* bytes, std::size_t length, std::uint64_t sum) {
  const auto* at = static_cast<const std::uint8_t*>(bytes);
  if (length >= 32) {
    // Independent lanes hide the latency of the carries.
    std::uint64_t a = 0, b = 0, c = 0, d = 0;
    do {
      a = add_carry(a, load_raw64(at));
      b = add_carry(b, load_raw64(at + 8));
      c = add_carry(c, load_raw64(at + 16));
      d = add_carry(d, load_raw64(at + 24));
      at += 32;
      length -= 32;
    } while (length >= 32);
    sum = add_carry(add_carry(sum, add_carry(a, b)), add_carry(c, d));
  }
  while (length >= 8) {
    sum = add_carry(sum, load_raw64(at));
    at += 8;
    length -= 8;
  }
  if (length != 0) {
    std::uint64_t tail = 0;  // the missing bytes count as zero (RFC 1071)
    std::memcpy(&tail, at, length);
    sum = add_carry(sum, tail);
  }
  return sum;
}

}  // namespace sanproxy::net
