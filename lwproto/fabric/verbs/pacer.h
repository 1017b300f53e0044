// Pacer: when the next transfer of a link with a rate may leave.
//
// Document: docs/verbs_fabric.md "Link parameters".
// Role: token buckets for rate (with its burst) and peak; pure arithmetic, the send queue acts.
// Owner: one endpoint; thread: that one's.
// Invariants:
//   1. A transfer leaves when every bucket is out of debt, and may put it into debt by its own
//      length: in any interval of t seconds at most rate*t + burst + one transfer leave.
//   2. Without a rate it never says no and costs one comparison.
#pragma once

#include <cstdint>

#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric::verbs {

class Pacer {
 public:
  Pacer() = default;
  Pacer(const LinkParameters& link, std::uint64_t now_ns);

  bool limited() const { return mean_.rate != 0; }
  bool may_send(std::uint64_t now_ns) {
    return mean_.out_of_debt(now_ns) && peak_.out_of_debt(now_ns);
  }
  void on_sent(std::uint64_t bytes) {
    if (!limited()) return;
    mean_.take(bytes);
    peak_.take(bytes);
  }
  // The time from which may_send() is true.
  std::uint64_t ready_at_ns() const;

 private:
  struct Bucket {
    std::uint64_t rate = 0;  // bytes a second; 0: no limit
    std::int64_t depth = 0;
    std::int64_t tokens = 0;
    std::uint64_t filled_ns = 0;

    bool out_of_debt(std::uint64_t now_ns) {
      if (rate == 0) return true;
      fill(now_ns);
      return tokens >= 0;
    }
    void fill(std::uint64_t now_ns);
    void take(std::uint64_t bytes) {
      if (rate != 0) tokens -= static_cast<std::int64_t>(bytes);
    }
    std::uint64_t ready_at_ns() const;
  };

  Bucket mean_;
  Bucket peak_;
};

}  // namespace sanproxy::fabric::verbs
