// ReceiveQueue: the receives of one endpoint and the slots that they land in.
//
// Document: docs/verbs_fabric.md "Receiving", "Several queue pairs".
// Role: posts slots of a SlotPool, hands filled ones out, takes them back.
// Owner: an endpoint, or the connecting attempt before it. Thread: the fabric's.
// Invariants:
//   1. Receive number n, for transfer number n, is posted on lane n mod lanes; those of a lane are
//      filled in order. A transfer that overtook others on its lane waits in its slot; so at most
//      as many wait as receives were posted.
//   2. The device holds kSpare receives more than the peer has been told of: so the last message
//      of a peer always finds one, and a transfer beyond the credits is seen here rather than
//      lost. They are spare slots of our own if those are free, else the pool's.
//   3. A slot is posted (the device's), transient (until end_transients()) or lent (the caller's).
#pragma once

#include <arpa/inet.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "lwproto/base/check.h"
#include "lwproto/buffer/slot_pool.h"
#include "lwproto/fabric/verbs/queue_pair.h"

namespace sanproxy::fabric::verbs {

// Of a work request's id; a receive's has its lane below it.
inline constexpr std::uint64_t kReceiveBit = std::uint64_t{1} << 63;

// What there is to know of a transfer that came.
struct Arrival {
  std::uint32_t bytes = 0;
  std::uint32_t immediate = 0;
};
inline Arrival arrival_of(const ibv_wc& completion) {
  std::uint32_t immediate = make_immediate(Kind::kInline, 0);
  if ((completion.wc_flags & IBV_WC_WITH_IMM) != 0) {
    immediate = ntohl(completion.imm_data);
    if (kind_of(immediate) == Kind::kInline) immediate = kNoKind;
  }
  return {completion.byte_len, immediate};
}

class ReceiveQueue {
 public:
  static constexpr std::uint32_t kSpare = 2;

  // Takes its slots from options.receive_memory, or from a pool of its own. The peer's transfers
  // before `first` were, or will be, received elsewhere.
  static Result<std::unique_ptr<ReceiveQueue>> create(QueuePair& queue_pair,
                                                      const EndpointOptions& options,
                                                      std::uint64_t first);
  ~ReceiveQueue();
  ReceiveQueue(const ReceiveQueue&) = delete;
  ReceiveQueue& operator=(const ReceiveQueue&) = delete;

  // The first posting: receive_depth, the spare ones and `extra`; kExhausted if the pool has less.
  Status post_all(QueuePair& queue_pair, std::uint32_t extra);
  // replenish() would do nothing, or so little that it can wait: posting one by one costs a channel
  // that takes one message at a time more than anything else here.
  bool full() const {
    return next_ - first_ + batch_ > depth_ + kSpare && granted_ - received_ + batch_ > depth_;
  }
  // Posts what was consumed and tells how many more the peer may send; an errno in `error`.
  std::uint32_t replenish(QueuePair& queue_pair, int& error);

  // The oldest slot of a lane was filled. True if this is the transfer whose turn it is: take() it.
  // Else it is kept until next_is_here().
  bool arrived(const ibv_wc& completion, Arrival& arrival) {
    arrival = arrival_of(completion);
    const std::uint64_t number = next_of_lane(completion);
    if (number == first_) [[likely]]
      return true;
    Receive& receive = receives_[number & mask_];
    receive.early = true;
    receive.arrival = arrival;
    ++early_;
    return false;
  }
  // It is the transfer whose turn it is, on the first lane, and none has overtaken another.
  bool is_next(const ibv_wc& completion) const {
    return completion.wr_id == kReceiveBit && early_ == 0 && lanes_[0] == first_ && first_ < next_;
  }
  // That one: arrived() and take() in one.
  buffer::SlotIndex take_next() {
    lanes_[0] += lanes_.size();
    --posted_;
    return take();
  }
  bool next_is_here() const { return early_ != 0 && receives_[first_ & mask_].early; }
  // The slot of the next transfer; with its arrival, if next_is_here().
  buffer::SlotIndex take() {
    return std::exchange(receives_[first_++ & mask_].slot, buffer::kNoSlot);
  }
  buffer::SlotIndex take_early(Arrival& arrival) {
    arrival = receives_[first_ & mask_].arrival;
    --early_;
    return take();
  }
  // The oldest slot of a lane was given back unfilled. No transfer from that on can be delivered.
  void failed(const ibv_wc& completion);
  // With the device.
  std::uint32_t posted() const { return posted_; }
  // A data transfer came; false if the peer was not allowed to send it.
  bool count_received() {
    if (received_ == granted_) return false;
    ++received_;
    return true;
  }

