#include "netnode/packet_io/tunnel_io.h"

#include <algorithm>

#include "netnode/net/checksum.h"
#include "netnode/net/packet.h"
#include "netnode/net/tunnel.h"
#include "netnode/packet_io/vnet_header.h"

namespace sanproxy::packet_io {
namespace {

// What the device said of a packet with `outer_bytes` of headers in front of `inner`. A kernel that
// merges a tunnel's packets, or whose own segments they are, means the inner TCP header, and leaves
// its checksum undone. Anything that is not just so is not believed.
Offload offload_inside(const Offload& said, std::uint32_t outer_bytes,
                       std::span<const std::byte> inner) {
  net::ParsedPacket parsed;
  if (!said.checksum_partial || net::parse_packet(inner, parsed) != net::DropReason::kNone ||
      parsed.fragment) {
    return {};
  }
  const bool tcp = parsed.l4 == net::L4::kTcp;
  if (!tcp && (parsed.l4 != net::L4::kUdp || said.segmentation != Segmentation::kNone)) return {};
  if (said.checksum_start != outer_bytes + parsed.l3_header_bytes ||
      said.checksum_offset != (tcp ? net::kTcpChecksumOffset : net::kUdpChecksumOffset) ||
      !fits_version(said.segmentation, reinterpret_cast<const std::uint8_t*>(inner.data()))) {
    return {};
  }
  Offload out;
  out.checksum_partial = true;
  out.checksum_start = parsed.l3_header_bytes;
  out.checksum_offset = said.checksum_offset;
  if (said.segmentation == Segmentation::kNone) return out;
  out.segmentation = said.segmentation;
  out.segment_bytes = said.segment_bytes;
  out.header_bytes = static_cast<std::uint16_t>(parsed.l3_header_bytes + parsed.l4_header_bytes);
  return out;
}

class TunnelIo final : public PacketIo {
 public:
  explicit TunnelIo(std::unique_ptr<PacketIo> behind) : io_(std::move(behind)) {}

  const InterfaceOptions& options() const override { return io_->options(); }
  std::uint32_t mtu_bytes() const override { return io_->mtu_bytes(); }
  int fd() const override { return io_->fd(); }
  const char* lost() const override { return io_->lost(); }
  std::size_t receive(std::span<const ReceiveBuffer> buffers,
                      std::span<ReceivedPacket> out) override;
  std::size_t send(std::span<const SendPacket> packets) override { return io_->send(packets); }
  void flush() override { io_->flush(); }
  // Services' addresses are the network nodes': whoever is asked for them on the segment of the
  // tunnels' ends is not to answer. Those ends are options().addresses.
  void add_local_address(const IpAddress&) override {}
  void remove_local_address(const IpAddress&) override {}
  const Counters& counters() const override {
    merged_ = io_->counters();
    merged_.rx_decapsulated = decapsulated_;
    merged_.rx_dropped_tunnel = dropped_;
    return merged_;
  }

 private:
  bool keep(const ReceiveBuffer& buffer, ReceivedPacket& packet);

  std::unique_ptr<PacketIo> io_;
  std::uint64_t decapsulated_ = 0;
  std::uint64_t dropped_ = 0;
  mutable Counters merged_;
};

// Unwraps the packet in place; false: it is to be dropped.
bool TunnelIo::keep(const ReceiveBuffer& buffer, ReceivedPacket& packet) {
  const std::span<std::byte> bytes(buffer.data + packet.offset, packet.length);
  const auto* ip = reinterpret_cast<const std::uint8_t*>(bytes.data());
  const std::uint8_t protocol = (ip[0] >> 4) == 4 ? ip[9] : bytes.size() > 6 ? ip[6] : 0;
  // Segments of the other version are an inner packet's: one that is no tunnel's has none.
  const bool plain = fits_version(packet.offload.segmentation, ip);
  if (protocol == net::kProtocolTcp) return plain;  // nearly every packet that is no tunnel's
  net::ParsedPacket outer;
  if (net::parse_packet(bytes, outer) != net::DropReason::kNone) return plain;  // not ours to judge
  net::InnerPacket inner;
  switch (net::decapsulate(bytes, outer, options().gue_port, inner)) {
    case net::Decapsulation::kNotTunneled:
      return plain;
    case net::Decapsulation::kMalformed:
      return false;
    case net::Decapsulation::kOk:
      break;
  }
  const auto& from = options().decapsulate_from;
  if (std::find(from.begin(), from.end(), outer.src_address()) == from.end()) return false;
  packet.offload =
      offload_inside(packet.offload, inner.offset, bytes.subspan(inner.offset, inner.length));
  packet.offset += inner.offset;
  packet.length = inner.length;
  ++decapsulated_;
  return true;
}

std::size_t TunnelIo::receive(std::span<const ReceiveBuffer> buffers,
                              std::span<ReceivedPacket> out) {
  const std::size_t got = io_->receive(buffers, out);
  std::size_t kept = 0;
  for (std::size_t i = 0; i < got; ++i) {
    if (!keep(buffers[out[i].buffer], out[i])) {
      ++dropped_;
      continue;
    }
    if (kept != i) out[kept] = out[i];
    ++kept;
  }
  return kept;
}

}  // namespace

std::unique_ptr<PacketIo> make_tunnel_io(std::unique_ptr<PacketIo> behind) {
  return std::make_unique<TunnelIo>(std::move(behind));
}

}  // namespace sanproxy::packet_io
