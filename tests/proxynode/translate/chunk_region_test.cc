// Chunks are free, owned or lent, and come back when they are neither owned nor lent.
#include "proxynode/translate/chunk_region.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace sanproxy::translate::testing {
namespace {

constexpr std::size_t kChunks = 8;

ChunkRegion make_region() {
  return ChunkRegion(
      buffer::MemoryRegion::create("chunks", kChunks * ChunkRegion::kChunkBytes).value());
}

TEST(ChunkRegion, GivesWhatItHasAndThenNothing) {
  ChunkRegion region = make_region();
  EXPECT_EQ(region.count(), kChunks);
  std::vector<ChunkIndex> taken;
  for (std::size_t i = 0; i < kChunks; ++i) {
    taken.push_back(region.acquire());
    ASSERT_NE(taken.back(), kNoChunk);
    EXPECT_TRUE(region[taken.back()].owned);
    EXPECT_EQ(region.data(taken.back()), region.region().data() + region.offset(taken.back()));
  }
  EXPECT_EQ(region.acquire(), kNoChunk);
  for (const ChunkIndex chunk : taken) region.disown(chunk);
  EXPECT_EQ(region.free_count(), kChunks);
}

TEST(ChunkRegion, KeepsADisownedChunkUntilTheLastReferenceIsBack) {
  ChunkRegion region = make_region();
  const ChunkIndex chunk = region.acquire();
  region.on_referenced(chunk);
  region.on_referenced(chunk);
  region.disown(chunk);
  region.on_returned(chunk);
  EXPECT_EQ(region.free_count(), kChunks - 1);
  region.on_returned(chunk);
  EXPECT_EQ(region.free_count(), kChunks);
}

TEST(ChunkRegion, KeepsAnOwnedChunkWhoseReferencesAreAllBack) {
  ChunkRegion region = make_region();
  const ChunkIndex chunk = region.acquire();
  region.on_referenced(chunk);
  region.on_returned(chunk);
  EXPECT_EQ(region.free_count(), kChunks - 1);
  region.disown(chunk);
  EXPECT_EQ(region.free_count(), kChunks);
}

TEST(ChunkRegion, GivesAChunkOutAsNew) {
  ChunkRegion region = make_region();
  const ChunkIndex chunk = region.acquire();
  region[chunk].written = 100;
  region[chunk].sent = 50;
  region[chunk].next = 3;
  region.disown(chunk);
  const ChunkIndex again = region.acquire();
  EXPECT_EQ(again, chunk) << "the one freed last is warm";
  EXPECT_EQ(region[again].written, 0u);
  EXPECT_EQ(region[again].sent, 0u);
  EXPECT_EQ(region[again].outstanding, 0u);
  EXPECT_EQ(region[again].next, kNoChunk);
  region.disown(again);
}

TEST(ChunkRegion, AgreesWithACountOfEverythingInRandomOrder) {
  ChunkRegion region = make_region();
  struct Model {
    bool owned = false;
    int lent = 0;
  };
  std::vector<Model> model(kChunks);
  std::mt19937 random(5);
  for (int step = 0; step < 100'000; ++step) {
    std::size_t used = 0;
    for (const Model& m : model) used += m.owned || m.lent > 0 ? 1 : 0;
    ASSERT_EQ(region.free_count(), kChunks - used);
    const auto chunk = static_cast<ChunkIndex>(random() % kChunks);
    Model& m = model[chunk];
    switch (random() % 4) {
      case 0: {
        const ChunkIndex fresh = region.acquire();
        ASSERT_EQ(fresh == kNoChunk, used == kChunks);
        if (fresh == kNoChunk) break;
        ASSERT_FALSE(model[fresh].owned || model[fresh].lent > 0) << "a chunk in use was given";
        model[fresh].owned = true;
        break;
      }
      case 1:
        if (!m.owned) break;
        region.on_referenced(chunk);
        ++m.lent;
        break;
      case 2:
        if (m.lent == 0) break;
        region.on_returned(chunk);
        --m.lent;
        break;
      default:
        if (!m.owned) break;
        region.disown(chunk);
        m.owned = false;
    }
  }
}

}  // namespace
}  // namespace sanproxy::translate::testing
