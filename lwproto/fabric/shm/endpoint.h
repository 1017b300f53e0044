// ShmEndpoint: one side of a shm channel.
//
// Document: docs/shm_fabric.md.
// Role: implements fabric::Endpoint over OwnMemory (ours, the peer reads it) and PeerMemory (the
//   peer's, we only read it). Sending and closing are in endpoint.cc, everything that takes bytes
//   from the peer is in endpoint_receive.cc.
// Owner: the caller of accept() or poll(). Thread: the fabric's.
// Invariants (all counters are totals):
//   1. peer_tail_ <= head_published_ <= head_ <= peer_tail_ + ring size.
//   2. tail_ <= cursor_ <= seen_head_ <= tail_ + the peer's ring size. Bytes in [tail_, cursor_)
//      were delivered by the last poll() and are still readable.
//   3. outstanding_ slots of sends_ are in use; a slot's token is on its way to or from the peer.
//   4. A peer's region stays mapped while anything of it is on loan, or the endpoint lives.
//   5. open -> draining (the peer is gone, its last transfers are delivered) -> failing (cookies
//      come back) -> done; a local disconnection goes from open or draining to failing.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/shm/core.h"
#include "lwproto/fabric/shm/memory.h"
#include "lwproto/fabric/shm/unix_socket.h"

namespace sanproxy::fabric::shm {

// Everything that a finished handshake has gathered.
struct EndpointParts {
  std::shared_ptr<Core> core;
  UniqueFd socket;
  UniqueFd doorbell;  // our end of the pair: readable when the peer has rung
  OwnMemory own;
  PeerMemory peer;
  PeerIdentity identity;
  EndpointOptions options;
};

class ShmEndpoint final : public Endpoint, private PollTarget {
 public:
  static Result<std::unique_ptr<Endpoint>> create(EndpointParts parts);
  // To be done before the peer may see `own`.
  static void prepare(const OwnMemory& own, const EndpointOptions& options);
  ~ShmEndpoint() override;
  ShmEndpoint(const ShmEndpoint&) = delete;
  ShmEndpoint& operator=(const ShmEndpoint&) = delete;

  const PeerIdentity& peer() const override { return identity_; }
  Result<RegionKey> attach(const buffer::MemoryRegion& region) override {
    return attach_memory(region.fd(), region.size());
  }
  Result<RegionKey> attach_passed(const PassedRegion& region) override {
    return attach_memory(region.fd, region.bytes);
  }
  Status detach(RegionKey key) override;
  Result<std::span<std::byte>> begin_send(std::size_t inline_bytes) override;
  Status commit_send(std::size_t inline_bytes, std::span<const GatherRef> refs,
                     std::uint64_t cookie) override;
  void flush() override;
  void publish() override;
  // But for the last place, without which nothing begins: it is for what takes none.
  std::uint32_t references_left() const override {
    const std::uint32_t kept = send_depth_ > 1 ? 1 : 0;
    return send_depth_ - std::min(send_depth_, outstanding_ + kept);
  }
  std::uint32_t references_max() const override { return send_depth_; }
  bool peer_sleeps() const override;
  void empty_doorbell();  // of old rings, so that it never fills
  std::size_t poll(std::span<Completion> out) override;
  void release(Loan loan) override;
  std::uint32_t replenish() override;
  void disconnect(Status reason) override;
  bool connected() const override { return state_ == State::kOpen; }
  bool peer_present() const override;

  // For arm(): poll() would deliver something or make room, or has made room of which the owner
  // may not know yet (said once: it may have lost interest).
  bool take_work();

 private:
  enum class State : std::uint8_t { kOpen, kDraining, kFailing, kDone };
  struct SendSlot {
    std::uint64_t cookie = 0;
    std::uint32_t generation = 0;  // 16 bits travel
    bool used = false;
  };
  struct LoanSlot {
    std::uint32_t token = 0;
    std::uint32_t generation = 1;
    bool used = false;
    std::uint8_t ref_count = 0;
    std::array<std::uint16_t, kGatherRefsMax> places{};  // of the regions it is of
  };
  // A region that we show to the peer, by its place.
  struct OwnRegion {
    RegionKey key = 0;       // 0: free
    RegionKey last_key = 0;  // the place's
    std::uint64_t bytes = 0;
  };
  struct PeerRegion {
    RegionKey key = 0;  // 0: free
    RegionKey last_key = 0;
    std::uint32_t refs = 0;  // on loan to our owner
    Mapping mapping;
    UniqueFd fd;  // kept where there is somebody to pass it on
  };

