// Whether the device behind a descriptor has been removed: such a descriptor stays silent, or is
// readable for ever, and never becomes good again, not even when a device of that name is made. And
// whether it is still the one that we knew.
//
// Documents: Linux tuntap.rst (TUNGETIFF), packet(7).
// Role: asked once in kDeviceLookNs by whoever owns an interface; a few system calls.
// Thread: any.
#pragma once

#include <cstdint>

#include "netnode/net/ethernet.h"
#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

// How often it is asked.
inline constexpr std::uint64_t kDeviceLookNs = 1'000'000'000;

inline constexpr const char* kRemoved = "has been removed";

bool tun_gone(int fd);
bool packet_socket_gone(int fd);
// For PacketIo::lost(), of a link that had this address: neighbours ask and send to the new one.
const char* mac_trouble(int index, const net::MacAddress& mac);

// Of a queue of open_queues().
bool queue_gone(const InterfaceOptions& options, int fd);

}  // namespace sanproxy::packet_io
