// Quiet: for how long a node that shall be left has steered nothing.
//
// Document: docs/netnode.md "Health".
// Role: that it was quiet before says nothing: routes, and clients, have not been told yet. Pure
//   arithmetic.
// Owner and thread: the node's.
// Invariants:
//   1. Quiet begins anew with each packet that look() hears of, and with each begin().
#pragma once

#include <cstdint>
#include <utility>

namespace sanproxy::netnode {

class Quiet {
 public:
  // The node is to be left from now on.
  void begin(std::uint64_t now_ns) { since_ns_ = now_ns; }
  // `steered`: packets, ever.
  void look(std::uint64_t steered, std::uint64_t now_ns) {
    if (std::exchange(steered_, steered) != steered) since_ns_ = now_ns;
  }
  std::uint64_t for_ns(std::uint64_t now_ns) const { return now_ns - since_ns_; }

 private:
  std::uint64_t steered_ = 0;
  std::uint64_t since_ns_ = 0;
};

}  // namespace sanproxy::netnode
