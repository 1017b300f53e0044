// FlowTable: which proxy has a flow, as long as there is room to remember.
//
// Document: docs/netnode.md "Flow table".
// Role: keeps established sessions where they are when the set of proxies changes. An optimisation:
//   whatever it forgets is found again by session tag or Maglev.
// Owner: a Forwarder. Thread: its.
// Invariants:
//   1. Memory is fixed, and touched, at construction. A set of kWays that is full gives up an
//      expired flow, else the half-open or closing one unused for longest, else (for a packet of an
//      established flow only) the established one unused for longest: a flood of SYNs displaces no
//      established flow.
//   2. A flow is known by 64 bits of a seeded hash. Two flows that share them share a proxy, which
//      harms nobody but them.
//   3. flows_of(p) is the number of entries that name p.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "lwproto/base/reserved_array.h"

namespace sanproxy::steer {

enum class FlowState : std::uint8_t { kFree = 0, kHalfOpen, kClosing, kEstablished };

struct FlowTableOptions {
  std::uint32_t flows_max = 1'000'000;
  std::uint32_t half_open_s = 60;
  std::uint32_t closing_s = 60;
  std::uint32_t established_s = 7'440;  // RFC 5382 REQ-5: not less than 2 hours 4 minutes
};

class FlowTable {
 public:
  static constexpr std::uint16_t kNone = 0xffff;
  static constexpr std::size_t kWays = 8;
  static constexpr std::size_t kProxiesMax = 1024;

  struct Entry {
    std::uint32_t used_s = 0;
    std::uint16_t proxy = kNone;
    FlowState state = FlowState::kFree;
  };

  explicit FlowTable(const FlowTableOptions& options);

  void prefetch(std::uint64_t hash) const {
    const Set& set = sets_[hash & mask_];
    __builtin_prefetch(&set.hashes);
    __builtin_prefetch(&set.entries);
  }
  // The entry of a flow that is known and not expired, for reading and for touch().
  Entry* find(std::uint64_t hash, std::uint32_t now_s) {
    Set& set = sets_[hash & mask_];
    // While the table is nearly empty it is the first place. Else any: all are looked at, because a
    // branch for each would be guessed wrong.
    unsigned places = set.hashes[0] == hash ? 1 : 0;
    if (places == 0) [[unlikely]] {
      for (std::size_t i = 1; i < kWays; ++i) places |= unsigned{set.hashes[i] == hash} << i;
    }
    for (; places != 0; places &= places - 1) {
      Entry& entry = set.entries[static_cast<std::size_t>(std::countr_zero(places))];
      if (entry.state != FlowState::kFree) return expired(entry, now_s) ? nullptr : &entry;
    }
    return nullptr;
  }
  // Puts the flow in, or moves it. False: no room for it among better ones.
  bool put(std::uint64_t hash, std::uint16_t proxy, FlowState state, std::uint32_t now_s);
  void erase(std::uint64_t hash);
  // Everything that names `proxy`: it has left for good. Walks the table; control plane only.
  void erase_proxy(std::uint16_t proxy);
  // Frees what has expired, some sets at each call, so that flows_of() comes down by itself.
  void age(std::uint32_t now_s, std::size_t sets);

  std::uint32_t size() const { return size_; }
  std::uint32_t capacity() const { return static_cast<std::uint32_t>(sets_.capacity() * kWays); }
  std::size_t memory_bytes() const { return sets_.capacity() * sizeof(Set); }
  std::uint32_t flows_of(std::uint16_t proxy) const { return flows_[proxy]; }
  std::uint64_t evicted() const { return evicted_; }
  std::uint64_t refused() const { return refused_; }

 private:
  struct alignas(128) Set {  // two cache lines, fetched as a pair
    std::array<std::uint64_t, kWays> hashes{};
    std::array<Entry, kWays> entries{};
  };
  static_assert(sizeof(Set) == 128);

  bool expired(const Entry& entry, std::uint32_t now_s) const {
    return now_s - entry.used_s > idle_s_[static_cast<std::size_t>(entry.state)];
  }
  void free(Entry& entry);

  ReservedArray<Set> sets_;
  std::uint64_t mask_ = 0;  // of the sets, less one
  std::array<std::uint32_t, 4> idle_s_{};
  std::array<std::uint32_t, kProxiesMax> flows_{};
  std::uint32_t size_ = 0;
  std::size_t hand_ = 0;
  std::uint64_t evicted_ = 0;
  std::uint64_t refused_ = 0;
};

}  // namespace sanproxy::steer
