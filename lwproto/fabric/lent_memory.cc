#include "lwproto/fabric/lent_memory.h"

#include <algorithm>
#include <bit>

#include "lwproto/base/check.h"

namespace sanproxy::fabric {

LentMemory::LentMemory(std::uint32_t regions_max, std::uint32_t lends_max)
    : regions_(regions_max), finished_(std::bit_ceil(std::max<std::uint32_t>(lends_max, 1))) {
  free_.reserve(regions_max);
  by_address_.reserve(regions_max);
  for (Place place = regions_max; place > 0; --place) free_.push_back(place - 1);
}

bool LentMemory::on_region(const PassedRegion& region) {
  const auto of_owner = static_cast<std::size_t>(
      std::count_if(by_address_.begin(), by_address_.end(), [&](Place place) {
        return region.owner != nullptr && regions_[place].memory.owner == region.owner;
      }));
  if (free_.size() <= of_owner) {
    ++regions_refused_;
    return false;
  }
  const Place place = free_.back();
  free_.pop_back();
  regions_[place].memory = region;
  ++regions_[place].generation;
  const auto behind = std::find_if(by_address_.begin(), by_address_.end(), [&](Place other) {
    return regions_[other].memory.data > region.data;
  });
  by_address_.insert(behind, place);
  return true;
}

void LentMemory::on_region_gone(const std::byte* data) {
  const auto entry = std::find_if(by_address_.begin(), by_address_.end(),
                                  [&](Place place) { return regions_[place].memory.data == data; });
  if (entry == by_address_.end()) return;  // one that was refused
  const Place place = *entry;
  by_address_.erase(entry);
  if (last_found_ == place) last_found_ = kNoPlace;
  regions_[place].memory = {};
  ++regions_[place].generation;
  ++regions_gone_;
  free_.push_back(place);
}

bool LentMemory::holds(Place place, const std::byte* data, std::size_t length) const {
  const PassedRegion& memory = regions_[place].memory;
  if (data < memory.data) return false;
  const auto offset = static_cast<std::uint64_t>(data - memory.data);
  return offset <= memory.bytes && length <= memory.bytes - offset;
}

LentMemory::Place LentMemory::find(const std::byte* data, std::size_t length) {
  if (last_found_ != kNoPlace && holds(last_found_, data, length)) return last_found_;
  const auto behind = std::upper_bound(
      by_address_.begin(), by_address_.end(), data,
      [this](const std::byte* at, Place place) { return at < regions_[place].memory.data; });
  if (behind == by_address_.begin()) return kNoPlace;
  const Place place = *(behind - 1);
  if (!holds(place, data, length)) return kNoPlace;
  last_found_ = place;
  return place;
}

void LentMemory::end(Lend lend) {
  SANPROXY_CHECK(lend > done_ && lend <= begun_);
  const std::size_t mask = finished_.size() - 1;
  finished_[lend & mask] = true;
  while (done_ != begun_ && finished_[(done_ + 1) & mask]) finished_[++done_ & mask] = false;
}

}  // namespace sanproxy::fabric
