#include "lwproto/buffer/slot_pool.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace sanproxy::buffer {
namespace {

TEST(SlotPool, UsesAsManyWholeSlotsAsFit) {
  std::vector<std::byte> memory(1000);
  const SlotPool pool(memory, 128);
  EXPECT_EQ(pool.slot_count(), 7u);
  EXPECT_EQ(pool.free_count(), 7u);
  EXPECT_EQ(pool.free_count_min(), 7u);
  EXPECT_EQ(pool.slot_bytes(), 128u);
}

TEST(SlotPool, WithoutMemoryIsAlwaysEmpty) {
  SlotPool pool({}, 64);
  EXPECT_EQ(pool.slot_count(), 0u);
  EXPECT_EQ(pool.acquire(), kNoSlot);
}

TEST(SlotPool, GivesBackNoSlotWhenItIsEmptyAndGoesOnAfterARelease) {
  std::vector<std::byte> memory(3 * 64);
  SlotPool pool(memory, 64);
  EXPECT_EQ(pool.acquire(), 0u);
  EXPECT_EQ(pool.acquire(), 1u);
  EXPECT_EQ(pool.acquire(), 2u);
  EXPECT_EQ(pool.acquire(), kNoSlot);
  EXPECT_EQ(pool.free_count_min(), 0u);
  pool.release(1);
  EXPECT_EQ(pool.acquire(), 1u);
}

TEST(SlotPool, HandsOutTheSlotThatIsStillInCache) {
  std::vector<std::byte> memory(64 * 64);
  SlotPool pool(memory, 64);
  for (int i = 0; i < 10; ++i) (void)pool.acquire();
  pool.release(3);
  pool.release(7);
  EXPECT_EQ(pool.acquire(), 7u);
  EXPECT_EQ(pool.acquire(), 3u);
}

TEST(SlotPool, FindsTheSlotOfAnyByteInIt) {
  std::vector<std::byte> memory(4 * 192);
  const SlotPool pool(memory, 192);
  for (SlotIndex slot = 0; slot < 4; ++slot) {
    EXPECT_EQ(pool.data(slot), memory.data() + pool.offset(slot));
    EXPECT_EQ(pool.slot_of(pool.data(slot)), slot);
    EXPECT_EQ(pool.slot_of(pool.data(slot) + 191), slot);
  }
}

// Random transitions against a model that a reader can check at a glance.
TEST(SlotPool, BehavesAsItsModelUnderRandomUse) {
  std::mt19937 random(3);
  for (int run = 0; run < 20; ++run) {
    const std::size_t slots = 1 + random() % 50;
    std::vector<std::byte> memory(slots * 64);
    SlotPool pool(memory, 64);
    std::map<SlotIndex, SlotState> in_use;
    std::vector<SlotIndex> released;  // last in, first out
    std::size_t free_min = slots;
    const auto any = [&] {
      return std::next(in_use.begin(), static_cast<std::ptrdiff_t>(random() % in_use.size()));
    };
    for (int step = 0; step < 5000; ++step) {
      switch (random() % 3) {
        case 0: {
          const SlotIndex slot = pool.acquire();
          ASSERT_EQ(slot == kNoSlot, in_use.size() == slots);
          if (slot == kNoSlot) break;
          ASSERT_LT(slot, slots);
          ASSERT_EQ(in_use.count(slot), 0u) << "handed out twice";
          if (!released.empty()) {
            ASSERT_EQ(slot, released.back());
            released.pop_back();
          }
          in_use[slot] = SlotState::kPosted;
          break;
        }
        case 1: {
          if (in_use.empty()) break;
          const auto it = any();
          if (it->second != SlotState::kPosted) break;
          pool.mark_received(it->first);
          it->second = SlotState::kReceived;
          break;
        }
        default: {
          if (in_use.empty()) break;
          const auto it = any();
          pool.release(it->first);
          released.push_back(it->first);
          in_use.erase(it);
        }
      }
      free_min = std::min(free_min, slots - in_use.size());
      std::size_t posted = 0;
      for (const auto& [slot, state] : in_use) {
        ASSERT_EQ(pool.state(slot), state);
        posted += state == SlotState::kPosted ? 1 : 0;
      }
      ASSERT_EQ(pool.posted_count(), posted);
      ASSERT_EQ(pool.received_count(), in_use.size() - posted);
      ASSERT_EQ(pool.free_count(), slots - in_use.size());
      ASSERT_EQ(pool.free_count_min(), free_min);
    }
    while (!in_use.empty()) {
      pool.release(in_use.begin()->first);
      in_use.erase(in_use.begin());
    }
    EXPECT_EQ(pool.free_count(), slots);
  }
}

TEST(SlotPoolDeath, AWrongTransitionIsOurOwnBug) {
  std::vector<std::byte> memory(2 * 64);
  SlotPool pool(memory, 64);
  EXPECT_DEATH(pool.release(0), "invariant broken");
  EXPECT_DEATH(pool.mark_received(0), "invariant broken");
  EXPECT_DEATH(pool.release(99), "invariant broken");
  const SlotIndex slot = pool.acquire();
  pool.mark_received(slot);
  EXPECT_DEATH(pool.mark_received(slot), "invariant broken");
  EXPECT_DEATH(SlotPool(memory, 100), "invariant broken");
  EXPECT_DEATH(SlotPool(memory, 0), "invariant broken");
}

}  // namespace
}  // namespace sanproxy::buffer
