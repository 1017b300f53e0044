#include "proxynode/main/short_spin.h"

#include <gtest/gtest.h>

namespace sanproxy::proxy {
namespace {

constexpr std::uint64_t kBoundNs = 50'000;
constexpr std::uint64_t kShortNs = 10'000;
constexpr std::uint64_t kLongNs = 1'000'000;

class ShortSpinTest : public ::testing::Test {
 protected:
  // Work, then a wait. True: at the start of the wait it would have gone on looking.
  bool wait(std::uint64_t ns, std::size_t work = 1) {
    spin_.on_work(now_ns_, work);
    const bool first = spin_.look_again(now_ns_);
    const bool looks = first && spin_.look_again(now_ns_);
    now_ns_ += ns;
    return looks;
  }
  void learn(std::uint64_t ns) {
    for (int i = 0; i < 20; ++i) wait(ns);
  }

  ShortSpin spin_{kBoundNs};
  std::uint64_t now_ns_ = 1;
};

TEST_F(ShortSpinTest, WhatIsLeftByWhoeverWaitsForTheProcessorIsTakenWithoutASleep) {
  learn(kLongNs);
  for (const std::size_t work : {std::size_t{1}, ShortSpin::kLittleWork + 1}) {
    spin_.on_work(now_ns_, work);
    EXPECT_TRUE(spin_.look_again(now_ns_));
    EXPECT_FALSE(spin_.look_again(now_ns_));
  }
}

TEST_F(ShortSpinTest, NothingIsKnownYetSoItSleeps) { EXPECT_FALSE(wait(kShortNs)); }

TEST_F(ShortSpinTest, AfterShortWaitsItLooksAgainUntilTheBound) {
  learn(kShortNs);
  spin_.on_work(now_ns_, 1);
  EXPECT_TRUE(spin_.look_again(now_ns_));
  EXPECT_TRUE(spin_.look_again(now_ns_));
  EXPECT_TRUE(spin_.look_again(now_ns_ + kBoundNs - 1));
  EXPECT_FALSE(spin_.look_again(now_ns_ + kBoundNs));
}

TEST_F(ShortSpinTest, AfterLongWaitsItSleepsAtOnce) {
  learn(kShortNs);
  learn(kLongNs);
  EXPECT_FALSE(wait(kLongNs));
}

TEST_F(ShortSpinTest, EverySecondWaitLongIsTooMany) {
  learn(kShortNs);
  for (int i = 0; i < 20; ++i) {
    wait(kShortNs);
    wait(kLongNs);
  }
  EXPECT_FALSE(wait(kShortNs));
}

TEST_F(ShortSpinTest, OneLongWaitAmongManyShortOnesChangesNothing) {
  learn(kShortNs);
  wait(kLongNs);
  EXPECT_TRUE(wait(kShortNs));
}

TEST_F(ShortSpinTest, WithMuchUnderWayItLeavesTheProcessor) {
  learn(kShortNs);
  EXPECT_TRUE(wait(kShortNs, ShortSpin::kLittleWork));
  EXPECT_FALSE(wait(kShortNs, ShortSpin::kLittleWork + 1));
}

TEST_F(ShortSpinTest, MuchInSeveralPiecesBetweenTwoWaitsIsMuch) {
  learn(kShortNs);
  for (std::size_t i = 0; i < ShortSpin::kLittleWork; ++i) spin_.on_work(now_ns_, 1);
  EXPECT_FALSE(wait(kShortNs));
}

TEST_F(ShortSpinTest, MuchWorkTimeAfterTimeWeighsAsLongWaitsDo) {
  learn(kShortNs);
  for (int i = 0; i < 20; ++i) wait(kShortNs, ShortSpin::kLittleWork + 1);
  EXPECT_FALSE(wait(kShortNs));
}

TEST_F(ShortSpinTest, ABoundOfNothingNeverLooks) {
  spin_ = ShortSpin(0);
  EXPECT_FALSE(spin_.enabled());
  learn(kShortNs);
  EXPECT_FALSE(wait(kShortNs));
}

}  // namespace
}  // namespace sanproxy::proxy
