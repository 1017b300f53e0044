// VerbsEndpoint: one side of a verbs channel.
//
// Document: docs/verbs_fabric.md.
// Role: implements fabric::Endpoint over a QueuePair, a SendQueue and a ReceiveQueue. The life of
//   the channel is in endpoint.cc, completions in endpoint_completions.cc.
// Owner: the caller of accept() or poll(). Thread: the fabric's.
// Invariants:
//   1. kOpen -> kClosing (we end it: the last transfers and the BYE are under way) -> kFlushing
//      (broken; the device gives work requests back) -> kReporting (cookies come back) -> kDone.
//      kOpen -> kDraining (the peer has ended it or is gone: what arrived is still delivered) ->
//      kReporting -> kDone.
//   2. kClosing ends at its deadline, kFlushing and kDraining once the completion queue is empty
//      after theirs, whatever peer and device do.
//   3. In kReporting and kDone there is no queue pair: the device knows no buffer of ours.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/verbs/core.h"
#include "lwproto/fabric/verbs/pacer.h"
#include "lwproto/fabric/verbs/queue_pair.h"
#include "lwproto/fabric/verbs/receive_queue.h"
#include "lwproto/fabric/verbs/send_queue.h"

namespace sanproxy::fabric::verbs {

// Everything that a finished handshake has gathered.
struct EndpointParts {
  std::shared_ptr<Core> core;
  std::unique_ptr<ReceiveQueue> receive;
  std::unique_ptr<SendQueue> send;
  std::unique_ptr<QueuePair> queue_pair;
  PeerIdentity identity;
  EndpointOptions options;
  LinkParameters link;
};

// What both sides check before they make anything of `options`.
Status check_options(const EndpointOptions& options);
CmHeader header_of(const EndpointOptions& options);
// kProtocol if the peer takes smaller transfers than we would send.
Status check_peer_sizes(const EndpointOptions& ours, const CmHeader& peers);
QueueSizes queue_sizes_of(const EndpointOptions& options, std::uint32_t queue_pairs);
SendLimits send_limits_of(const EndpointOptions& options);

class VerbsEndpoint final : public Endpoint, private Target, private Sleeper {
 public:
  explicit VerbsEndpoint(EndpointParts parts);
  ~VerbsEndpoint() override;
  VerbsEndpoint(const VerbsEndpoint&) = delete;
  VerbsEndpoint& operator=(const VerbsEndpoint&) = delete;

  const PeerIdentity& peer() const override { return identity_; }
  LinkParameters link() const override { return link_; }
  Result<RegionKey> attach(const buffer::MemoryRegion& region) override;
  Result<std::span<std::byte>> begin_send(std::size_t inline_bytes) override;
  Status commit_send(std::size_t inline_bytes, std::span<const GatherRef> refs,
                     std::uint64_t cookie) override;
  Status commit_last(std::size_t inline_bytes, std::span<const GatherRef> refs,
                     std::uint64_t cookie) override;
  void flush() override;
  std::size_t poll(std::span<Completion> out) override;
  void release(Loan loan) override { receive_->release(loan); }
  std::uint32_t replenish() override;
  void disconnect(Status reason) override;
  bool connected() const override { return state_ == State::kOpen; }

  void peer_has_gone();  // as a connecting attempt has seen

 private:
  enum class State : std::uint8_t { kOpen, kClosing, kFlushing, kDraining, kReporting, kDone };
  static constexpr std::size_t kStash = 32;

  struct Region {
    std::shared_ptr<MemoryKey> key;
    std::size_t bytes = 0;
  };

  void on_cm_event(const CmEvent& event) override;
  void on_failure(Status reason) override;
  bool prepare_sleep() override;
  bool has_completions() override;
  std::uint64_t deadline_ns() const override;
  void on_time(std::uint64_t /*now_ns*/) override {}  // poll() looks at the deadline

  Status commit(std::size_t inline_bytes, std::span<const GatherRef> refs, std::uint64_t cookie);
  void post_chain();
  Status closed_status() const;
  Result<std::span<std::byte>> begin_with_care(std::size_t inline_bytes);
  Status commit_references(std::size_t inline_bytes, std::span<const GatherRef> refs,
                           std::uint64_t cookie);
  Status gather(std::size_t inline_bytes, std::span<const GatherRef> refs,
                std::array<ibv_sge, kGatherRefsMax>& pieces, std::uint64_t& total) const;
  void start_draining(Status reason);
  void explain(Status reason);
  void start_flushing();
  void fail();
  void start_reporting();
  void set_deadline(std::uint64_t wait_ns);

  // There is nothing of earlier polls to look at, in the one state that lasts.
  bool nothing_left() const {
    return state_ == State::kOpen && stash_next_ == stash_count_ && !send_->has_done() &&
           !receive_->next_is_here();
  }
  bool fill_stash();
  bool anything_new();  // likewise, where speed does not matter
  std::size_t take_stash(std::span<Completion> out);
  bool take_inline(const ibv_wc& completion, Completion& out);
  std::size_t poll_rest(std::span<Completion> out);
  std::size_t take_completions(std::span<Completion> out);
  bool handle(const ibv_wc& completion, Completion* out);
  void handle_send(const ibv_wc& completion);
  void handle_failed(const ibv_wc& completion);
  bool handle_receive(const Arrival& arrival, buffer::SlotIndex slot, Completion* out);
  bool may_come();
  bool deliver(const Arrival& arrival, buffer::SlotIndex slot, Completion* out);
  bool deliver_inline(std::uint32_t length, buffer::SlotIndex slot, Completion& out);
  void fill_inline(std::uint32_t length, buffer::SlotIndex slot, Completion& out);
  bool deliver_referenced(std::uint32_t inline_bytes, std::uint32_t length, buffer::SlotIndex slot,
                          Completion& out);
  void breach(const char* text) { disconnect(Status::error(Code::kProtocol, text)); }
  void look_at_progress();
  std::size_t report(std::span<Completion> out);

  std::shared_ptr<Core> core_;
  PeerIdentity identity_;
  EndpointOptions options_;
  LinkParameters link_;
  Pacer pacer_;
  std::vector<Region> regions_;  // by key - 1
  std::uint64_t region_bytes_ = 0;
  // In this order, so that the queue pair goes first: then the device lets go of the memory.
  std::unique_ptr<ReceiveQueue> receive_;
  std::unique_ptr<SendQueue> send_;
  std::unique_ptr<QueuePair> queue_pair_;
  State state_ = State::kOpen;
  Status reason_;
  bool reason_is_vague_ = false;  // kDraining: something else may know better
  std::uint64_t deadline_ns_ = kNever;
  bool waiting_ = false;    // begin_send() found no room
  bool room_news_ = false;  // poll() has found some since
  bool paced_ = false;      // begin_send() came too early for the link's rate
  std::array<ibv_wc, kStash> stash_;
  std::size_t stash_next_ = 0;
  std::size_t stash_count_ = 0;
};

}  // namespace sanproxy::fabric::verbs
