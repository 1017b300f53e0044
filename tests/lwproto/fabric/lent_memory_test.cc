#include "lwproto/fabric/lent_memory.h"

#include <array>

#include "gtest/gtest.h"

namespace sanproxy::fabric {
namespace {

constexpr std::size_t kBytes = 1000;

struct LentMemoryTest : testing::Test {
  std::array<std::array<std::byte, kBytes>, 4> memory{};
  PassedRegion at(std::size_t i, std::size_t bytes = kBytes) const {
    return {memory[i].data(), bytes, static_cast<int>(i)};
  }
};

TEST_F(LentMemoryTest, FindsTheRegionThatHoldsAllOfAPiece) {
  LentMemory lent(4);
  lent.on_region(at(2));
  lent.on_region(at(0));
  lent.on_region(at(3, kBytes / 2));
  for (const std::size_t i : {0, 2, 3, 0}) {
    const LentMemory::Place place = lent.find(memory[i].data() + 10, 20);
    ASSERT_NE(place, LentMemory::kNoPlace) << i;
    EXPECT_EQ(lent.region(place).memory.fd, static_cast<int>(i));
  }
  EXPECT_NE(lent.find(memory[0].data(), kBytes), LentMemory::kNoPlace);
  EXPECT_EQ(lent.find(memory[1].data(), 1), LentMemory::kNoPlace) << "never told of";
  EXPECT_EQ(lent.find(memory[3].data() + kBytes / 2, 1), LentMemory::kNoPlace) << "just behind";
  EXPECT_EQ(lent.find(memory[3].data() + kBytes / 2 - 1, 2), LentMemory::kNoPlace) << "half out";
  EXPECT_EQ(lent.find(memory[0].data() - 1, 2), LentMemory::kNoPlace) << "in front of all";
  EXPECT_EQ(lent.find(memory[0].data() + 1, ~std::size_t{0}), LentMemory::kNoPlace) << "wraps";
}

TEST_F(LentMemoryTest, WhatComesToThePlaceOfOneThatWentHasAnotherGeneration) {
  LentMemory lent(1);
  lent.on_region(at(0));
  const LentMemory::Place place = lent.find(memory[0].data(), 1);
  const std::uint32_t first = lent.region(place).generation;
  lent.on_region_gone(memory[0].data());
  EXPECT_EQ(lent.find(memory[0].data(), 1), LentMemory::kNoPlace);
  EXPECT_NE(lent.region(place).generation, first);
  lent.on_region(at(1));
  EXPECT_EQ(lent.find(memory[1].data(), 1), place);
  EXPECT_NE(lent.region(place).generation, first);
  EXPECT_EQ(lent.regions_gone(), 1u);
}

TEST_F(LentMemoryTest, ARegionBeyondTheBoundIsRefusedAndCounted) {
  LentMemory lent(2);
  for (std::size_t i = 0; i < 3; ++i) lent.on_region(at(i));
  EXPECT_EQ(lent.regions_refused(), 1u);
  EXPECT_EQ(lent.find(memory[2].data(), 1), LentMemory::kNoPlace);
  lent.on_region_gone(memory[2].data());
  EXPECT_EQ(lent.region_count(), 2u);
  lent.on_region_gone(memory[0].data());
  lent.on_region(at(3));
  EXPECT_NE(lent.find(memory[3].data(), 1), LentMemory::kNoPlace);
}

TEST_F(LentMemoryTest, AnOwnerGetsNoMorePlacesThanAreLeftForOthers) {
  LentMemory lent(4);
  const auto of = [&](std::size_t i, const void* owner) {
    PassedRegion region = at(i);
    region.owner = owner;
    return region;
  };
  const int one = 0, other = 0;
  EXPECT_TRUE(lent.on_region(of(0, &one)));
  EXPECT_TRUE(lent.on_region(of(1, &one)));
  EXPECT_FALSE(lent.on_region(of(2, &one)));
  EXPECT_EQ(lent.regions_refused(), 1u);
  EXPECT_TRUE(lent.on_region(of(3, &other)));
  EXPECT_FALSE(lent.on_region(of(2, &other)));
}

TEST_F(LentMemoryTest, WithoutPlacesNothingIsLent) {
  LentMemory lent(0);
  lent.on_region(at(0));
  EXPECT_EQ(lent.find(memory[0].data(), 1), LentMemory::kNoPlace);
  EXPECT_TRUE(lent.all_done());
}

TEST_F(LentMemoryTest, AMarkIsDoneWhenEveryLendUpToItHasEnded) {
  LentMemory lent(1, 8);
  const LentMemory::Lend a = lent.begin();
  const LentMemory::Lend b = lent.begin();
  const LentMemory::Lend mark = lent.mark();
  const LentMemory::Lend c = lent.begin();
  EXPECT_EQ(lent.oldest(), a);
  lent.end(b);
  lent.end(c);
  EXPECT_FALSE(lent.is_done(mark));
  EXPECT_EQ(lent.oldest(), a) << "whatever else has come back";
  lent.end(a);
  EXPECT_EQ(lent.oldest(), 0u);
  EXPECT_TRUE(lent.is_done(mark));
  EXPECT_TRUE(lent.all_done());
}

TEST_F(LentMemoryTest, TheOldestLendBoundsHowManyFollowIt) {
  LentMemory lent(1, 8);
  for (int round = 0; round < 100; ++round) {  // the window goes round
    std::array<LentMemory::Lend, 8> lends{};
    for (LentMemory::Lend& lend : lends) {
      ASSERT_TRUE(lent.has_room());
      lend = lent.begin();
    }
    EXPECT_FALSE(lent.has_room());
    for (std::size_t i = lends.size(); i-- > 1;) lent.end(lends[i]);
    EXPECT_FALSE(lent.has_room()) << "the oldest is still out";
    lent.end(lends[0]);
    EXPECT_TRUE(lent.all_done());
  }
}

}  // namespace
}  // namespace sanproxy::fabric
