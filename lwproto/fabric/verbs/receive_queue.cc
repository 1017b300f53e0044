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
// So small a part of the depth that the peer never waits for a batch to be full.
constexpr std::uint32_t kBatchesPerDepth = 64;

std::size_t aligned(std::size_t bytes) {
  return (bytes + kSlotAlignment - 1) & ~(kSlotAlignment - 1);
}

}  // namespace

Result<std::unique_ptr<ReceiveQueue>> ReceiveQueue::create(QueuePair& queue_pair,
                                                           const EndpointOptions& options,
                                                           std::uint64_t first) {
  std::unique_ptr<ReceiveQueue> out(new ReceiveQueue());
  out->depth_ = options.receive_depth;
  out->batch_ = std::max(out->depth_ / kBatchesPerDepth, 1u);
  out->slot_bytes_ = options.transfer_bytes_max;
  out->memory_ = options.receive_memory;
  if (!options.receive_memory.pool) {
    if (Status status = out->make_own_pool(); !status.ok()) return status;
  }
  if (Status status = out->make_spare_slots(); !status.ok()) return status;
  auto key = queue_pair.device().register_region(*out->memory_.region);
  if (!key.ok()) return key.status();
  out->key_ = std::move(*key);
  auto spare_key = queue_pair.device().register_region(out->spare_region_);
  if (!spare_key.ok()) return spare_key.status();
  out->spare_key_ = std::move(*spare_key);
  const std::uint32_t most = out->depth_ + kSpare + kHandshakes;
  out->receives_.resize(std::bit_ceil(most));
  out->mask_ = out->receives_.size() - 1;
  const std::uint32_t lanes = queue_pair.lanes();
  out->first_ = out->next_ = first;
  out->next_lane_ = static_cast<std::uint32_t>(first % lanes);
  out->lanes_.resize(lanes);
  for (std::uint64_t n = first; n < first + lanes; ++n) out->lanes_[n % lanes] = n;
  out->transients_.resize(most);
  return out;
}

Status ReceiveQueue::make_own_pool() {
  const std::size_t slot_bytes = aligned(slot_bytes_);
  auto made = buffer::MemoryRegion::create("verbs-receive",
                                           std::size_t{kSlotsPerReceive} * depth_ * slot_bytes);
  if (!made.ok()) return made.status();
  own_region_ = std::move(*made);
  own_pool_ = std::make_unique<buffer::SlotPool>(own_region_.bytes(), slot_bytes);
  memory_ = {own_pool_.get(), &own_region_, 0};
  return {};
}

Status ReceiveQueue::make_spare_slots() {
  const std::size_t slot_bytes = aligned(slot_bytes_);
  auto made = buffer::MemoryRegion::create("verbs-spare", (kSpare + kHandshakes) * slot_bytes);
  if (!made.ok()) return made.status();
  spare_region_ = std::move(*made);
  spare_pool_ = std::make_unique<buffer::SlotPool>(spare_region_.bytes(), slot_bytes);
  return {};
}

ReceiveQueue::~ReceiveQueue() {
  give_all_back();
  end_transients();
}

buffer::SlotIndex ReceiveQueue::acquire(bool spare) {
  if (!spare) return memory_.acquire();
  const buffer::SlotIndex slot = spare_pool_->acquire();
  return slot == buffer::kNoSlot ? slot : slot | kSpareBit;
}

ibv_sge ReceiveQueue::piece_of(buffer::SlotIndex slot) const {
  const MemoryKey& key = (slot & kSpareBit) != 0 ? *spare_key_ : *key_;
  return {reinterpret_cast<std::uintptr_t>(data(slot)), slot_bytes_, key.local()};
}

