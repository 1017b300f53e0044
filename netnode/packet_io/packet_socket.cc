#include "netnode/packet_io/packet_socket.h"

#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>

#include <array>
#include <cerrno>

#include "netnode/net/ethernet.h"
#include "netnode/net/packet.h"
#include "netnode/packet_io/drivers.h"
#include "netnode/packet_io/flow_redirect.h"

namespace sanproxy::packet_io {
namespace {

constexpr int kSocketBufferBytes = 16 * 1024 * 1024;
constexpr int kControlBufferBytes = 256 * 1024;
// Since Linux 5.13; the headers of some distributions are older.
constexpr std::uint32_t kFanoutIgnoreOutgoing = 0x4000;

// ARP and ICMPv6 types 133 to 137, addressed to us or to a group.
bool attach_neighbor_filter(int fd) {
  constexpr auto kAncillary = static_cast<std::uint32_t>(SKF_AD_OFF);
  std::array<sock_filter, 15> program = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kAncillary + SKF_AD_PKTTYPE),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, PACKET_MULTICAST, 11, 0),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kAncillary + SKF_AD_VLAN_TAG),
      BPF_STMT(BPF_ALU | BPF_AND | BPF_K, net::kVlanNumberMask),
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

// And what the kernel carries.
bool attach_redirect_filter(int fd, const FlowRedirect& redirect) {
  const Result<UniqueFd> filter = redirect.load_filter();
  if (!filter.ok()) {
    errno = filter.status().sys_errno();
    return false;
  }
  return set_option(fd, SOL_SOCKET, SO_ATTACH_BPF, filter->get());
}

// Keeps out what would only be dropped: other stations' frames, VLANs, all but IP and ARP.
bool attach_filter(int fd, Hears hears, const FlowRedirect* redirect) {
  if (redirect != nullptr) {
    return attach_redirect_filter(fd, *redirect);
  }
  if (hears == Hears::kNeighbors) {
    return attach_neighbor_filter(fd);
  }
  const std::uint32_t third = hears == Hears::kAll ? ETH_P_ARP : ETH_P_IPV6;
  constexpr auto kAncillary = static_cast<std::uint32_t>(SKF_AD_OFF);
  std::array<sock_filter, 11> program = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kAncillary + SKF_AD_PKTTYPE),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, PACKET_MULTICAST, 7, 0),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kAncillary + SKF_AD_VLAN_TAG),
      BPF_STMT(BPF_ALU | BPF_AND | BPF_K, net::kVlanNumberMask),
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

Status check_link(const LinkInfo& link, const InterfaceOptions& options) {
  return check_ethernet_link(link, options.mtu_bytes,
                             "driver \"packet\" needs an Ethernet interface (lo and tun are none)");
}

Status set_up_socket(int fd, int index, Hears hears, const FlowRedirect* redirect) {
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
  if (!attach_filter(fd, hears, redirect)) {
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

// Makes the socket one of a group between which the kernel spreads what arrives; the first one's
// call says the group's number.
Status join_group(int fd, bool first, std::uint16_t& group) {
  const std::uint32_t flags = kFanoutIgnoreOutgoing | (first ? PACKET_FANOUT_FLAG_UNIQUEID : 0U);
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

Status socket_error(const char* what) {
  if (errno == EPERM || errno == EACCES) {
    return Status::error(Code::kPermission, "a packet socket needs CAP_NET_RAW (run as root)",
                         errno);
  }
  return Status::error(Code::kSystem, what, errno);
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

Result<UniqueFd> open_packet_fd(const LinkInfo& link, Hears hears, const FlowRedirect* redirect) {
  // Protocol 0: nothing arrives before the filter stands and bind() names the protocol.
  UniqueFd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket.valid()) {
    return socket_error("open a packet socket");
  }
  Status status = set_up_socket(socket.get(), link.index, hears, redirect);
  if (!status.ok()) {
    return status;
  }
  return socket;
}

Result<std::vector<UniqueFd>> open_packet_queues(const InterfaceOptions& options,
                                                 std::uint32_t count, int program) {
  auto link = find_link(options);
  if (!link.ok()) {
    return link.status();
  }
  std::vector<UniqueFd> queues;
  std::uint16_t group = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    auto socket = open_packet_fd(*link, Hears::kPackets);
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

}  // namespace sanproxy::packet_io
