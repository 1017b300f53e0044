#include "netnode/main/of_use.h"

#include <gtest/gtest.h>

namespace sanproxy::netnode {
namespace {

TEST(OfUse, ANodeIsOfNoUseWhenItHasHadNoProxyForAWhile) {
  OfUse node;
  EXPECT_FALSE(node.look(false, 1'000, 100));
  EXPECT_FALSE(node.look(false, 1'099, 100)) << "its proxies may be on their way";
  EXPECT_TRUE(node.look(false, 1'100, 100));
  EXPECT_FALSE(node.is());
  EXPECT_TRUE(node.look(true, 1'200, 100));
  EXPECT_TRUE(node.is());
  EXPECT_FALSE(node.look(false, 1'299, 100)) << "a proxy that is started again";
  EXPECT_TRUE(node.look(false, 1'300, 100));
}

TEST(OfUse, WhoWantsSoIsAlwaysOfUse) {
  OfUse node;
  EXPECT_FALSE(node.look(false, 1'000, 0));
  EXPECT_FALSE(node.look(false, 1'000'000'000'000, 0));
  EXPECT_TRUE(node.is());
}

}  // namespace
}  // namespace sanproxy::netnode
