#include "lwproto/fabric/verbs/receive_queue.h"

#include <algorithm>
#include <array>
#include <bit>

#include "lwproto/base/check.h"

namespace sanproxy::fabric::verbs {
namespace {

constexpr std::uint32_t kChainMax = 64;
constexpr std::size_t kSlotAlignment = 64;
// Slots of an own pool for each receive of the depth: half of them may be on loan.
constexpr std::uint32_t kSlotsPerReceive = 2;
constexpr std::uint32_t kHandshakes = 1;

}  // namespace

Result<std::unique_ptr<ReceiveQueue>> ReceiveQueue::create(QueuePair& queue_pair,
                                                           const EndpointOptions& options) {
  std::unique_ptr<ReceiveQueue> out(new ReceiveQueue());
  out->depth_ = options.receive_depth;
  out->slot_bytes_ = options.transfer_bytes_max;
  out->memory_ = options.receive_memory;
  if (out->memory_.pool == nullptr || out->memory_.region == nullptr) {
    const std::size_t slot_bytes =
        (std::size_t{out->slot_bytes_} + kSlotAlignment - 1) & ~(kSlotAlignment - 1);
    const std::size_t slots = std::size_t{kSlotsPerReceive} * out->depth_ + kSpare + kHandshakes;
    auto made = buffer::MemoryRegion::create("verbs-receive", slots * slot_bytes);
    if (!made.ok()) return made.status();
    out->own_region_ = std::move(*made);
    out->own_pool_ = std::make_unique<buffer::SlotPool>(out->own_region_.bytes(), slot_bytes);
    out->memory_ = {out->own_pool_.get(), &out->own_region_, 0};
  }
  if (out->memory_.pool->slot_bytes() < out->slot_bytes_) {
    return Status::error(Code::kInvalidArgument,
                         "the slots of receive_memory are smaller than transfer_bytes_max");
  }
  auto key = queue_pair.device().register_region(*out->memory_.region);
  if (!key.ok()) return key.status();
  out->key_ = std::move(*key);
  const std::uint32_t most = out->depth_ + kSpare + kHandshakes;
  out->posted_slots_.resize(std::bit_ceil(most));
  out->transients_.reserve(most);
  return out;
}

ReceiveQueue::~ReceiveQueue() {
  give_all_back();
  end_transients();
}

int ReceiveQueue::post(QueuePair& queue_pair, std::uint32_t count, std::uint32_t& done) {
  std::array<ibv_recv_wr, kChainMax> requests;
  std::array<ibv_sge, kChainMax> pieces;
  while (done < count) {
    const std::uint32_t first = done;
    std::uint32_t n = 0;
    for (; n < kChainMax && done < count; ++n, ++done) {
      const buffer::SlotIndex slot = memory_.acquire();
      if (slot == buffer::kNoSlot) break;
      pieces[n].addr = reinterpret_cast<std::uintptr_t>(memory_.pool->data(slot));
      pieces[n].length = slot_bytes_;
      pieces[n].lkey = key_->local();
      requests[n] = {};
      requests[n].wr_id = kReceiveBit | slot;
      requests[n].sg_list = &pieces[n];
      requests[n].num_sge = 1;
      if (n != 0) requests[n - 1].next = &requests[n];
      posted_slots_[(first_ + posted_) & (posted_slots_.size() - 1)] = slot;
      ++posted_;
    }
    if (n == 0) return 0;  // the pool is dry
    if (const int error = queue_pair.post(requests.data()); error != 0) return error;
    if (done - first < kChainMax) return 0;
  }
  return 0;
}

Status ReceiveQueue::post_all(QueuePair& queue_pair, std::uint32_t extra) {
  const std::uint32_t wanted = depth_ + kSpare + extra;
  std::uint32_t done = 0;
  if (const int error = post(queue_pair, wanted, done); error != 0) {
    return Status::error(Code::kSystem, "post receives", error);
  }
  if (done < wanted) {
    return Status::error(Code::kExhausted,
                         "receive_memory has fewer free slots than receive_depth");
  }
  granted_ = depth_;
  return {};
}

std::uint32_t ReceiveQueue::replenish(QueuePair& queue_pair, int& error) {
  error = 0;
  const std::uint32_t target = depth_ + kSpare;
  if (posted_ < target) {
    std::uint32_t done = 0;
    error = post(queue_pair, target - posted_, done);
    if (error != 0) return 0;
  }
  // The spare ones are not for the peer.
  const std::uint64_t usable = posted_ > kSpare ? posted_ - kSpare : 0;
  const std::uint64_t total = received_ + usable;
  if (total <= granted_) return 0;
  const auto more = static_cast<std::uint32_t>(total - granted_);
  granted_ = total;
  return more;
}

buffer::SlotIndex ReceiveQueue::take() {
  SANPROXY_CHECK(posted_ != 0);
  const buffer::SlotIndex slot = posted_slots_[first_ & (posted_slots_.size() - 1)];
  ++first_;
  --posted_;
  return slot;
}

void ReceiveQueue::end_transients() {
  for (const buffer::SlotIndex slot : transients_) memory_.pool->release(slot);
  transients_.clear();
}

void ReceiveQueue::release(Loan loan) {
  SANPROXY_CHECK(loan != kNoLoan && loan <= memory_.pool->slot_count());
  const auto slot = static_cast<buffer::SlotIndex>(loan - 1);
  SANPROXY_CHECK(memory_.pool->state(slot) == buffer::SlotState::kReceived);
  memory_.pool->release(slot);
}

void ReceiveQueue::give_all_back() {
  while (posted_ != 0) memory_.pool->release(take());
}

}  // namespace sanproxy::fabric::verbs
