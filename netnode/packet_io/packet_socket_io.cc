// PacketSocketIo: IP packets across an existing Ethernet interface by AF_PACKET.
//
// Documents: packet(7), Linux Documentation/networking/packet_mmap.rst; docs/packet_io.md.
// Role: batches of packets with virtio metadata in one system call each way. The interface stays
//   the kernel's as well: packets to other addresses than ours are left to it (ingress_drop.h).
// Owner and thread: a worker's.
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "lwproto/daemon/log.h"
#include "netnode/packet_io/device_gone.h"
#include "netnode/packet_io/drivers.h"
#include "netnode/packet_io/ethernet_port.h"
#include "netnode/packet_io/flow_redirect.h"
#include "netnode/packet_io/ingress_drop.h"
#include "netnode/packet_io/link_config.h"
#include "netnode/packet_io/packet_socket.h"
#include "netnode/packet_io/small_packet.h"
#include "netnode/packet_io/solicited_groups.h"

namespace sanproxy::packet_io {
namespace {

constexpr std::uint32_t kReadOffset = kPacketOffset - sizeof(LinkHeader);
constexpr std::size_t kBatchPacketsMax = 64;
// No MTU below it is taken over: whoever cuts packets counts on that much.
constexpr std::uint32_t kMtuBytesMin = 576;
// ARP and neighbour discovery at one wake-up, and the largest such frame that is looked at.
constexpr std::size_t kControlFramesMax = 64;
constexpr std::size_t kControlFrameBytesMax = 2048;

class PacketSocketIo final : public PacketIo, private FrameSink {
 public:
  // `neighbors`: hears ARP and neighbour discovery, where `socket` is one of several queues.
  PacketSocketIo(InterfaceOptions options, UniqueFd socket, UniqueFd neighbors,
                 const LinkInfo& link);

  const InterfaceOptions& options() const override { return options_; }
  std::uint32_t mtu_bytes() const override { return link_.mtu_bytes; }
  int fd() const override { return socket_.get(); }
  const char* lost() const override {
    return packet_socket_gone(socket_.get()) ? kRemoved : mac_trouble(link_.index, link_.mac);
  }
  int control_fd() const override { return neighbors_.get(); }
  void on_control() override;
  std::size_t receive(std::span<const ReceiveBuffer> buffers,
                      std::span<ReceivedPacket> out) override;
  std::size_t send(std::span<const SendPacket> packets) override;
  void flush() override { port_.neighbor().on_time(); }
  void add_local_address(const IpAddress& ip) override;
  void remove_local_address(const IpAddress& ip) override;
  bool kernel_way(const IpAddress& dst, KernelWay& out) override {
    out = {static_cast<std::uint32_t>(link_.index), link_.mtu_bytes, false, true, {}};
    return port_.frame_to(dst, out.frame);
  }
  std::uint64_t way_changes() const override { return port_.neighbor().changes() + mtu_changes_; }
  const Counters& counters() const override;
  std::string mode() const override { return mode_; }

 private:
  struct Batch {
    std::array<mmsghdr, kBatchPacketsMax> messages{};
    std::array<LinkHeader, kBatchPacketsMax> headers;
    std::array<std::array<iovec, kSendPiecesMax + 1>, kBatchPacketsMax> pieces;
    std::array<SmallBlock<sizeof(LinkHeader)>, kBatchPacketsMax> small;
    std::array<std::size_t, kBatchPacketsMax> packet;  // which of the caller's
    std::size_t size = 0;
  };

  void keep_from_kernel();
  void send_frame(std::span<const std::byte> frame, const Offload& offload) override;
  std::size_t receive_batch(std::span<const ReceiveBuffer> buffers);
  bool accept(const ReceiveBuffer& buffer, const mmsghdr& message, ReceivedPacket& out);
  void add_to_batch(const SendPacket& packet, std::size_t index);
  // Sends the batch; false when the device is full, and then `stopped_at` is the caller's index.
  bool send_batch(std::span<const SendPacket> packets, std::size_t& stopped_at);
  void take_smaller_mtu();

