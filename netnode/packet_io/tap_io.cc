// TapIo: IP packets in Ethernet frames across a TAP device.
//
// Document: docs/packet_io.md.
// Role: as TunIo, with a frame header and neighbours: the host's kernel is the other station on
//   the segment, and the router to everything else.
// Owner and thread: a worker's.
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "netnode/packet_io/device_gone.h"
#include "netnode/packet_io/drivers.h"
#include "netnode/packet_io/ethernet_port.h"
#include "netnode/packet_io/raw_io.h"
#include "netnode/packet_io/small_packet.h"
#include "netnode/packet_io/tun_device.h"

namespace sanproxy::packet_io {
namespace {

constexpr std::uint32_t kReadOffset = kPacketOffset - sizeof(LinkHeader);

// The kernel's end has its own address; ours differs from it in one bit of the last byte.
net::MacAddress our_mac(const net::MacAddress& kernels) {
  net::MacAddress mac = kernels;
  mac.bytes[5] ^= 1;
  return mac;
}

NeighborConfig neighbor_config(const InterfaceOptions& options, const LinkInfo& link) {
  NeighborConfig config{our_mac(link.mac), options.addresses, options.gateways};
  for (const IpPrefix& address : options.addresses) {
    config.gateways.push_back(address.ip);  // behind those that were asked for
  }
  return config;
}

class TapIo final : public PacketIo, private FrameSink {
 public:
  TapIo(InterfaceOptions options, TunDevice device)
      : options_(std::move(options)),
        device_(std::move(device)),
        port_(neighbor_config(options_, device_.link), false, metadata_of(options_), *this,
              counters_) {}

  const InterfaceOptions& options() const override { return options_; }
  std::uint32_t mtu_bytes() const override { return device_.link.mtu_bytes; }
  int fd() const override { return device_.fd.get(); }
  const char* lost() const override { return tun_gone(device_.fd.get()) ? kRemoved : nullptr; }
  std::size_t receive(std::span<const ReceiveBuffer> buffers,
                      std::span<ReceivedPacket> out) override;
  std::size_t send(std::span<const SendPacket> packets) override;
  void flush() override { port_.neighbor().on_time(); }
  void add_local_address(const IpAddress& ip) override { (void)port_.neighbor().add_local(ip); }
  void remove_local_address(const IpAddress& ip) override { port_.remove_local(ip); }
  const Counters& counters() const override { return counters_; }

 private:
  void send_frame(std::span<const std::byte> frame, const Offload& offload) override;
  ssize_t write_packet(const LinkHeader& header, const SendPacket& packet);

  InterfaceOptions options_;
  TunDevice device_;
  Counters counters_;
  EthernetPort port_;
  alignas(64) SmallBlock<sizeof(LinkHeader)> small_;
};

std::size_t TapIo::receive(std::span<const ReceiveBuffer> buffers, std::span<ReceivedPacket> out) {
  const std::size_t room = std::min(buffers.size(), out.size());
  std::size_t count = 0;
  std::size_t dropped = 0;
  port_.neighbor().on_time();
  while (count < room && dropped < kDropsPerBurstMax) {
    std::byte* at = buffers[count].data + kReadOffset;
    const std::size_t capacity = buffers[count].capacity - kReadOffset;
    const ssize_t got = raw_read(device_.fd.get(), at, capacity);
    ++counters_.rx_calls;
    if (got < 0) {
      if (errno == EINTR) {
        continue;
      }
      break;  // EAGAIN; or EIO, when the device is going away
    }
    const auto bytes = static_cast<std::size_t>(got);
    if (bytes == capacity || bytes < sizeof(VnetHeader)) {
      ++(bytes == capacity ? counters_.rx_truncated : counters_.rx_dropped_short);
      ++dropped;
      continue;
    }
    VnetHeader vnet;
    std::memcpy(&vnet, at, sizeof(vnet));
    const std::span<const std::byte> frame(at + sizeof(vnet), bytes - sizeof(vnet));
    if (!port_.inbound(vnet, frame, out[count])) {
      ++dropped;
      continue;
    }
    out[count].buffer = static_cast<std::uint32_t>(count);
    out[count].offset = kPacketOffset;
    counters_.rx_bytes += out[count].length;
    ++count;
  }
  counters_.rx_packets += count;
  return count;
}

ssize_t TapIo::write_packet(const LinkHeader& header, const SendPacket& packet) {
  ++counters_.tx_calls;
  if (is_small(packet)) {
    const std::size_t bytes = gather_small(header, packet, small_);
    counters_.tx_bytes_copied += packet.length;
    return raw_write(device_.fd.get(), small_.data(), bytes);
  }
  std::array<iovec, kSendPiecesMax + 1> pieces;
  pieces[0] = {const_cast<LinkHeader*>(&header), sizeof(header)};
  std::copy_n(packet.pieces.begin(), packet.piece_count, pieces.begin() + 1);
  return raw_writev(device_.fd.get(), {pieces.data(), packet.piece_count + std::size_t{1}});
}

std::size_t TapIo::send(std::span<const SendPacket> packets) {
  LinkHeader header;
  for (std::size_t i = 0; i < packets.size(); ++i) {
    const SendPacket& packet = packets[i];
    if (!port_.outbound(packet, header)) {
      continue;
    }
    if (write_packet(header, packet) >= 0) {
      ++counters_.tx_packets;
      counters_.tx_bytes += packet.length;
    } else if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS || errno == ENOMEM) {
      return i;
    } else {
      ++counters_.tx_errors;
    }
  }
  return packets.size();
}

void TapIo::send_frame(std::span<const std::byte> frame, const Offload& offload) {
  VnetHeader vnet = vnet_from_offload(offload, net::kEthernetHeaderBytes);
  const std::array<iovec, 2> pieces = {iovec{&vnet, sizeof(vnet)},
                                       iovec{const_cast<std::byte*>(frame.data()), frame.size()}};
  ++counters_.tx_calls;
  if (::writev(device_.fd.get(), pieces.data(), pieces.size()) < 0) {
    ++counters_.tx_errors;
  }
}

}  // namespace

Result<std::unique_ptr<PacketIo>> open_tap(const InterfaceOptions& options) {
  Result<TunDevice> device = open_tun_device(options, TunKind::kTap);
  if (!device.ok()) {
    return device.status();
  }
  return std::unique_ptr<PacketIo>(std::make_unique<TapIo>(options, std::move(device).value()));
}

}  // namespace sanproxy::packet_io
