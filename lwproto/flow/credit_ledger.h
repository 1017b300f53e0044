// CreditLedger: counts the receive buffers of one channel, in both directions.
//
// Role: decides whether a transfer may be sent and what is granted to the peer; the channel acts
//   (docs/flow_control.md). Pure arithmetic, no I/O. Modelled on the end-to-end credits of
//   InfiniBand (IBTA vol. 1, 9.7.7.2).
// Owner: one channel. Thread: that channel's.
// Invariants (all counters are totals since HELLO, mod 2^32, differences below 2^31):
//   1. sent <= granted by the peer; the last `reserve` credits go to control transfers only.
//   2. received <= granted to the peer; a transfer beyond is the peer's breach.
//   3. A grant from the peer never goes back and never exceeds `granted_max` outstanding.
#pragma once

#include <cstdint>

#include "lwproto/base/status.h"

namespace sanproxy::flow {

class CreditLedger {
 public:
  CreditLedger() = default;
  // `initial_from_peer`, `reserve_from_peer`: the peer's HELLO. `initial_to_peer`: ours.
  CreditLedger(std::uint32_t initial_from_peer, std::uint32_t reserve_from_peer,
               std::uint32_t initial_to_peer);

  // --- sending
  bool may_send_data() const;     // leaves the control reserve untouched
  bool may_send_control() const;  // any credit left
  std::uint32_t available() const;
  void on_sent();                 // precondition: may_send_control()
  // A cumulative grant from the peer; kProtocol if it goes back or exceeds what it may post.
  Status on_granted(std::uint32_t credits_granted_total);

  // --- receiving
  Status on_received();  // kProtocol if the peer had no credit
  void on_posted(std::uint32_t buffers);  // we posted more receive buffers
  std::uint32_t granted_total() const;    // goes into every TransferHeader
  void on_grant_sent();                   // a transfer with granted_total() has left
  // True when so many grants are unannounced that a pure credit return is due (half of initial).
  bool grant_due() const;

 private:
  std::uint32_t peer_granted_ = 0;
  std::uint32_t peer_window_ = 0;  // the most that the peer may have outstanding
  std::uint32_t reserve_ = 0;
  std::uint32_t sent_ = 0;
  std::uint32_t granted_ = 0;
  std::uint32_t granted_sent_ = 0;
  std::uint32_t window_ = 0;
  std::uint32_t received_ = 0;
};

}  // namespace sanproxy::flow
