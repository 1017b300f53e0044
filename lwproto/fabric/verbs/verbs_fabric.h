// The verbs fabric: endpoints over reliable connected queue pairs (InfiniBand, RoCE, soft-RoCE).
//
// Document: docs/verbs_fabric.md (handshake, buffers, queues, sleeping, what happens on a death).
// Role: implements fabric.h for addresses "verbs://10.9.0.1:7471".
// Owner: whoever assembles the process. Thread: one, as fabric.h says.
// Invariants:
//   1. The CPU copies no referenced payload: it is sent from the attached region and received into
//      the slot that the loan is (docs/verbs_fabric.md names the one exception).
//   2. Device limits are asked for, never assumed.
//   3. A peer can end its own channel, and nothing else.
#pragma once

#include <cstdint>
#include <memory>

#include "lwproto/base/clock.h"
#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric {

// What went wrong with peers that never became an endpoint, and the like. Totals.
struct VerbsCounters {
  std::uint64_t refused_headers = 0;      // another protocol or version, impossible sizes
  std::uint64_t refused_queue_pairs = 0;  // more than we have, or of no channel that we know
  std::uint64_t refused_hellos = 0;       // malformed, or asking for what we do not have
  std::uint64_t refused_busy = 0;         // no room for one more half-open handshake
  std::uint64_t refused_too_fast = 0;     // its host asked for too many queue pairs in a time
  std::uint64_t evicted_half_open = 0;    // silent, and their place was needed
  std::uint64_t timed_out_half_open = 0;
  std::uint64_t failed_set_ups = 0;  // no memory or queue for a newcomer
  std::uint64_t port_errors = 0;
  std::uint64_t device_errors = 0;
  std::uint64_t lost_listeners = 0;    // their device was removed; each is retried until it is back
  std::uint64_t unflushed_queues = 0;  // destroyed before the device had given everything back
};

struct VerbsOptions {
  std::uint32_t ring_bytes = 1u << 20;   // inline parts under way, of one endpoint
  std::uint32_t inline_bytes_max = 256;  // copied into the work request, if the device can
  std::uint32_t gather_max = 0;          // pieces of a work request; 0: what the device can
  std::uint32_t half_open_max = 128;     // handshakes not yet answered, per listener
  std::uint32_t handshake_timeout_ms = 5000;
  std::uint32_t queue_pairs = 1;                // of a channel, where LinkParameters say nothing
  std::uint32_t queue_pairs_max = 64;           // that a peer may ask for
  std::uint32_t further_queue_pairs_max = 128;  // of handshakes beyond their first, per listener
  // That newcomers of one host (an IPv4 address, an IPv6 /64) may ask for, and four times as many
  // at once, of one listener; 0: any number. The other listeners know nothing of it.
  std::uint32_t queue_pairs_per_s = 100;
  std::uint32_t close_timeout_ms = 1000;   // for the last transfers of a channel that we end
  std::uint8_t ack_timeout_exponent = 16;  // 4.096 us * 2^this, before a packet is sent again
  std::uint8_t retry_count = 6;            // and that often
  VerbsCounters* counters = nullptr;       // kept up to date if given; outlives the fabric
  const Clock* clock = nullptr;            // for time-outs and rates; null: the steady clock
};

// Succeeds without a device; listen() and connect() then say kUnsupported.
Result<std::unique_ptr<Fabric>> make_verbs_fabric(const VerbsOptions& options = {});

}  // namespace sanproxy::fabric