// As many as there are slots, up to `count`; adds to `done`.
[[gnu::hot]] int ReceiveQueue::post(QueuePair& queue_pair, std::uint32_t count, bool spare,
                                    std::uint32_t& done) {
  std::array<ibv_recv_wr, kChainMax> requests;
  std::array<ibv_sge, kChainMax> pieces;
  for (;;) {
    const auto lanes = static_cast<std::uint32_t>(lanes_.size());
    std::uint32_t n = 0;
    for (; n < kChainMax && n < count; ++n) {
      const buffer::SlotIndex slot = acquire(spare);
      if (slot == buffer::kNoSlot) break;
      pieces[n] = piece_of(slot);
      requests[n] = {};
      requests[n].wr_id = kReceiveBit | next_lane_;
      requests[n].sg_list = &pieces[n];
      requests[n].num_sge = 1;
      if (n >= lanes) requests[n - lanes].next = &requests[n];
      receives_[next_ & mask_] = {slot, false, {}};
      ++next_;
      ++posted_;
      if (++next_lane_ == lanes) next_lane_ = 0;
    }
    if (n == 0) return 0;
    for (std::uint32_t i = 0; i < std::min(n, lanes); ++i) {
      const auto lane = static_cast<std::uint32_t>(requests[i].wr_id & ~kReceiveBit);
      if (const int error = queue_pair.post(&requests[i], lane); error != 0) return error;
    }
    done += n;
    count -= n;
  }
}

Status ReceiveQueue::post_all(QueuePair& queue_pair, std::uint32_t extra) {
  std::uint32_t done = 0;
  int error = post(queue_pair, depth_, false, done);
  if (error == 0 && done < depth_) {
    return Status::error(Code::kExhausted,
                         "receive_memory has fewer free slots than receive_depth");
  }
  if (error == 0) error = post(queue_pair, kSpare + extra, true, done);
  if (error != 0) return Status::error(Code::kSystem, "post receives", error);
  granted_ = depth_;
  return {};
}

[[gnu::hot]] std::uint32_t ReceiveQueue::replenish(QueuePair& queue_pair, int& error) {
  error = 0;
  const std::uint32_t target = depth_ + kSpare;
  const auto missing = [&] { return target - static_cast<std::uint32_t>(outstanding()); };
  if (outstanding() < target) {
    std::uint32_t done = 0;
    // Ours first: others may need the pool.
    if (spare_pool_->free_count() != 0) error = post(queue_pair, missing(), true, done);
    if (error == 0 && outstanding() < target) error = post(queue_pair, missing(), false, done);
    if (error != 0) return 0;
  }
  // The spare ones are not for the peer.
  const std::uint64_t usable =
      outstanding() > kSpare ? std::min<std::uint64_t>(outstanding() - kSpare, depth_) : 0;
  const std::uint64_t total = received_ + usable;
  if (total <= granted_) return 0;
  const auto more = static_cast<std::uint32_t>(total - granted_);
  granted_ = total;
  return more;
}

[[gnu::hot]] void ReceiveQueue::end_transients() {
  for (std::size_t i = 0; i < transient_count_; ++i) give_back(transients_[i]);
  transient_count_ = 0;
}

void ReceiveQueue::failed(const ibv_wc& completion) {
  Receive& receive = receives_[next_of_lane(completion) & mask_];
  give_back(std::exchange(receive.slot, buffer::kNoSlot));
}

void ReceiveQueue::release(Loan loan) {
  SANPROXY_CHECK(loan != kNoLoan && loan - 1 <= (kSpareBit | (kSpareBit - 1)));
  const auto slot = static_cast<buffer::SlotIndex>(loan - 1);
  const buffer::SlotPool& pool = pool_of(slot);
  SANPROXY_CHECK(index_of(slot) < pool.slot_count() &&
                 pool.state(index_of(slot)) == buffer::SlotState::kReceived);
  give_back(slot);
}

void ReceiveQueue::give_all_back() {
  for (; first_ != next_; ++first_) {
    const buffer::SlotIndex slot = receives_[first_ & mask_].slot;
    if (slot != buffer::kNoSlot) give_back(slot);
  }
  posted_ = early_ = 0;
}

}  // namespace sanproxy::fabric::verbs
