// PacketSocketIo: IP packets across an existing Ethernet interface by AF_PACKET.
//
// Documents: packet(7), Linux Documentation/networking/packet_mmap.rst; docs/packet_io.md.
// Role: batches of packets with virtio metadata in one system call each way. The interface stays
//   the kernel's as well: packets to other addresses than ours are left to it.
// Owner and thread: a worker's.
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "netnode/packet_io/drivers.h"
#include "netnode/packet_io/ethernet_port.h"
#include "netnode/packet_io/link_config.h"
#include "netnode/packet_io/small_packet.h"

namespace sanproxy::packet_io {
namespace {

constexpr std::uint32_t kReadOffset = kPacketOffset - sizeof(LinkHeader);
constexpr std::size_t kBatchPacketsMax = 64;
constexpr int kSocketBufferBytes = 16 * 1024 * 1024;
constexpr int kControlBufferBytes = 256 * 1024;
// ARP and neighbour discovery at one wake-up, and the largest such frame that is looked at.
constexpr std::size_t kControlFramesMax = 64;
constexpr std::size_t kControlFrameBytesMax = 2048;
// Since Linux 5.13; the headers of some distributions are older.
constexpr std::uint32_t kFanoutIgnoreOutgoing = 0x4000;

Status socket_error(const char* what) {
  if (errno == EPERM || errno == EACCES) {
    return Status::error(Code::kPermission, "a packet socket needs CAP_NET_RAW (run as root)",
                         errno);
  }
  return Status::error(Code::kSystem, what, errno);
}

template <typename T>
bool set_option(int fd, int level, int name, const T& value) {
  return ::setsockopt(fd, level, name, &value, sizeof(value)) == 0;
}

// With several queues a frame reaches one of them, but ARP and neighbour discovery concern every
// worker: each hears them on a socket of its own.
enum class Hears : std::uint8_t { kAll, kPackets, kNeighbors };

// ARP and ICMPv6 types 133 to 137, addressed to us or to a group.
bool attach_neighbor_filter(int fd) {
  constexpr auto kAncillary = static_cast<std::uint32_t>(SKF_AD_OFF);
  std::array<sock_filter, 14> program = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kAncillary + SKF_AD_PKTTYPE),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, PACKET_MULTICAST, 10, 0),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kAncillary + SKF_AD_VLAN_TAG_PRESENT),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 8),
      BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_ARP, 7, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IPV6, 0, 5),
      BPF_STMT(BPF_LD | BPF_B | BPF_ABS, net::kEthernetHeaderBytes + 6),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, net::kProtocolIcmp6, 0, 3),
      BPF_STMT(BPF_LD | BPF_B | BPF_ABS, net::kEthernetHeaderBytes + 40),
      BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 133, 0, 1),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 137, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, 0),
      BPF_STMT(BPF_RET | BPF_K, 0xffffffffU),
  }};
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  return set_option(fd, SOL_SOCKET, SO_ATTACH_FILTER, filter);
}

// Keeps out what would only be dropped: other stations' frames, VLANs, all but IP and ARP.
bool attach_filter(int fd, Hears hears) {
  if (hears == Hears::kNeighbors) {
    return attach_neighbor_filter(fd);
  }
  const std::uint32_t third = hears == Hears::kAll ? ETH_P_ARP : ETH_P_IPV6;
  constexpr auto kAncillary = static_cast<std::uint32_t>(SKF_AD_OFF);
  std::array<sock_filter, 10> program = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kAncillary + SKF_AD_PKTTYPE),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, PACKET_MULTICAST, 6, 0),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kAncillary + SKF_AD_VLAN_TAG_PRESENT),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 4),
      BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IP, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IPV6, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, third, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, 0),
      BPF_STMT(BPF_RET | BPF_K, 0xffffffffU),
  }};
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  return set_option(fd, SOL_SOCKET, SO_ATTACH_FILTER, filter);
}

// Replies to neighbour solicitations need the groups that those are sent to.
class GroupMembership {
 public:
  void join(int fd, int index, const IpAddress& ip) { change(fd, index, ip, true); }
  void leave(int fd, int index, const IpAddress& ip) { change(fd, index, ip, false); }

 private:
  void change(int fd, int index, const IpAddress& ip, bool joining) {
    if (ip.family != Family::kIpv6) {
      return;
    }
    packet_mreq request{};
    request.mr_ifindex = index;
    request.mr_type = PACKET_MR_MULTICAST;
    request.mr_alen = 6;
    const net::MacAddress mac = ipv6_multicast_mac(solicited_node_address(ip));
    std::copy(mac.bytes.begin(), mac.bytes.end(), request.mr_address);
    // The kernel counts memberships of a group; when it has no room for one more, all will do.
    const int option = joining ? PACKET_ADD_MEMBERSHIP : PACKET_DROP_MEMBERSHIP;
    if (!set_option(fd, SOL_PACKET, option, request) && joining) {
      request.mr_type = PACKET_MR_ALLMULTI;
      (void)set_option(fd, SOL_PACKET, option, request);
    }
  }
};

