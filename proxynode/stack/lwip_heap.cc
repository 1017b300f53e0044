#include "proxynode/stack/lwip_heap.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>

#include "lwproto/base/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace sanproxy::stack {
namespace {

constexpr std::size_t kSmallBytesMax = 512;
// Headers, segments and references to payload; a connection's control block is larger.
constexpr std::size_t kHeaderBlockBytesMax = 256;
constexpr std::uint32_t kReserveShare = 32;
constexpr std::uint32_t kReserveMax = 16;

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

LwipHeap::LwipHeap(std::size_t bytes_max)
    : memory_(round_up(bytes_max, kSpanBytes) + kSpanBytes),
      spans_(round_up(bytes_max, kSpanBytes) / kSpanBytes + 1),
      bytes_max_(round_up(bytes_max, kSpanBytes)),
      span_count_(static_cast<std::uint32_t>(bytes_max_ / kSpanBytes)),
      reserve_(std::min(span_count_ / kReserveShare + (span_count_ > 8 ? 1 : 0), kReserveMax)) {
  with_room_.fill(kNoSpan);
  madvise(&memory_[0], memory_.capacity(), MADV_HUGEPAGE);  // hit at random: fewer TLB misses
}

// The addresses will be somebody else's.
LwipHeap::~LwipHeap() { ASAN_UNPOISON_MEMORY_REGION(&memory_[0], carved_ * kSpanBytes); }

std::size_t LwipHeap::class_of(std::size_t bytes) {
  if (bytes <= kSmallBytesMax) return bytes == 0 ? 0 : (bytes - 1) / 16;
  if (bytes > kSpanBytes / 2) return kClasses - 1;
  // 513..32768: the doubling, and the quarter inside it.
  const auto doubling = static_cast<std::size_t>(std::bit_width(bytes - 1)) - 10;
  const std::size_t base = kSmallBytesMax << doubling;
  const std::size_t quarter = (bytes - 1 - base) / (base / 4);
  return kSmallClasses + 4 * doubling + quarter;
}

std::size_t LwipHeap::class_bytes(std::size_t size_class) {
  if (size_class < kSmallClasses) return 16 * (size_class + 1);
  if (size_class == kClasses - 1) return kSpanBytes;
  const std::size_t step = size_class - kSmallClasses;
  const std::size_t base = kSmallBytesMax << (step / 4);
  return base + (step % 4 + 1) * (base / 4);
}

std::uint32_t LwipHeap::reserved_spans(std::size_t block_bytes) const {
  if (block_bytes <= kHeaderBlockBytesMax) return 0;
  return block_bytes <= kSmallBytesMax ? reserve_ : 2 * reserve_;
}

void LwipHeap::link(std::uint32_t index) {
  Span& span = spans_[index];
  std::uint32_t& head = with_room_[span.size_class];
  span.prev = kNoSpan;
  span.next = head;
  if (head != kNoSpan) spans_[head].prev = index;
  head = index;
}

void LwipHeap::unlink(std::uint32_t index) {
  const Span& span = spans_[index];
  (span.prev != kNoSpan ? spans_[span.prev].next : with_room_[span.size_class]) = span.next;
  if (span.next != kNoSpan) spans_[span.next].prev = span.prev;
}

std::uint32_t LwipHeap::take_span(std::size_t size_class) {
  const std::size_t block = class_bytes(size_class);
  if (empty_count_ + (span_count_ - carved_) <= reserved_spans(block)) return kNoSpan;
  std::uint32_t index = empty_;
  if (index != kNoSpan) {
    empty_ = spans_[index].next;
    --empty_count_;
  } else {
    index = carved_++;
    ASAN_POISON_MEMORY_REGION(&memory_[index * kSpanBytes], kSpanBytes);
  }
  Span& span = spans_[index];
  span = Span{};
  span.blocks = static_cast<std::uint16_t>(kSpanBytes / block);
  span.size_class = static_cast<std::uint8_t>(size_class);
  link(index);
  return index;
}

void* LwipHeap::allocate(std::size_t bytes) {
  if (bytes > kBlockBytesMax) return nullptr;
  const std::size_t size_class = class_of(bytes);
  const std::size_t block_bytes = class_bytes(size_class);
  std::uint32_t index = with_room_[size_class];
  if (index == kNoSpan && (index = take_span(size_class)) == kNoSpan) return nullptr;
  Span& span = spans_[index];
  Block* block = span.free;
  if (block != nullptr) {
    ASAN_UNPOISON_MEMORY_REGION(block, block_bytes);
    span.free = block->next;
  } else {
    block = reinterpret_cast<Block*>(&memory_[index * kSpanBytes] + span.handed_out * block_bytes);
    ASAN_UNPOISON_MEMORY_REGION(block, block_bytes);
    ++span.handed_out;
  }
  if (++span.live == span.blocks) unlink(index);
  used_bytes_ += block_bytes;
  return block;
}

void LwipHeap::free(void* memory) {
  if (memory == nullptr) return;
  auto* const block = static_cast<Block*>(memory);
  const auto offset = static_cast<std::size_t>(static_cast<std::byte*>(memory) - &memory_[0]);
  SANPROXY_CHECK(offset < carved_ * kSpanBytes);
  const auto index = static_cast<std::uint32_t>(offset / kSpanBytes);
  Span& span = spans_[index];
  const std::size_t block_bytes = class_bytes(span.size_class);
  const bool was_full = span.live == span.blocks;
  block->next = span.free;
  span.free = block;
  used_bytes_ -= block_bytes;
  ASAN_POISON_MEMORY_REGION(block, block_bytes);
  if (--span.live == 0) {
    if (!was_full) unlink(index);
    span.next = empty_;
    empty_ = index;
    ++empty_count_;
  } else if (was_full) {
    link(index);
  }
}

}  // namespace sanproxy::stack
