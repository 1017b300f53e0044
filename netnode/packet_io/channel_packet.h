// Offload metadata as PACKET carries it, for both ends of a packet channel.
//
// Document: docs/wire_format.md "PACKET".
// Thread: pure functions.
#pragma once

#include <optional>

#include "lwproto/channel/channel.h"
#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

// Empty: metadata that no packet of `length` bytes can have (rules M29 and M30).
std::optional<channel::PacketInfo> info_from_offload(const Offload& offload, std::uint32_t length);
// Of a PACKET whose form the reader has checked. False: it contradicts the packet's version, whose
// first byte is `first`.
[[nodiscard]] bool offload_from_info(const channel::PacketInfo& info, std::uint8_t first,
                                     Offload& out);

}  // namespace sanproxy::packet_io
