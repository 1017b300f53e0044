// Packet sockets: opened, filtered, and joined to a group.
//
// Documents: packet(7); docs/packet_io.md "Several queues".
// Role: what PacketSocketIo and open_queues() have in common. Start-up only, but for set_option().
// Owner: they. Thread: any.
// Invariants:
//   1. Nothing arrives at a socket before its filter stands.
#pragma once

#include <sys/socket.h>

#include <cstdint>

#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"
#include "netnode/packet_io/link_config.h"
#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

// With several queues a frame reaches one of them, but ARP and neighbour discovery concern every
// worker: each hears them on a socket of its own.
enum class Hears : std::uint8_t { kAll, kPackets, kNeighbors };

template <typename T>
bool set_option(int fd, int level, int name, const T& value) {
  return ::setsockopt(fd, level, name, &value, sizeof(value)) == 0;
}

Status socket_error(const char* what);  // of errno
// The interface, if it is one that packet sockets can be used on.
Result<LinkInfo> find_link(const InterfaceOptions& options);
// Of the flows of `redirect`, if there is one, nothing is heard; for Hears::kAll.
Result<UniqueFd> open_packet_fd(const LinkInfo& link, Hears hears,
                                const FlowRedirect* redirect = nullptr);

}  // namespace sanproxy::packet_io
