#include "lwproto/buffer/pool_sizes.h"

#include <algorithm>

#include "lwproto/buffer/slot_pool.h"

namespace sanproxy::buffer {
namespace {

// No pool can be larger than its slots can be named, so every count stops there; that keeps all
// products below 2^64 (32-bit counts, times at most 2^16 + 1 slots a window, times 2).
std::uint64_t capped(std::uint64_t slots) { return std::min<std::uint64_t>(slots, kNoSlot); }

std::uint64_t slots_for_windows(std::uint64_t connections, std::uint64_t window_bytes) {
  if (window_bytes == 0) return 0;
  // A window that is full spans this many whole slots, and its bytes begin in the middle of one:
  // ceil(window / payload) + 1.
  return capped(connections * ((window_bytes + kSlotPayloadBytes - 1) / kSlotPayloadBytes + 1));
}

// `posted` always fits; the ceiling cuts what comes on top, down to the spare slots.
std::size_t bounded(std::uint64_t posted, std::uint64_t held, std::size_t slot_bytes,
                    std::size_t bytes_max) {
  const std::uint64_t floor = posted + kSpareSlotsMin;
  const std::uint64_t wanted = std::max(posted + held, floor);
  const std::uint64_t ceiling = bytes_max == 0 ? wanted : bytes_max / slot_bytes;
  return capped(std::max(floor, std::min(wanted, ceiling)));
}

}  // namespace

PoolSizes derive_pool_sizes(const PoolInputs& in) {
  PoolSizes out;
  out.ingress_slot_bytes = in.packet_receives_posted == 0 ? kIngressSlotBytes : kEgressSlotBytes;
  out.egress_slot_bytes = kEgressSlotBytes;

  // Ingress, posted: every interface has rx_burst buffers lent to it, and the burst before may
  // still be in the endpoints' hands when they are lent again: interfaces * rx_burst * 2.
  // A credit of a network node is a receive buffer on top.
  const std::uint64_t ingress_posted =
      capped(std::uint64_t{in.interfaces} * in.rx_burst) * 2 + capped(in.packet_receives_posted);
  // Ingress, held: bytes that an application has not freed keep its client's window closed, so a
  // connection holds at most its receive window: connections * (ceil(window / 64 KB) + 1).
  const std::uint64_t ingress_held = slots_for_windows(in.connections_max, in.receive_window_bytes);
  out.ingress_slots =
      bounded(ingress_posted, ingress_held, out.ingress_slot_bytes, in.ingress_bytes_max);

  // Egress, posted: a credit is a receive buffer.
  const std::uint64_t egress_posted = capped(in.receives_posted);
  // Egress, held: bytes that a client has not acknowledged stay in the buffer that they came in,
  // at most a send window a connection: connections * (ceil(window / 64 KB) + 1).
  const std::uint64_t egress_held = slots_for_windows(in.connections_max, in.send_window_bytes);
  out.egress_slots =
      bounded(egress_posted, egress_held, out.egress_slot_bytes, in.egress_bytes_max);
  return out;
}

}  // namespace sanproxy::buffer
