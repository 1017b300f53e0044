// derive_pool_sizes: the one place where pool sizes come from (docs/buffer_ownership.md).
#pragma once

#include <cstddef>
#include <cstdint>

namespace sanproxy::buffer {

// A slot of the IngressPool takes what one read of an interface can yield: a 64 KB super-packet
// with the driver's metadata and an Ethernet header in front.
inline constexpr std::size_t kIngressSlotBytes = 65536 + 128;
// A slot of the EgressPool takes one whole transfer: the inline part and a referenced payload.
inline constexpr std::size_t kEgressSlotBytes = 8192 + 65536;
// Payload that a slot holds when it is full: the unit in which windows are counted here.
inline constexpr std::size_t kSlotPayloadBytes = 65536;
// Slots that each pool has at least, besides the posted ones, whatever the ceilings say.
inline constexpr std::size_t kSpareSlotsMin = 64;

struct PoolInputs {
  std::uint32_t connections_max = 0;
  std::uint32_t receive_window_bytes = 0;  // of one connection, client to application
  std::uint32_t send_window_bytes = 0;     // of one connection, application to client
  // Receive buffers posted by all channels whose fabric receives into the EgressPool: channels *
  // credits of each such fabric.
  std::uint64_t receives_posted = 0;
  std::uint32_t rx_burst = 0;  // descriptors posted to an interface at a time
  std::uint32_t interfaces = 0;
  // Receive buffers posted by the channels of network nodes whose fabric receives into the
  // IngressPool. Other than 0: its slots take whole transfers.
  std::uint64_t packet_receives_posted = 0;
  std::size_t ingress_bytes_max = 0;  // operator's ceilings; 0 is none
  std::size_t egress_bytes_max = 0;
};

struct PoolSizes {
  std::size_t ingress_slot_bytes = 0;
  std::size_t ingress_slots = 0;
  std::size_t egress_slot_bytes = 0;
  std::size_t egress_slots = 0;
};

// The arithmetic is in comments at each line of the definition. The demand of every connection
// at its full window at once is unbounded in practice, so the ceilings cut it and back-pressure
// does the rest; each result still holds the posted descriptors and kSpareSlotsMin slots.
PoolSizes derive_pool_sizes(const PoolInputs& inputs);

}  // namespace sanproxy::buffer
