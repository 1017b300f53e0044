#include "proxynode/service/rate_limit.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace sanproxy::service {
namespace {

constexpr std::uint64_t kMs = 1'000'000;
constexpr std::uint64_t kSecond = 1000 * kMs;

int taken(TokenBucket& bucket, const Rate& rate, std::uint64_t now_ns) {
  int count = 0;
  while (count < 100'000 && bucket.take(rate, now_ns)) ++count;
  return count;
}

TEST(TokenBucket, YieldsItsBurstAtOnceAndThenItsRate) {
  const Rate rate{10, 5};
  for (const std::uint64_t start : {std::uint64_t{0}, 1000 * kSecond}) {
    TokenBucket bucket;
    EXPECT_EQ(taken(bucket, rate, start), 5);
    EXPECT_EQ(taken(bucket, rate, start + 99 * kMs), 0);
    EXPECT_EQ(taken(bucket, rate, start + 100 * kMs), 1);
    EXPECT_EQ(taken(bucket, rate, start + 399 * kMs), 2);
    EXPECT_FALSE(bucket.full(start + 399 * kMs));
    EXPECT_TRUE(bucket.full(start + 2 * kSecond));
    EXPECT_EQ(taken(bucket, rate, start + 1000 * kSecond), 5) << "never more than its burst";
  }
}

TEST(TokenBucket, NeverYieldsMoreThanBurstAndRateAllow) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 50; ++round) {
    const Rate rate{static_cast<std::uint32_t>(1 + random() % 1000),
                    static_cast<std::uint32_t>(1 + random() % 100)};
    TokenBucket bucket;
    std::vector<std::uint64_t> times;
    std::uint64_t now = 0;
    for (int i = 0; i < 2000; ++i) {
      now += random() % (4 * kSecond / rate.per_s);
      if (bucket.take(rate, now)) times.push_back(now);
    }
    for (std::size_t i = 0; i + rate.burst < times.size(); ++i) {
      const std::uint64_t token_ns = kSecond / rate.per_s;
      ASSERT_GE(times[i + rate.burst] - times[i], token_ns) << "burst + 1 within one token's time";
    }
  }
}

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

TEST(LogGate, LetsSomeLinesThroughAndCountsTheRest) {
  LogGate gate({1, 2});
  EXPECT_TRUE(gate.open(0));
  EXPECT_EQ(gate.take_held(), 0u);
  EXPECT_TRUE(gate.open(0));
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(gate.open(0));
  EXPECT_TRUE(gate.open(kSecond));
  EXPECT_EQ(gate.take_held(), 5u);
  EXPECT_EQ(gate.take_held(), 0u);
}

}  // namespace
}  // namespace sanproxy::service
