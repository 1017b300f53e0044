// Interval: counts what happens between the end of the warm-up and the end of a load.
// Owner: one load; thread: its own.
#pragma once

#include <cstdint>

#include "bench/tools/measurement.h"

namespace sanproxy::bench {

class Interval {
 public:
  Interval(double warmup_seconds, double seconds)
      : begin_ns_(monotonic_ns() + static_cast<std::uint64_t>(warmup_seconds * 1e9)),
        end_ns_(begin_ns_ + static_cast<std::uint64_t>(seconds * 1e9)) {}

  // `total` things have happened so far. False when the interval is over.
  bool see(std::uint64_t total) { return see(total, monotonic_ns()); }
  bool see(std::uint64_t total, std::uint64_t now) {
    if (now < begin_ns_) return true;
    if (first_ns_ == 0) {
      first_ns_ = now;
      first_total_ = total;
    }
    last_ns_ = now;
    last_total_ = total;
    return now < end_ns_;
  }
  bool counting() const { return first_ns_ != 0; }
  std::uint64_t count() const { return last_total_ - first_total_; }
  double seconds() const { return static_cast<double>(last_ns_ - first_ns_) / 1e9; }
  double per_second() const {
    return last_ns_ > first_ns_ ? static_cast<double>(count()) / seconds() : 0;
  }

 private:
  std::uint64_t begin_ns_;
  std::uint64_t end_ns_;
  std::uint64_t first_ns_ = 0;
  std::uint64_t first_total_ = 0;
  std::uint64_t last_ns_ = 0;
  std::uint64_t last_total_ = 0;
};

}  // namespace sanproxy::bench
