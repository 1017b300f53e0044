// Pool: the Maglev table of now, and those of before.
//
// Document: docs/netnode.md "Where an established session goes".
// Role: where new sessions go, and where those of earlier generations may have gone.
// Owner: a Forwarder. Thread: its; rebuild() is control plane.
// Invariants:
//   1. At most `generations_max` tables are kept beside the current one, newest first; a table
//   equal
//      to a kept one replaces it, so that a proxy that flaps does not push out history.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "netnode/steer/maglev.h"

namespace sanproxy::steer {

class Pool {
 public:
  Pool(std::uint32_t entries, std::uint32_t generations_max)
      : entries_(entries), generations_max_(generations_max) {}

  // True: the table changed. For the same backends nothing is built.
  bool rebuild(std::span<const MaglevBackend> accepting) {
    if (std::equal(accepting.begin(), accepting.end(), accepting_.begin(), accepting_.end())) {
      return false;
    }
    accepting_.assign(accepting.begin(), accepting.end());
    ++builds_;
    MaglevTable next;
    next.build(accepting, entries_);
    if (same(next, current_)) return false;
    std::erase_if(before_, [&](const MaglevTable& t) { return same(t, next); });
    if (!current_.empty()) before_.insert(before_.begin(), std::move(current_));
    if (before_.size() > generations_max_) before_.resize(generations_max_);
    current_ = std::move(next);
    ++generation_;
    return true;
  }
  const MaglevTable& current() const { return current_; }
  const std::vector<MaglevTable>& before() const { return before_; }
  std::uint64_t generation() const { return generation_; }
  std::uint64_t builds() const { return builds_; }

  // A proxy's place is about to be given to another one: it must not be found here.
  void forget(std::uint16_t value) {
    const auto names = [&](const MaglevTable& t) {
      return std::find(t.entries().begin(), t.entries().end(), value) != t.entries().end();
    };
    std::erase_if(before_, names);
    if (!names(current_)) return;
    current_ = {};  // rebuild() follows, and must not keep it as history
    accepting_.clear();
  }

 private:
  static bool same(const MaglevTable& a, const MaglevTable& b) {
    return std::equal(a.entries().begin(), a.entries().end(), b.entries().begin(),
                      b.entries().end());
  }
  std::uint32_t entries_;
  std::uint32_t generations_max_;
  MaglevTable current_;
  std::vector<MaglevTable> before_;
  std::vector<MaglevBackend> accepting_;  // that the table was built of
  std::uint64_t generation_ = 0;
  std::uint64_t builds_ = 0;
};

}  // namespace sanproxy::steer
