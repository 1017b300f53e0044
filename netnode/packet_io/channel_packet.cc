#include "netnode/packet_io/channel_packet.h"

#include "netnode/net/packet.h"
#include "netnode/net/tcp_header.h"

namespace sanproxy::packet_io {

std::optional<channel::PacketInfo> info_from_offload(const Offload& offload, std::uint32_t length) {
  channel::PacketInfo info;
  if (offload.checksum_partial) {
    if (std::uint32_t{offload.checksum_start} + offload.checksum_offset + 2 > length) return {};
    info.flags = wire::kFlagChecksumPartial;
    info.body.checksum_start = offload.checksum_start;
    info.body.checksum_offset = offload.checksum_offset;
  }
  if (offload.checksum_verified) info.flags |= wire::kFlagChecksumVerified;
  if (offload.header_bytes > length) return {};
  if ((offload.segmentation != Segmentation::kNone) != (offload.segment_bytes != 0)) return {};
  info.body.header_bytes = offload.header_bytes;
  info.body.segment_bytes = offload.segment_bytes;
  info.body.segmentation = static_cast<std::uint8_t>(offload.segmentation);
  return info;
}

bool offload_from_info(const channel::PacketInfo& info, std::uint8_t first, Offload& out) {
  out = Offload{};
  out.segmentation = static_cast<Segmentation>(info.body.segmentation);
  const unsigned version = first >> 4;
  if ((out.segmentation == Segmentation::kTcp4 && version != 4) ||
      (out.segmentation == Segmentation::kTcp6 && version != 6)) {
    return false;
  }
  out.checksum_partial = (info.flags & wire::kFlagChecksumPartial) != 0;
  out.checksum_verified = (info.flags & wire::kFlagChecksumVerified) != 0;
  out.segment_bytes = info.body.segment_bytes;
  out.header_bytes = info.body.header_bytes;
  out.checksum_start = info.body.checksum_start;
  out.checksum_offset = info.body.checksum_offset;
  return true;
}

bool is_mere_ack(std::span<const std::byte> packet) {
  constexpr std::size_t kTcpHeaderBytesMax = 60;
  constexpr std::size_t kBytesMax = net::kIpv6HeaderBytes + kTcpHeaderBytesMax;
  if (packet.size() > kBytesMax) return false;
  net::ParsedPacket parsed;
  if (net::parse_packet(packet, parsed) != net::DropReason::kNone || parsed.l4 != net::L4::kTcp ||
      parsed.l4_bytes() != parsed.l4_header_bytes) {
    return false;
  }
  return net::load_tcp_header(packet.data() + parsed.l3_header_bytes).flags == net::kTcpAck;
}

}  // namespace sanproxy::packet_io