class PacketSocketIo final : public PacketIo, private FrameSink {
 public:
  // `neighbors`: hears ARP and neighbour discovery, where `socket` is one of several queues.
  PacketSocketIo(InterfaceOptions options, UniqueFd socket, UniqueFd neighbors,
                 const LinkInfo& link);

  const InterfaceOptions& options() const override { return options_; }
  std::uint32_t mtu_bytes() const override { return link_.mtu_bytes; }
  int fd() const override { return socket_.get(); }
  int control_fd() const override { return neighbors_.get(); }
  void on_control() override;
  std::size_t receive(std::span<const ReceiveBuffer> buffers,
                      std::span<ReceivedPacket> out) override;
  std::size_t send(std::span<const SendPacket> packets) override;
  void flush() override { port_.neighbor().on_time(); }
  void add_local_address(const IpAddress& ip) override;
  void remove_local_address(const IpAddress& ip) override;
  const Counters& counters() const override;

 private:
  struct Batch {
    std::array<mmsghdr, kBatchPacketsMax> messages{};
    std::array<LinkHeader, kBatchPacketsMax> headers;
    std::array<std::array<iovec, kSendPiecesMax + 1>, kBatchPacketsMax> pieces;
    std::array<SmallBlock<sizeof(LinkHeader)>, kBatchPacketsMax> small;
    std::array<std::size_t, kBatchPacketsMax> packet;  // which of the caller's
    std::size_t size = 0;
  };

  void send_frame(std::span<const std::byte> frame, const Offload& offload) override;
  // A queue outlives us; what we joined must not.
  int groups_fd() const { return neighbors_.valid() ? neighbors_.get() : socket_.get(); }
  std::size_t receive_batch(std::span<const ReceiveBuffer> buffers);
  bool accept(const ReceiveBuffer& buffer, const mmsghdr& message, ReceivedPacket& out);
  void add_to_batch(const SendPacket& packet, std::size_t index);
  // Sends the batch; false when the device is full, and then `stopped_at` is the caller's index.
  bool send_batch(std::span<const SendPacket> packets, std::size_t& stopped_at);

