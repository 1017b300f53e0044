// The system's form of a SocketAddress. Pure; thread: any.
#pragma once

#include <sys/socket.h>

#include "lwproto/base/socket_address.h"

namespace sanproxy::fabric::verbs {

sockaddr_storage system_address(const SocketAddress& address);

}  // namespace sanproxy::fabric::verbs
