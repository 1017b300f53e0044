#include "lwproto/fabric/verbs/handshake_rates.h"

#include <string>

#include "gtest/gtest.h"

namespace sanproxy::fabric::verbs {
namespace {

constexpr std::uint64_t kSecondNs = 1'000'000'000;
constexpr std::uint32_t kPerS = 64;
constexpr std::uint32_t kAtOnce = kPerS * HandshakeRates::kSecondsAtOnce;

IpAddress host(std::uint32_t n) {
  return *IpAddress::parse("10." + std::to_string(n >> 16) + "." + std::to_string(n >> 8 & 255) +
                           "." + std::to_string(n & 255));
}

std::uint32_t granted(HandshakeRates& rates, std::uint32_t wanted, std::uint64_t now_ns) {
  std::uint32_t count = 0;
  while (wanted-- != 0) count += rates.take(host(1), 1, kPerS, now_ns);
  return count;
}

TEST(VerbsHandshakeRates, GrantManyAtOnceAndThenTheRate) {
  HandshakeRates rates;
  EXPECT_EQ(granted(rates, 1000, kSecondNs), kAtOnce);
  EXPECT_EQ(granted(rates, 1000, kSecondNs), 0u);
  EXPECT_EQ(granted(rates, 1000, 2 * kSecondNs), kPerS);
  EXPECT_EQ(granted(rates, 1000, 60 * kSecondNs), kAtOnce);
}

TEST(VerbsHandshakeRates, WhatOneHostTakesIsNotTakenFromOthers) {
  HandshakeRates rates;
  EXPECT_EQ(granted(rates, 1000, 0), kAtOnce);
  EXPECT_TRUE(rates.take(host(2), 1, kPerS, 0));
}

TEST(VerbsHandshakeRates, AChannelOfSeveralQueuePairsCountsAsSoMany) {
  HandshakeRates rates;
  for (std::uint32_t n = 0; n < kAtOnce; n += 64) EXPECT_TRUE(rates.take(host(1), 64, kPerS, 0));
  EXPECT_FALSE(rates.take(host(1), 1, kPerS, 0));
  EXPECT_FALSE(rates.take(host(1), 64, kPerS, kSecondNs / 2));
  EXPECT_TRUE(rates.take(host(1), 64, kPerS, kSecondNs));
}

TEST(VerbsHandshakeRates, WhoHasRestedGetsAWholeChannelHoweverLowTheRate) {
  HandshakeRates rates;
  EXPECT_TRUE(rates.take(host(1), 64, 1, 0));
  EXPECT_FALSE(rates.take(host(1), 1, 1, 0));
  EXPECT_TRUE(rates.take(host(1), 64, 1, 64 * kSecondNs));
}

TEST(VerbsHandshakeRates, WithoutARateItNeverSaysNo) {
  HandshakeRates rates;
  for (int i = 0; i < 10'000; ++i) EXPECT_TRUE(rates.take(host(1), 64, 0, 0));
  EXPECT_EQ(rates.size(), 0u);
}

TEST(VerbsHandshakeRates, HostsThatHaveRestedAreForgotten) {
  HandshakeRates rates;
  for (std::uint32_t n = 0; n < 100'000; ++n) {
    EXPECT_TRUE(rates.take(host(n), 1, kPerS, n * (kSecondNs / 1000)));
    EXPECT_LE(rates.size(), HandshakeRates::kRemembered);
  }
}

TEST(VerbsHandshakeRates, HostsThatSomebodyMakesUpTakeSoMuchMemoryAndNoMore) {
  HandshakeRates rates;
  for (std::uint32_t n = 0; n < 100'000; ++n) {
    EXPECT_TRUE(rates.take(host(n), 64, 1, 0));
    ASSERT_LE(rates.size(), HandshakeRates::kRememberedMax);
  }
}

}  // namespace
}  // namespace sanproxy::fabric::verbs
