// LatencyHistogram: percentiles of many durations in constant memory.
//
// Role: log-linear buckets (64 to a power of two, so an error below 1.6 %), as in HdrHistogram.
// Owner: one load; thread: its own.
// Invariants:
//   1. record() allocates nothing and takes any value; values above 2^40 ns share a bucket.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace sanproxy::bench {

class LatencyHistogram {
 public:
  void record(std::uint64_t ns) {
    ++buckets_[index_of(ns)];
    ++count_;
  }

  std::uint64_t count() const { return count_; }

  // The middle of the bucket that holds the value at `quantile` (0..1).
  double percentile_us(double quantile) const {
    const auto rank = static_cast<std::uint64_t>(quantile * static_cast<double>(count_));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      seen += buckets_[i];
      if (seen > rank) return middle_ns(i) / 1000.0;
    }
    return 0;
  }

  void add(const LatencyHistogram& other) {
    for (std::size_t i = 0; i < buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
    count_ += other.count_;
  }

  void clear() {
    buckets_.fill(0);
    count_ = 0;
  }

 private:
  static constexpr unsigned kSubBits = 6;
  static constexpr unsigned kTopBits = 40;
  static constexpr std::size_t kSub = std::size_t{1} << kSubBits;

  static std::size_t index_of(std::uint64_t ns) {
    if (ns < kSub) return ns;
    const unsigned top = static_cast<unsigned>(std::bit_width(ns)) - 1;
    if (top >= kTopBits) return kBuckets - 1;
    const unsigned shift = top - kSubBits;
    return (shift + 1) * kSub + ((ns >> shift) & (kSub - 1));
  }

  static double middle_ns(std::size_t index) {
    if (index < kSub) return static_cast<double>(index);
    const std::size_t shift = index / kSub - 1;
    const std::uint64_t low = (kSub + index % kSub) << shift;
    return static_cast<double>(low) + static_cast<double>(std::uint64_t{1} << shift) / 2;
  }

  static constexpr std::size_t kBuckets = (kTopBits - kSubBits + 1) * kSub;
  std::array<std::uint64_t, kBuckets> buckets_{};
  std::uint64_t count_ = 0;
};

}  // namespace sanproxy::bench
