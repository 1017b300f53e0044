// StartHold: whether proxies have to wait with coming up because the node has just started.
//
// Document: docs/netnode.md "Health".
// Role: whoever is heard first would get the flows of those that are not heard yet, and reset them.
//   So nobody comes up before all have been heard, well or not, or it has taken too long. Pure
//   arithmetic: who has been heard is the caller's to know.
// Owner and thread: the node's.
// Invariants:
//   1. Once in the life of a node, and for kLongestNs from its first proxies on at most.
//   2. Where there is nobody to wait for, it is over at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

namespace sanproxy::netnode {

class StartHold {
 public:
  static constexpr std::uint64_t kLongestNs = 1'000'000'000;

  // True: they have to wait. Of `proxies` so many are `unheard`: neither up nor failed yet.
  bool holds(std::size_t proxies, std::size_t unheard, std::uint64_t now_ns) {
    if (over_) return false;
    if (proxies == 0) return true;  // a cluster tells later who there is
    if (!since_ns_) since_ns_ = now_ns;
    over_ = unheard == 0 || now_ns - *since_ns_ >= kLongestNs;
    return !over_;
  }
  bool over() const { return over_; }

 private:
  std::optional<std::uint64_t> since_ns_;
  bool over_ = false;
};

}  // namespace sanproxy::netnode
