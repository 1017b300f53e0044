#include "netnode/steer/maglev.h"

#include <algorithm>

#include "netnode/net/flow_key.h"

namespace sanproxy::steer {
namespace {

// Each backend's walk through the table: a permutation, as the table's size is a prime.
struct Walk {
  std::uint32_t at;
  std::uint32_t skip;
  std::uint64_t credit;  // in units of 1 / heaviest weight of an entry
  std::uint32_t weight;
  std::uint16_t value;
};

}  // namespace

std::uint64_t backend_hash(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325U;  // FNV-1a, then mixed
  for (const char c : name) {
    hash = (hash ^ static_cast<std::uint8_t>(c)) * 0x100000001b3U;
  }
  return net::multiply_mix(hash, 0x9e3779b97f4a7c15U) ^ hash;
}

bool is_prime(std::uint32_t n) {
  if (n < 4) return n > 1;
  if (n % 2 == 0) return false;
  for (std::uint64_t d = 3; d * d <= n; d += 2) {
    if (n % d == 0) return false;
  }
  return true;
}

void MaglevTable::build(std::span<const MaglevBackend> backends, std::uint32_t entries) {
  table_.clear();
  std::vector<MaglevBackend> sorted;
  for (const MaglevBackend& backend : backends) {
    if (backend.weight > 0) sorted.push_back(backend);
  }
  if (sorted.empty()) return;
  // Who chooses first must not depend on the order in which a node has heard of the backends.
  std::sort(sorted.begin(), sorted.end(), [](const MaglevBackend& a, const MaglevBackend& b) {
    return a.hash != b.hash ? a.hash < b.hash : a.value < b.value;
  });
  std::uint64_t heaviest = 0;
  std::vector<Walk> walks;
  for (const MaglevBackend& backend : sorted) {
    heaviest = std::max<std::uint64_t>(heaviest, backend.weight);
    const std::uint64_t other = net::multiply_mix(backend.hash, 0xd6e8feb86659fd93U);
    walks.push_back({static_cast<std::uint32_t>(backend.hash % entries),
                     static_cast<std::uint32_t>(other % (entries - 1) + 1), 0, backend.weight,
                     backend.value});
  }
  table_.assign(entries, kNone);
  for (std::uint32_t filled = 0; filled < entries;) {
    for (Walk& walk : walks) {
      walk.credit += walk.weight;
      if (walk.credit < heaviest) continue;
      walk.credit -= heaviest;
      while (table_[walk.at] != kNone) {
        walk.at += walk.skip;
        if (walk.at >= entries) walk.at -= entries;
      }
      table_[walk.at] = walk.value;
      if (++filled == entries) break;
    }
  }
}

}  // namespace sanproxy::steer
