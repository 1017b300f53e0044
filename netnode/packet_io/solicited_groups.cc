#include "netnode/packet_io/solicited_groups.h"

#include <linux/if_packet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>

#include "netnode/packet_io/neighbor_frames.h"

namespace sanproxy::packet_io {

SolicitedGroups::SolicitedGroups(int link_index)
    : link_index_(link_index),
      reported_(::socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0)),
      received_(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)) {}  // no protocol: hears nothing

bool SolicitedGroups::add(const IpAddress& ip) {
  if (ip.family != Family::kIpv6) return false;
  const IpAddress group = solicited_node_address(ip);
  if (++groups_[group] != 1) return false;
  change(group, true);
  return true;
}

bool SolicitedGroups::remove(const IpAddress& ip) {
  if (ip.family != Family::kIpv6) return false;
  const auto group = groups_.find(solicited_node_address(ip));
  if (group == groups_.end() || --group->second != 0) return false;
  change(group->first, false);
  groups_.erase(group);
  return true;
}

// Neither has to succeed: without both, questions that come all the same are answered.
void SolicitedGroups::change(const IpAddress& group, bool joining) {
  ipv6_mreq reported{};
  std::copy_n(group.bytes.begin(), sizeof(reported.ipv6mr_multiaddr),
              reported.ipv6mr_multiaddr.s6_addr);
  reported.ipv6mr_interface = static_cast<unsigned>(link_index_);
  (void)::setsockopt(reported_.get(), IPPROTO_IPV6,
                     joining ? IPV6_ADD_MEMBERSHIP : IPV6_DROP_MEMBERSHIP, &reported,
                     sizeof(reported));
  packet_mreq received{};
  received.mr_ifindex = link_index_;
  received.mr_type = PACKET_MR_MULTICAST;
  received.mr_alen = 6;
  const net::MacAddress mac = ipv6_multicast_mac(group);
  std::copy(mac.bytes.begin(), mac.bytes.end(), received.mr_address);
  // When the kernel has no room for one more, all will do.
  const int option = joining ? PACKET_ADD_MEMBERSHIP : PACKET_DROP_MEMBERSHIP;
  if (::setsockopt(received_.get(), SOL_PACKET, option, &received, sizeof(received)) != 0 &&
      joining) {
    received.mr_type = PACKET_MR_ALLMULTI;
    (void)::setsockopt(received_.get(), SOL_PACKET, option, &received, sizeof(received));
  }
}

}  // namespace sanproxy::packet_io
