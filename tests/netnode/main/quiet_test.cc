#include "netnode/main/quiet.h"

#include <gtest/gtest.h>

namespace sanproxy::netnode {
namespace {

TEST(Quiet, BeginsWithTheLastPacketAndWithTheDrain) {
  Quiet quiet;
  quiet.look(5, 1'000);
  quiet.look(5, 9'000);
  EXPECT_EQ(quiet.for_ns(9'000), 8'000U);
  quiet.begin(9'000);
  EXPECT_EQ(quiet.for_ns(9'000), 0U) << "a node that has idle sessions is not empty at once";
  quiet.look(5, 10'000);
  EXPECT_EQ(quiet.for_ns(10'000), 1'000U);
  quiet.look(6, 11'000);
  EXPECT_EQ(quiet.for_ns(12'000), 1'000U);
}

}  // namespace
}  // namespace sanproxy::netnode
