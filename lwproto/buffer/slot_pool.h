// SlotPool: equal buffers over one span of registered memory, each in one state.
//
// Document: docs/buffer_ownership.md "The pools".
// Role: IngressPool and EgressPool are SlotPools. A slot is described by (region, offset, length)
//   and goes posted -> received -> freed: `posted` while an interface or endpoint may fill it,
//   `received` while its bytes are on their way, then back on the free list.
// Owner: a worker's data path. Thread: that one. No allocation after construction.
// Invariants:
//   1. Every slot is in exactly one state; free + posted + received == slot_count.
//   2. A wrong transition is our bug: SANPROXY_CHECK.
//   3. acquire() at an empty pool returns kNoSlot; the caller applies back-pressure.
//   4. The free list is last-in first-out, so that a lightly used pool stays in cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "lwproto/base/check.h"

namespace sanproxy::buffer {

using SlotIndex = std::uint32_t;
inline constexpr SlotIndex kNoSlot = 0xffff'ffffu;

enum class SlotState : std::uint8_t { kFree, kPosted, kReceived };

class SlotPool {
 public:
  // Uses as many whole slots as fit `memory`. `slot_bytes` is a multiple of 64.
  SlotPool(std::span<std::byte> memory, std::size_t slot_bytes);
  SlotPool(const SlotPool&) = delete;
  SlotPool& operator=(const SlotPool&) = delete;

  SlotIndex acquire() {  // free -> posted, or kNoSlot
    if (free_.empty()) [[unlikely]]
      return kNoSlot;
    const SlotIndex slot = free_.back();
    free_.pop_back();
    if (free_.size() < free_min_) free_min_ = free_.size();
    states_[slot] = SlotState::kPosted;
    ++posted_;
    return slot;
  }
  void mark_received(SlotIndex slot) {  // posted -> received
    SANPROXY_CHECK(slot < states_.size() && states_[slot] == SlotState::kPosted);
    states_[slot] = SlotState::kReceived;
    --posted_;
  }
  void release(SlotIndex slot) {  // posted or received -> free
    SANPROXY_CHECK(slot < states_.size() && states_[slot] != SlotState::kFree);
    if (states_[slot] == SlotState::kPosted) --posted_;
    states_[slot] = SlotState::kFree;
    free_.push_back(slot);  // within the capacity reserved at construction
  }

  std::byte* data(SlotIndex slot) const { return memory_.data() + slot * slot_bytes_; }
  std::size_t offset(SlotIndex slot) const { return slot * slot_bytes_; }
  // The slot that holds `p`; precondition: `p` is inside the memory.
  SlotIndex slot_of(const std::byte* p) const {
    return static_cast<SlotIndex>(static_cast<std::size_t>(p - memory_.data()) / slot_bytes_);
  }
  std::size_t slot_bytes() const { return slot_bytes_; }
  std::size_t slot_count() const { return states_.size(); }
  std::size_t free_count() const { return free_.size(); }
  std::size_t posted_count() const { return posted_; }
  std::size_t received_count() const { return states_.size() - free_.size() - posted_; }
  std::size_t free_count_min() const { return free_min_; }  // the lowest ever seen
  SlotState state(SlotIndex slot) const { return states_[slot]; }

 private:
  std::span<std::byte> memory_;
  std::size_t slot_bytes_;
  std::vector<SlotState> states_;
  std::vector<SlotIndex> free_;
  std::size_t posted_ = 0;
  std::size_t free_min_ = 0;
};

}  // namespace sanproxy::buffer
