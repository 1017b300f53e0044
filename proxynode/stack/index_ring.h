// IndexRing: the indices of a table that are free, the one that has waited longest first.
//
// Owner: the Stack. Thread: the worker's. No allocation after construction.
// Invariants:
//   1. Each index is in here at most once, so as many as the table has places always find room.
//   2. The totals never wrap: at 2^32 a ring whose capacity is no power of two would go on at
//      another place than where it was, over indices that are still waiting.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lwproto/base/check.h"
#include "lwproto/base/reserved_array.h"

namespace sanproxy::stack {

class IndexRing {
 public:
  // `start`: where the totals start; other than 0 only to look at what would be their wrap.
  explicit IndexRing(std::size_t capacity, std::uint64_t start = 0)
      : ring_(capacity), head_(start), tail_(start) {}

  std::uint64_t size() const { return tail_ - head_; }
  void push(std::uint32_t index) {
    SANPROXY_CHECK(size() < ring_.capacity());
    ring_[tail_++ % ring_.capacity()] = index;
  }
  std::uint32_t pop() {  // precondition: size() != 0
    return ring_[head_++ % ring_.capacity()];
  }

 private:
  ReservedArray<std::uint32_t> ring_;
  std::uint64_t head_, tail_;
};

}  // namespace sanproxy::stack
