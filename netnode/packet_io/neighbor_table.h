// NeighborTable: what is known of the MAC addresses around us, in a fixed amount of memory.
//
// Role: find, insert, evict. Which transitions are right is Neighbor's business.
// Owner: Neighbor. Thread: its.
// Invariants:
//   1. kNeighborsMax entries, allocated once. A full set of ways gives up its least valuable
//      entry: unresolved before learned before confirmed before those of gateways, then the one
//      unused for longest.
//   2. An entry's address stays as it is until the entry is evicted or erased.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "netnode/net/ethernet.h"

namespace sanproxy::packet_io {

inline constexpr std::size_t kNeighborsMax = 4096;

enum class NeighborState : std::uint8_t {
  kFree = 0,
  kFailed,      // nobody answered; not asked again for a while
  kIncomplete,  // asked, no MAC yet
  kLearned,     // the MAC that its packets come from; never asked
  kReachable,   // confirmed by an answer or a request to us
  kProbing,     // confirmed long ago, or announced; used while we ask that MAC
  kDoubted,     // just confirmed when another MAC was announced; used while we ask everybody
};

// Whether an address can be a neighbour's.
inline bool is_unicast(const IpAddress& ip) {
  if (ip.is_any()) {
    return false;
  }
  return ip.family == Family::kIpv6 ? ip.bytes[0] != 0xff : ip.bytes[0] < 224 && ip.bytes[0] != 127;
}

struct NeighborEntry {
  std::uint64_t used_ns = 0;
  std::uint64_t confirmed_ns = 0;
  std::uint64_t next_probe_ns = 0;
  IpAddress ip;
  net::MacAddress mac;
  NeighborState state = NeighborState::kFree;
  std::uint8_t probes = 0;  // questions sent and not answered
  bool gateway = false;

  bool has_mac() const { return state >= NeighborState::kLearned; }
};

class NeighborTable {
 public:
  // `seed` makes the sets unpredictable to whoever sends us packets.
  explicit NeighborTable(std::uint64_t seed);
  NeighborEntry* find(const IpAddress& ip);
  // A fresh entry in state kFree with `ip` set; the caller gives it a state. When another had to
  // go, `evicted` is its address, else of no family.
  NeighborEntry& insert(const IpAddress& ip, IpAddress& evicted);
  std::span<NeighborEntry> entries() { return entries_; }

 private:
  std::span<NeighborEntry> set_of(const IpAddress& ip);

  std::vector<NeighborEntry> entries_;
  std::uint64_t seed_;
};

}  // namespace sanproxy::packet_io
