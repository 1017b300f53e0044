#include "netnode/packet_io/vnet_header.h"

namespace sanproxy::packet_io {
namespace {

constexpr std::uint8_t kNeedsChecksum = 1;  // VIRTIO_NET_HDR_F_*
constexpr std::uint8_t kDataValid = 2;
constexpr std::uint8_t kGsoEcn = 0x80;  // VIRTIO_NET_HDR_GSO_ECN, or-ed into the type

}  // namespace

bool offload_from_vnet(const VnetHeader& header, const std::uint8_t* packet, std::uint32_t length,
                       std::uint32_t link_bytes, Metadata metadata, Offload& out) {
  out = Offload{};
  if ((header.flags & kNeedsChecksum) != 0) {
    const std::uint32_t start = header.checksum_start;
    if (start < link_bytes || start - link_bytes + header.checksum_offset + 2 > length) {
      return false;
    }
    out.checksum_partial = true;
    out.checksum_start = static_cast<std::uint16_t>(start - link_bytes);
    out.checksum_offset = header.checksum_offset;
  }
  out.checksum_verified = (header.flags & kDataValid) != 0;
  const std::uint8_t type = header.gso_type & static_cast<std::uint8_t>(~kGsoEcn);
  if (type == 0) {
    return true;
  }
  const auto segmentation = static_cast<Segmentation>(type);
  const bool tcp = segmentation == Segmentation::kTcp4 || segmentation == Segmentation::kTcp6;
  // Where tunnels end, its datagrams may be tunnels' packets, and nobody takes it apart there.
  const bool udp = segmentation == Segmentation::kUdp && metadata == Metadata::kOfPacket;
  if ((!tcp && !udp) || header.gso_bytes == 0) {
    return false;
  }
  if (metadata == Metadata::kOfPacket && !fits_version(segmentation, packet)) {
    return false;
  }
  out.segmentation = segmentation;
  out.segment_bytes = header.gso_bytes;
  // The kernel's header length is a hint and may cover more than the headers.
  if (header.header_bytes > link_bytes && header.header_bytes - link_bytes <= length) {
    out.header_bytes = static_cast<std::uint16_t>(header.header_bytes - link_bytes);
  }
  return true;
}

VnetHeader vnet_from_offload(const Offload& offload, std::uint16_t link_bytes) {
  VnetHeader header;
  if (offload.checksum_partial) {
    header.flags = kNeedsChecksum;
    header.checksum_start = static_cast<std::uint16_t>(offload.checksum_start + link_bytes);
    header.checksum_offset = offload.checksum_offset;
  }
  if (offload.segmentation != Segmentation::kNone) {
    header.gso_type = static_cast<std::uint8_t>(offload.segmentation);
    header.gso_bytes = offload.segment_bytes;
  }
  // Without a header length the kernel would look for one linear block for the whole packet.
  if (offload.header_bytes != 0) {
    header.header_bytes = static_cast<std::uint16_t>(offload.header_bytes + link_bytes);
  }
  return header;
}

}  // namespace sanproxy::packet_io
