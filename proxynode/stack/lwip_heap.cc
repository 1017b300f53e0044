#include "proxynode/stack/lwip_heap.h"

#include <sys/mman.h>

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

std::size_t round_up(std::size_t bytes, std::size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

LwipHeap::LwipHeap(std::size_t bytes_max)
    : memory_(round_up(bytes_max, kSpanBytes) + kSpanBytes),
      span_class_(round_up(bytes_max, kSpanBytes) / kSpanBytes + 1),
      bytes_max_(round_up(bytes_max, kSpanBytes)) {
  madvise(&memory_[0], memory_.capacity(), MADV_HUGEPAGE);  // hit at random: fewer TLB misses
}

// The addresses will be somebody else's.
LwipHeap::~LwipHeap() { ASAN_UNPOISON_MEMORY_REGION(&memory_[0], carved_bytes_); }

std::size_t LwipHeap::class_of(std::size_t bytes) {
  if (bytes <= kSmallBytesMax) return bytes == 0 ? 0 : (bytes - 1) / 16;
  if (bytes > kSpanBytes) return kClasses - 1;
  if (bytes > kSpanBytes / 2) return kClasses - 2;
  // 513..32768: the doubling, and the quarter inside it.
  const auto doubling = static_cast<std::size_t>(std::bit_width(bytes - 1)) - 10;
  const std::size_t base = kSmallBytesMax << doubling;
  const std::size_t quarter = (bytes - 1 - base) / (base / 4);
  return kSmallClasses + 4 * doubling + quarter;
}

std::size_t LwipHeap::class_bytes(std::size_t size_class) {
  if (size_class < kSmallClasses) return 16 * (size_class + 1);
  if (size_class == kClasses - 1) return kBlockBytesMax;
  if (size_class == kClasses - 2) return kSpanBytes;
  const std::size_t step = size_class - kSmallClasses;
  const std::size_t base = kSmallBytesMax << (step / 4);
  return base + (step % 4 + 1) * (base / 4);
}

bool LwipHeap::carve(std::size_t size_class) {
  const std::size_t block = class_bytes(size_class);
  const std::size_t bytes = block > kSpanBytes ? block : kSpanBytes;
  if (carved_bytes_ + bytes > bytes_max_) return false;
  std::byte* const span = &memory_[carved_bytes_];
  span_class_[carved_bytes_ / kSpanBytes] = static_cast<std::uint8_t>(size_class);
  carved_bytes_ += bytes;
  // Chained from the end, so that blocks are handed out in the order of their addresses.
  for (std::size_t i = bytes / block; i-- > 0;) {
    auto* const free_block = reinterpret_cast<Block*>(span + i * block);
    free_block->next = free_[size_class];
    free_[size_class] = free_block;
  }
  ASAN_POISON_MEMORY_REGION(span, bytes);
  return true;
}

void* LwipHeap::allocate(std::size_t bytes) {
  if (bytes > kBlockBytesMax) return nullptr;
  const std::size_t size_class = class_of(bytes);
  if (free_[size_class] == nullptr && !carve(size_class)) return nullptr;
  Block* const block = free_[size_class];
  ASAN_UNPOISON_MEMORY_REGION(block, class_bytes(size_class));
  free_[size_class] = block->next;
  used_bytes_ += class_bytes(size_class);
  return block;
}

void LwipHeap::free(void* memory) {
  if (memory == nullptr) return;
  auto* const block = static_cast<Block*>(memory);
  const auto offset = static_cast<std::size_t>(static_cast<std::byte*>(memory) - &memory_[0]);
  SANPROXY_CHECK(offset < carved_bytes_);
  const std::size_t size_class = span_class_[offset / kSpanBytes];
  block->next = free_[size_class];
  free_[size_class] = block;
  used_bytes_ -= class_bytes(size_class);
  ASAN_POISON_MEMORY_REGION(block, class_bytes(size_class));
}

}  // namespace sanproxy::stack
