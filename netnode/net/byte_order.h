// Loads and stores of network-order integers at any alignment.
//
// Role: the one way in which netnode reads and writes header fields.
// Thread: pure functions.
// Invariants:
//   1. Nothing here checks bounds: the caller has, and says against what.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace sanproxy::net {

static_assert(std::endian::native == std::endian::little, "header views assume little endian");

inline std::uint8_t load_u8(const void* at) {
  std::uint8_t value;
  std::memcpy(&value, at, 1);
  return value;
}
// As it lies in memory, for sums and comparisons that do not care about the order.
inline std::uint16_t load_raw16(const void* at) {
  std::uint16_t value;
  std::memcpy(&value, at, 2);
  return value;
}
inline std::uint32_t load_raw32(const void* at) {
  std::uint32_t value;
  std::memcpy(&value, at, 4);
  return value;
}
inline std::uint64_t load_raw64(const void* at) {
  std::uint64_t value;
  std::memcpy(&value, at, 8);
  return value;
}
inline std::uint16_t load_be16(const void* at) { return __builtin_bswap16(load_raw16(at)); }
inline std::uint32_t load_be32(const void* at) { return __builtin_bswap32(load_raw32(at)); }

inline void store_raw16(void* at, std::uint16_t value) { std::memcpy(at, &value, 2); }
inline void store_be16(void* at, std::uint16_t value) { store_raw16(at, __builtin_bswap16(value)); }
inline void store_be32(void* at, std::uint32_t value) {
  value = __builtin_bswap32(value);
  std::memcpy(at, &value, 4);
}

}  // namespace sanproxy::net
