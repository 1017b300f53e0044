// The arithmetic of a link with a rate.
#include "lwproto/fabric/verbs/pacer.h"

#include "gtest/gtest.h"

namespace sanproxy::fabric::verbs {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;

LinkParameters link(std::uint64_t rate, std::uint64_t burst, std::uint64_t peak = 0) {
  LinkParameters out;
  out.quality = peak != 0 ? QualityClass::kVariable : QualityClass::kConstant;
  out.rate_bytes_per_s = rate;
  out.burst_bytes = burst;
  out.peak_bytes_per_s = peak;
  return out;
}

// Sends as early as it may; returns the bytes sent until `end_ns`.
std::uint64_t send_until(Pacer& pacer, std::uint64_t& now_ns, std::uint64_t end_ns,
                         std::uint64_t bytes) {
  std::uint64_t sent = 0;
  while (now_ns < end_ns) {
    if (!pacer.may_send(now_ns)) {
      EXPECT_GT(pacer.ready_at_ns(), now_ns);
      now_ns = pacer.ready_at_ns();
      EXPECT_TRUE(pacer.may_send(now_ns)) << "not ready when it said so";
      continue;
    }
    pacer.on_sent(bytes);
    sent += bytes;
  }
  return sent;
}

TEST(VerbsPacer, WithoutARateItNeverSaysNo) {
  Pacer pacer;
  for (int i = 0; i < 100; ++i) {
    pacer.on_sent(1u << 30);
    EXPECT_TRUE(pacer.may_send(0));
  }
}

TEST(VerbsPacer, KeepsTheRateOverTime) {
  for (const std::uint64_t rate : {1'000ull, 999'983ull, 12'500'000ull, 12'500'000'000ull}) {
    for (const std::uint64_t bytes : {1ull, 64ull, 73'728ull}) {
      if (rate / bytes > 1'000'000) continue;
      std::uint64_t now = 7;
      Pacer pacer(link(rate, 0), now);
      const std::uint64_t seconds = bytes > rate ? 200 : 2;
      const std::uint64_t sent = send_until(pacer, now, 7 + seconds * kSecond, bytes);
      EXPECT_LE(sent, rate * seconds + bytes) << rate << " " << bytes;
      // A full bucket forgets fractions of a nanosecond's worth, each time.
      EXPECT_GE(sent + bytes, rate * seconds / 1000 * 998) << rate << " " << bytes;
    }
  }
}

TEST(VerbsPacer, ARestEarnsTheBurstAndNoMore) {
  std::uint64_t now = 0;
  Pacer pacer(link(1000, 5000), now);
  now = 3600 * kSecond;
  std::uint64_t sent = 0;
  for (; pacer.may_send(now); sent += 100) pacer.on_sent(100);
  EXPECT_EQ(sent, 5100u);
}

TEST(VerbsPacer, ThePeakHoldsInsideABurst) {
  std::uint64_t now = 0;
  Pacer pacer(link(1000, 100'000, 10'000), now);
  const std::uint64_t in_burst = send_until(pacer, now, kSecond, 10);
  EXPECT_LE(in_burst, 10'010u);
  EXPECT_GE(in_burst, 9'990u);
  send_until(pacer, now, 100 * kSecond, 10);
  const std::uint64_t start = now;
  const std::uint64_t afterwards = send_until(pacer, now, start + 10 * kSecond, 10);
  EXPECT_LE(afterwards, 10'020u);
  EXPECT_GE(afterwards, 9'980u);
}

TEST(VerbsPacer, ManySmallStepsOfTimeLoseNoFraction) {
  Pacer pacer(link(3, 0), 0);
  std::uint64_t sent = 0;
  for (std::uint64_t now = 0; now < 1000 * kSecond; now += 1'234'567) {
    if (pacer.may_send(now)) {
      pacer.on_sent(1);
      ++sent;
    }
  }
  // Each transfer may come one step late.
  EXPECT_GE(sent, 2'980u);
  EXPECT_LE(sent, 3'001u);
}

}  // namespace
}  // namespace sanproxy::fabric::verbs
