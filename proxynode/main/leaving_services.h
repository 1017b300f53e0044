// LeavingServices: services that nobody has joined any more, whose connections are still open.
//
// Document: docs/cluster.md "Network nodes".
// Role: network nodes that know a service from the cluster alone must go on steering its packets
//   until its last connection has ended; this is the list that they are told. Whether one still has
//   a connection is learned by a walk over all of them, so it is asked for all at a time, at once
//   and then each kLookPauseNs. Pure: walk and clock are the caller's.
// Owner: the worker; thread: the worker's. Control plane only.
// Invariants:
//   1. At most kMax, which a record in the cluster holds; beyond, the oldest is forgotten and
//   counted.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/cluster/bounds.h"

namespace sanproxy::proxy {

class LeavingServices {
 public:
  static constexpr std::size_t kMax = cluster::kListMax;
  static constexpr std::uint64_t kLookPauseNs = 2'000'000'000;

  // Its last member has left.
  void add(const SocketAddress& address) {
    std::erase(order_, address);
    if (order_.size() == kMax) {
      order_.erase(order_.begin());
      ++forgotten_;
    }
    order_.push_back(address);
    look_at_ns_ = 0;
    ++changes_;
  }
  // Somebody has joined it.
  void remove(const SocketAddress& address) {
    if (std::erase(order_, address) != 0) ++changes_;
  }
  bool due(std::uint64_t now_ns) const { return !order_.empty() && now_ns >= look_at_ns_; }
  // Those that are not in `used` have ended.
  void keep(const std::set<SocketAddress>& used, std::uint64_t now_ns) {
    look_at_ns_ = now_ns + kLookPauseNs;
    if (std::erase_if(order_, [&](const SocketAddress& one) { return !used.contains(one); }) != 0) {
      ++changes_;
    }
  }
  const std::vector<SocketAddress>& all() const { return order_; }
  std::uint64_t changes() const { return changes_; }      // differs when all() may
  std::uint64_t forgotten() const { return forgotten_; }  // for want of room

 private:
  std::vector<SocketAddress> order_;  // oldest first
  std::uint64_t look_at_ns_ = 0;
  std::uint64_t changes_ = 0;
  std::uint64_t forgotten_ = 0;
};

}  // namespace sanproxy::proxy
