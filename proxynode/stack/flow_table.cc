#include "proxynode/stack/flow_table.h"

#include <bit>

#include "lwproto/base/check.h"

namespace sanproxy::stack {

FlowTable::FlowTable(ReservedArray<Connection>& connections, ReservedArray<TimeWait>& time_waits,
                     std::uint64_t seed)
    : connections_(connections),
      time_waits_(time_waits),
      buckets_(std::bit_ceil(connections.capacity() + time_waits.capacity())),
      mask_(static_cast<std::uint32_t>(buckets_.capacity() - 1)),
      seed_(seed) {}

std::uint32_t FlowTable::find(const net::FlowKey& key, std::uint32_t hash) {
  ++lookups_;
  for (std::uint32_t at = buckets_[hash & mask_]; at != 0;) {
    ++probes_;
    const FlowNode& candidate = node(at - 1);
    if (candidate.hash == hash && candidate.key == key) return at - 1;
    at = candidate.next;
  }
  return kNone;
}

void FlowTable::prefetch_node(std::uint32_t hash) const {
  const std::uint32_t at = buckets_[hash & mask_];
  if (at == 0) return;
  const std::uint32_t entry = at - 1;
  const void* const first = (entry & kTimeWaitFlag) != 0
                                ? static_cast<const void*>(&time_waits_[entry & ~kTimeWaitFlag])
                                : &connections_[entry];
  __builtin_prefetch(first, 1);
}

void FlowTable::insert(std::uint32_t entry) {
  ++size_;
  FlowNode& added = node(entry);
  std::uint32_t& head = buckets_[added.hash & mask_];
  added.next = head;
  head = entry + 1;
}

void FlowTable::remove(std::uint32_t entry) {
  --size_;
  const FlowNode& removed = node(entry);
  std::uint32_t* link = &buckets_[removed.hash & mask_];
  while (*link != entry + 1) {
    SANPROXY_CHECK(*link != 0);
    link = &node(*link - 1).next;
  }
  *link = removed.next;
}

}  // namespace sanproxy::stack
