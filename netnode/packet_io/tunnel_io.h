// TunnelIo: an interface whose packets may come through a tunnel.
//
// Documents: docs/netnode.md "Tunnels"; netnode/net/tunnel.h.
// Role: the end of a tunnel at a proxy: takes outer headers off in front of the driver that is
// behind
//   it, by moving an offset; everything else goes through. Answers go out without a tunnel.
// Owner: a worker. Thread: its.
// Invariants:
//   1. Only packets from options().decapsulate_from are unwrapped; a tunnel's packet from anybody
//      else, or a broken one, is dropped and counted as rx_dropped_tunnel.
//   2. What the device said of a packet goes up when it fits the inner one's headers, as it does
//      when the kernel has merged segments inside the tunnel (GRO); else nothing does.
#pragma once

#include <memory>

#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

std::unique_ptr<PacketIo> make_tunnel_io(std::unique_ptr<PacketIo> behind);

}  // namespace sanproxy::packet_io
