#include "proxynode/main/leaving_services.h"

#include <gtest/gtest.h>

namespace sanproxy::proxy {
namespace {

SocketAddress service(std::size_t number) {
  SocketAddress out{IpAddress{Family::kIpv4, {}}, 80};
  out.ip.bytes[2] = static_cast<std::uint8_t>(number >> 8);
  out.ip.bytes[3] = static_cast<std::uint8_t>(number);
  return out;
}

TEST(LeavingServices, OneThatHasConnectionsStaysUntilItsLastHasEnded) {
  LeavingServices leaving;
  EXPECT_FALSE(leaving.due(0)) << "nothing to look for";
  leaving.add(service(1));
  leaving.add(service(2));
  ASSERT_TRUE(leaving.due(0)) << "one without connections is not told of";
  leaving.keep({service(2), service(3)}, 0);
  EXPECT_EQ(leaving.all(), std::vector<SocketAddress>{service(2)});
  EXPECT_FALSE(leaving.due(LeavingServices::kLookPauseNs - 1));
  ASSERT_TRUE(leaving.due(LeavingServices::kLookPauseNs));
  const std::uint64_t before = leaving.changes();
  leaving.keep({service(2)}, LeavingServices::kLookPauseNs);
  EXPECT_EQ(leaving.changes(), before) << "no news";
  leaving.keep({}, 2 * LeavingServices::kLookPauseNs);
  EXPECT_TRUE(leaving.all().empty());
  EXPECT_NE(leaving.changes(), before);
}

TEST(LeavingServices, OneThatSomebodyJoinsAgainLeavesTheList) {
  LeavingServices leaving;
  leaving.add(service(1));
  const std::uint64_t before = leaving.changes();
  leaving.remove(service(2));
  EXPECT_EQ(leaving.changes(), before);
  leaving.remove(service(1));
  EXPECT_TRUE(leaving.all().empty());
  EXPECT_NE(leaving.changes(), before);
}

TEST(LeavingServices, OneThatLeavesIsLookedForAtOnceAlsoBetweenTwoLooks) {
  LeavingServices leaving;
  leaving.add(service(1));
  leaving.keep({service(1)}, 5);
  EXPECT_FALSE(leaving.due(6));
  leaving.add(service(2));
  EXPECT_TRUE(leaving.due(6));
}

TEST(LeavingServices, BeyondItsBoundTheOldestIsForgottenAndCounted) {
  LeavingServices leaving;
  for (std::size_t i = 0; i <= LeavingServices::kMax; ++i) leaving.add(service(i));
  EXPECT_EQ(leaving.all().size(), LeavingServices::kMax);
  EXPECT_EQ(leaving.all().front(), service(1));
  EXPECT_EQ(leaving.forgotten(), 1u);
  leaving.add(service(LeavingServices::kMax));
  EXPECT_EQ(leaving.forgotten(), 1u) << "it was there";
}

}  // namespace
}  // namespace sanproxy::proxy
