// HeldPackets: the few packets that wait for their next hop's MAC address.
//
// Role: a fixed number of copies of small packets, by next hop, first in first out.
// Owner: Neighbor. Thread: its.
// Invariants:
//   1. kHeldPacketsMax packets of kHeldPacketBytesMax in all and kHeldPerHopMax for one next hop;
//      what does not fit is refused (TCP sends it again).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "netnode/net/ethernet.h"
#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

inline constexpr std::size_t kHeldPacketsMax = 64;
inline constexpr std::size_t kHeldPerHopMax = 8;
inline constexpr std::size_t kHeldPacketBytesMax = 2048;

class HeldPackets {
 public:
  struct Held {
    IpAddress next_hop;  // of no family: the place is free
    std::uint64_t sequence = 0;
    std::uint32_t length = 0;
    Offload offload;
    // Room for the frame header in front, so that the packet leaves in one piece.
    std::array<std::byte, net::kEthernetHeaderBytes + kHeldPacketBytesMax> frame;
  };

  HeldPackets() : places_(kHeldPacketsMax) {}
  [[nodiscard]] bool hold(const IpAddress& next_hop, const SendPacket& packet);
  // Takes out the oldest packet of a next hop; nullptr when there is none. Valid until the next
  // call.
  Held* take(const IpAddress& next_hop);
  std::size_t size() const { return size_; }

 private:
  std::vector<Held> places_;
  std::uint64_t sequence_ = 0;
  std::size_t size_ = 0;
};

}  // namespace sanproxy::packet_io
