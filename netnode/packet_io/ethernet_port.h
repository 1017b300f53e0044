// EthernetPort: between Ethernet frames and the IP packets that PacketIo speaks of.
//
// Document: docs/packet_io.md.
// Role: sorts received frames (ours, ARP, neighbour discovery, the rest by reason) and writes the
//   frame header of what is sent. Shared by the TAP and AF_PACKET drivers; no I/O of its own.
// Owner: a driver. Thread: the worker's.
// Invariants:
//   1. A frame that inbound() accepts carries an IP packet for us, cut to its own length.
#pragma once

#include <cstdint>
#include <span>

#include "netnode/packet_io/neighbor.h"
#include "netnode/packet_io/packet_io.h"
#include "netnode/packet_io/vnet_header.h"

namespace sanproxy::packet_io {

// Metadata and frame header as they lie in front of every packet, in the kernel's order.
struct LinkHeader {
  VnetHeader vnet;
  std::array<std::uint8_t, net::kEthernetHeaderBytes> ethernet;
};
static_assert(sizeof(LinkHeader) == 24);

class EthernetPort {
 public:
  // With `own_addresses_only` packets to other addresses than ours are dropped: the interface is
  // shared with a kernel that answers for itself.
  EthernetPort(const NeighborConfig& config, bool own_addresses_only, Metadata metadata,
               FrameSink& sink, Counters& counters);

  // True: `out.length` and `out.offload` are set; the packet starts behind the frame header.
  bool inbound(const VnetHeader& vnet, std::span<const std::byte> frame, ReceivedPacket& out);
  // False: the packet was held or dropped, and counted.
  bool outbound(const SendPacket& packet, LinkHeader& header);

  // The header of frames to `dst`, if its next hop is known and has confirmed it.
  bool frame_to(const IpAddress& dst, std::array<std::uint8_t, net::kEthernetHeaderBytes>& header) {
    net::MacAddress to;
    if (!neighbor_.confirmed(dst, to)) return false;
    net::write_ethernet(header.data(), to, neighbor_.mac(),
                        dst.family == Family::kIpv4 ? net::kEtherTypeIpv4 : net::kEtherTypeIpv6);
    return true;
  }

  void remove_local(const IpAddress& ip) {
    neighbor_.remove_local(ip);
    last_local_ = IpAddress{};
  }
  Neighbor& neighbor() { return neighbor_; }
  const Neighbor& neighbor() const { return neighbor_; }

 private:
  bool for_us(const std::uint8_t* packet, std::uint16_t ether_type);

  // Seconds-scale timing only, asked once or twice a packet: the tick's resolution is enough.
  class CoarseClock final : public Clock {
   public:
    std::uint64_t now_ns() const override;
  };

  CoarseClock clock_;
  Counters& counters_;
  Neighbor neighbor_;
  bool own_addresses_only_;
  Metadata metadata_;
  bool learns_;
  IpAddress last_local_;  // the address that most packets are for
};

}  // namespace sanproxy::packet_io
