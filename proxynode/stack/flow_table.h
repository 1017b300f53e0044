// FlowTable: finds the connection or TIME-WAIT record of a segment, however many there are.
//
// Role: a chained hash table over records that live elsewhere; buckets and links are indices.
// Owner: the Stack. Thread: the worker's. No allocation after construction.
// Invariants:
//   1. At most one entry a key.
//   2. There are at least as many buckets as entries, and the hash is keyed at random: the length
//      of a chain does not depend on what clients choose.
#pragma once

#include <cstdint>

#include "lwproto/base/reserved_array.h"
#include "proxynode/stack/connection.h"

namespace sanproxy::stack {

class FlowTable {
 public:
  // An entry: a connection's index, or a TIME-WAIT record's with the flag.
  static constexpr std::uint32_t kTimeWaitFlag = 0x8000'0000u;

  FlowTable(ReservedArray<Connection>& connections, ReservedArray<TimeWait>& time_waits,
            std::uint64_t seed);

  std::uint32_t hash(const net::FlowKey& key) const {
    return static_cast<std::uint32_t>(key.hash(seed_));
  }
  // The entry or kNone.
  std::uint32_t find(const net::FlowKey& key, std::uint32_t hash);
  // For bursts with many connections: first all buckets, then all first nodes, then the entries.
  void prefetch_bucket(std::uint32_t hash) const { __builtin_prefetch(&buckets_[hash & mask_]); }
  void prefetch_node(std::uint32_t hash) const;
  std::size_t size() const { return size_; }
  // The node's key and hash must be set.
  void insert(std::uint32_t entry);
  void remove(std::uint32_t entry);

  std::uint64_t lookups() const { return lookups_; }
  std::uint64_t probes() const { return probes_; }

 private:
  FlowNode& node(std::uint32_t entry) {
    return (entry & kTimeWaitFlag) != 0 ? time_waits_[entry & ~kTimeWaitFlag].flow
                                        : connections_[entry].flow;
  }

  ReservedArray<Connection>& connections_;
  ReservedArray<TimeWait>& time_waits_;
  ReservedArray<std::uint32_t> buckets_;  // entry + 1; 0 is empty
  std::uint32_t mask_;
  std::uint64_t seed_;
  std::size_t size_ = 0;
  std::uint64_t lookups_ = 0;
  std::uint64_t probes_ = 0;
};

}  // namespace sanproxy::stack
