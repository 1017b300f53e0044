#include "lwproto/flow/token_bucket.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace sanproxy::flow {
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

}  // namespace
}  // namespace sanproxy::flow
