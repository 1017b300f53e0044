// Measurement: the interval over which a load counts, with the CPU time that named processes
// spent in it.
//
// Role: the load generator samples the CPU clocks of the proxy and the application itself, at the
//   first and the last instant of its interval, so that work per request is exact.
// Owner: one load; thread: its own.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace sanproxy::bench {

// Nanoseconds on CPU of all threads of `pid` since it started (/proc/PID/task/*/schedstat).
std::uint64_t process_cpu_ns(pid_t pid);

std::uint64_t monotonic_ns();

class Measurement {
 public:
  explicit Measurement(std::vector<int> watched) : watched_(std::move(watched)) {}
  void start();
  void stop();
  double seconds() const;
  // {"PID": seconds, ...}, our own process under "self".
  std::string cpu_json() const;

 private:
  std::vector<std::uint64_t> sample() const;

  std::vector<int> watched_;
  std::vector<std::uint64_t> cpu_start_ns_;
  std::vector<std::uint64_t> cpu_stop_ns_;
  std::uint64_t start_ns_ = 0;
  std::uint64_t stop_ns_ = 0;
};

}  // namespace sanproxy::bench
