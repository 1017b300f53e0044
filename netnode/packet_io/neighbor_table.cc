#include "netnode/packet_io/neighbor_table.h"

#include <cstring>

#include "netnode/net/flow_key.h"

namespace sanproxy::packet_io {
namespace {

constexpr std::size_t kWays = 8;
constexpr std::size_t kSets = kNeighborsMax / kWays;
static_assert((kSets & (kSets - 1)) == 0);

int value_of(const NeighborEntry& entry) {
  if (entry.gateway) {
    return 4;
  }
  switch (entry.state) {
    case NeighborState::kFree:
      return 0;
    case NeighborState::kFailed:
    case NeighborState::kIncomplete:
      return 1;
    case NeighborState::kLearned:
      return 2;
    case NeighborState::kReachable:
    case NeighborState::kProbing:
    case NeighborState::kDoubted:
      return 3;
  }
  return 0;
}

}  // namespace

NeighborTable::NeighborTable(std::uint64_t seed) : entries_(kNeighborsMax), seed_(seed) {}

std::span<NeighborEntry> NeighborTable::set_of(const IpAddress& ip) {
  const std::uint64_t low = net::load_raw64(ip.bytes.data());
  const std::uint64_t high = net::load_raw64(ip.bytes.data() + 8);
  std::uint64_t hash = net::multiply_mix(low ^ seed_, high ^ 0x9e3779b97f4a7c15U);
  hash = net::multiply_mix(hash ^ seed_, 0xbf58476d1ce4e5b9U);
  return std::span(entries_).subspan((hash % kSets) * kWays, kWays);
}

NeighborEntry* NeighborTable::find(const IpAddress& ip) {
  for (NeighborEntry& entry : set_of(ip)) {
    if (entry.state != NeighborState::kFree && entry.ip == ip) {
      return &entry;
    }
  }
  return nullptr;
}

NeighborEntry& NeighborTable::insert(const IpAddress& ip, IpAddress& evicted) {
  NeighborEntry* victim = &*set_of(ip).begin();
  for (NeighborEntry& entry : set_of(ip)) {
    const int value = value_of(entry);
    const int lowest = value_of(*victim);
    if (value < lowest || (value == lowest && entry.used_ns < victim->used_ns)) {
      victim = &entry;
    }
  }
  evicted = victim->state == NeighborState::kFree ? IpAddress{} : victim->ip;
  *victim = NeighborEntry{};
  victim->ip = ip;
  return *victim;
}

}  // namespace sanproxy::packet_io
