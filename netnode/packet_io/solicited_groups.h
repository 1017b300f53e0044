// SolicitedGroups: the multicast groups that neighbours' questions for our IPv6 addresses go to.
//
// Documents: RFC 4291 2.7.1 (solicited-node addresses), RFC 4861 7.2.1, RFC 2710 and 3810 (MLD);
//   ipv6(7), packet(7).
// Role: has the interface receive the groups, and the kernel report them, so that a switch that
//   looks at such reports passes the questions on.
// Owner: a driver. Thread: its; control plane only.
// Invariants:
//   1. A group is ours for as long as an address of it is; all are given back at the end.
#pragma once

#include <cstdint>
#include <map>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/unique_fd.h"

namespace sanproxy::packet_io {

class SolicitedGroups {
 public:
  explicit SolicitedGroups(int link_index);

  // Of an IPv6 address; what is of IPv4 has none. True when the group was not there before, and
  // when it has gone.
  bool add(const IpAddress& ip);
  bool remove(const IpAddress& ip);

 private:
  void change(const IpAddress& group, bool joining);

  int link_index_;
  UniqueFd reported_;  // an IPv6 socket: the kernel reports what it has joined
  UniqueFd received_;  // a packet socket: where IPv6 is off, or has no room for one more
  std::map<IpAddress, std::uint32_t> groups_;  // how many addresses have it
};

}  // namespace sanproxy::packet_io