  const std::byte* data(buffer::SlotIndex slot) const { return pool_of(slot).data(index_of(slot)); }
  void make_transient(buffer::SlotIndex slot) { transients_[transient_count_++] = slot; }
  void end_transients();
  bool any_transients() const { return transient_count_ != 0; }
  void give_back(buffer::SlotIndex slot) { pool_of(slot).release(index_of(slot)); }
  Loan lend(buffer::SlotIndex slot) {
    pool_of(slot).mark_received(index_of(slot));
    return Loan{slot} + 1;
  }
  void release(Loan loan);
  // The queue pair is gone: every posted slot is ours again.
  void give_all_back();

 private:
  // A slot's number with this bit is one of the spare slots'.
  static constexpr buffer::SlotIndex kSpareBit = 0x8000'0000u;

  struct Receive {
    buffer::SlotIndex slot = buffer::kNoSlot;
    bool early = false;
    Arrival arrival;  // of an early one
  };

  ReceiveQueue() = default;
  std::uint64_t next_of_lane(const ibv_wc& completion) {
    const std::uint64_t lane = completion.wr_id & ~kReceiveBit;
    // A device that gives back what it was not given is beyond help.
    SANPROXY_CHECK(lane < lanes_.size() && lanes_[lane] < next_);
    const std::uint64_t number = lanes_[lane];
    lanes_[lane] += lanes_.size();
    --posted_;
    return number;
  }
  std::uint64_t outstanding() const { return next_ - first_; }
  buffer::SlotPool& pool_of(buffer::SlotIndex slot) const {
    return (slot & kSpareBit) != 0 ? *spare_pool_ : *memory_.pool;
  }
  static buffer::SlotIndex index_of(buffer::SlotIndex slot) { return slot & ~kSpareBit; }
  Status make_own_pool();
  Status make_spare_slots();
  ibv_sge piece_of(buffer::SlotIndex slot) const;
  buffer::SlotIndex acquire(bool spare);
  int post(QueuePair& queue_pair, std::uint32_t count, bool spare, std::uint32_t& done);

  buffer::MemoryRegion own_region_;
  std::unique_ptr<buffer::SlotPool> own_pool_;
  buffer::MemoryRegion spare_region_;
  std::unique_ptr<buffer::SlotPool> spare_pool_;
  std::shared_ptr<MemoryKey> spare_key_;
  std::shared_ptr<MemoryKey> key_;
  ReceiveMemory memory_;          // as given, or over the own pool
  std::uint32_t slot_bytes_ = 0;  // that a receive offers: transfer_bytes_max
  std::uint32_t depth_ = 0;
  std::uint32_t batch_ = 1;        // receives that are posted together
  std::vector<Receive> receives_;  // a ring, a power of two, by number
  std::uint64_t mask_ = 0;
  std::vector<std::uint64_t> lanes_;  // of each, the oldest receive that is with the device
  std::uint64_t first_ = 0;           // the transfer that is to be delivered next
  std::uint64_t next_ = 0;            // to be posted
  std::uint32_t next_lane_ = 0;       // and where
  std::uint32_t posted_ = 0;
  std::uint32_t early_ = 0;
  std::uint64_t granted_ = 0;                  // data transfers that the peer may have sent in all
  std::uint64_t received_ = 0;                 // data transfers
  std::vector<buffer::SlotIndex> transients_;  // as many as there can be
  std::size_t transient_count_ = 0;
};

}  // namespace sanproxy::fabric::verbs