  InterfaceOptions options_;
  UniqueFd socket_;
  UniqueFd neighbors_;
  LinkInfo link_;
  std::uint64_t mtu_changes_ = 0;
  mutable Counters counters_;
  EthernetPort port_;
  SolicitedGroups groups_;
  std::unique_ptr<IngressDrop> drop_;  // or none, and `mode_` says why
  std::string mode_;
  std::array<mmsghdr, kBatchPacketsMax> rx_messages_{};
  std::array<iovec, kBatchPacketsMax> rx_pieces_;
  Batch tx_;
};

PacketSocketIo::PacketSocketIo(InterfaceOptions options, UniqueFd socket, UniqueFd neighbors,
                               const LinkInfo& link)
    : options_(std::move(options)),
      socket_(std::move(socket)),
      neighbors_(std::move(neighbors)),
      link_(link),
      port_(NeighborConfig{link.mac, options_.addresses, options_.gateways}, true,
            metadata_of(options_), *this, counters_),
      groups_(link.index) {
  for (std::size_t i = 0; i < kBatchPacketsMax; ++i) {
    rx_messages_[i].msg_hdr.msg_iov = &rx_pieces_[i];
    rx_messages_[i].msg_hdr.msg_iovlen = 1;
    tx_.messages[i].msg_hdr.msg_iov = tx_.pieces[i].data();
  }
  keep_from_kernel();
  (void)groups_.add(port_.neighbor().link_local());
  for (const IpPrefix& address : options_.addresses) {
    add_local_address(address.ip);
  }
}

void PacketSocketIo::keep_from_kernel() {
  auto drop = IngressDrop::attach(link_.index, kLocalAddressesMax);
  if (drop.ok()) {
    drop_ = std::move(*drop);
    mode_ = "the kernel does not see our packets";
  } else {
    mode_ = "the kernel works on our packets, too: " + drop.status().to_string();
  }
}

void PacketSocketIo::add_local_address(const IpAddress& ip) {
  if (!port_.neighbor().is_local(ip) && port_.neighbor().add_local(ip)) {
    (void)groups_.add(ip);
    if (drop_) drop_->add(ip);
  }
}

void PacketSocketIo::remove_local_address(const IpAddress& ip) {
  if (port_.neighbor().is_local(ip)) {
    port_.remove_local(ip);
    (void)groups_.remove(ip);
    if (drop_) drop_->remove(ip);
  }
}

const Counters& PacketSocketIo::counters() const {
  tpacket_stats stats{};
  socklen_t size = sizeof(stats);  // reading resets the kernel's count
  if (::getsockopt(socket_.get(), SOL_PACKET, PACKET_STATISTICS, &stats, &size) == 0) {
    counters_.rx_dropped_kernel += stats.tp_drops;
  }
  return counters_;
}

// --- receiving

// Frames that concern neighbours alone: what inbound() makes of them is never a packet for us.
void PacketSocketIo::on_control() {
  alignas(64) std::array<std::byte, kControlFrameBytesMax> frame;
  for (std::size_t i = 0; i < kControlFramesMax; ++i) {
    const ssize_t got = ::recv(neighbors_.get(), frame.data(), frame.size(), MSG_DONTWAIT);
    if (got < 0 && errno != EAGAIN) {
      continue;  // an error of the interface, reported once
    }
    if (got < static_cast<ssize_t>(sizeof(VnetHeader))) {
      return;
    }
    VnetHeader vnet;
    std::memcpy(&vnet, frame.data(), sizeof(vnet));
    ReceivedPacket ignored;
    (void)port_.inbound(vnet, std::span(frame).subspan(sizeof(vnet), got - sizeof(vnet)), ignored);
  }
}

std::size_t PacketSocketIo::receive_batch(std::span<const ReceiveBuffer> buffers) {
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    rx_pieces_[i] = {buffers[i].data + kReadOffset, buffers[i].capacity - kReadOffset};
  }
  // An error of the interface (it went down) or of one packet (metadata of an unknown kind) is
  // reported once, in place of packets that may wait behind it.
  for (int attempt = 0; attempt < 4; ++attempt) {
    const int got = ::recvmmsg(socket_.get(), rx_messages_.data(),
                               static_cast<unsigned>(buffers.size()), MSG_DONTWAIT, nullptr);
    ++counters_.rx_calls;
    if (got >= 0) {
      return static_cast<std::size_t>(got);
    }
    if (errno == EAGAIN) {
      break;
    }
    if (errno == EINVAL) {
      ++counters_.rx_dropped_metadata;
    }
  }
  return 0;
}

bool PacketSocketIo::accept(const ReceiveBuffer& buffer, const mmsghdr& message,
                            ReceivedPacket& out) {
  if ((message.msg_hdr.msg_flags & MSG_TRUNC) != 0) {
    ++counters_.rx_truncated;
    return false;
  }
  if (message.msg_len < sizeof(VnetHeader)) {
    ++counters_.rx_dropped_short;
    return false;
  }
  const std::byte* at = buffer.data + kReadOffset;
  VnetHeader vnet;
  std::memcpy(&vnet, at, sizeof(vnet));
  return port_.inbound(vnet, {at + sizeof(vnet), message.msg_len - sizeof(vnet)}, out);
}

std::size_t PacketSocketIo::receive(std::span<const ReceiveBuffer> buffers,
                                    std::span<ReceivedPacket> out) {
  const std::size_t room = std::min(buffers.size(), out.size());
  std::size_t used = 0;
  std::size_t count = 0;
  port_.neighbor().on_time();
  while (used < room) {
    const std::size_t asked = std::min(room - used, kBatchPacketsMax);
    const std::size_t got = receive_batch(buffers.subspan(used, asked));
    for (std::size_t i = 0; i < got; ++i) {
      if (accept(buffers[used + i], rx_messages_[i], out[count])) {
        out[count].buffer = static_cast<std::uint32_t>(used + i);
        out[count].offset = kPacketOffset;
        counters_.rx_bytes += out[count].length;
        ++count;
      }
    }
    used += got;
    if (got < asked) {
      break;  // the queue was empty: asking again would only be told so
    }
  }
  counters_.rx_packets += count;
  return count;
}

// --- sending

void PacketSocketIo::add_to_batch(const SendPacket& packet, std::size_t index) {
  const std::size_t at = tx_.size++;
  auto& pieces = tx_.pieces[at];
  tx_.packet[at] = index;
  if (is_small(packet)) {
    pieces[0] = {tx_.small[at].data(), gather_small(tx_.headers[at], packet, tx_.small[at])};
    tx_.messages[at].msg_hdr.msg_iovlen = 1;
    counters_.tx_bytes_copied += packet.length;
    return;
  }
  pieces[0] = {&tx_.headers[at], sizeof(LinkHeader)};
  std::copy_n(packet.pieces.begin(), packet.piece_count, pieces.begin() + 1);
  tx_.messages[at].msg_hdr.msg_iovlen = packet.piece_count + 1;
}

bool PacketSocketIo::send_batch(std::span<const SendPacket> packets, std::size_t& stopped_at) {
  std::size_t done = 0;
  while (done < tx_.size) {
    const int sent = ::sendmmsg(socket_.get(), tx_.messages.data() + done,
                                static_cast<unsigned>(tx_.size - done), MSG_DONTWAIT);
    ++counters_.tx_calls;
    if (sent < 0 && errno == EINTR) {
      continue;
    }
    if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM)) {
      stopped_at = tx_.packet[done];
      return false;
    }
    if (sent <= 0) {
      ++counters_.tx_errors;  // an interface that is down, or a packet that the kernel refuses
      if (sent < 0 && errno == EMSGSIZE) take_smaller_mtu();
      ++done;
      continue;
    }
    for (int i = 0; i < sent; ++i) {
      counters_.tx_bytes += packets[tx_.packet[done++]].length;
    }
    counters_.tx_packets += static_cast<std::uint64_t>(sent);
  }
  return true;
}