  InterfaceOptions options_;
  UniqueFd socket_;
  UniqueFd neighbors_;
  LinkInfo link_;
  mutable Counters counters_;
  EthernetPort port_;
  GroupMembership groups_;
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
      port_(NeighborConfig{link.mac, options_.addresses, options_.gateways}, true, *this,
            counters_) {
  for (std::size_t i = 0; i < kBatchPacketsMax; ++i) {
    rx_messages_[i].msg_hdr.msg_iov = &rx_pieces_[i];
    rx_messages_[i].msg_hdr.msg_iovlen = 1;
    tx_.messages[i].msg_hdr.msg_iov = tx_.pieces[i].data();
  }
  groups_.join(groups_fd(), link_.index, port_.neighbor().link_local());
  for (const IpPrefix& address : options_.addresses) {
    add_local_address(address.ip);
  }
}

void PacketSocketIo::add_local_address(const IpAddress& ip) {
  if (!port_.neighbor().is_local(ip) && port_.neighbor().add_local(ip)) {
    groups_.join(groups_fd(), link_.index, ip);
  }
}

void PacketSocketIo::remove_local_address(const IpAddress& ip) {
  if (port_.neighbor().is_local(ip)) {
    port_.remove_local(ip);
    groups_.leave(groups_fd(), link_.index, ip);
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

// --- opening

Status check_link(const LinkInfo& link, const InterfaceOptions& options) {
  if (!link.ethernet) {
    return Status::error(Code::kUnsupported,
                         "driver \"packet\" needs an Ethernet interface (lo and tun are none)");
  }
  if (!link.up) {
    return Status::error(Code::kInvalidArgument,
                         "the interface is down; bring it up first (ip link set NAME up)");
  }
  if (options.mtu_bytes > link.mtu_bytes) {
    return Status::error(Code::kInvalidArgument,
                         "the interface's MTU is smaller than the configured one");
  }
  return Status();
}

Status set_up_socket(int fd, int index, Hears hears) {
  const int buffer_bytes = hears == Hears::kNeighbors ? kControlBufferBytes : kSocketBufferBytes;
  const int on = 1;
  if (!set_option(fd, SOL_PACKET, PACKET_VNET_HDR, on)) {
    return socket_error("PACKET_VNET_HDR");
  }
  if (!set_option(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, on)) {
    return socket_error("PACKET_IGNORE_OUTGOING (needs Linux 4.20)");
  }
  // Not PACKET_QDISC_BYPASS: it drops what the device cannot segment or sum by itself.
  // FORCE passes over the system's limit; without the right to it, the limit has to do.
  if (!set_option(fd, SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)) {
    (void)set_option(fd, SOL_SOCKET, SO_RCVBUF, buffer_bytes);
  }
  if (!set_option(fd, SOL_SOCKET, SO_SNDBUFFORCE, buffer_bytes)) {
    (void)set_option(fd, SOL_SOCKET, SO_SNDBUF, buffer_bytes);
  }
  if (!attach_filter(fd, hears)) {
    return socket_error("attach the packet filter");
  }
  sockaddr_ll address{};
  address.sll_family = AF_PACKET;
  address.sll_protocol = __builtin_bswap16(ETH_P_ALL);
  address.sll_ifindex = index;
  if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return socket_error("bind the packet socket to the interface");
  }
  return Status();
}

Result<LinkInfo> find_link(const InterfaceOptions& options) {
  Result<LinkConfig> config = LinkConfig::open();
  if (!config.ok()) {
    return config.status();
  }
  Result<LinkInfo> link = config->query(options.name);
  if (!link.ok()) {
    return link.status();
  }
  Status status = check_link(*link, options);
  if (!status.ok()) {
    return status;
  }
  return link;
}

Result<UniqueFd> open_socket(const LinkInfo& link, Hears hears) {
  // Protocol 0: nothing arrives before the filter stands and bind() names the protocol.
  UniqueFd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.valid()) {
    return socket_error("open a packet socket");
  }
  Status status = set_up_socket(socket.get(), link.index, hears);
  if (!status.ok()) {
    return status;
  }
  return socket;
}

// Makes the socket one of a group between which the kernel spreads what arrives; the first one's
// call says the group's number.
Status join_group(int fd, bool first, std::uint16_t& group) {
  const std::uint32_t flags =
      kFanoutIgnoreOutgoing | (first ? PACKET_FANOUT_FLAG_UNIQUEID : 0U);
  const std::uint32_t argument = (PACKET_FANOUT_EBPF | flags) << 16 | group;
  if (!set_option(fd, SOL_PACKET, PACKET_FANOUT, argument)) {
    return socket_error("PACKET_FANOUT (needs Linux 5.13)");
  }
  std::uint32_t joined = 0;
  socklen_t size = sizeof(joined);
  if (::getsockopt(fd, SOL_PACKET, PACKET_FANOUT, &joined, &size) != 0) {
    return socket_error("PACKET_FANOUT");
  }
  group = static_cast<std::uint16_t>(joined);
  return Status();
}

}  // namespace

Result<std::vector<UniqueFd>> open_packet_queues(const InterfaceOptions& options,
                                                 std::uint32_t count, int program) {
  auto link = find_link(options);
  if (!link.ok()) {
    return link.status();
  }
  std::vector<UniqueFd> queues;
  std::uint16_t group = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    auto socket = open_socket(*link, Hears::kPackets);
    if (!socket.ok()) {
      return socket.status();
    }
    const Status status = join_group(socket->get(), i == 0, group);
    if (!status.ok()) {
      return status;
    }
    queues.push_back(std::move(socket).value());
  }
  if (!set_option(queues.front().get(), SOL_PACKET, PACKET_FANOUT_DATA, program)) {
    return socket_error("PACKET_FANOUT_DATA");
  }
  return queues;
}

Result<std::unique_ptr<PacketIo>> open_packet_socket(const InterfaceOptions& options) {
  auto link = find_link(options);
  if (!link.ok()) {
    return link.status();
  }
  UniqueFd socket;
  UniqueFd neighbors;
  if (options.queue.fd < 0) {
    auto opened = open_socket(*link, Hears::kAll);
    if (!opened.ok()) {
      return opened.status();
    }
    socket = std::move(opened).value();
  } else {
    socket = UniqueFd(::fcntl(options.queue.fd, F_DUPFD_CLOEXEC, 0));
    if (!socket.valid()) {
      return socket_error("take over a packet socket");
    }
    auto opened = open_socket(*link, Hears::kNeighbors);
    if (!opened.ok()) {
      return opened.status();
    }
    neighbors = std::move(opened).value();
  }
  link->mtu_bytes = options.mtu_bytes;
  return std::unique_ptr<PacketIo>(std::make_unique<PacketSocketIo>(
      options, std::move(socket), std::move(neighbors), *link));
}

}  // namespace sanproxy::packet_io
