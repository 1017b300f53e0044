// ConnectionPool: all ConnectionImpl objects of a Node, reused, never moved.
// ConnectionTable: finds a channel's connections by their 64-bit ids.
//
// Owner: the pool is the Node's, a table a Link's. Thread: the Node's.
// Invariants:
//   1. The pool allocates slabs of kSlabSize only when more connections are open than ever before.
//   2. A lookup succeeds only for the whole id, so a message for a dead connection (an older
//      generation of its index) finds nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "appnode-lib/client/connection_impl.h"
#include "lwproto/wire/format.h"

namespace sanproxy::app::internal {

class ConnectionPool {
 public:
  explicit ConnectionPool(std::size_t connections_max) : max_(connections_max) {}

  ConnectionImpl* acquire() {  // nullptr at the limit
    if (free_.empty() && !grow()) return nullptr;
    ConnectionImpl* connection = at(free_.back());
    free_.pop_back();
    ++live_;
    return connection;
  }
  void release(ConnectionImpl& connection) {
    free_.push_back(connection.slot);
    --live_;
  }
  ConnectionImpl* at(std::uint32_t slot) {
    if (slot / kSlabSize >= slabs_.size()) return nullptr;
    return &slabs_[slot / kSlabSize][slot % kSlabSize];
  }
  std::size_t live() const { return live_; }
  std::size_t slot_count() const { return slabs_.size() * kSlabSize; }

 private:
  static constexpr std::size_t kSlabSize = 64;
  bool grow() {
    if (slot_count() >= max_) return false;
    const auto first = static_cast<std::uint32_t>(slot_count());
    slabs_.push_back(std::make_unique<ConnectionImpl[]>(kSlabSize));
    free_.reserve(slot_count());
    for (std::uint32_t i = kSlabSize; i-- > 0;) {
      slabs_.back()[i].slot = first + i;
      if (first + i < max_) free_.push_back(first + i);
    }
    return true;
  }

  std::size_t max_;
  std::size_t live_ = 0;
  std::vector<std::unique_ptr<ConnectionImpl[]>> slabs_;
  std::vector<std::uint32_t> free_;
};

class ConnectionTable {
 public:
  ConnectionImpl* find(std::uint64_t id) const {
    ConnectionImpl* connection = at_index(wire::connection_index(id));
    return connection != nullptr && connection->wire_id == id ? connection : nullptr;
  }
  // The connection that already sits at this id's index, whatever its generation.
  ConnectionImpl* at_index(std::uint32_t index) const {
    const std::size_t page = index / kPageSize;
    if (page >= pages_.size() || !pages_[page]) return nullptr;
    return (*pages_[page])[index % kPageSize];
  }
  void insert(ConnectionImpl& connection) {
    const std::uint32_t index = wire::connection_index(connection.wire_id);
    const std::size_t page = index / kPageSize;
    if (page >= pages_.size()) pages_.resize(page + 1);
    if (!pages_[page]) pages_[page] = std::make_unique<Page>();
    (*pages_[page])[index % kPageSize] = &connection;
  }
  void erase(ConnectionImpl& connection) {
    if (find(connection.wire_id) != &connection) return;
    const std::uint32_t index = wire::connection_index(connection.wire_id);
    (*pages_[index / kPageSize])[index % kPageSize] = nullptr;
  }

 private:
  static constexpr std::size_t kPageSize = 1024;  // 8 KB each, on demand
  using Page = std::array<ConnectionImpl*, kPageSize>;
  std::vector<std::unique_ptr<Page>> pages_;
};

}  // namespace sanproxy::app::internal
