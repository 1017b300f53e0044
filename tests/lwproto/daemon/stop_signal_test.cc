#include "lwproto/daemon/stop_signal.h"

#include <gtest/gtest.h>

namespace sanproxy::daemon {
namespace {

using Meaning = StopSignal::Meaning;

TEST(StopSignal, TheFirstIsOrderlyWhateverTheClockSays) {
  for (const std::uint64_t now_ns : {0ull, 1ull, 1ull << 60}) {
    StopSignal signal;
    EXPECT_EQ(signal.on_signal(now_ns), Meaning::kOrderly) << now_ns;
    EXPECT_EQ(signal.on_signal(now_ns), Meaning::kSaidTwice) << now_ns;
  }
}

TEST(StopSignal, WhatFollowsTheFirstCloselyIsTheSameWishAndWhatComesLaterAnother) {
  constexpr std::uint64_t kStartNs = 7'000'000'000;
  StopSignal signal;
  ASSERT_EQ(signal.on_signal(kStartNs), Meaning::kOrderly);
  EXPECT_EQ(signal.on_signal(kStartNs + StopSignal::kSaidTwiceNs / 2), Meaning::kSaidTwice);
  EXPECT_EQ(signal.on_signal(kStartNs + StopSignal::kSaidTwiceNs - 1), Meaning::kSaidTwice);
  EXPECT_EQ(signal.on_signal(kStartNs + StopSignal::kSaidTwiceNs), Meaning::kAtOnce);
  EXPECT_EQ(signal.on_signal(kStartNs + 100 * StopSignal::kSaidTwiceNs), Meaning::kAtOnce);
}

}  // namespace
}  // namespace sanproxy::daemon
