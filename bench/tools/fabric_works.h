// The loads that fabric_bench puts on a fabric, seen from both ends.
//
// Role: a Session is one end of one connection: it is polled in a loop and says when it is over.
//   Throughput and round trips use an Endpoint as it is, with credits of their own; streams,
//   messages and channel round trips use a Channel, so that headers, packing and flow control are
//   measured with it.
// Owner: fabric_bench's loop. Thread: its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bench/tools/interval.h"
#include "bench/tools/latency_histogram.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::bench {

enum class Work : std::uint32_t {
  kThroughput = 1,
  kRoundTrips = 2,
  kStreams = 3,
  kMessages = 4,
  kChannelTrips = 5
};

// What is sent by reference lies in as much memory as raw senders use, and stays as warm as theirs.
inline constexpr std::size_t kRegionBytes = 256u << 10;

inline bool over_channel(Work work) { return work >= Work::kStreams; }

// The private data of a connection, both ways (same host or same kind of host).
struct Greeting {
  std::uint32_t magic = 0x6662'6e63;
  Work work = Work::kThroughput;
  std::uint32_t message_bytes = 64;
  std::uint32_t receive_depth = 0;  // of the sender of this greeting
  std::uint32_t report_bytes = 0;   // the server tells what it has got each time it got so many
};

struct LoadOptions {
  Work work = Work::kThroughput;
  std::uint32_t message_bytes = 64;
  std::uint32_t streams = 64;
  std::uint32_t report_bytes = 256 * 1024;
  double seconds = 2;
  double warmup_seconds = 0.5;
};

class Session {
 public:
  virtual ~Session() = default;
  // One round; false when it is over.
  virtual bool run() = 0;
  // It has more to send and is not held up: no reason to sleep.
  virtual bool busy() const { return false; }
  // What the client has measured, as the inside of a JSON object; empty if it went wrong.
  virtual std::string report() const { return {}; }
  virtual const char* error() const { return nullptr; }
};

// What a client of round trips has measured.
std::string trips_report(const Interval& interval, const LatencyHistogram& histogram);

Greeting make_greeting(const LoadOptions& load, const fabric::EndpointOptions& options);
std::vector<std::byte> bytes_of(const Greeting& greeting);
bool read_greeting(std::span<const std::byte> bytes, Greeting& out);

std::unique_ptr<Session> make_server(std::unique_ptr<fabric::Endpoint> endpoint,
                                     const Greeting& ours, const Greeting& peers);
std::unique_ptr<Session> make_client(std::unique_ptr<fabric::Endpoint> endpoint,
                                     const Greeting& ours, const Greeting& peers,
                                     const LoadOptions& load);

std::unique_ptr<Session> make_channel_server(std::unique_ptr<fabric::Endpoint> endpoint,
                                             const Greeting& ours, const Greeting& peers);
std::unique_ptr<Session> make_channel_client(std::unique_ptr<fabric::Endpoint> endpoint,
                                             const Greeting& ours, const Greeting& peers,
                                             const LoadOptions& load);

}  // namespace sanproxy::bench
