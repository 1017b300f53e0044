// The shm fabric: endpoints between processes of one host over sealed shared memory.
//
// Document: docs/shm_fabric.md (memory, handshake, doorbells, trust).
// Role: implements fabric.h for addresses "shm:/path/to.sock".
// Owner: whoever assembles the process. Thread: one, as fabric.h says.
// Invariants:
//   1. A peer can only read what we show, and cannot make us block, fault or overrun.
//   2. poll(), begin_send(), commit_send() and release() make no system call; flush() makes one
//      only to wake a peer that sleeps, once a sleep.
//   3. Trust: the connecting side takes its doorbell from the listening side, so it trusts it not
//      to block it. The listening side trusts nobody.
#pragma once

#include <cstdint>
#include <memory>

#include "lwproto/base/clock.h"
#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric {

struct ShmOptions {
  std::uint32_t ring_bytes = 1u << 20;  // of one direction; rounded up to a power of two
  unsigned socket_mode = 0666;          // of a listener's socket file
  std::uint32_t half_open_max = 128;    // handshakes not yet answered, per listener
  std::uint32_t handshake_timeout_ms = 5000;
  const Clock* clock = nullptr;  // for handshake time-outs; null: the steady clock
};

Result<std::unique_ptr<Fabric>> make_shm_fabric(const ShmOptions& options = {});

}  // namespace sanproxy::fabric
