// One raw kernel TCP stream: what the tcp fabric is measured against.
//
// Role: the sender calls send() once a message and nothing else; the receiver reads as much as
// there
//   is. Blocking sockets, TCP_NODELAY, no framing. Thread: the caller's.
#pragma once

#include <cstdint>

#include "lwproto/base/socket_address.h"

namespace sanproxy::bench {

struct RawLoad {
  std::uint32_t message_bytes = 64;
  double seconds = 2;
  double warmup_seconds = 0.5;
};

// Prints READY, serves one connection to its end; an exit status.
int serve_raw(const SocketAddress& address);
// Prints one JSON object; an exit status.
int run_raw(const SocketAddress& address, const RawLoad& load);

}  // namespace sanproxy::bench
