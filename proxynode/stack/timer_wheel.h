// TimerWheel: coarse deadlines of connections that have nothing else to wait for.
//
// Role: keepalive and the end of FIN-WAIT-2, up to hours away, for every connection; costs
//   nothing an idle connection a tick. A deadline beyond one turn stays in its slot for several
//   turns. Modelled on the hashed timing wheel of Varghese and Lauck (SOSP 1987), scheme 6.
// Owner: the Stack. Thread: the worker's.
// Invariants:
//   1. A connection has at most one entry; the links are in its record.
//   2. A deadline is never early and at most one tick late.
#pragma once

#include <array>
#include <cstdint>

#include "lwproto/base/reserved_array.h"
#include "proxynode/stack/connection.h"

namespace sanproxy::stack {

class TimerWheel {
 public:
  static constexpr std::uint64_t kTickNs = 250'000'000;

  TimerWheel(ReservedArray<Connection>& connections, std::uint64_t now_ns);

  void arm(ConnIndex conn, std::uint64_t deadline_ns);  // moves an entry that is there
  void disarm(ConnIndex conn);
  // A connection whose deadline has passed, disarmed; or kNone when there is no more.
  ConnIndex pop_due(std::uint64_t now_ns);
  // A time at which to call pop_due(), no later than the first deadline; UINT64_MAX when empty.
  std::uint64_t next_ns() const;

 private:
  static constexpr std::uint32_t kSlots = 512;

  ReservedArray<Connection>& connections_;
  std::array<std::uint32_t, kSlots> heads_;
  std::array<std::uint64_t, kSlots / 64> used_{};
  std::uint32_t tick_;            // all slots up to this one are done
  std::uint32_t cursor_ = kNone;  // the next entry of the slot being looked at
  bool in_slot_ = false;
};

}  // namespace sanproxy::stack
