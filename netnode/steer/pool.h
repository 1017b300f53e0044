// Pool: the Maglev table of now, that of who keeps sessions, and those of before.
//
// Document: docs/netnode.md "Where an established session goes".
// Role: where new sessions go, and where those of earlier generations may have gone.
// Owner: a Forwarder. Thread: its; rebuild() is control plane.
// Invariants:
//   1. The table of who keeps sessions is built of names and weights alone, as the current one: a
//      node without memory has it, too.
//   2. At most `generations_max` tables are kept beside the current one, newest first; a table
//      equal to a kept one replaces it, so that a proxy that flaps does not push out history.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "netnode/net/session_tag.h"
#include "netnode/steer/maglev.h"

namespace sanproxy::steer {

class Pool {
 public:
  Pool(std::uint32_t entries, std::uint32_t generations_max)
      : entries_(entries), generations_max_(generations_max) {
    clear_tags();
  }

  // `keeping`: all that take new sessions, and those that drain. For the same backends nothing is
  // built.
  void rebuild(std::span<const MaglevBackend> accepting, std::span<const MaglevBackend> keeping) {
    rebuild_current(accepting);
    // Who keeps sessions stays the same when one begins to drain: what matters is whether there is
    // a table of them.
    if (std::equal(keeping.begin(), keeping.end(), accepting.begin(), accepting.end())) {
      keeping_ = {};
      keeping_of_.clear();
      return;
    }
    if (std::equal(keeping.begin(), keeping.end(), keeping_of_.begin(), keeping_of_.end())) return;
    keeping_of_.assign(keeping.begin(), keeping.end());
    keeping_.build(keeping, entries_);
    ++builds_;
  }
  // Whose a session tag is, of those that a service of this pool may go to, whatever their states.
  void clear_tags() { by_tag_.fill(MaglevTable::kNone); }
  void set_tag(std::uint16_t tag, std::uint16_t value) { by_tag_[tag] = value; }
  std::uint16_t tagged(std::uint16_t tag) const { return by_tag_[tag]; }

  const MaglevTable& current() const { return current_; }
  // Where a session went before any of the proxies drained.
  const MaglevTable& keeping() const { return keeping_.empty() ? current_ : keeping_; }
  const std::vector<MaglevTable>& before() const { return before_; }
  std::uint64_t generation() const { return generation_; }
  std::uint64_t builds() const { return builds_; }

  // A proxy's place is about to be given to another one: it must not be found here.
  void forget(std::uint16_t value) {
    const auto names = [&](const MaglevTable& t) {
      return std::find(t.entries().begin(), t.entries().end(), value) != t.entries().end();
    };
    std::erase_if(before_, names);
    if (names(keeping_)) {
      keeping_ = {};
      keeping_of_.clear();
    }
    if (!names(current_)) return;
    current_ = {};  // rebuild() follows, and must not keep it as history
    accepting_.clear();
  }

 private:
  void rebuild_current(std::span<const MaglevBackend> accepting) {
    if (std::equal(accepting.begin(), accepting.end(), accepting_.begin(), accepting_.end())) {
      return;
    }
    accepting_.assign(accepting.begin(), accepting.end());
    ++builds_;
    MaglevTable next;
    next.build(accepting, entries_);
    if (same(next, current_)) return;
    std::erase_if(before_, [&](const MaglevTable& t) { return same(t, next); });
    if (!current_.empty()) before_.insert(before_.begin(), std::move(current_));
    if (before_.size() > generations_max_) before_.resize(generations_max_);
    current_ = std::move(next);
    ++generation_;
  }
  static bool same(const MaglevTable& a, const MaglevTable& b) {
    return std::equal(a.entries().begin(), a.entries().end(), b.entries().begin(),
                      b.entries().end());
  }
  std::array<std::uint16_t, net::kSessionTagMax + 1> by_tag_;
  std::uint32_t entries_;
  std::uint32_t generations_max_;
  MaglevTable current_;
  MaglevTable keeping_;  // empty: it would be the current one
  std::vector<MaglevTable> before_;
  std::vector<MaglevBackend> accepting_;   // that the current one was built of
  std::vector<MaglevBackend> keeping_of_;  // that keeping_ was; none: there is no such table
  std::uint64_t generation_ = 0;
  std::uint64_t builds_ = 0;
};

}  // namespace sanproxy::steer
