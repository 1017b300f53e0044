// Non-blocking TCP sockets: making, binding, dialling, and what tells that a peer has vanished.
//
// Role: the only place of the TCP fabric that knows sockaddr. Owner: handshakes. Thread: the
//   caller's. Nothing here blocks.
#pragma once

#include <cstdint>
#include <string>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"

namespace sanproxy::fabric::tcp {

// Binds and listens; `address.port` is filled in when it is 0.
Result<UniqueFd> listen_at(SocketAddress& address);
Result<UniqueFd> make_socket(Family family);
// Begins to connect; the socket becomes writable at the end. `dial_error` then tells how it went.
Status dial(int fd, const SocketAddress& address);
Status dial_error(int fd);

// TCP_NODELAY, and an end within about `peer_timeout_ms` when the peer's host does not answer, with
// data outstanding or without.
Status prepare_socket(int fd, std::uint32_t peer_timeout_ms);

Result<SocketAddress> peer_address(int fd);
// To the peer and back, as the kernel has measured; at most kRoundTripMaxNs, since a peer can
// stretch it.
inline constexpr std::uint64_t kRoundTripMaxNs = 1'000'000'000;
std::uint64_t round_trip_ns(int fd);

}  // namespace sanproxy::fabric::tcp
