// Link settings: LinkParameters made true on TCP sockets.
//
// Document: docs/tcp_fabric.md "Link parameters".
// Role: says which parameter cannot be honoured, sets what can, and reads back what is in force.
// Owner: handshakes. Thread: any; no state.
// Invariant: a parameter is set as asked and found so by getsockopt(), or it is refused by name.
#pragma once

#include <cstdint>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/link_parameters.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"

namespace sanproxy::fabric::tcp {

struct LinkVerdict {
  std::uint32_t refused = 0;  // a LinkField; it travels in a refusal
  Status status;              // and a text with the parameter's name
  bool ok() const { return status.ok(); }
};

// kRefused with the parameter's name: what the connecting side reports of the other's verdict.
Status refused_by_peer(std::uint32_t field);

struct LinkLimits {
  std::uint32_t streams_max = kTcpStreamsMax;
  std::uint64_t window_bytes_max = kTcpWindowBytesMax;
};

// What can be said without a socket.
LinkVerdict judge_link(const LinkParameters& link, std::uint32_t streams, const LinkLimits& limits);
// One of the `streams` connections of a channel, before connect().
LinkVerdict apply_link(int fd, Family family, const LinkParameters& link, std::uint32_t streams);
// The same on an accepted socket, whose window has its scale already, for a peer that is trusted
// with nothing.
LinkVerdict apply_to_accepted(int fd, Family family, const LinkParameters& link,
                              std::uint32_t streams);
// `link` with what the kernel says of one of the connections.
LinkParameters read_back_link(int fd, Family family, LinkParameters link, std::uint32_t streams);

}  // namespace sanproxy::fabric::tcp
