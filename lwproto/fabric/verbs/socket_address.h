// The system's form of a SocketAddress. Pure; thread: any.
#pragma once

#include <sys/socket.h>

#include "lwproto/base/socket_address.h"

namespace sanproxy::fabric::verbs {

sockaddr_storage system_address(const SocketAddress& address);
// Family::kNone for what is neither IPv4 nor IPv6.
IpAddress host_of(const sockaddr* address);

}  // namespace sanproxy::fabric::verbs
