// Maglev: a consistent-hashing table with weights.
//
// Document: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer"
// (NSDI'16),
//   3.4; docs/netnode.md "Maglev".
// Role: from a flow's hash to a backend, the same on every network node that knows the same
//   backends, whatever each has seen before.
// Owner: a Pool. Thread: build anywhere; lookups are const.
// Invariants:
//   1. The table depends on the backends' names and weights alone, not on their order.
//   2. Every entry names a backend of weight > 0; without one the table is empty.
//   3. A backend's entries are within one of its exact share, times the number of backends that
//      share its weight at most.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace sanproxy::steer {

inline constexpr std::uint32_t kMaglevEntriesDefault = 65'537;
inline constexpr std::uint32_t kMaglevEntriesMax = 655'373;

// Names the same backend on every node; of its name.
std::uint64_t backend_hash(std::string_view name);

struct MaglevBackend {
  std::uint64_t hash = 0;  // backend_hash()
  std::uint32_t weight = 1;
  std::uint16_t value = 0;  // what a lookup gives
  bool operator==(const MaglevBackend&) const = default;
};

bool is_prime(std::uint32_t n);

class MaglevTable {
 public:
  static constexpr std::uint16_t kNone = 0xffff;

  // `entries` is a prime. Allocates; not for the data path.
  void build(std::span<const MaglevBackend> backends, std::uint32_t entries);

  bool empty() const { return table_.empty(); }
  std::uint16_t lookup(std::uint64_t hash) const {
    if (table_.empty()) return kNone;
    // A multiplication instead of a division: the upper half of the hash as a fraction.
    return table_[((hash >> 32) * table_.size()) >> 32];
  }
  std::span<const std::uint16_t> entries() const { return table_; }

 private:
  std::vector<std::uint16_t> table_;
};

}  // namespace sanproxy::steer
