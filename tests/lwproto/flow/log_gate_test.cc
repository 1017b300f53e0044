#include "lwproto/flow/log_gate.h"

#include <gtest/gtest.h>

namespace sanproxy::flow {
namespace {

TEST(LogGate, LetsSomeLinesThroughAndCountsTheRest) {
  LogGate gate({1, 2});
  EXPECT_TRUE(gate.open(0));
  EXPECT_EQ(gate.take_held(), 0u);
  EXPECT_TRUE(gate.open(0));
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(gate.open(0));
  EXPECT_TRUE(gate.open(1'000'000'000));
  EXPECT_EQ(gate.take_held(), 5u);
  EXPECT_EQ(gate.take_held(), 0u);
}

}  // namespace
}  // namespace sanproxy::flow
