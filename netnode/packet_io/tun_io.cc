// TunIo: IP packets across a TUN device.
//
// Document: docs/packet_io.md.
// Role: one read a packet in, one gathering write a packet out; both carry up to 64 KB.
// Owner and thread: a worker's.
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "netnode/packet_io/device_gone.h"
#include "netnode/packet_io/drivers.h"
#include "netnode/packet_io/flow_redirect.h"
#include "netnode/packet_io/raw_io.h"
#include "netnode/packet_io/small_packet.h"
#include "netnode/packet_io/tun_device.h"
#include "netnode/packet_io/vnet_header.h"

namespace sanproxy::packet_io {
namespace {

class TunIo final : public PacketIo {
 public:
  TunIo(InterfaceOptions options, TunDevice device)
      : options_(std::move(options)), device_(std::move(device)) {}

  const InterfaceOptions& options() const override { return options_; }
  std::uint32_t mtu_bytes() const override { return device_.link.mtu_bytes; }
  int fd() const override { return device_.fd.get(); }
  const char* lost() const override { return tun_gone(device_.fd.get()) ? kRemoved : nullptr; }
  std::size_t receive(std::span<const ReceiveBuffer> buffers,
                      std::span<ReceivedPacket> out) override;
  std::size_t send(std::span<const SendPacket> packets) override;
  void flush() override {}
  // The kernel routes to us what it routes to the device: there is nobody to answer.
  void add_local_address(const IpAddress&) override {}
  void remove_local_address(const IpAddress&) override {}
  bool kernel_way(const IpAddress&, KernelWay& out) override {
    out = {static_cast<std::uint32_t>(device_.link.index), device_.link.mtu_bytes, true, false, {}};
    return true;
  }
  const Counters& counters() const override { return counters_; }

 private:
  bool accept(const ReceiveBuffer& buffer, std::size_t got, ReceivedPacket& out);

  InterfaceOptions options_;
  TunDevice device_;
  Counters counters_;
  alignas(64) SmallBlock<sizeof(VnetHeader)> small_;
};

constexpr std::uint32_t kReadOffset = kPacketOffset - sizeof(VnetHeader);

bool TunIo::accept(const ReceiveBuffer& buffer, std::size_t got, ReceivedPacket& out) {
  if (got < sizeof(VnetHeader)) {
    ++counters_.rx_dropped_short;
    return false;
  }
  VnetHeader vnet;
  std::memcpy(&vnet, buffer.data + kReadOffset, sizeof(vnet));
  const auto* packet = reinterpret_cast<const std::uint8_t*>(buffer.data + kPacketOffset);
  auto length = static_cast<std::uint32_t>(got - sizeof(VnetHeader));
  switch (check_ip(packet, length)) {
    case IpCheck::kOk:
      break;
    case IpCheck::kShort:
      ++counters_.rx_dropped_short;
      return false;
    case IpCheck::kNotIp:
      ++counters_.rx_dropped_not_ip;
      return false;
  }
  if (!offload_from_vnet(vnet, packet, length, 0, metadata_of(options_), out.offload)) {
    ++counters_.rx_dropped_metadata;
    return false;
  }
  out.offset = kPacketOffset;
  out.length = length;
  return true;
}

std::size_t TunIo::receive(std::span<const ReceiveBuffer> buffers, std::span<ReceivedPacket> out) {
  const std::size_t room = std::min(buffers.size(), out.size());
  std::size_t count = 0;
  std::size_t dropped = 0;
  while (count < room && dropped < kDropsPerBurstMax) {
    const ReceiveBuffer& buffer = buffers[count];
    const std::size_t capacity = buffer.capacity - kReadOffset;
    const ssize_t got = raw_read(device_.fd.get(), buffer.data + kReadOffset, capacity);
    ++counters_.rx_calls;
    if (got < 0) {
      if (errno == EINTR) {
        continue;
      }
      break;  // EAGAIN; or EIO, when the device is going away
    }
    if (static_cast<std::size_t>(got) == capacity) {
      ++counters_.rx_truncated;
      ++dropped;
      continue;
    }
    if (!accept(buffer, static_cast<std::size_t>(got), out[count])) {
      ++dropped;
      continue;
    }
    out[count].buffer = static_cast<std::uint32_t>(count);
    counters_.rx_bytes += out[count].length;
    ++count;
  }
  counters_.rx_packets += count;
  return count;
}

std::size_t TunIo::send(std::span<const SendPacket> packets) {
  std::array<iovec, kSendPiecesMax + 1> pieces;
  VnetHeader vnet;
  pieces[0] = {&vnet, sizeof(vnet)};
  for (std::size_t i = 0; i < packets.size(); ++i) {
    const SendPacket& packet = packets[i];
    vnet = vnet_from_offload(packet.offload, 0);
    ssize_t sent;
    if (is_small(packet)) {
      const std::size_t bytes = gather_small(vnet, packet, small_);
      sent = raw_write(device_.fd.get(), small_.data(), bytes);
      counters_.tx_bytes_copied += packet.length;
    } else {
      std::copy_n(packet.pieces.begin(), packet.piece_count, pieces.begin() + 1);
      sent = raw_writev(device_.fd.get(), {pieces.data(), packet.piece_count + std::size_t{1}});
    }
    ++counters_.tx_calls;
    if (sent >= 0) {
      ++counters_.tx_packets;
      counters_.tx_bytes += packet.length;
    } else if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS || errno == ENOMEM) {
      return i;
    } else {
      ++counters_.tx_errors;  // a device that is down, or a packet that the kernel refuses
    }
  }
  return packets.size();
}

}  // namespace

Result<std::unique_ptr<PacketIo>> open_tun(const InterfaceOptions& options) {
  Result<TunDevice> device = open_tun_device(options, TunKind::kTun);
  if (!device.ok()) {
    return device.status();
  }
  if (options.redirect != nullptr) {
    const Status status = options.redirect->attach(device->link.index, FlowRedirect::Hook::kEgress);
    if (!status.ok()) return status;
  }
  return std::unique_ptr<PacketIo>(std::make_unique<TunIo>(options, std::move(device).value()));
}

}  // namespace sanproxy::packet_io