// Somebody has changed the interface's since we were started.
void PacketSocketIo::take_smaller_mtu() {
  ifreq request{};
  request.ifr_ifindex = link_.index;
  if (::ioctl(socket_.get(), SIOCGIFNAME, &request) != 0 ||
      ::ioctl(socket_.get(), SIOCGIFMTU, &request) != 0) {
    return;
  }
  const std::uint32_t mtu_bytes =
      std::max(static_cast<std::uint32_t>(request.ifr_mtu), kMtuBytesMin);
  if (mtu_bytes >= link_.mtu_bytes) return;
  spdlog::warn("interface {}: its MTU is {} bytes now, and {} are configured: taken over",
               options_.name, request.ifr_mtu, options_.mtu_bytes);
  link_.mtu_bytes = mtu_bytes;
  ++mtu_changes_;
}

std::size_t PacketSocketIo::send(std::span<const SendPacket> packets) {
  std::size_t stopped_at = 0;
  tx_.size = 0;
  for (std::size_t i = 0; i < packets.size(); ++i) {
    if (port_.outbound(packets[i], tx_.headers[tx_.size])) {
      add_to_batch(packets[i], i);
    }
    if (tx_.size == kBatchPacketsMax || i + 1 == packets.size()) {
      if (!send_batch(packets, stopped_at)) {
        return stopped_at;
      }
      tx_.size = 0;
    }
  }
  return packets.size();
}

void PacketSocketIo::send_frame(std::span<const std::byte> frame, const Offload& offload) {
  VnetHeader vnet = vnet_from_offload(offload, net::kEthernetHeaderBytes);
  std::array<iovec, 2> pieces = {iovec{&vnet, sizeof(vnet)},
                                 iovec{const_cast<std::byte*>(frame.data()), frame.size()}};
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = pieces.size();
  ++counters_.tx_calls;
  if (::sendmsg(socket_.get(), &message, MSG_DONTWAIT) < 0) {
    ++counters_.tx_errors;
  }
}

}  // namespace

Result<std::unique_ptr<PacketIo>> open_packet_socket(const InterfaceOptions& options) {
  auto link = find_link(options);
  if (!link.ok()) {
    return link.status();
  }
  if (options.redirect != nullptr) {
    // Before the program that keeps our packets from the kernel: that drops what this one leaves.
    const Status status = options.redirect->attach(link->index, FlowRedirect::Hook::kIngress);
    if (!status.ok()) {
      return status;
    }
  }
  UniqueFd socket;
  UniqueFd neighbors;
  if (options.queue.fd < 0) {
    auto opened = open_packet_fd(*link, Hears::kAll, options.redirect);
    if (!opened.ok()) {
      return opened.status();
    }
    socket = std::move(opened).value();
  } else {
    socket = UniqueFd(::fcntl(options.queue.fd, F_DUPFD_CLOEXEC, 0));
    if (!socket.valid()) {
      return socket_error("take over a packet socket");
    }
    auto opened = open_packet_fd(*link, Hears::kNeighbors);
    if (!opened.ok()) {
      return opened.status();
    }
    neighbors = std::move(opened).value();
  }
  link->mtu_bytes = options.mtu_bytes;
  return std::unique_ptr<PacketIo>(
      std::make_unique<PacketSocketIo>(options, std::move(socket), std::move(neighbors), *link));
}

}  // namespace sanproxy::packet_io
