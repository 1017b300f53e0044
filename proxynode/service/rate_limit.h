// Rate limits: how often something may happen, and how often one peer may try.
//
// Document: docs/security.md "Rate limits"; docs/configuration.md "[limits]".
// Role: pure arithmetic on the time that it is given. PeerLimiter decides, the translator refuses.
// Owner: the translator; thread: the worker's. Joins and proofs only: nothing of the hot path.
// Invariants:
//   1. PeerLimiter remembers at most peers_max peers. When there are more, those with nothing to
//      remember go first, then the one that was quiet for longest.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "lwproto/flow/token_bucket.h"

namespace sanproxy::service {

using flow::Rate;
using flow::TokenBucket;

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

}  // namespace sanproxy::service
