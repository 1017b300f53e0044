// OfUse: whether a node is of any use to clients, for whoever announces its addresses.
//
// Document: docs/netnode.md "Health".
// Role: without a proxy that is up or drains all packets are dropped, which another node may spare
//   them. Waits a while, since proxies come and go. Pure arithmetic.
// Owner and thread: the node's.
// Invariants:
//   1. A node that has just started has the same while for its proxies to come up.
#pragma once

#include <cstdint>
#include <optional>

namespace sanproxy::netnode {

class OfUse {
 public:
  // `after_ns` without a proxy it is of no use; 0: it always is. True: that has changed.
  bool look(bool has_proxy, std::uint64_t now_ns, std::uint64_t after_ns) {
    if (has_proxy || !since_ns_) since_ns_ = now_ns;
    const bool of_use = after_ns == 0 || now_ns - *since_ns_ < after_ns;
    const bool changed = of_use != of_use_;
    of_use_ = of_use;
    return changed;
  }
  bool is() const { return of_use_; }

 private:
  std::optional<std::uint64_t> since_ns_;  // a proxy was there last, or the first look was
  bool of_use_ = true;
};

}  // namespace sanproxy::netnode
