// Offload metadata as PACKET carries it, for both ends of a packet channel.
//
// Document: docs/wire_format.md "PACKET".
// Thread: pure functions.
#pragma once

#include <optional>
#include <span>

#include "lwproto/channel/channel.h"
#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

// Empty: metadata that no packet of `length` bytes can have (rules M29 and M30).
std::optional<channel::PacketInfo> info_from_offload(const Offload& offload, std::uint32_t length);
// Of a PACKET whose form the reader has checked. False: it contradicts the packet's version, whose
// first byte is `first`.
[[nodiscard]] bool offload_from_info(const channel::PacketInfo& info, std::uint8_t first,
                                     Offload& out);
// A TCP segment that acknowledges and does nothing else. Nobody waits for the one of them; what it
// makes room for is bulk.
bool is_mere_ack(std::span<const std::byte> packet);

}  // namespace sanproxy::packet_io
