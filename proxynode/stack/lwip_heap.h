// LwipHeap: the bounded memory behind lwIP's connections, segments and packet buffers.
//
// Role: what lwIP allocates a segment or a connection from; a few dozen sizes, millions of times
//   a second. One range of address space is cut into spans; a span serves one size class while
//   it holds a block, and any class after that.
// Owner: the Stack. Thread: the worker's. Allocates from the system only by touching pages.
// Invariants:
//   1. used_bytes() <= bytes_max(): beyond, allocate() returns nullptr and lwIP backs off.
//   2. A block is aligned to 16 bytes. A span's free blocks are used last-in first-out.
//   3. A span without live blocks is on no class's list: any class may have it next.
//   4. The last spans are kept for small blocks (headers), the ones before them for those and
//      connections: payload alone never makes an acknowledgement or a reset impossible.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "lwproto/base/reserved_array.h"

namespace sanproxy::stack {

class LwipHeap {
 public:
  static constexpr std::size_t kSpanBytes = 64 * 1024;
  static constexpr std::size_t kBlockBytesMax = kSpanBytes;

  explicit LwipHeap(std::size_t bytes_max);
  ~LwipHeap();
  LwipHeap(const LwipHeap&) = delete;
  LwipHeap& operator=(const LwipHeap&) = delete;

  void* allocate(std::size_t bytes);
  void free(void* block);

  std::size_t used_bytes() const { return used_bytes_; }
  std::size_t bytes_max() const { return bytes_max_; }

 private:
  struct Block {
    Block* next;
  };
  struct Span {
    Block* free;               // given back
    std::uint32_t prev, next;  // of its class, with room; next also of the empty ones
    std::uint16_t live;        // blocks in use
    std::uint16_t handed_out;  // blocks from here on were never used
    std::uint16_t blocks;      // in all
    std::uint8_t size_class;
  };
  static constexpr std::uint32_t kNoSpan = 0xffff'ffffu;
  // Up to 512 bytes in steps of 16, then four steps a doubling, then a whole span.
  static constexpr std::size_t kSmallClasses = 32;
  static constexpr std::size_t kClasses = kSmallClasses + 4 * 6 + 1;
  static std::size_t class_of(std::size_t bytes);
  static std::size_t class_bytes(std::size_t size_class);
  // How many empty spans blocks of that size must leave to smaller ones.
  std::uint32_t reserved_spans(std::size_t block_bytes) const;
  std::uint32_t take_span(std::size_t size_class);
  void link(std::uint32_t index);
  void unlink(std::uint32_t index);

  ReservedArray<std::byte> memory_;
  ReservedArray<Span> spans_;
  std::array<std::uint32_t, kClasses> with_room_;
  std::size_t bytes_max_;
  std::uint32_t span_count_;
  std::uint32_t carved_ = 0;  // spans from here on were never used
  std::uint32_t empty_ = kNoSpan;
  std::uint32_t empty_count_ = 0;
  std::uint32_t reserve_;
  std::size_t used_bytes_ = 0;
};

}  // namespace sanproxy::stack
