// The stack's parts by themselves: heap, free indices and timer wheel.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <random>
#include <set>

#include "lwproto/base/reserved_array.h"
#include "proxynode/stack/index_ring.h"
#include "proxynode/stack/lwip_heap.h"
#include "proxynode/stack/timer_wheel.h"

namespace sanproxy::stack {
namespace {

TEST(LwipHeap, blocks_of_every_size_are_apart_and_come_back) {
  LwipHeap heap(std::size_t{64} << 20);
  std::map<std::byte*, std::size_t> blocks;
  for (std::size_t bytes = 1; bytes <= LwipHeap::kBlockBytesMax; bytes += 1 + bytes / 7) {
    auto* const block = static_cast<std::byte*>(heap.allocate(bytes));
    ASSERT_NE(block, nullptr) << bytes;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block) % 16, 0u);
    std::fill(block, block + bytes, std::byte{0x5a});
    blocks[block] = bytes;
  }
  std::byte* end = nullptr;
  for (const auto& [block, bytes] : blocks) {
    EXPECT_GE(block, end);
    end = block + bytes;
  }
  EXPECT_EQ(heap.allocate(LwipHeap::kBlockBytesMax + 1), nullptr);
  for (const auto& [block, bytes] : blocks) heap.free(block);
  EXPECT_EQ(heap.used_bytes(), 0u);
}

TEST(LwipHeap, it_never_exceeds_its_bound_and_reuses_what_was_freed) {
  LwipHeap heap(1 << 20);
  std::mt19937 random(3);
  std::vector<void*> blocks;
  int refused = 0;
  for (int i = 0; i < 100'000; ++i) {
    if (random() % 5 < 3) {
      void* const block = heap.allocate(16 + random() % 700);
      block != nullptr ? blocks.push_back(block) : void(++refused);
    } else if (!blocks.empty()) {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      heap.free(blocks.back());
      blocks.pop_back();
    }
    ASSERT_LE(heap.used_bytes(), heap.bytes_max());
  }
  EXPECT_GT(refused, 0);
  for (void* const block : blocks) heap.free(block);
  EXPECT_EQ(heap.used_bytes(), 0u);
  heap.free(nullptr);
}

TEST(LwipHeap, spans_that_one_size_has_left_serve_any_other) {
  LwipHeap heap(4 << 20);
  std::vector<void*> blocks;
  for (const std::size_t bytes : {48u, 20'000u, 300u, 65'536u, 1'000u, 16u, 40'000u}) {
    const std::size_t share = bytes > 32'768 ? LwipHeap::kSpanBytes / bytes * bytes : 56 * 1024;
    for (void* block = heap.allocate(bytes); block != nullptr; block = heap.allocate(bytes)) {
      std::memset(block, 0x5a, bytes);
      blocks.push_back(block);
    }
    EXPECT_GT(blocks.size() * bytes, 56 * std::min(share, LwipHeap::kSpanBytes)) << bytes;
    for (void* const block : blocks) heap.free(block);
    blocks.clear();
    EXPECT_EQ(heap.used_bytes(), 0u);
  }
}

TEST(LwipHeap, payload_leaves_room_for_connections_and_both_for_headers) {
  LwipHeap heap(2 << 20);
  std::vector<void*> blocks;
  const auto fill = [&](std::size_t bytes) {
    std::size_t count = 0;
    for (void* block = heap.allocate(bytes); block != nullptr; block = heap.allocate(bytes)) {
      blocks.push_back(block);
      ++count;
    }
    return count;
  };
  EXPECT_GT(fill(4'000), 400u);
  EXPECT_GT(fill(300), 100u);
  EXPECT_GT(fill(120), 400u);
  EXPECT_EQ(heap.allocate(4'000), nullptr);
  for (void* const block : blocks) heap.free(block);
  EXPECT_EQ(heap.used_bytes(), 0u);
}

// After as many connections as 32 bits count, with a table whose size is no power of two.
TEST(IndexRing, no_index_is_lost_or_handed_out_twice_however_many_have_gone_through) {
  constexpr std::uint32_t kCapacity = 1000;
  for (const std::uint64_t start : {std::uint64_t{0}, (std::uint64_t{1} << 32) - 900}) {
    IndexRing ring(kCapacity, start);
    for (std::uint32_t i = 0; i < kCapacity; ++i) ring.push(i);
    std::mt19937 random(5);
    std::set<std::uint32_t> out;
    for (int i = 0; i < 20'000; ++i) {
      if (ring.size() != 0 && (out.empty() || random() % 2 == 0)) {
        ASSERT_TRUE(out.insert(ring.pop()).second) << "twice, after " << i;
      } else {
        ring.push(*out.begin());
        out.erase(out.begin());
      }
      ASSERT_EQ(ring.size() + out.size(), kCapacity);
    }
  }
}

TEST(TimerWheel, deadlines_come_once_never_early_and_at_most_a_tick_late) {
  constexpr std::uint32_t kConns = 500;
  ReservedArray<Connection> conns(kConns);
  std::uint64_t now = 12'345'678'901;
  TimerWheel wheel(conns, now);
  EXPECT_EQ(wheel.next_ns(), UINT64_MAX);
  std::map<ConnIndex, std::uint64_t> deadlines;
  std::mt19937_64 random(5);
  int fired = 0;
  for (int round = 0; round < 20'000; ++round) {
    const auto conn = static_cast<ConnIndex>(random() % kConns);
    if (random() % 4 == 0) {
      wheel.disarm(conn);
      deadlines.erase(conn);
    } else if (random() % 3 == 0) {
      const std::uint64_t ahead = random() % (random() % 3 == 0 ? 400'000'000'000 : 2'000'000'000);
      deadlines[conn] = now + ahead;
      wheel.arm(conn, now + ahead);
    }
    if (!deadlines.empty()) {
      std::uint64_t first = UINT64_MAX;
      for (const auto& [index, at] : deadlines) first = std::min(first, at);
      ASSERT_LE(wheel.next_ns(), first + TimerWheel::kTickNs);
    }
    now += random() % (round % 1000 == 0 ? 200'000'000'000 : 400'000'000);
    for (ConnIndex due = wheel.pop_due(now); due != kNone; due = wheel.pop_due(now)) {
      ASSERT_TRUE(deadlines.contains(due));
      ASSERT_LE(deadlines[due], now);
      deadlines.erase(due);
      ++fired;
      if (random() % 4 == 0) {  // armed again while the wheel turns
        deadlines[due] = now + random() % 1'000'000'000;
        wheel.arm(due, deadlines[due]);
      }
    }
    for (const auto& [index, at] : deadlines) ASSERT_GT(at + TimerWheel::kTickNs, now);
  }
  EXPECT_GT(fired, 1000);
}

}  // namespace
}  // namespace sanproxy::stack
