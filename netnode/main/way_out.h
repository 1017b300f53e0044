// WayOut: packets on their way out of one interface, kept until they have left.
//
// Document: docs/netnode.md "MTU".
// Role: gathers a round's packets for one interface, sends them as one burst and gives their slots
//   back. Cuts super-packets that would be too large for the interface.
// Owner: a DataPath. Thread: its.
// Invariants:
//   1. A slot given to push() is released exactly once: by flush(), or at once by a push() that
//      cannot take it.
//   2. Bytes named by a pushed packet stay until flush() returns.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <vector>

#include "netnode/packet_io/packet_io.h"
#include "netnode/packet_io/packet_pool.h"

namespace sanproxy::netnode {

struct WayOutCounters {
  std::uint64_t packets = 0;
  std::uint64_t dropped_full = 0;  // the device took no more
};

class WayOut {
 public:
  static constexpr std::size_t kQueueMax = 256;
  static constexpr std::size_t kHeaderBytesMax = 256;

  WayOut(packet_io::PacketIo& io, packet_io::PacketPool& pool);

  packet_io::PacketIo& io() { return io_; }
  // Queues the packet that place() has prepared; `slot` may be kNoSlot.
  void push(buffer::SlotIndex slot);
  packet_io::SendPacket& place();  // the next packet to fill in; flushes when the queue is full
  // Room for headers in front of a payload that lies elsewhere; good until the flush after the
  // packet of the last place() was pushed.
  std::span<std::byte> header_room() { return headers_[count_]; }
  void flush();
  const WayOutCounters& counters() const { return counters_; }

 private:
  packet_io::PacketIo& io_;
  packet_io::PacketPool& pool_;
  std::vector<packet_io::SendPacket> packets_;
  std::vector<buffer::SlotIndex> slots_;
  std::vector<std::array<std::byte, kHeaderBytesMax>> headers_;
  std::size_t count_ = 0;
  WayOutCounters counters_;
};

}  // namespace sanproxy::netnode
