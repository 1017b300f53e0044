// HandshakeRates: how many queue pairs each host may ask a listener for in a time.
//
// Document: docs/verbs_fabric.md "Handshake".
// Role: pure arithmetic. To make a queue pair takes the kernel and the device several times as long
//   as to refuse one (soft-RoCE: 4 to 12), and whoever reaches the port can ask for it.
// Owner: a VerbsListener. Thread: its.
// Invariants:
//   1. In any time t a host is granted at most per_s * (t + kSecondsAtOnce) queue pairs, or one
//      handshake's where that is more. (Unless more than kRememberedMax / 2 are at it, when all
//      are forgotten.)
//   2. Who has all of his back is forgotten sooner or later: about kRemembered of them are
//      kept, and never more than kRememberedMax hosts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "lwproto/base/socket_address.h"

namespace sanproxy::fabric::verbs {

class HandshakeRates {
 public:
  static constexpr std::uint64_t kSecondsAtOnce = 4;
  static constexpr std::size_t kRemembered = 1024;
  static constexpr std::size_t kRememberedMax = 16'384;

  // Whether `host` (a network_of()) may have so many now; then they are counted. All of a channel
  // at once, so that none is refused half way. `per_s` 0: any number.
  bool take(const IpAddress& host, std::uint32_t queue_pairs, std::uint32_t per_s,
            std::uint64_t now_ns);
  std::size_t size() const { return all_back_ns_.size(); }

 private:
  std::map<IpAddress, std::uint64_t> all_back_ns_;  // when it may have all of them at once again
  std::size_t forget_at_ = kRemembered;
};

}  // namespace sanproxy::fabric::verbs
