// Round trips: one connection, one message there and back at a time.
#include <cerrno>
#include <cstdio>
#include <memory>
#include <vector>

#include "bench/tools/client_options.h"
#include "bench/tools/latency_histogram.h"
#include "bench/tools/measurement.h"

namespace sanproxy::bench {
namespace {

void round_trip(int fd, std::vector<char>& message) {
  const auto length = static_cast<ssize_t>(message.size());
  if (send(fd, message.data(), message.size(), MSG_NOSIGNAL) != length) fail("send");
  if (recv(fd, message.data(), message.size(), MSG_WAITALL) != length) fail("recv");
}

}  // namespace

int run_round_trips(const ClientOptions& options) {
  const int fd = connect_blocking(options, 0);
  std::vector<char> message(options.message_bytes, 'r');
  auto latencies = std::make_unique<LatencyHistogram>();
  Measurement measurement(options.watched);
  round_trip(fd, message);
  if (!announce_ready(options)) return 0;
  const std::uint64_t warm_ns =
      monotonic_ns() + static_cast<std::uint64_t>(options.warmup_seconds * 1e9);
  while (monotonic_ns() < warm_ns) round_trip(fd, message);
  measurement.start();
  std::uint64_t before_ns = monotonic_ns();
  const std::uint64_t end_ns = before_ns + static_cast<std::uint64_t>(options.seconds * 1e9);
  while (before_ns < end_ns) {
    round_trip(fd, message);
    const std::uint64_t after_ns = monotonic_ns();
    latencies->record(after_ns - before_ns);
    before_ns = after_ns;
  }
  measurement.stop();
  std::printf(
      "{\"round_trips\": %llu, \"seconds\": %.6f, \"p50_us\": %.2f, \"p99_us\": %.2f, "
      "\"p999_us\": %.2f, \"cpu_s\": %s}\n",
      static_cast<unsigned long long>(latencies->count()), measurement.seconds(),
      latencies->percentile_us(0.5), latencies->percentile_us(0.99),
      latencies->percentile_us(0.999), measurement.cpu_json().c_str());
  return 0;
}

}  // namespace sanproxy::bench
