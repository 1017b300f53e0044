#include "lwproto/buffer/slot_pool.h"

#include <algorithm>

namespace sanproxy::buffer {

SlotPool::SlotPool(std::span<std::byte> memory, std::size_t slot_bytes)
    : memory_(memory), slot_bytes_(slot_bytes) {
  SANPROXY_CHECK(slot_bytes != 0 && slot_bytes % 64 == 0);
  const std::size_t slots = std::min<std::size_t>(memory.size() / slot_bytes, kNoSlot);
  states_.assign(slots, SlotState::kFree);
  free_.reserve(slots);
  // The lowest slot on top, so that a lightly used pool touches the start of the memory only.
  for (std::size_t i = slots; i > 0; --i) free_.push_back(static_cast<SlotIndex>(i - 1));
  free_min_ = slots;
}

}  // namespace sanproxy::buffer
