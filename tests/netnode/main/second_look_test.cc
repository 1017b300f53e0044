#include "netnode/main/second_look.h"

#include <gtest/gtest.h>

namespace sanproxy::netnode {
namespace {

TEST(SecondLookTest, WhoFindsNothingLooksOnceMoreAndThenSleeps) {
  SecondLook look;
  EXPECT_TRUE(look.due());
  EXPECT_FALSE(look.due());
  EXPECT_FALSE(look.due()) << "a wake-up that brought nothing is no reason to look again";
}

TEST(SecondLookTest, WorkIsFollowedByAnotherLook) {
  SecondLook look;
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(look.due());
    EXPECT_FALSE(look.due());
    look.on_work();
  }
}

TEST(SecondLookTest, BulkIsFollowedByASleep) {
  SecondLook look;
  look.on_packets(SecondLook::kBulkBytes);
  look.on_work();
  EXPECT_FALSE(look.due());
}

TEST(SecondLookTest, JustBelowBulkItLooksOnceMore) {
  SecondLook look;
  look.on_packets(SecondLook::kBulkBytes - 1);
  look.on_work();
  EXPECT_TRUE(look.due());
}

TEST(SecondLookTest, ItStaysBulkWhileOnlyProxiesSend) {
  SecondLook look;
  look.on_packets(SecondLook::kBulkBytes);
  look.on_packets(0);
  look.on_work();
  EXPECT_FALSE(look.due());
}

TEST(SecondLookTest, SmallPacketsEndBulk) {
  SecondLook look;
  look.on_packets(SecondLook::kBulkBytes);
  look.on_packets(60);
  look.on_work();
  EXPECT_TRUE(look.due());
}

}  // namespace
}  // namespace sanproxy::netnode
