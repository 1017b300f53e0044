// SendQueue: the transfers of one endpoint on their way out.
//
// Document: docs/verbs_fabric.md "Sending", "Several queue pairs".
// Role: keeps inline parts in a registered ring, chains work requests until post(), decides which
//   of them are signalled, and knows which buffers come back with a completion.
// Owner: an endpoint, or the connecting attempt before it. Thread: the fabric's.
// Invariants (all counters are totals):
//   1. retired_ <= done_ <= posted_ <= next_ <= retired_ + depth_. Transfers in [done_, posted_)
//      are the device's, those in [retired_, done_) are ours again but their cookies not yet told.
//   2. Transfer number n goes on lane n mod lanes. Work requests of a lane complete in order, so
//      one completion stands for all before it on that lane.
//   3. Whenever begin() says no, a signalled transfer is under way or chained;
//      a transfer with references is covered by a signal at the latest at the end of its post().
//      With several lanes every transfer is: a lane cannot know when it will be used again.
//   4. One work request is left for the BYE, and one for post_last().
//   5. A place in the ring is used again when the device has copied what is there (all of a chain,
//      at post()) or the transfer is retired, and never while begin() has handed it out.
#pragma once

#include <arpa/inet.h>
#include <infiniband/verbs.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "lwproto/base/check.h"
#include "lwproto/fabric/verbs/handshake.h"
#include "lwproto/fabric/verbs/queue_pair.h"

namespace sanproxy::fabric::verbs {

inline constexpr std::size_t kPiecesMax = kGatherRefsMax + 1;

struct SendLimits {
  std::uint32_t refs_max = 0;      // transfers with references under way
  std::uint32_t inline_bytes = 0;  // of a transfer
  std::uint32_t transfer_bytes = 0;
  std::uint64_t window_bytes = 0;  // under way; 0: as the other limits allow
};

class SendQueue {
 public:
  // Work requests that an endpoint with this send_depth asks its queue pair for.
  static std::uint32_t depth_for(std::uint32_t send_depth);

  static Result<std::unique_ptr<SendQueue>> create(QueuePair& queue_pair, std::size_t ring_bytes,
                                                   const SendLimits& limits);

  void set_window(std::uint64_t window_bytes) { limits_.window_bytes = window_bytes; }

  // Space for an inline part. False, and nothing has changed, if there is no room for it or for
  // what else commit() needs. The rest of begin_send() is the endpoint's.
  bool begin(std::size_t inline_bytes, std::span<std::byte>& space) {
    if (next_ - retired_ + kReserved >= depth_ || refs_ >= limits_.refs_max ||
        (limits_.window_bytes != 0 && bytes_ >= limits_.window_bytes)) [[unlikely]] {
      return false;
    }
    const std::size_t room = aligned(std::max<std::size_t>(inline_bytes, room_min_));
    const std::size_t left = ring_.size() - (ring_head_ & ring_mask_);
    // A transfer does not go around the end: what is left there is given up with it.
    const std::uint64_t head = room > left ? ring_head_ + left : ring_head_;
    if (head + room - ring_tail_ > ring_.size()) [[unlikely]]
      return false;
    ring_head_ = head;
    begun_ = true;
    space_bytes_ = inline_bytes;
    space = {ring_.data() + (head & ring_mask_), inline_bytes};
    return true;
  }
  bool begun() const { return begun_; }
  std::size_t space_bytes() const { return space_bytes_; }
  void abandon() { begun_ = false; }
  // Precondition: begin() succeeded, and the pieces fit the limits and their regions.
  // `cookie` is told if there are pieces.
  void commit(std::size_t inline_bytes, std::span<const ibv_sge> pieces, std::uint64_t cookie);
  // A transfer of the handshake, or the BYE; signalled. False if there is no room.
  bool commit_control(Kind kind, std::uint32_t number, std::span<const std::byte> bytes);
  bool chain_full() const { return chained_ == kChainMax; }
  // Hands the chain to the device; an errno, or 0.
  int post(QueuePair& queue_pair);

  // On a queue pair that has failed: a work request whose completion says that all before it are
  // over. Unsignalled ones that had gone well tell of themselves by no other.
  void post_last(QueuePair& queue_pair);

