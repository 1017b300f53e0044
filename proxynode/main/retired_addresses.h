// RetiredAddresses: addresses of services that have closed. They stay ours for a while, because
// open connections go on and a late SYN deserves its RST.
//
// Role: keeps their order and says when some are to be given up. Whether one is still in use is
//   learned by a walk over all connections, so it is asked for many at a time.
// Owner: the worker; thread: the worker's. Control plane only.
// Invariants:
//   1. The kKept youngest are never given up, nor is one that is in use.
//   2. due() holds at most once in kBatch calls of add().
#pragma once

#include <algorithm>
#include <cstddef>
#include <set>
#include <vector>

#include "lwproto/base/socket_address.h"

namespace sanproxy::proxy {

class RetiredAddresses {
 public:
  static constexpr std::size_t kKept = 256;
  static constexpr std::size_t kBatch = 64;

  void add(const IpAddress& ip) {
    std::erase(order_, ip);
    order_.push_back(ip);
  }
  bool due() const { return order_.size() >= look_at_; }
  // The oldest beyond kKept that are not in `used`; they are forgotten.
  std::vector<IpAddress> give_up(const std::set<IpAddress>& used) {
    std::vector<IpAddress> out;
    const std::size_t old = order_.size() > kKept ? order_.size() - kKept : 0;
    const auto end = order_.begin() + static_cast<std::ptrdiff_t>(old);
    const auto kept = std::stable_partition(
        order_.begin(), end, [&](const IpAddress& ip) { return used.count(ip) == 0; });
    out.assign(order_.begin(), kept);
    order_.erase(order_.begin(), kept);
    look_at_ = std::max(order_.size(), kKept) + kBatch;
    return out;
  }
  std::size_t size() const { return order_.size(); }

 private:
  std::vector<IpAddress> order_;  // oldest first
  std::size_t look_at_ = kKept + kBatch;
};

}  // namespace sanproxy::proxy
