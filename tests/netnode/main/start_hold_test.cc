#include "netnode/main/start_hold.h"

#include <gtest/gtest.h>

namespace sanproxy::netnode {
namespace {

constexpr std::uint64_t kStart = 5'000'000'000;

TEST(StartHoldTest, NobodyComesUpBeforeAllHaveBeenHeard) {
  StartHold hold;
  EXPECT_TRUE(hold.holds(2, 2, kStart));
  EXPECT_TRUE(hold.holds(2, 1, kStart + 10)) << "the first one would get the flows of the second";
  EXPECT_FALSE(hold.over());
  EXPECT_FALSE(hold.holds(2, 0, kStart + 20));
  EXPECT_TRUE(hold.over());
}

TEST(StartHoldTest, WhoIsNotHeardKeepsTheOthersWaitingForABoundedTime) {
  StartHold hold;
  EXPECT_TRUE(hold.holds(2, 1, kStart));
  EXPECT_TRUE(hold.holds(2, 1, kStart + StartHold::kLongestNs - 1));
  EXPECT_FALSE(hold.holds(2, 1, kStart + StartHold::kLongestNs));
}

TEST(StartHoldTest, WhereThereIsNobodyToWaitForItIsOverAtOnce) {
  StartHold hold;
  EXPECT_FALSE(hold.holds(3, 0, kStart));
}

TEST(StartHoldTest, ProxiesThatComeLaterKeepNobodyWaiting) {
  StartHold hold;
  EXPECT_FALSE(hold.holds(1, 0, kStart));
  EXPECT_FALSE(hold.holds(2, 1, kStart + 10));
}

TEST(StartHoldTest, TheTimeCountsFromTheFirstProxiesThatAreKnown) {
  StartHold hold;
  EXPECT_TRUE(hold.holds(0, 0, kStart));
  EXPECT_TRUE(hold.holds(0, 0, kStart + 10 * StartHold::kLongestNs));
  EXPECT_TRUE(hold.holds(2, 2, kStart + 20 * StartHold::kLongestNs));
  EXPECT_TRUE(hold.holds(3, 1, kStart + 21 * StartHold::kLongestNs - 1));
  EXPECT_FALSE(hold.holds(3, 1, kStart + 21 * StartHold::kLongestNs));
}

}  // namespace
}  // namespace sanproxy::netnode
