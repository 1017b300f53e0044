#include "proxynode/service/rate_limit.h"

#include <gtest/gtest.h>

#include <vector>

namespace sanproxy::service {
namespace {

constexpr std::uint64_t kMs = 1'000'000;
constexpr std::uint64_t kSecond = 1000 * kMs;

RateLimits limits() {
  RateLimits out;
  out.joins = {100, 10};
  out.failures = {1, 3};
  out.penalty_ms = 5000;
  out.peers_max = 4;
  return out;
}

TEST(PeerLimiter, CountsTheAttemptsOfEachPeerByItself) {
  PeerLimiter limiter(limits());
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(limiter.may_try("a", 0)) << i;
  EXPECT_FALSE(limiter.may_try("a", 0));
  EXPECT_TRUE(limiter.may_try("b", 0));
  EXPECT_TRUE(limiter.may_try("a", 10 * kMs));
  EXPECT_FALSE(limiter.may_try("a", 10 * kMs));
}

TEST(PeerLimiter, TooManyFailuresBringAPenaltyThatEnds) {
  PeerLimiter limiter(limits());
  for (int i = 0; i < 3; ++i) limiter.on_failure("a", kSecond);
  EXPECT_TRUE(limiter.may_try("a", kSecond)) << "three are within the limit";
  limiter.on_failure("a", kSecond);
  EXPECT_FALSE(limiter.may_try("a", kSecond));
  EXPECT_FALSE(limiter.may_try("a", 6 * kSecond - 1));
  EXPECT_TRUE(limiter.may_try("b", kSecond)) << "nobody else pays";
  EXPECT_TRUE(limiter.may_try("a", 6 * kSecond));
}

TEST(PeerLimiter, RefusedAttemptsDoNotMakeAPenaltyLonger) {
  PeerLimiter limiter(limits());
  for (int i = 0; i < 4; ++i) limiter.on_failure("a", 0);
  for (int i = 1; i < 50; ++i) EXPECT_FALSE(limiter.may_try("a", i * 100 * kMs)) << i;
  EXPECT_TRUE(limiter.may_try("a", 5 * kSecond));
}

TEST(PeerLimiter, RemembersABoundedNumberOfPeersAndForgetsTheQuietOnesFirst) {
  PeerLimiter limiter(limits());
  for (int i = 0; i < 4; ++i) limiter.on_failure("bad", 0);
  for (int i = 0; i < 10'000; ++i) {
    const std::uint64_t now = kSecond + i * 100 * kMs / 1000;
    (void)limiter.may_try("peer " + std::to_string(i), now);
    if (i % 2 == 0) {
      EXPECT_FALSE(limiter.may_try("bad", now)) << "seen of late, so not forgotten";
    }
    ASSERT_LE(limiter.size(), 4u);
  }
  // With time to fill their buckets the others have nothing to remember.
  (void)limiter.may_try("last", 100 * kSecond);
  EXPECT_EQ(limiter.size(), 1u);
}

}  // namespace
}  // namespace sanproxy::service
