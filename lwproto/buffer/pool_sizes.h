// derive_pool_sizes: the one place where pool sizes come from (docs/buffer_ownership.md).
#pragma once

#include <cstddef>
#include <cstdint>

namespace sanproxy::buffer {

struct PoolInputs {
  std::uint32_t connections_max = 0;
  std::uint32_t receive_window_bytes = 0;   // of one connection, client to application
  std::uint32_t send_window_bytes = 0;      // of one connection, application to client
  std::uint32_t channels_max = 0;
  std::uint32_t channel_credits = 0;        // receive buffers posted a channel
  std::uint32_t rx_burst = 0;               // descriptors posted to an interface at a time
  std::uint32_t interfaces = 0;
  std::size_t ingress_bytes_max = 0;        // operator's ceilings; 0 is none
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
// does the rest; each result still holds the posted descriptors and at least 64 slots.
PoolSizes derive_pool_sizes(const PoolInputs& inputs);

}  // namespace sanproxy::buffer
