// QueueSteering: which of several queues of one interface a packet comes in by.
//
// Documents: docs/packet_io.md "Several queues"; Linux tun (TUNSETSTEERINGEBPF), packet(7)
//   (PACKET_FANOUT_EBPF).
// Role: one function in two shapes, as arithmetic for us and as a BPF program for the kernel, so
//   that a worker that opens a connection can choose a port whose answers come to itself.
// Owner: whoever opens the queues. Thread: values.
// Invariants:
//   1. The queue depends on the seed, the addresses and (TCP, no fragment) the ports of a packet
//      alone: never on which queues have a reader, so nothing moves when one dies.
//   2. Fragments go by their addresses: all of one packet to one queue. What is no IP goes to
//      queue 0.
#pragma once

#include <cstdint>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"

namespace sanproxy::packet_io {

inline constexpr std::uint32_t kQueuesMax = 64;

struct QueueSteering {
  std::uint32_t queues = 1;
  std::uint64_t seed = 0;  // not to be guessed: who knows it may choose the queue

  // Of a TCP packet from `source` to `destination` (received by us).
  std::uint32_t queue_of(const SocketAddress& source, const SocketAddress& destination) const;
};

// The same as a program for the kernel, which takes its result modulo the number of queues.
Result<UniqueFd> load_steering_program(const QueueSteering& steering);

}  // namespace sanproxy::packet_io