  // A completion of this transfer (from its work request's id): it and all before it are done.
  void on_done(std::uint64_t id) {
    if (id < done_ || id >= posted_) return;
    if (lanes_.size() == 1) {
      done_ = id + 1;
    } else {
      on_lane_done(id);
    }
  }
  // It was given back unsent, or nobody knows whether it arrived.
  void on_failed(std::uint64_t id);
  // The device has been taken away: nothing is under way any more.
  void on_all_done() {
    chained_ = 0;
    done_ = posted_ = next_;
  }
  // The device has given everything back, sent or not.
  bool drained() const;
  bool anything_chained() const { return chained_ != 0; }
  // Retires what is done up to the next transfer with a cookie, and returns that.
  std::optional<std::uint64_t> next_cookie();
  bool has_done() const { return retired_ != done_; }

 private:
  static constexpr std::size_t kRingAlignment = 64;
  static std::size_t aligned(std::size_t bytes) {
    return (bytes + kRingAlignment - 1) & ~(kRingAlignment - 1);
  }
  static constexpr std::uint32_t kChainMax = 32;
  // Of each resource, before one transfer is signalled: so the last quarter is never waited for.
  static constexpr std::uint32_t kSignalsPerQueue = 4;
  static constexpr std::uint32_t kReserved = 2;  // for the BYE and post_last()

  struct Record {
    std::uint64_t ring_end = 0;
    std::uint64_t cookie = 0;
    std::uint64_t bytes = 0;
    bool has_refs = false;
  };

  // The next transfer on this lane that is not known to be done, or not known to be over at all.
  struct Lane {
    std::uint64_t not_done = 0;
    std::uint64_t not_over = 0;
  };

  SendQueue() = default;
  void on_lane_done(std::uint64_t id);
  void signal(ibv_send_wr& request);
  int post_lanes(QueuePair& queue_pair);
  // The device has its copy of the whole chain (IBV_SEND_INLINE): the next one takes the same
  // place, which is still in this processor's cache.
  void reuse_ring() {
    if (chain_is_copied_ && !begun_) ring_head_ = chain_start_;
  }
  void chain(Kind kind, std::uint32_t number, std::size_t inline_bytes,
             std::span<const ibv_sge> pieces, bool has_refs, std::uint64_t cookie);
  std::size_t copy_what_does_not_fit(std::size_t inline_bytes, std::span<const ibv_sge>& pieces);

  buffer::MemoryRegion ring_;  // of a size that is a power of two
  std::uint64_t ring_mask_ = 0;
  std::shared_ptr<MemoryKey> key_;
  std::uint32_t local_key_ = 0;
  SendLimits limits_;
  std::uint32_t depth_ = 0;
  std::uint32_t gather_max_ = 0;
  std::uint32_t room_min_ = 0;  // in the ring, where pieces may have to be copied into it
  std::uint32_t device_inline_bytes_ = 0;
  std::vector<Record> records_;  // a power of two, by transfer number
  std::uint64_t records_mask_ = 0;

  bool begun_ = false;
  std::size_t space_bytes_ = 0;
  std::uint64_t ring_head_ = 0;  // where the transfer under way begins
  std::uint64_t ring_tail_ = 0;
  std::uint64_t next_ = 0;
  std::uint64_t posted_ = 0;
  std::uint64_t done_ = 0;
  std::vector<Lane> lanes_;
  std::uint64_t retired_ = 0;
  std::uint32_t refs_ = 0;          // transfers with references, not retired
  std::uint64_t bytes_ = 0;         // of all transfers not retired
  std::uint32_t signal_after_ = 0;  // so many transfers, so many bytes of the ring
  std::uint64_t signal_after_ring_bytes_ = 0;
  // Whoever brings next_ or ring_head_ so far is signalled.
  std::uint64_t signal_at_ = 0;
  std::uint64_t signal_at_ring_ = 0;
  // Since the last signalled one:
  std::uint64_t unsignalled_bytes_ = 0;
  bool unsignalled_refs_ = false;

