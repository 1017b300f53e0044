// LwipHeap: the bounded memory behind lwIP's connections, segments and packet buffers.
//
// Role: what lwIP allocates a segment or a connection from; a few dozen sizes, millions of times
//   a second. One range of address space is cut into spans, each span serves one size class, and
//   a freed block goes on the list of its class.
// Owner: the Stack. Thread: the worker's. Allocates from the system only by touching pages.
// Invariants:
//   1. used_bytes() <= bytes_max(): beyond, allocate() returns nullptr and lwIP backs off.
//   2. A block is aligned to 16 bytes. Free lists are last-in first-out.
//   3. A span never changes its class, so memory is not lost to fragmentation inside a class.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "lwproto/base/reserved_array.h"

namespace sanproxy::stack {

class LwipHeap {
 public:
  static constexpr std::size_t kSpanBytes = 64 * 1024;
  static constexpr std::size_t kBlockBytesMax = 2 * kSpanBytes;

  explicit LwipHeap(std::size_t bytes_max);
  ~LwipHeap();
  LwipHeap(const LwipHeap&) = delete;
  LwipHeap& operator=(const LwipHeap&) = delete;

  void* allocate(std::size_t bytes);
  void free(void* block);

  // At least this much is there for blocks of any size.
  std::size_t available_bytes() const { return bytes_max_ - carved_bytes_; }
  std::size_t used_bytes() const { return used_bytes_; }
  std::size_t bytes_max() const { return bytes_max_; }

 private:
  struct Block {
    Block* next;
  };
  // Up to 512 bytes in steps of 16, then four steps a doubling, then one block a span or two.
  static constexpr std::size_t kSmallClasses = 32;
  static constexpr std::size_t kClasses = kSmallClasses + 4 * 6 + 2;
  static std::size_t class_of(std::size_t bytes);
  static std::size_t class_bytes(std::size_t size_class);
  bool carve(std::size_t size_class);

  ReservedArray<std::byte> memory_;
  ReservedArray<std::uint8_t> span_class_;
  std::array<Block*, kClasses> free_{};
  std::size_t bytes_max_;
  std::size_t carved_bytes_ = 0;
  std::size_t used_bytes_ = 0;
};

}  // namespace sanproxy::stack
