// SendMemory: the registered memory that outgoing bytes are copied or written into.
// SendRecords: what is outstanding of each send from RegisteredMemory.
//
// Document: docs/buffer_ownership.md.
// Role: two size classes over one region: small slots for answers of a few KB, large ones that
//   hold a super-packet's payload (44 segments of 1460 bytes).
// Owner: the Node. Thread: its. Nothing allocates after construction and add().
// Invariants:
//   1. A slot is free, with the application (SendChunk), or with a fabric (until its cookie comes
//      back).
//   2. A record lives as long as a piece of its send is with a fabric.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/buffer/slot_pool.h"
#include "sanproxy/connection.h"

namespace sanproxy::app::internal {

inline constexpr std::size_t kSmallSlotBytes = 8192;
inline constexpr std::size_t kChunkBytesMax = 44 * 1460;  // 64,240
inline constexpr std::size_t kLargeSlotBytes = 64'256;    // the same, in whole cache lines
inline constexpr std::size_t kSendMemoryBytesMin = 16 * kLargeSlotBytes;

// Memory that every channel has attached. `index` finds its key in each Link.
struct Region {
  buffer::MemoryRegion memory;
  std::size_t bytes = 0;  // asked for; the mapping is whole pages
  std::uint32_t index = 0;
  std::size_t in_use = 0;  // pieces with a fabric
  bool released = false;   // no handle refers to it: given out again once not in use
};

class SendMemory {
 public:
  struct Slot {
    std::byte* data = nullptr;
    std::size_t offset = 0;    // inside the region
    std::size_t capacity = 0;  // 0: no slot
    std::uint32_t handle = 0;
  };

  // Over a region of at least kSendMemoryBytesMin that outlives it.
  explicit SendMemory(const buffer::MemoryRegion& region);

  // A slot for `bytes` bytes, or a smaller one when only such are left, or none. The last few small
  // ones are for what goes inline, which gives them back at once.
  Slot acquire(std::size_t bytes);
  void release(std::uint32_t handle);
  std::size_t offset(std::uint32_t handle) const;  // inside the region
  std::size_t free_count() const { return small_.free_count() + large_.free_count(); }
  // Large slots that are left for those who have some already: half of all are for those who have
  // none. Those are counted in that small ones could stand for.
  std::uint32_t large_spare() const {
    const std::uint32_t left = in_large(large_.free_count(), small_.free_count());
    return left - std::min(left, in_large(large_.slot_count(), small_.slot_count()) / 2);
  }
  bool released() const { return released_; }
  // True once after releases, for those who wait for memory.
  bool take_released() { return std::exchange(released_, false); }

 private:
  static constexpr std::uint32_t kLargeFlag = 1;
  static std::uint32_t in_large(std::size_t large, std::size_t small) {
    return static_cast<std::uint32_t>(large + small / (kLargeSlotBytes / kSmallSlotBytes));
  }
  Slot from(buffer::SlotPool& pool, std::uint32_t flag, std::size_t capacity);

  std::size_t large_base_;
  buffer::SlotPool small_;
  buffer::SlotPool large_;
  bool released_ = false;
};

// One send() from RegisteredMemory, in up to many transfers.
struct SendRecord {
  Region* region = nullptr;
  std::uint32_t pieces = 0;
  std::uint32_t next_free = 0;
  bool ok = true;
  SendDone done;
};

class SendRecords {
 public:
  static constexpr std::uint32_t kNone = 0xffff'ffffu;

  // `count`: the transfers with references that all channels together may have outstanding, plus
  // the one being made. Each record has at least one, so the table cannot run out.
  explicit SendRecords(std::uint32_t count) { add(count); }
  // For one more channel; the others' records may move. Reserves; only what is used is touched.
  void add(std::uint32_t count) { records_.reserve(records_.capacity() + count); }
  std::uint32_t acquire(Region& region, SendDone done);  // kNone if there is none
  void release(std::uint32_t index);
  void end_all();  // nothing will come back any more: all are done, and did not go well
  SendRecord& operator[](std::uint32_t index) { return records_[index]; }

 private:
  std::vector<SendRecord> records_;
  std::uint32_t free_ = kNone;
};

// What a fabric's cookie stands for.
inline constexpr std::uint64_t kCookieChunk = 0;
inline constexpr std::uint64_t kCookieRecord = 1;
constexpr std::uint64_t chunk_cookie(std::uint32_t handle) {
  return (std::uint64_t{handle} << 1) | kCookieChunk;
}
constexpr std::uint64_t record_cookie(std::uint32_t index) {
  return (std::uint64_t{index} << 1) | kCookieRecord;
}

}  // namespace sanproxy::app::internal
