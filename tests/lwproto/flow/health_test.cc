#include "lwproto/flow/health.h"

#include <gtest/gtest.h>

namespace sanproxy::flow {
namespace {

TEST(Health, TheFirstResultDecidesAndThenOnlyARowOfThem) {
  Health health({.rise = 2, .fall = 3});
  EXPECT_EQ(health.state(), Health::State::kUnknown);
  EXPECT_TRUE(health.on_result(true));
  EXPECT_TRUE(health.up());
  for (int i = 0; i < 10; ++i) {  // two bad ones in a row are none
    EXPECT_FALSE(health.on_result(false));
    EXPECT_FALSE(health.on_result(false));
    EXPECT_FALSE(health.on_result(true));
    EXPECT_TRUE(health.up());
  }
  EXPECT_FALSE(health.on_result(false));
  EXPECT_FALSE(health.on_result(false));
  EXPECT_TRUE(health.on_result(false));
  EXPECT_FALSE(health.up());
  EXPECT_FALSE(health.on_result(true));
  EXPECT_FALSE(health.on_result(false));
  EXPECT_FALSE(health.on_result(true));
  EXPECT_TRUE(health.on_result(true));
  EXPECT_TRUE(health.up());
  Health down({.rise = 1, .fall = 1});
  EXPECT_TRUE(down.on_result(false));
  EXPECT_EQ(down.state(), Health::State::kDown);
}

TEST(Health, ABadResultBeforeAnyGoodOneDecidesOnlyInARowIfSoAsked) {
  Health health({.rise = 2, .fall = 3, .first_bad_decides = false});
  EXPECT_FALSE(health.on_result(false));
  EXPECT_FALSE(health.on_result(false));
  EXPECT_EQ(health.state(), Health::State::kUnknown);
  EXPECT_TRUE(health.on_result(true)) << "the first good one decides";
  EXPECT_TRUE(health.up());
  Health dead({.rise = 2, .fall = 3, .first_bad_decides = false});
  EXPECT_FALSE(dead.on_result(false));
  EXPECT_FALSE(dead.on_result(false));
  EXPECT_TRUE(dead.on_result(false));
  EXPECT_TRUE(dead.down());
  EXPECT_FALSE(dead.on_result(true)) << "now it takes `rise` of them";
  EXPECT_TRUE(dead.on_result(true));
}

TEST(Health, NewThresholdsHoldFromTheNextResultAndTheStateStays) {
  Health health({.rise = 2, .fall = 3});
  EXPECT_TRUE(health.on_result(true));
  EXPECT_FALSE(health.on_result(false));
  health.set_options({.rise = 1, .fall = 2});
  EXPECT_TRUE(health.up());
  EXPECT_TRUE(health.on_result(false)) << "the second in a row";
  EXPECT_TRUE(health.on_result(true));
}

}  // namespace
}  // namespace sanproxy::flow
