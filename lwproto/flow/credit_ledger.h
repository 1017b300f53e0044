// CreditLedger: counts the receive buffers of one channel, in both directions.
//
// Role: decides whether a transfer may be sent and what is granted to the peer; the channel acts
//   (docs/flow_control.md). Pure arithmetic, no I/O. Modelled on the end-to-end credits of
//   InfiniBand (IBTA vol. 1, 9.7.7.2).
// Owner: one channel. Thread: that channel's.
// Invariants (all counters are totals since HELLO, mod 2^32, differences at most kCreditsMax):
//   1. sent <= granted by the peer. The last `reserve` credits go to control transfers only, half
//      of them also to CREDITs, and the very last one only to a transfer that brings the peer a
//      new grant: so two channels that have spent everything can still wake each other up.
//   2. received <= granted to the peer; a transfer beyond is the peer's breach.
//   3. A grant from the peer never goes back and never exceeds what the peer may have posted.
//   4. posted - received <= window: posting more than we announced in HELLO is our bug.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lwproto/base/check.h"
#include "lwproto/base/status.h"

namespace sanproxy::flow {

class CreditLedger {
 public:
  CreditLedger() = default;
  // `initial_from_peer`, `reserve_from_peer`: the peer's HELLO. `initial_to_peer`: ours.
  // `start`: where all totals start; other than 0 only to look at the wrap of the counters.
  CreditLedger(std::uint32_t initial_from_peer, std::uint32_t reserve_from_peer,
               std::uint32_t initial_to_peer, std::uint32_t start = 0);

  // --- sending
  // Leaves the control reserve untouched.
  bool may_send_data() const { return available() > reserve_; }
  // Leaves half of the control reserve. A CREDIT may be what the peer waits for before it posts the
  // buffers again that hold everything else up, and takes none away itself.
  bool may_send_credit() const { return available() > std::max(reserve_ / 2, 1u); }
  // A credit is left, and it is not the last one unless the transfer announces something.
  bool may_send_control() const {
    const std::uint32_t credits = available();
    return credits > 1 || (credits == 1 && unannounced() != 0);
  }
  std::uint32_t available() const { return peer_granted_ - sent_; }
  void on_sent() {  // precondition: may_send_control()
    SANPROXY_CHECK(peer_granted_ != sent_);
    ++sent_;
  }
  // A cumulative grant from the peer; kProtocol if it goes back or exceeds what it may post.
  Status on_granted(std::uint32_t credits_granted_total) {
    // The peer has received at most `sent_`, so it can have granted at most `sent_` + its window.
    // Counted from the last grant, a total that goes back is a huge step forward.
    const std::uint32_t step = credits_granted_total - peer_granted_;
    if (step > peer_window_ - available()) [[unlikely]]
      return grant_refused();
    peer_granted_ = credits_granted_total;
    return {};
  }

  // --- receiving
  Status on_received() {  // kProtocol if the peer had no credit
    if (received_ == granted_sent_) [[unlikely]]
      return overrun();
    ++received_;
    return {};
  }
  // We posted more receive buffers.
  void on_posted(std::uint32_t buffers) {
    SANPROXY_CHECK(buffers <= window_ - (granted_ - received_));
    granted_ += buffers;
  }
  std::uint32_t granted_total() const { return granted_; }       // goes into every TransferHeader
  std::uint32_t posted() const { return granted_ - received_; }  // receive buffers not yet filled
  // A transfer with granted_total() has left.
  void on_grant_sent() { granted_sent_ = granted_; }
  // True when a pure credit return is due: half of the initial grant is unannounced, or the peer
  // is running dry. Never for a single buffer: a pure return uses one up itself, and two idle
  // sides would answer each other for ever.
  bool grant_due() const {
    const std::uint32_t news = unannounced();
    const std::uint32_t left_to_peer = granted_sent_ - received_;
    return news >= 2 && (news >= window_ / 2 || left_to_peer <= window_ / 4);
  }
  // The peer knows of more than half of its credits, so neither a grant nor receive buffers are
  // missing so much that they could not wait for its next transfer.
  bool peer_is_well_off() const { return granted_sent_ - received_ > window_ / 2; }
  std::uint32_t unannounced() const { return granted_ - granted_sent_; }

 private:
  static Status grant_refused();
  static Status overrun();

  std::uint32_t peer_granted_ = 0;
  std::uint32_t peer_window_ = 0;  // the most that the peer may have outstanding
  std::uint32_t reserve_ = 1;
  std::uint32_t sent_ = 0;
  std::uint32_t granted_ = 0;
  std::uint32_t granted_sent_ = 0;
  std::uint32_t window_ = 0;
  std::uint32_t received_ = 0;
};

}  // namespace sanproxy::flow
