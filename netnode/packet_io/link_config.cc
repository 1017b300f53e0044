#include "netnode/packet_io/link_config.h"

#include <linux/if.h>
#include <linux/if_addr.h>
#include <linux/if_arp.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace sanproxy::packet_io {
namespace {

constexpr int kLocalWaitMs = 5'000;

// One rtnetlink request under construction: header, family body, attributes.
template <typename Body>
class Message {
 public:
  Message(std::uint16_t type, std::uint16_t flags) {
    header().nlmsg_type = type;
    header().nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | NLM_F_ACK | flags);
    header().nlmsg_len = NLMSG_LENGTH(sizeof(Body));
  }
  Body& body() { return *reinterpret_cast<Body*>(bytes_.data() + NLMSG_HDRLEN); }
  void* data() { return bytes_.data(); }

  void add(std::uint16_t type, const void* value, std::size_t size) {
    rtattr attribute{static_cast<unsigned short>(RTA_LENGTH(size)), type};
    std::byte* at = bytes_.data() + NLMSG_ALIGN(header().nlmsg_len);
    std::memcpy(at, &attribute, sizeof(attribute));
    std::copy_n(static_cast<const std::byte*>(value), size, at + RTA_LENGTH(0));
    header().nlmsg_len =
        static_cast<std::uint32_t>(NLMSG_ALIGN(header().nlmsg_len) + RTA_ALIGN(RTA_LENGTH(size)));
  }
  // Opens an attribute that holds others; close with end().
  std::size_t begin(std::uint16_t type) {
    const std::size_t at = NLMSG_ALIGN(header().nlmsg_len);
    add(type, nullptr, 0);
    return at;
  }
  void end(std::size_t begun) {
    const auto size = static_cast<unsigned short>(header().nlmsg_len - begun);
    std::memcpy(bytes_.data() + begun, &size, sizeof(size));
  }

 private:
  nlmsghdr& header() { return *reinterpret_cast<nlmsghdr*>(bytes_.data()); }
  alignas(NLMSG_ALIGNTO) std::array<std::byte, 256> bytes_{};
};

Message<ifinfomsg> link_message(int index) {
  Message<ifinfomsg> message(RTM_NEWLINK, 0);
  message.body().ifi_family = AF_UNSPEC;
  message.body().ifi_index = index;
  return message;
}

ifreq named(const std::string& name) {
  ifreq request{};
  name.copy(request.ifr_name, IFNAMSIZ - 1);
  return request;
}

}  // namespace

