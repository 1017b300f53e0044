// ReceiveSlots: the receive buffers that an endpoint has posted.
//
// Document: docs/tcp_fabric.md "Receiving".
// Role: takes slots from the owner's pool (or one of its own) when receives are posted, so that a
//   transfer that may come has a place to go. Owner: a TcpEndpoint. Thread: the fabric's.
// Invariants:
//   1. There is a held slot for each posted receive that no transfer has begun to use.
//   2. A receive that was used by a transfer without references leaves its slot behind as a spare,
//      for the next post().
//   3. All slots but those on loan go back to the pool when the channel has ended.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/buffer/slot_pool.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric::tcp {

class ReceiveSlots {
 public:
  static Result<std::unique_ptr<ReceiveSlots>> create(const EndpointOptions& options);
  ReceiveSlots() = default;
  ~ReceiveSlots();
  ReceiveSlots(const ReceiveSlots&) = delete;
  ReceiveSlots& operator=(const ReceiveSlots&) = delete;

  // Up to `count` more receives; fewer when the pool runs dry.
  std::uint32_t post(std::uint32_t count);
  bool empty() const { return held_.empty(); }
  // A slot for a transfer that has a posted receive; there must be one.
  buffer::SlotIndex take();
  void put_back(buffer::SlotIndex slot) { held_.push_back(slot); }
  void spare() { ++spares_; }
  std::byte* data(buffer::SlotIndex slot) const { return memory_.pool->data(slot); }

  Loan lend(buffer::SlotIndex slot) {
    memory_.pool->mark_received(slot);
    return Loan{slot} + 1;
  }
  void release(Loan loan);
  void give_back_held();  // nothing will come any more

 private:
  buffer::MemoryRegion own_memory_;
  std::unique_ptr<buffer::SlotPool> own_pool_;
  ReceiveMemory memory_;
  std::vector<buffer::SlotIndex> held_;  // last in, first out: what is warm is used again
  std::uint32_t spares_ = 0;
};

}  // namespace sanproxy::fabric::tcp
