#include "proxynode/main/retired_addresses.h"

#include <gtest/gtest.h>

namespace sanproxy::proxy {
namespace {

IpAddress ip(std::size_t number) {
  IpAddress out{Family::kIpv4, {}};
  out.bytes[2] = static_cast<std::uint8_t>(number >> 8);
  out.bytes[3] = static_cast<std::uint8_t>(number);
  return out;
}

constexpr std::size_t kFull = RetiredAddresses::kKept + RetiredAddresses::kBatch;

TEST(RetiredAddresses, TheOldestGoManyAtATimeAndTheYoungestStay) {
  RetiredAddresses retired;
  for (std::size_t i = 0; i < kFull; ++i) {
    EXPECT_FALSE(retired.due()) << i;
    retired.add(ip(i));
  }
  ASSERT_TRUE(retired.due());
  const auto gone = retired.give_up({});
  ASSERT_EQ(gone.size(), RetiredAddresses::kBatch);
  EXPECT_EQ(gone.front(), ip(0));
  EXPECT_EQ(gone.back(), ip(RetiredAddresses::kBatch - 1));
  EXPECT_EQ(retired.size(), RetiredAddresses::kKept);
  EXPECT_FALSE(retired.due());
}

TEST(RetiredAddresses, OneThatIsInUseStaysAndIsNotAskedForAtEveryStep) {
  RetiredAddresses retired;
  std::set<IpAddress> used;
  for (std::size_t i = 0; i < kFull; ++i) {
    retired.add(ip(i));
    used.insert(ip(i));
  }
  EXPECT_TRUE(retired.give_up(used).empty());
  int asked = 0;
  for (std::size_t i = 0; i < 10 * RetiredAddresses::kBatch; ++i) {
    retired.add(ip(1000 + i));
    used.insert(ip(1000 + i));
    if (!retired.due()) continue;
    ++asked;
    EXPECT_TRUE(retired.give_up(used).empty());
  }
  EXPECT_EQ(asked, 10);
  used.erase(ip(3));
  EXPECT_EQ(retired.give_up(used), std::vector<IpAddress>{ip(3)});
}

TEST(RetiredAddresses, AnAddressThatRetiresAgainIsYoungAgain) {
  RetiredAddresses retired;
  for (std::size_t i = 0; i < kFull; ++i) retired.add(ip(i));
  retired.add(ip(0));
  EXPECT_EQ(retired.size(), kFull);
  EXPECT_EQ(retired.give_up({}).front(), ip(1));
}

}  // namespace
}  // namespace sanproxy::proxy
