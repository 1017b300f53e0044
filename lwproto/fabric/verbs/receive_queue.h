// ReceiveQueue: the receives of one endpoint and the slots that they land in.
//
// Document: docs/verbs_fabric.md "Receiving".
// Role: posts slots of a SlotPool, hands filled ones out, takes them back.
// Owner: an endpoint, or the connecting attempt before it. Thread: the fabric's.
// Invariants:
//   1. Receives are filled in the order in which they were posted.
//   2. The device holds kSpare receives more than the peer has been told of: so the last message
//      of a peer always finds one, and a transfer beyond the credits is seen here rather than
//      lost. They are spare slots of our own if those are free, else the pool's.
//   3. A slot is posted (the device's), transient (until end_transients()) or lent (the caller's).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "lwproto/buffer/slot_pool.h"
#include "lwproto/fabric/verbs/queue_pair.h"

namespace sanproxy::fabric::verbs {

inline constexpr std::uint64_t kReceiveBit = std::uint64_t{1} << 63;  // of a work request's id

class ReceiveQueue {
 public:
  static constexpr std::uint32_t kSpare = 2;

  // Takes its slots from options.receive_memory, or from a pool of its own.
  static Result<std::unique_ptr<ReceiveQueue>> create(QueuePair& queue_pair,
                                                      const EndpointOptions& options);
  ~ReceiveQueue();
  ReceiveQueue(const ReceiveQueue&) = delete;
  ReceiveQueue& operator=(const ReceiveQueue&) = delete;

  // The first posting: receive_depth, the spare ones and `extra`; kExhausted if the pool has less.
  Status post_all(QueuePair& queue_pair, std::uint32_t extra);
  // Posts what was consumed and tells how many more the peer may send; an errno in `error`.
  std::uint32_t replenish(QueuePair& queue_pair, int& error);

  // The oldest posted slot was filled or given back by the device.
  buffer::SlotIndex take();
  std::uint32_t posted() const { return posted_; }
  // A data transfer came; false if the peer was not allowed to send it.
  bool count_received() {
    if (received_ == granted_) return false;
    ++received_;
    return true;
  }

  const std::byte* data(buffer::SlotIndex slot) const { return pool_of(slot).data(index_of(slot)); }
  void make_transient(buffer::SlotIndex slot) { transients_.push_back(slot); }
  void end_transients();
  bool any_transients() const { return !transients_.empty(); }
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

  ReceiveQueue() = default;
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
  std::vector<buffer::SlotIndex> posted_slots_;  // a ring, a power of two
  std::uint64_t first_ = 0;
  std::uint32_t posted_ = 0;
  std::uint64_t granted_ = 0;   // data transfers that the peer may have sent in all
  std::uint64_t received_ = 0;  // data transfers
  std::vector<buffer::SlotIndex> transients_;
};

}  // namespace sanproxy::fabric::verbs
