#include "lwproto/fabric/tcp/token_bucket.h"

#include <algorithm>
#include <random>

#include "gtest/gtest.h"

namespace sanproxy::fabric::tcp {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;

TEST(TokenBucket, ABurstLeavesAtOnceAndThenTheRateRules) {
  TokenBucket bucket(1'000'000, 65'536, 5);
  EXPECT_EQ(bucket.allowance(5), 65'536u);
  bucket.spend(65'536);
  EXPECT_EQ(bucket.allowance(5), 0u);
  EXPECT_EQ(bucket.allowance(5 + kSecond / 100), 0u) << "10,000 bytes are below the least grant";
  EXPECT_EQ(bucket.allowance(5 + kSecond / 50), 20'000u);
  EXPECT_EQ(bucket.allowance(5 + 100 * kSecond), 65'536u) << "no more than a burst is saved up";
}

TEST(TokenBucket, TheWaitThatItNamesIsLongEnoughAndNotMuchLonger) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t rate = 1 + random() % 10'000'000'000;
    TokenBucket bucket(rate, 65'536, 0);
    bucket.spend(bucket.allowance(0) - random() % TokenBucket::kGrantMin);
    if (bucket.allowance(0) != 0) continue;
    const std::uint64_t wait = bucket.wait_ns();
    TokenBucket early = bucket;
    EXPECT_EQ(early.allowance(wait / 2), 0u) << rate;
    EXPECT_NE(bucket.allowance(wait + 2 + kSecond / rate), 0u) << rate;
  }
}

TEST(TokenBucket, NeverMoreThanTheRateAndOneBurst) {
  std::mt19937_64 random(2);
  for (const std::uint64_t rate :
       {1ull, 999ull, 1'000'003ull, 1'250'000'000ull, 100'000'000'000ull}) {
    TokenBucket bucket(rate, 100'000, 0);
    std::uint64_t now = 0;
    double spent = 0;
    for (int i = 0; i < 100'000; ++i) {
      now += random() % 20'000;
      const std::uint64_t most = bucket.allowance(now);
      const std::uint64_t take = most == 0 ? 0 : random() % (most + 1);
      bucket.spend(take);
      spent += static_cast<double>(take);
      ASSERT_LE(spent, static_cast<double>(rate) * static_cast<double>(now) * 1e-9 + 100'000 + 1);
    }
    // And nothing is lost: who takes all gets the rate.
    const double since = spent;
    const std::uint64_t start = now;
    for (int i = 0; i < 100'000; ++i) {
      now += 10'000;
      const std::uint64_t most = bucket.allowance(now);
      bucket.spend(most);
      spent += static_cast<double>(most);
    }
    const double earned = static_cast<double>(rate) * static_cast<double>(now - start) * 1e-9;
    // With ten microseconds between two calls, no more than a burst in each.
    EXPECT_GE(spent - since, std::min(earned * 0.999, 100'000 * 100'000.0 * 0.999) - 2 * 16'384)
        << rate;
  }
}

}  // namespace
}  // namespace sanproxy::fabric::tcp
