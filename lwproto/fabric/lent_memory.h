// LentMemory: memory that may be passed on to another peer instead of being copied for it, and who
// may not have it back yet.
//
// Document: docs/buffer_ownership.md "Passed on".
// Role: two ledgers without I/O.
//     regions  which memory there is: of peers (RegionWatcher), of our own pools. Each has a place
//              in a table, and the place a generation, so that whoever attached it to a channel of
//              his own can tell that it is gone.
//     lends    each packet that refers to such memory is one; it ends with the fabric's completion.
//              They may end in any order. Memory that nobody gave out after mark() is free for
//              its owner when is_done(mark).
// Owner: a worker; shared by its interfaces, which lend, and its translator, which gives back.
// Thread: the worker's. No allocation after construction.
// Invariants:
//   1. At most regions_max regions, and of one owner no more than places are left for the others;
//      what lies in another one is not lent (regions_refused), so it is copied.
//   2. At most lends_max lends between the oldest that has not ended and the newest; beyond,
//      has_room() is false and payload is copied.
//   3. done_ <= begun_; finished_ holds the lends in (done_, begun_] that have ended.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lwproto/buffer/memory_region.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric {

class LentMemory final : public RegionWatcher {
 public:
  using Lend = std::uint64_t;   // 0: none
  using Place = std::uint32_t;  // in the table of regions
  static constexpr Place kNoPlace = ~Place{0};

  struct Region {
    PassedRegion memory;
    std::uint32_t generation = 0;  // changes when a region goes and when one comes
  };

  explicit LentMemory(std::uint32_t regions_max, std::uint32_t lends_max = 8192);

  // --- regions
  bool on_region(const PassedRegion& region) override;
  void on_region_gone(const std::byte* data) override;
  // Where [data, data + length) lies whole; kNoPlace: not in memory that can be passed on.
  Place find(const std::byte* data, std::size_t length);
  const Region& region(Place place) const { return regions_[place]; }
  std::uint32_t regions_max() const { return static_cast<std::uint32_t>(regions_.size()); }
  std::size_t region_count() const { return by_address_.size(); }
  std::uint64_t regions_refused() const { return regions_refused_; }
  std::uint64_t regions_gone() const { return regions_gone_; }

  // --- lends
  bool has_room() const { return begun_ - done_ < finished_.size(); }
  Lend begin() { return ++begun_; }  // only with has_room()
  void end(Lend lend);
  Lend mark() const { return begun_; }
  bool is_done(Lend mark) const { return done_ >= mark; }
  bool all_done() const { return done_ == begun_; }
  Lend oldest() const { return all_done() ? 0 : done_ + 1; }  // that is still out

 private:
  bool holds(Place place, const std::byte* data, std::size_t length) const;

  std::vector<Region> regions_;
  std::vector<Place> free_;
  std::vector<Place> by_address_;  // reserved to regions_max
  Place last_found_ = kNoPlace;
  std::uint64_t regions_refused_ = 0, regions_gone_ = 0;
  Lend begun_ = 0, done_ = 0;
  std::vector<bool> finished_;  // by lend, modulo its size
};

}  // namespace sanproxy::fabric
