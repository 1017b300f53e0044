#include "appnode-lib/client/send_memory.h"

#include <algorithm>

#include "lwproto/wire/format.h"

namespace sanproxy::app::internal {
namespace {

constexpr std::size_t kSmallSlotsKept = 16;  // for what goes inline

// A quarter for small slots: most answers are small, most bytes are large.
std::size_t small_part_bytes(std::size_t bytes) {
  return bytes / 4 / kSmallSlotBytes * kSmallSlotBytes;
}

}  // namespace

SendMemory::SendMemory(const buffer::MemoryRegion& region)
    : large_base_(small_part_bytes(region.size())),
      small_(region.bytes().first(large_base_), kSmallSlotBytes),
      large_(region.bytes().subspan(large_base_), kLargeSlotBytes) {}

SendMemory::Slot SendMemory::from(buffer::SlotPool& pool, std::uint32_t flag,
                                  std::size_t capacity) {
  const buffer::SlotIndex index = pool.acquire();
  if (index == buffer::kNoSlot) return {};
  const std::size_t base = flag == kLargeFlag ? large_base_ : 0;
  return {pool.data(index), base + pool.offset(index), capacity, (index << 1) | flag};
}

SendMemory::Slot SendMemory::acquire(std::size_t bytes) {
  const std::size_t kept = bytes > wire::kInlinePayloadBytesMax ? kSmallSlotsKept : 0;
  const bool small = small_.free_count() > kept;
  if (bytes <= kSmallSlotBytes && small) return from(small_, 0, kSmallSlotBytes);
  if (const Slot slot = from(large_, kLargeFlag, kChunkBytesMax); slot.capacity != 0) return slot;
  return small ? from(small_, 0, kSmallSlotBytes) : Slot{};
}

void SendMemory::release(std::uint32_t handle) {
  buffer::SlotPool& pool = (handle & kLargeFlag) != 0 ? large_ : small_;
  pool.release(handle >> 1);
  released_ = true;
}

std::size_t SendMemory::offset(std::uint32_t handle) const {
  if ((handle & kLargeFlag) != 0) return large_base_ + large_.offset(handle >> 1);
  return small_.offset(handle >> 1);
}

std::uint32_t SendRecords::acquire(Region& region, SendDone done) {
  std::uint32_t index = free_;
  if (index != kNone) {
    free_ = records_[index].next_free;
  } else {
    if (records_.size() == records_.capacity()) return kNone;
    index = static_cast<std::uint32_t>(records_.size());
    records_.emplace_back();
  }
  records_[index] = {&region, 0, kNone, true, done};
  return index;
}

void SendRecords::release(std::uint32_t index) {
  records_[index].region = nullptr;
  records_[index].next_free = free_;
  free_ = index;
}

void SendRecords::end_all() {
  for (std::uint32_t i = 0; i < records_.size(); ++i) {
    SendRecord& record = records_[i];
    if (record.region == nullptr) continue;
    record.region->in_use -= record.pieces;
    const SendDone done = record.done;
    release(i);
    if (done.call != nullptr) done.call(done.context, false);
  }
}

}  // namespace sanproxy::app::internal
