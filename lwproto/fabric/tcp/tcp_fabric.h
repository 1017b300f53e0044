// The tcp fabric: a channel over one or more kernel TCP connections, with TLS 1.3 if wanted.
//
// Document: docs/tcp_fabric.md (handshake, frames, buffers, link parameters, TLS).
// Role: implements fabric.h for addresses "tcp://10.9.0.1:7471" and "tcp://[fd77::1]:7471".
// Owner: whoever assembles the process. Thread: one, as fabric.h says.
// Invariants:
//   1. Referenced memory is handed to the kernel where it lies: the fabric copies no payload on
//      its way out, and large payloads are received where the owner will read them.
//   2. commit_send() makes no system call; flush() one for up to 64 pieces; poll() none unless
//      the kernel has announced something.
//   3. A peer is trusted with nothing: lengths, numbers and tokens are checked, and everything that
//      it can make us keep has a bound in TcpOptions or EndpointOptions.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "lwproto/base/clock.h"
#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric {

// What became of those who tried to connect to the listeners of a fabric.
struct TcpCounters {
  std::uint64_t connections = 0;        // TCP connections taken
  std::uint64_t channels = 0;           // handshakes that were shown to the owner
  std::uint64_t overflows = 0;          // turned away, or gave way: half_open_max
  std::uint64_t timeouts = 0;           // not through in time: handshake_timeout_ms
  std::uint64_t malformed = 0;          // sent something that is no handshake
  std::uint64_t wrong_tokens = 0;       // joined a channel not theirs, or gone
  std::uint64_t tls_failures = 0;       // no TLS, no certificate, a certificate that is not good
  std::uint64_t refused_links = 0;      // asked for a link that we cannot honour
  std::uint64_t lingering_dropped = 0;  // closed before the peer had taken all: lingering_max
};

struct TcpOptions {
  // Mutual TLS 1.3 when all three are given (PEM files), in the clear when none is. Both ends must
  // agree. The certificate of a peer must be signed by one of `authority_file`.
  std::string certificate_file = {};
  std::string key_file = {};
  std::string authority_file = {};
  // The connecting side takes no other server than one with this certificate name; "" takes any
  // that the authority has signed.
  std::string server_name = {};

  std::uint32_t parallel_streams = 1;  // where LinkParameters say nothing
  std::uint32_t streams_max = 16;      // that a peer may ask for; at most kTcpStreamsMax
  // Windows that peers may ask for: one, and all of a listener's channels together, since the
  // kernel gives them memory that it takes from everybody.
  std::uint64_t window_bytes_max = std::uint64_t{64} << 20;
  std::uint64_t window_total_max = std::uint64_t{256} << 20;
  std::uint32_t send_queue_bytes = 1u << 18;  // of one stream, without references; a power of two
  // Of a listener: connections that have said nothing yet, and likewise channels not yet answered.
  std::uint32_t half_open_max = 128;
  // TLS handshakes that a listener begins for one peer (an IPv4 address, an IPv6 /64), and four
  // times as many at once; further ones wait for their turn.
  std::uint32_t tls_handshakes_per_s = 100;
  std::uint32_t handshake_timeout_ms = 5000;
  std::uint32_t close_timeout_ms = 5000;  // for what was committed before the end to leave
  std::uint32_t lingering_max = 256;      // connections that wait for the peer to take their last
  // A peer that does not answer on the network, or takes no bytes, for this long is gone.
  std::uint32_t peer_timeout_ms = 30'000;
  TcpCounters* counters = nullptr;  // kept up to date if given; outlives the fabric
  const Clock* clock = nullptr;     // for time-outs; null: the steady clock
};

inline constexpr std::uint32_t kTcpStreamsMax = 64;
inline constexpr std::uint64_t kTcpWindowBytesMax = std::uint64_t{1} << 30;
inline constexpr std::uint32_t kTcpPeerTimeoutMsMin = 1000;
inline constexpr std::uint32_t kTcpPeerTimeoutMsMax = 3'600'000;

// Why nobody should be started with these files for TLS, for people: which, where, and what is
// wrong with it; empty if nothing is. A private key that everybody may read is.
std::string tls_files_problem(const TcpOptions& options);

Result<std::unique_ptr<Fabric>> make_tcp_fabric(const TcpOptions& options = {});

}  // namespace sanproxy::fabric
