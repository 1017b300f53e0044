// Worker::Interface: an interface of a worker, and what is lent to its driver.
//
// Owner: the Worker. Thread: its.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>

#include "proxynode/main/worker.h"

namespace sanproxy::proxy {

// Packets received from an interface in one round: enough to pay for the round.
inline constexpr std::size_t kBurst = 64;

struct Worker::Interface {
  std::unique_ptr<packet_io::PacketIo> io;
  stack::InterfaceIndex index = 0;
  // Slots lent to the driver: the first `posted` entries of both arrays.
  std::size_t posted = 0;
  std::size_t burst = kBurst;    // how many of them the next round offers
  std::size_t offered = kBurst;  // how many packets the last round would have taken
  std::array<buffer::SlotIndex, kBurst> slots{};
  std::array<packet_io::ReceiveBuffer, kBurst> buffers{};
  std::array<packet_io::ReceivedPacket, kBurst> packets{};
  std::array<std::span<const std::byte>, kBurst> bytes{};  // of the same packets
};

}  // namespace sanproxy::proxy
