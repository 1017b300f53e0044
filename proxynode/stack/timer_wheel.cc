#include "proxynode/stack/timer_wheel.h"

#include <bit>

namespace sanproxy::stack {

TimerWheel::TimerWheel(ReservedArray<Connection>& connections, std::uint64_t now_ns)
    : connections_(connections), tick_(static_cast<std::uint32_t>(now_ns / kTickNs)) {
  heads_.fill(kNone);
}

void TimerWheel::arm(ConnIndex index, std::uint64_t deadline_ns) {
  if (connections_[index].in_wheel) disarm(index);
  Connection& conn = connections_[index];
  auto tick = static_cast<std::uint32_t>((deadline_ns + kTickNs - 1) / kTickNs);
  if (static_cast<std::int32_t>(tick - tick_) <= 0) tick = tick_ + 1;
  const std::uint32_t slot = tick % kSlots;
  conn.wheel_tick = tick;
  conn.wheel_prev = kNone;
  conn.wheel_next = heads_[slot];
  if (conn.wheel_next != kNone) connections_[conn.wheel_next].wheel_prev = index;
  heads_[slot] = index;
  used_[slot / 64] |= std::uint64_t{1} << (slot % 64);
  conn.in_wheel = true;
}

void TimerWheel::disarm(ConnIndex index) {
  Connection& conn = connections_[index];
  if (!conn.in_wheel) return;
  const std::uint32_t slot = conn.wheel_tick % kSlots;
  if (cursor_ == index) cursor_ = conn.wheel_next;
  if (conn.wheel_next != kNone) connections_[conn.wheel_next].wheel_prev = conn.wheel_prev;
  if (conn.wheel_prev != kNone) {
    connections_[conn.wheel_prev].wheel_next = conn.wheel_next;
  } else {
    heads_[slot] = conn.wheel_next;
    if (heads_[slot] == kNone) used_[slot / 64] &= ~(std::uint64_t{1} << (slot % 64));
  }
  conn.in_wheel = false;
}

ConnIndex TimerWheel::pop_due(std::uint64_t now_ns) {
  const auto now = static_cast<std::uint32_t>(now_ns / kTickNs);
  for (;;) {
    while (in_slot_ && cursor_ != kNone) {
      const ConnIndex index = cursor_;
      Connection& conn = connections_[index];
      cursor_ = conn.wheel_next;
      if (static_cast<std::int32_t>(conn.wheel_tick - now) > 0) continue;  // a later turn
      disarm(index);
      return index;
    }
    in_slot_ = false;
    if (tick_ == now) return kNone;
    // After a long sleep one turn visits every slot once.
    if (now - tick_ > kSlots) tick_ = now - kSlots;
    ++tick_;
    cursor_ = heads_[tick_ % kSlots];
    in_slot_ = true;
  }
}

std::uint64_t TimerWheel::next_ns() const {
  if (in_slot_) return std::uint64_t{tick_} * kTickNs;
  for (std::uint32_t ahead = 1; ahead <= kSlots;) {
    const std::uint32_t slot = (tick_ + ahead) % kSlots;
    const std::uint64_t word = used_[slot / 64] >> (slot % 64);
    if (word == 0) {
      ahead += 64 - slot % 64;
      continue;
    }
    ahead += static_cast<std::uint32_t>(std::countr_zero(word));
    if (ahead > kSlots) break;
    return (std::uint64_t{tick_} + ahead) * kTickNs;
  }
  return UINT64_MAX;
}

}  // namespace sanproxy::stack
