// Rate limits: how often something may happen, and how often one peer may try.
//
// Document: docs/security.md "Rate limits"; docs/configuration.md "[limits]".
// Role: pure arithmetic on the time that it is given. PeerLimiter decides, the translator refuses.
// Owner: the translator; thread: the worker's. Joins and proofs only: nothing of the hot path.
// Invariants:
//   1. A bucket never yields more than `burst` at once, nor more than burst + rate * t within t.
//   2. PeerLimiter remembers at most peers_max peers. When there are more, those with nothing to
//      remember go first, then the one that was quiet for longest.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

namespace sanproxy::service {

struct Rate {
  std::uint32_t per_s = 1;  // at least 1
  std::uint32_t burst = 1;  // at least 1
};

// A token bucket, kept as the time at which it will be full again (the "theoretical arrival time"
// of the generic cell rate algorithm).
class TokenBucket {
 public:
  bool take(const Rate& rate, std::uint64_t now_ns);
  bool full(std::uint64_t now_ns) const { return full_at_ns_ <= now_ns; }

 private:
  std::uint64_t full_at_ns_ = 0;
};

struct RateLimits {
  Rate joins = {1000, 4000};  // JOINs and proofs of one peer
  Rate failures = {5, 50};    // of these, those that were not permitted; beyond: the penalty
  std::uint32_t penalty_ms = 5000;
  std::uint32_t peers_max = 1024;
};

class PeerLimiter {
 public:
  explicit PeerLimiter(const RateLimits& limits) : limits_(limits) {}

  // Whether `peer` may try now; counts the attempt. A peer under penalty may not.
  bool may_try(const std::string& peer, std::uint64_t now_ns);
  // The attempt that may_try() let through was not permitted.
  void on_failure(const std::string& peer, std::uint64_t now_ns);
  std::size_t size() const { return peers_.size(); }

 private:
  struct Peer {
    TokenBucket joins, failures;
    std::uint64_t penalty_until_ns = 0;
    std::uint64_t seen_ns = 0;
  };
  Peer& peer_of(const std::string& peer, std::uint64_t now_ns);
  void make_room(std::uint64_t now_ns);

  RateLimits limits_;
  std::unordered_map<std::string, Peer> peers_;
};

// Lets a log line of one kind through or counts it: whoever provokes lines must not fill a disk.
class LogGate {
 public:
  explicit LogGate(Rate rate = {5, 50}) : rate_(rate) {}
  bool open(std::uint64_t now_ns);
  // Lines held back since the last that went through, once.
  std::uint64_t take_held();

 private:
  Rate rate_;
  TokenBucket bucket_;
  std::uint64_t held_ = 0;
};

}  // namespace sanproxy::service
