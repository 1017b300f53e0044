// TokenBucket: how often something may happen.
//
// Role: pure arithmetic on the time that it is given. Joins and proofs of a peer, lines in a log,
// ICMP
//   errors of a network node.
// Owner: whoever limits; thread: its.
// Invariants:
//   1. A bucket never yields more than `burst` at once, nor more than burst + rate * t within t.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sanproxy::flow {

struct Rate {
  std::uint32_t per_s = 1;  // at least 1
  std::uint32_t burst = 1;  // at least 1
};

// Kept as the time at which it will be full again (the "theoretical arrival time" of the generic
// cell rate algorithm).
class TokenBucket {
 public:
  bool take(const Rate& rate, std::uint64_t now_ns) {
    const std::uint64_t token_ns = 1'000'000'000 / rate.per_s;
    const std::uint64_t full_at_ns = std::max(full_at_ns_, now_ns);
    // What is missing already, and the token asked for, must fit the bucket.
    if (full_at_ns - now_ns > (std::uint64_t{rate.burst} - 1) * token_ns) return false;
    full_at_ns_ = full_at_ns + token_ns;
    return true;
  }
  bool full(std::uint64_t now_ns) const { return full_at_ns_ <= now_ns; }

 private:
  std::uint64_t full_at_ns_ = 0;
};

}  // namespace sanproxy::flow
