#include "netnode/packet_io/tunnel_io.h"

#include <algorithm>

#include "netnode/net/packet.h"
#include "netnode/net/tunnel.h"

namespace sanproxy::packet_io {
namespace {

class TunnelIo final : public PacketIo {
 public:
  explicit TunnelIo(std::unique_ptr<PacketIo> behind) : io_(std::move(behind)) {}

  const InterfaceOptions& options() const override { return io_->options(); }
  std::uint32_t mtu_bytes() const override { return io_->mtu_bytes(); }
  int fd() const override { return io_->fd(); }
  std::size_t receive(std::span<const ReceiveBuffer> buffers,
                      std::span<ReceivedPacket> out) override;
  std::size_t send(std::span<const SendPacket> packets) override { return io_->send(packets); }
  void flush() override { io_->flush(); }
  void add_local_address(const IpAddress& ip) override { io_->add_local_address(ip); }
  void remove_local_address(const IpAddress& ip) override { io_->remove_local_address(ip); }
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
  if (protocol == net::kProtocolTcp) return true;  // nearly every packet that is no tunnel's
  net::ParsedPacket outer;
  if (net::parse_packet(bytes, outer) != net::DropReason::kNone) return true;  // not ours to judge
  net::InnerPacket inner;
  switch (net::decapsulate(bytes, outer, options().gue_port, inner)) {
    case net::Decapsulation::kNotTunneled:
      return true;
    case net::Decapsulation::kMalformed:
      return false;
    case net::Decapsulation::kOk:
      break;
  }
  const auto& from = options().decapsulate_from;
  if (std::find(from.begin(), from.end(), outer.src_address()) == from.end()) return false;
  packet.offset += inner.offset;
  packet.length = inner.length;
  packet.offload = {};  // what the device said was about the outer packet
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
