// UdpDatagrams: cuts a UDP super-packet into the datagrams that it stands for.
//
// Documents: RFC 768; udp(7) UDP_SEGMENT, Linux Documentation/networking/segmentation-offloads.rst
//   ("UDP Segmentation Offload").
// Role: what a sender on this host, or on the other end of a veth, hands over as one packet goes on
//   as what it meant. A datagram is a unit: other than a TCP segment it cannot be cut any smaller.
// Thread: a value.
// Invariants:
//   1. Every datagram has its own lengths, IPv4 identification and header checksum; its UDP
//      checksum field holds the pseudo-header's sum, to be completed (Offload::checksum_partial).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "netnode/net/packet.h"

namespace sanproxy::net {

class UdpDatagrams {
 public:
  // `parsed` is what parse_packet() said of `packet`: UDP, not a fragment. `payload_max` > 0 is
  // that of all datagrams but the last.
  UdpDatagrams(std::span<const std::byte> packet, const ParsedPacket& parsed,
               std::uint32_t payload_max);

  // How many are to come.
  std::size_t left() const { return (payload_.size() - at_ + payload_max_ - 1) / payload_max_; }
  // Writes the next one of those left into `out`, which has room for it; its length.
  std::size_t next(std::byte* out);

 private:
  std::span<const std::byte> headers_, payload_;
  ParsedPacket parsed_;
  std::size_t payload_max_;
  std::size_t at_ = 0;  // in the payload
  std::uint16_t index_ = 0;
};

}  // namespace sanproxy::net
