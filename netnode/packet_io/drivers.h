// The drivers, named only by open_interface().
//
// Document: docs/packet_io.md.
// Thread: construction anywhere, then the worker's.
#pragma once

#include <memory>

#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

Result<std::unique_ptr<PacketIo>> open_tun(const InterfaceOptions& options);
Result<std::unique_ptr<PacketIo>> open_tap(const InterfaceOptions& options);
Result<std::unique_ptr<PacketIo>> open_packet_socket(const InterfaceOptions& options);
Result<std::unique_ptr<PacketIo>> open_xdp(const InterfaceOptions& options);

// What open_queues() is made of; `program` is a descriptor of a steering program.
Result<std::vector<UniqueFd>> open_tun_queues(const InterfaceOptions& options, std::uint32_t count,
                                              int program);
Result<std::vector<UniqueFd>> open_packet_queues(const InterfaceOptions& options,
                                                 std::uint32_t count, int program);

// Where the IP header lands in a lent buffer: a cache line in, so that metadata and frame header
// fit in front of it, one read fills all, and the header is aligned.
inline constexpr std::uint32_t kPacketOffset = 64;

// A driver gives up a burst after so many packets that it had to drop, so that garbage cannot
// keep it from returning.
inline constexpr std::size_t kDropsPerBurstMax = 256;

}  // namespace sanproxy::packet_io
