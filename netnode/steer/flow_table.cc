#include "netnode/steer/flow_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>

namespace sanproxy::steer {
namespace {

// Half full at flows_max: then fewer than one flow in a hundred finds its set full.
std::size_t sets_for(std::uint32_t flows_max) {
  return std::bit_ceil(std::size_t{flows_max} * 2 / FlowTable::kWays + 1);
}

}  // namespace

FlowTable::FlowTable(const FlowTableOptions& options)
    : sets_(sets_for(options.flows_max)),
      mask_(sets_.capacity() - 1),
      idle_s_{0, options.half_open_s, options.closing_s, options.established_s} {
  // Every packet hits another page: with large ones hardly any misses the processor's page table
  // cache. Touched now, because the data path is not to wait for memory.
  madvise(&sets_[0], memory_bytes(), MADV_HUGEPAGE);
  for (std::size_t i = 0; i < sets_.capacity(); ++i) sets_[i] = {};
}

void FlowTable::free(Entry& entry) {
  --flows_[entry.proxy];
  --size_;
  entry = {};
}

bool FlowTable::put(std::uint64_t hash, std::uint16_t proxy, FlowState state, std::uint32_t now_s) {
  Set& set = sets_[hash & mask_];
  Entry* place = nullptr;
  std::uint64_t best = 0;
  std::size_t at = 0;
  for (std::size_t i = 0; i < kWays; ++i) {
    Entry& entry = set.entries[i];
    if (entry.state != FlowState::kFree && set.hashes[i] == hash) {
      --flows_[entry.proxy];
      ++flows_[proxy];
      entry = {now_s, proxy, state};
      return true;
    }
    // Worth giving up: free, expired, short-lived, old; in that order.
    std::uint64_t score = std::uint64_t{now_s - entry.used_s} + 1;
    if (entry.state == FlowState::kFree) {
      score |= std::uint64_t{1} << 40;
    } else if (expired(entry, now_s)) {
      score |= std::uint64_t{1} << 39;
    } else if (entry.state != FlowState::kEstablished) {
      score |= std::uint64_t{1} << 38;
    } else if (state != FlowState::kEstablished) {
      continue;
    }
    if (score > best) {
      best = score;
      place = &entry;
      at = i;
    }
  }
  if (place == nullptr) {
    ++refused_;
    return false;
  }
  if (place->state != FlowState::kFree) {
    evicted_ += expired(*place, now_s) ? 0 : 1;
    free(*place);
  }
  set.hashes[at] = hash;
  *place = {now_s, proxy, state};
  ++flows_[proxy];
  ++size_;
  return true;
}

void FlowTable::erase(std::uint64_t hash) {
  Set& set = sets_[hash & mask_];
  for (std::size_t i = 0; i < kWays; ++i) {
    if (set.hashes[i] == hash && set.entries[i].state != FlowState::kFree) free(set.entries[i]);
  }
}

void FlowTable::erase_proxy(std::uint16_t proxy) {
  if (flows_[proxy] == 0) return;
  for (std::size_t i = 0; i < sets_.capacity(); ++i) {
    for (Entry& entry : sets_[i].entries) {
      if (entry.state != FlowState::kFree && entry.proxy == proxy) free(entry);
    }
  }
}

void FlowTable::age(std::uint32_t now_s, std::size_t sets) {
  for (std::size_t n = std::min(sets, sets_.capacity()); n > 0; --n) {
    for (Entry& entry : sets_[hand_].entries) {
      if (entry.state != FlowState::kFree && expired(entry, now_s)) free(entry);
    }
    hand_ = (hand_ + 1) & mask_;
  }
}

}  // namespace sanproxy::steer
