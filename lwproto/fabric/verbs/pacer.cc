#include "lwproto/fabric/verbs/pacer.h"

#include <algorithm>

namespace sanproxy::fabric::verbs {
namespace {

constexpr std::uint64_t kNsPerS = 1'000'000'000;
constexpr std::uint64_t kDepthMax = std::uint64_t{1} << 40;
constexpr std::uint64_t kRateMax = std::uint64_t{1} << 40;

__extension__ using Wide = unsigned __int128;

// Below 2^63 for every amount below 2^41 and every rate from 1.
std::uint64_t mul_div(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  return static_cast<std::uint64_t>(static_cast<Wide>(a) * b / c);
}

}  // namespace

Pacer::Pacer(const LinkParameters& link, std::uint64_t now_ns) {
  mean_.rate = std::min(link.rate_bytes_per_s, kRateMax);
  mean_.depth = static_cast<std::int64_t>(std::min(link.burst_bytes, kDepthMax));
  mean_.tokens = mean_.depth;
  mean_.filled_ns = now_ns;
  peak_.rate = std::min(link.peak_bytes_per_s, kRateMax);
  peak_.filled_ns = now_ns;
}

void Pacer::Bucket::fill(std::uint64_t now_ns) {
  if (now_ns <= filled_ns) return;
  // After a long rest the bucket is full, and the product below stays small.
  const std::uint64_t room = static_cast<std::uint64_t>(depth - tokens);
  const std::uint64_t added = mul_div(now_ns - filled_ns, rate, kNsPerS);
  if (added == 0) return;  // the fraction goes on counting
  if (added >= room) {
    tokens = depth;
    filled_ns = now_ns;
    return;
  }
  tokens += static_cast<std::int64_t>(added);
  filled_ns += mul_div(added, kNsPerS, rate);
}

std::uint64_t Pacer::Bucket::ready_at_ns() const {
  if (rate == 0 || tokens >= 0) return 0;
  return filled_ns + mul_div(static_cast<std::uint64_t>(-tokens), kNsPerS, rate) + 1;
}

std::uint64_t Pacer::ready_at_ns() const {
  return std::max(mean_.ready_at_ns(), peak_.ready_at_ns());
}

}  // namespace sanproxy::fabric::verbs