  explicit ShmEndpoint(EndpointParts parts);

  // The place given back last, or one more. Precondition: there is one; room is reserved.
  template <typename Slot>
  static std::uint32_t take_place(std::vector<std::uint32_t>& free, std::vector<Slot>& slots) {
    if (free.empty()) {
      slots.emplace_back();
      return static_cast<std::uint32_t>(slots.size() - 1);
    }
    const std::uint32_t index = free.back();
    free.pop_back();
    return index;
  }

  Status closed_status() const;
  Result<RegionKey> attach_memory(int fd, std::uint64_t bytes);
  Status check_refs(std::size_t inline_bytes, std::span<const GatherRef> refs) const;
  bool refresh_room();  // false after a breach
  void ring_peer();
  void close_socket();

  void on_events(std::uint32_t events) override;
  void drain_socket();
  void read_socket();
  Status take_region_message(ReceivedMessage& message, std::span<const std::byte> bytes);
  Status take_region(const RegionMessage& region, UniqueFd fd);
  Status lose_region(const RegionMessage& region);
  void unmap(PeerRegion& region);
  bool knows_region(RegionKey key) const;
  void on_end();
  void breach(const char* text) { disconnect(Status::error(Code::kProtocol, text)); }
  bool see_head(std::uint64_t head);
  std::size_t poll_slow(std::span<Completion> out);
  std::size_t take_returns(std::span<Completion> out, std::uint64_t returns_head);
  std::size_t take_transfers(std::span<Completion> out);
  bool take_transfer(Completion& out);
  bool take_refs(const std::byte* at, std::uint32_t count, std::uint64_t total, LoanSlot& loan,
                 Completion& out);
  LoanSlot* take_loan(std::uint32_t token, Completion& out);
  std::size_t poll_failing(std::span<Completion> out);

  std::shared_ptr<Core> core_;
  UniqueFd socket_;
  UniqueFd doorbell_;
  OwnMemory own_;
  PeerMemory peer_;
  PeerIdentity identity_;
  State state_ = State::kOpen;
  bool waiting_ = false;     // begin_send() found no room
  bool room_news_ = false;   // poll() has found some since
  bool ring_due_ = false;    // published, but the peer may still sleep
  bool tail_dirty_ = false;  // room was given back since the last flush()
  Status reason_;

  // Limits agreed on in the handshake.
  std::uint32_t inline_bytes_max_ = 0;
  std::uint32_t transfer_bytes_max_ = 0;
  std::uint32_t receive_depth_ = 0;

  // Sending.
  std::byte* ring_ = nullptr;
  std::uint64_t ring_bytes_ = 0;
  std::uint64_t head_ = 0;
  std::uint64_t head_published_ = 0;
  std::uint64_t peer_tail_ = 0;
  std::uint64_t sent_ = 0;         // transfers
  std::uint64_t peer_posted_ = 0;  // the peer's receive buffers, as last seen
  std::uint64_t peer_kicked_ = 0;  // the sleep epoch for which the peer was last woken
  std::size_t space_bytes_ = 0;    // of the begin_send() under way
  bool begun_ = false;
  std::uint32_t send_depth_ = 0;
  std::vector<SendSlot> sends_;  // those ever used; room for send_depth_
  std::vector<std::uint32_t> free_sends_;
  std::uint32_t outstanding_ = 0;
  std::size_t failing_next_ = 0;
  std::vector<OwnRegion> own_regions_;
  std::uint64_t own_region_total_ = 0;

  // Receiving.
  const std::byte* peer_ring_ = nullptr;
  std::uint64_t peer_ring_bytes_ = 0;
  std::uint64_t tail_ = 0;
  std::uint64_t cursor_ = 0;
  std::uint64_t seen_head_ = 0;
  std::uint64_t returns_taken_ = 0;  // from the peer's return ring
  std::uint64_t returns_end_ = 0;    // draining: where that ring ends
  std::uint64_t returns_ = 0;        // written to ours
  std::uint64_t returns_published_ = 0;
  std::uint64_t received_ = 0;
  std::uint64_t posted_ = 0;
  std::vector<LoanSlot> loans_;  // those ever used; room for our return_entries
  std::vector<std::uint32_t> free_loans_;
  std::vector<PeerRegion> peer_regions_;
  std::uint64_t peer_region_total_ = 0;
  std::uint32_t regions_max_ = 0;
  std::uint32_t messages_left_ = 0;  // of the peer's socket, before poll() or on_events() ends
  std::uint64_t peer_region_bytes_max_ = 0;
};

}  // namespace sanproxy::fabric::shm