Result<LinkConfig> LinkConfig::open() {
  UniqueFd netlink(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  UniqueFd control(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!netlink.valid() || !control.valid()) {
    return Status::error(Code::kSystem, "open a netlink socket", errno);
  }
  return LinkConfig(std::move(netlink), std::move(control));
}

Result<LinkInfo> LinkConfig::query(const std::string& name) {
  LinkInfo info;
  ifreq request = named(name);
  if (::ioctl(control_.get(), SIOCGIFINDEX, &request) != 0) {
    return errno == ENODEV
               ? Status::error(Code::kNotFound, "no such network interface (see: ip link)", errno)
               : Status::error(Code::kSystem, "look up the network interface", errno);
  }
  info.index = request.ifr_ifindex;
  if (::ioctl(control_.get(), SIOCGIFMTU, &request) != 0) {
    return Status::error(Code::kSystem, "read the interface's MTU", errno);
  }
  info.mtu_bytes = static_cast<std::uint32_t>(request.ifr_mtu);
  if (::ioctl(control_.get(), SIOCGIFHWADDR, &request) != 0) {
    return Status::error(Code::kSystem, "read the interface's MAC address", errno);
  }
  info.ethernet = request.ifr_hwaddr.sa_family == ARPHRD_ETHER;
  info.mac = net::MacAddress::from(request.ifr_hwaddr.sa_data);
  if (::ioctl(control_.get(), SIOCGIFFLAGS, &request) != 0) {
    return Status::error(Code::kSystem, "read the interface's flags", errno);
  }
  info.up = (request.ifr_flags & IFF_UP) != 0;
  return info;
}

Status LinkConfig::request(void* message, const char* what) {
  auto& header = *static_cast<nlmsghdr*>(message);
  header.nlmsg_seq = ++sequence_;
  if (::send(netlink_.get(), message, header.nlmsg_len, 0) < 0) {
    return Status::error(Code::kSystem, what, errno);
  }
  for (;;) {
    alignas(nlmsghdr) std::array<std::byte, 8192> answer;
    const ssize_t got = ::recv(netlink_.get(), answer.data(), answer.size(), 0);
    if (got < 0 && errno == EINTR) {
      continue;
    }
    if (got < static_cast<ssize_t>(NLMSG_LENGTH(sizeof(int)))) {
      return Status::error(Code::kSystem, what, got < 0 ? errno : EPROTO);
    }
    const auto& reply = *reinterpret_cast<const nlmsghdr*>(answer.data());
    if (reply.nlmsg_type != NLMSG_ERROR || reply.nlmsg_seq != sequence_) {
      continue;
    }
    int error = 0;
    std::memcpy(&error, answer.data() + NLMSG_HDRLEN, sizeof(error));
    if (error == 0) {
      return Status();
    }
    if (error == -EPERM) {
      return Status::error(Code::kPermission,
                           "configuring an interface needs CAP_NET_ADMIN (run as root)", EPERM);
    }
    return Status::error(Code::kSystem, what, -error);
  }
}

// The first message of the answer to a question without NLM_F_ACK. Empty: there was none.
std::span<const std::byte> LinkConfig::ask(void* message, std::span<std::byte> answer) {
  auto& header = *static_cast<nlmsghdr*>(message);
  header.nlmsg_flags = NLM_F_REQUEST;
  header.nlmsg_seq = ++sequence_;
  if (::send(netlink_.get(), message, header.nlmsg_len, 0) < 0) {
    return {};
  }
  const ssize_t got = ::recv(netlink_.get(), answer.data(), answer.size(), 0);
  return answer.first(got < 0 ? 0 : static_cast<std::size_t>(got));
}

Status LinkConfig::disable_ipv6_autoconf(int index) {
  Message<ifinfomsg> message = link_message(index);
  const std::uint8_t none = 1;  // IN6_ADDR_GEN_MODE_NONE
  const std::size_t spec = message.begin(IFLA_AF_SPEC);
  const std::size_t inet6 = message.begin(AF_INET6);
  message.add(IFLA_INET6_ADDR_GEN_MODE, &none, sizeof(none));
  message.end(inet6);
  message.end(spec);
  return request(message.data(), "switch off the device's own link-local address");
}

Status LinkConfig::set_mtu(int index, std::uint32_t mtu_bytes) {
  Message<ifinfomsg> message = link_message(index);
  message.add(IFLA_MTU, &mtu_bytes, sizeof(mtu_bytes));
  return request(message.data(), "set the MTU (is it within what the device allows?)");
}

Status LinkConfig::set_queue_length(int index, std::uint32_t packets) {
  Message<ifinfomsg> message = link_message(index);
  message.add(IFLA_TXQLEN, &packets, sizeof(packets));
  return request(message.data(), "set the device's queue length");
}

Status LinkConfig::set_no_queue_discipline(int index) {
  Message<tcmsg> message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE);
  message.body().tcm_family = AF_UNSPEC;
  message.body().tcm_ifindex = index;
  message.body().tcm_parent = TC_H_ROOT;
  message.add(TCA_KIND, "noqueue", sizeof("noqueue"));
  return request(message.data(), "set the device's queue discipline");
}

