// VnetHeader: the metadata that the kernel puts in front of every packet, and Offload.
//
// Documents: VIRTIO 1.1 5.1.6 (struct virtio_net_hdr), Linux tuntap.rst and packet(7)
//   PACKET_VNET_HDR; docs/packet_io.md.
// Role: translates both ways and refuses metadata that does not fit its packet.
// Thread: pure functions.
// Invariants:
//   1. Whatever the header says, on true the Offload's offsets lie inside the packet.
#pragma once

#include <cstdint>
#include <span>

#include "netnode/net/packet.h"
#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

struct VnetHeader {
  std::uint8_t flags = 0;
  std::uint8_t gso_type = 0;
  std::uint16_t header_bytes = 0;
  std::uint16_t gso_bytes = 0;
  std::uint16_t checksum_start = 0;
  std::uint16_t checksum_offset = 0;
};
static_assert(sizeof(VnetHeader) == 10);

// Whether segments of this kind are of the packet's IP version.
inline bool fits_version(Segmentation segmentation, const std::uint8_t* packet) {
  const unsigned version = packet[0] >> 4;
  return segmentation == Segmentation::kNone || segmentation == Segmentation::kUdp ||
         (segmentation == Segmentation::kTcp4 && version == 4) ||
         (segmentation == Segmentation::kTcp6 && version == 6);
}

// What is said of a packet: of its own segments; or, where tunnels end, perhaps of those inside, of
// either version. TunnelIo then decides whether it is one.
enum class Metadata : std::uint8_t { kOfPacket, kMayBeOfInner };
inline Metadata metadata_of(const InterfaceOptions& options) {
  return options.decapsulate_from.empty() ? Metadata::kOfPacket : Metadata::kMayBeOfInner;
}

// `length` is that of the IP packet; `link_bytes` the frame header in front of it, from which the
// kernel counts. False: the metadata is of a kind that we did not ask for, or contradicts the
// packet.
[[nodiscard]] bool offload_from_vnet(const VnetHeader& header, const std::uint8_t* packet,
                                     std::uint32_t length, std::uint32_t link_bytes,
                                     Metadata metadata, Offload& out);

VnetHeader vnet_from_offload(const Offload& offload, std::uint16_t link_bytes);

enum class IpCheck : std::uint8_t { kOk, kShort, kNotIp };

// A first look that every driver takes: version, room for a header, and the packet's own length,
// to which `length` is cut (frames are padded to 60 bytes). The stack checks the rest.
inline IpCheck check_ip(const std::uint8_t* packet, std::uint32_t& length) {
  if (length < net::kIpv4HeaderBytesMin) {
    return IpCheck::kShort;
  }
  std::uint32_t total = 0;
  if ((packet[0] >> 4) == 4) {
    total = net::load_be16(packet + 2);
    if (total < net::kIpv4HeaderBytesMin) {
      return IpCheck::kShort;
    }
  } else if ((packet[0] >> 4) == 6) {
    total = std::uint32_t{net::load_be16(packet + 4)} + std::uint32_t{net::kIpv6HeaderBytes};
  } else {
    return IpCheck::kNotIp;
  }
  if (total > length) {
    return IpCheck::kShort;
  }
  length = total;
  return IpCheck::kOk;
}

}  // namespace sanproxy::packet_io
