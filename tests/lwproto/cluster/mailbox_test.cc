#include "lwproto/cluster/mailbox.h"

#include <gtest/gtest.h>
#include <poll.h>

namespace sanproxy::cluster {
namespace {

Change put(const std::string& key, std::uint32_t weight = 1) {
  return {key, Entry(ProxyPolicy{weight})};
}
Change gone(const std::string& key) { return {key, std::nullopt}; }

bool readable(const Mailbox& box) {
  pollfd one{box.fd(), POLLIN, 0};
  return poll(&one, 1, 0) == 1;
}

TEST(Mailbox, TheTakerIsWokenAndGetsWhatChanged) {
  Mailbox box;
  EXPECT_FALSE(readable(box));
  box.put({put("a"), put("b")});
  EXPECT_TRUE(readable(box));
  EXPECT_EQ(box.take().size(), 2u);
  EXPECT_FALSE(readable(box));
}

TEST(Mailbox, ALaterChangeOfAKeyOvertakesTheEarlier) {
  Mailbox box;
  box.put({put("a", 1)});
  box.put({put("a", 2)});
  const auto changes = box.take();
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(std::get<ProxyPolicy>(*changes[0].entry).weight, 2u);
}

TEST(Mailbox, WhatCameAndWentUnseenTakesNoRoom) {
  Mailbox box;
  for (int i = 0; i < 100'000; ++i) {
    box.put({put("key" + std::to_string(i))});
    box.put({gone("key" + std::to_string(i))});
  }
  EXPECT_TRUE(box.take().empty());
}

TEST(Mailbox, TheEndOfWhatTheTakerKnowsIsToldOnce) {
  Mailbox box;
  box.put({put("a")});
  (void)box.take();
  box.put({gone("a")});
  box.put({put("a")});
  box.put({gone("a")});
  const auto changes = box.take();
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_FALSE(changes[0].entry);
  box.put({gone("a")});
  EXPECT_TRUE(box.take().empty());
}

}  // namespace
}  // namespace sanproxy::cluster