Status LinkConfig::add_address(int index, const IpPrefix& address) {
  Message<ifaddrmsg> message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
  const bool v6 = address.ip.family == Family::kIpv6;
  message.body().ifa_family = v6 ? AF_INET6 : AF_INET;
  message.body().ifa_prefixlen = address.length_bits;
  message.body().ifa_flags = v6 ? IFA_F_NODAD : 0;
  message.body().ifa_index = static_cast<std::uint32_t>(index);
  message.add(IFA_LOCAL, address.ip.bytes.data(), address.ip.size());
  message.add(IFA_ADDRESS, address.ip.bytes.data(), address.ip.size());
  Status status = request(message.data(), v6 ? "add an IPv6 address (is IPv6 enabled on this host?)"
                                             : "add an IPv4 address");
  // The kernel adds the route that makes an IPv6 address its own in a work queue, later.
  return status.ok() && v6 ? wait_until_local(address.ip) : status;
}

bool LinkConfig::is_local(const IpAddress& address) {
  Message<rtmsg> message(RTM_GETROUTE, 0);
  message.body().rtm_family = AF_INET6;
  message.body().rtm_dst_len = 128;
  message.add(RTA_DST, address.bytes.data(), address.size());
  alignas(nlmsghdr) std::array<std::byte, 8192> memory;
  const auto answer = ask(message.data(), memory);
  if (answer.size() < NLMSG_LENGTH(sizeof(rtmsg))) {
    return false;
  }
  const auto& reply = *reinterpret_cast<const nlmsghdr*>(answer.data());
  rtmsg route;
  std::memcpy(&route, answer.data() + NLMSG_HDRLEN, sizeof(route));
  return reply.nlmsg_type == RTM_NEWROUTE && route.rtm_type == RTN_LOCAL;
}

// Where the kernel does not say, somebody may have it.
bool LinkConfig::has_carrier(int index) {
  Message<ifinfomsg> message(RTM_GETLINK, 0);
  message.body().ifi_family = AF_UNSPEC;
  message.body().ifi_index = index;
  alignas(nlmsghdr) std::array<std::byte, 8192> memory;
  const auto answer = ask(message.data(), memory);
  const auto& reply = *reinterpret_cast<const nlmsghdr*>(memory.data());
  if (answer.size() < NLMSG_LENGTH(sizeof(ifinfomsg)) || reply.nlmsg_type != RTM_NEWLINK) {
    return true;
  }
  std::size_t at = NLMSG_LENGTH(NLMSG_ALIGN(sizeof(ifinfomsg)));
  while (at + sizeof(rtattr) < answer.size()) {
    rtattr attribute;
    std::memcpy(&attribute, answer.data() + at, sizeof(attribute));
    if (attribute.rta_len < sizeof(attribute)) {
      return true;
    }
    if (attribute.rta_type == IFLA_CARRIER) {
      return std::to_integer<int>(answer[at + RTA_LENGTH(0)]) != 0;
    }
    at += RTA_ALIGN(attribute.rta_len);
  }
  return true;
}

Status LinkConfig::wait_until_local(const IpAddress& address) {
  for (int waited_ms = 0; waited_ms < kLocalWaitMs; ++waited_ms) {
    if (is_local(address)) {
      return Status();
    }
    ::poll(nullptr, 0, 1);
  }
  return Status::error(Code::kTimeout, "the kernel did not take an IPv6 address into use");
}

Status LinkConfig::set_up(int index) {
  Message<ifinfomsg> message = link_message(index);
  message.body().ifi_flags = IFF_UP;
  message.body().ifi_change = IFF_UP;
  return request(message.data(), "bring the device up");
}

Status check_ethernet_link(const LinkInfo& link, std::uint32_t mtu_bytes, const char* no_ethernet) {
  if (!link.ethernet) return Status::error(Code::kUnsupported, no_ethernet);
  if (!link.up) {
    return Status::error(Code::kInvalidArgument,
                         "the interface is down; bring it up first (ip link set NAME up)");
  }
  if (mtu_bytes > link.mtu_bytes) {
    return Status::error(Code::kInvalidArgument,
                         "the interface's MTU is smaller than the configured one");
  }
  return {};
}

}  // namespace sanproxy::packet_io
