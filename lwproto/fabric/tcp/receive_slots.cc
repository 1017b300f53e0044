#include "lwproto/fabric/tcp/receive_slots.h"

#include "lwproto/base/check.h"

namespace sanproxy::fabric::tcp {
namespace {

constexpr std::size_t kSlotAlign = 64;

}  // namespace

Result<std::unique_ptr<ReceiveSlots>> ReceiveSlots::create(const EndpointOptions& options) {
  auto slots = std::make_unique<ReceiveSlots>();
  if (options.receive_memory.pool != nullptr) {
    slots->memory_ = options.receive_memory;
    if (slots->memory_.pool->slot_bytes() < options.transfer_bytes_max) {
      return Status::error(Code::kInvalidArgument, "a receive slot holds less than a transfer");
    }
  } else {
    const std::size_t slot_bytes =
        (std::size_t{options.transfer_bytes_max} + kSlotAlign - 1) / kSlotAlign * kSlotAlign;
    auto memory = buffer::MemoryRegion::create("sanproxy-tcp-receive",
                                               slot_bytes * 2 * options.receive_depth);
    if (!memory.ok()) return memory.status();
    slots->own_memory_ = std::move(*memory);
    slots->own_pool_ = std::make_unique<buffer::SlotPool>(slots->own_memory_.bytes(), slot_bytes);
    slots->memory_.pool = slots->own_pool_.get();
  }
  slots->held_.reserve(options.receive_depth);
  if (slots->post(options.receive_depth) != options.receive_depth) {
    return Status::error(Code::kExhausted, "the pool has too few free receive slots");
  }
  return slots;
}

ReceiveSlots::~ReceiveSlots() { give_back_held(); }

void ReceiveSlots::give_back_held() {
  for (const buffer::SlotIndex slot : held_) memory_.pool->release(slot);
  held_.clear();
}

std::uint32_t ReceiveSlots::post(std::uint32_t count) {
  for (std::uint32_t posted = 0; posted < count; ++posted) {
    if (spares_ != 0) {
      --spares_;
      continue;
    }
    const buffer::SlotIndex slot = memory_.acquire();
    if (slot == buffer::kNoSlot) return posted;
    held_.push_back(slot);
  }
  return count;
}

buffer::SlotIndex ReceiveSlots::take() {
  SANPROXY_CHECK(!held_.empty());
  const buffer::SlotIndex slot = held_.back();
  held_.pop_back();
  return slot;
}

void ReceiveSlots::release(Loan loan) {
  SANPROXY_CHECK(loan != kNoLoan && loan <= memory_.pool->slot_count());
  const auto slot = static_cast<buffer::SlotIndex>(loan - 1);
  SANPROXY_CHECK(memory_.pool->state(slot) == buffer::SlotState::kReceived);
  memory_.pool->release(slot);
}

}  // namespace sanproxy::fabric::tcp
