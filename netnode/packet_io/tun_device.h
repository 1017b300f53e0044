// TunDevice: makes and configures a TUN or TAP device, and moves packets across its descriptor.
//
// Document: Linux Documentation/networking/tuntap.rst.
// Role: what TunIo and TapIo have in common.
// Owner: they. Thread: the worker's.
// Invariants:
//   1. The device goes away with the descriptor (unless someone made it persistent).
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <span>

#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"
#include "netnode/packet_io/link_config.h"
#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

enum class TunKind : std::uint8_t { kTun, kTap };

struct TunDevice {
  UniqueFd fd;
  LinkInfo link;
};

// With options.queue.fd that queue of a device that stands already.
Result<TunDevice> open_tun_device(const InterfaceOptions& options, TunKind kind);

}  // namespace sanproxy::packet_io
