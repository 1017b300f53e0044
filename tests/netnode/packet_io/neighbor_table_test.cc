#include "netnode/packet_io/neighbor_table.h"

#include <gtest/gtest.h>

#include "netnode/net/byte_order.h"

namespace sanproxy::packet_io {
namespace {

IpAddress numbered(std::uint32_t number) {
  IpAddress ip{Family::kIpv4, {}};
  net::store_be32(ip.bytes.data(), number);
  return ip;
}

TEST(NeighborTable, FindsWhatWasInsertedAndStaysWithinItsBound) {
  NeighborTable table(3);
  IpAddress evicted;
  std::size_t gone = 0;
  for (std::uint32_t i = 1; i <= 3 * kNeighborsMax; ++i) {
    NeighborEntry& entry = table.insert(numbered(i), evicted);
    entry.state = NeighborState::kLearned;
    entry.used_ns = i;
    gone += evicted.family == Family::kNone ? 0 : 1;
    ASSERT_EQ(table.find(numbered(i)), &entry);
    if (evicted.family != Family::kNone) {
      ASSERT_EQ(table.find(evicted), nullptr);
    }
  }
  EXPECT_EQ(table.entries().size(), kNeighborsMax);
  EXPECT_GE(gone, 2 * kNeighborsMax);
}

TEST(NeighborTable, ConfirmedEntriesOutliveAFloodOfLearnedAndUnresolvedOnes) {
  NeighborTable table(3);
  IpAddress evicted;
  for (std::uint32_t i = 1; i <= 100; ++i) {
    table.insert(numbered(i), evicted).state = NeighborState::kReachable;
  }
  for (std::uint32_t i = 1000; i < 1000 + 20 * kNeighborsMax; ++i) {
    NeighborEntry& entry = table.insert(numbered(i), evicted);
    entry.state = i % 2 == 0 ? NeighborState::kLearned : NeighborState::kIncomplete;
    entry.used_ns = i;
  }
  for (std::uint32_t i = 1; i <= 100; ++i) {
    EXPECT_NE(table.find(numbered(i)), nullptr) << i;
  }
}

TEST(NeighborTable, AGatewayOutlivesAFloodOfConfirmedOnes) {
  NeighborTable table(3);
  IpAddress evicted;
  NeighborEntry& gateway = table.insert(numbered(1), evicted);
  gateway.state = NeighborState::kFailed;
  gateway.gateway = true;
  for (std::uint32_t i = 2; i < 20 * kNeighborsMax; ++i) {
    table.insert(numbered(i), evicted).state = NeighborState::kReachable;
  }
  EXPECT_EQ(table.find(numbered(1)), &gateway);
}

TEST(NeighborTable, TheLeastRecentlyUsedOfASetGoesFirst) {
  NeighborTable table(3);
  IpAddress evicted;
  std::uint64_t now = 0;
  // One address is used again after every insertion: it must never be the one to go.
  table.insert(numbered(1), evicted).state = NeighborState::kLearned;
  for (std::uint32_t i = 2; i < 10 * kNeighborsMax; ++i) {
    NeighborEntry& entry = table.insert(numbered(i), evicted);
    entry.state = NeighborState::kLearned;
    entry.used_ns = ++now;
    NeighborEntry* kept = table.find(numbered(1));
    ASSERT_NE(kept, nullptr);
    kept->used_ns = ++now;
  }
}

}  // namespace
}  // namespace sanproxy::packet_io