  std::uint32_t chained_ = 0;
  std::uint64_t chain_start_ = 0;  // in the ring
  bool chain_is_copied_ = false;   // so far, all of it
  std::array<ibv_send_wr, kChainMax> requests_{};
  std::array<std::array<ibv_sge, kPiecesMax>, kChainMax> pieces_{};
};

// --- what each small message goes through, so that it becomes part of its caller

inline void SendQueue::commit(std::size_t inline_bytes, std::span<const ibv_sge> pieces,
                              std::uint64_t cookie) {
  SANPROXY_CHECK(begun_ && !chain_full());
  begun_ = false;
  if (pieces.empty()) return chain(Kind::kInline, 0, inline_bytes, {}, false, 0);
  const std::size_t copied = pieces.size() + (inline_bytes != 0) > gather_max_
                                 ? copy_what_does_not_fit(inline_bytes, pieces)
                                 : 0;
  chain(Kind::kReferenced, static_cast<std::uint32_t>(inline_bytes), inline_bytes + copied, pieces,
        true, cookie);
}

inline void SendQueue::chain(Kind kind, std::uint32_t number, std::size_t inline_bytes,
                             std::span<const ibv_sge> pieces, bool has_refs, std::uint64_t cookie) {
  ibv_send_wr& request = requests_[chained_];
  auto& list = pieces_[chained_];
  ++chained_;
  int count = 0;
  std::uint64_t bytes = inline_bytes;
  if (inline_bytes != 0) {
    list[0].addr = reinterpret_cast<std::uintptr_t>(ring_.data() + (ring_head_ & ring_mask_));
    list[0].length = static_cast<std::uint32_t>(inline_bytes);
    list[0].lkey = local_key_;
    count = 1;
  }
  for (const ibv_sge& piece : pieces) {
    list[static_cast<std::size_t>(count++)] = piece;
    bytes += piece.length;
  }
  // Only what is not the same for all.
  request.wr_id = next_;
  request.num_sge = count;
  request.opcode = kind == Kind::kInline ? IBV_WR_SEND : IBV_WR_SEND_WITH_IMM;
  if (kind != Kind::kInline) request.imm_data = htonl(make_immediate(kind, number));
  request.send_flags = bytes <= device_inline_bytes_ ? IBV_SEND_INLINE : 0;

  if (chained_ == 1) {
    chain_start_ = ring_head_;
    chain_is_copied_ = true;
  }
  chain_is_copied_ = chain_is_copied_ && (request.send_flags & IBV_SEND_INLINE) != 0;
  ring_head_ += aligned(inline_bytes);
  records_[next_ & records_mask_] = {chain_is_copied_ ? chain_start_ : ring_head_, cookie, bytes,
                                     has_refs};
  ++next_;
  refs_ += has_refs;
  bytes_ += bytes;
  unsignalled_bytes_ += bytes;
  unsignalled_refs_ = unsignalled_refs_ || has_refs;
  if (next_ >= signal_at_ || ring_head_ >= signal_at_ring_ ||
      (has_refs && refs_ >= limits_.refs_max) ||
      (limits_.window_bytes != 0 && unsignalled_bytes_ >= limits_.window_bytes / kSignalsPerQueue))
      [[unlikely]] {
    signal(request);
  }
}

inline void SendQueue::signal(ibv_send_wr& request) {
  request.send_flags |= IBV_SEND_SIGNALED;
  signal_at_ = next_ + signal_after_;
  signal_at_ring_ = ring_head_ + signal_after_ring_bytes_;
  unsignalled_bytes_ = 0;
  unsignalled_refs_ = false;
}

inline int SendQueue::post(QueuePair& queue_pair) {
  if (chained_ == 0) return 0;
  if (lanes_.size() != 1) [[unlikely]]
    return post_lanes(queue_pair);
  ibv_send_wr& last = requests_[chained_ - 1];
  if (unsignalled_refs_) signal(last);
  for (std::uint32_t i = 0; i + 1 < chained_; ++i) requests_[i].next = &requests_[i + 1];
  last.next = nullptr;
  chained_ = 0;
  posted_ = next_;
  reuse_ring();
  return queue_pair.post(requests_.data());
}

}  // namespace sanproxy::fabric::verbs
