// Rules 6 and 8 of fabric.h: how a channel ends.
#include <set>

#include "tests/lwproto/fabric/conformance_fixture.h"

namespace sanproxy::fabric::test {
namespace {

const Status kEnough = Status::error(Code::kDisconnected, "enough");

// `failed`: none of them can have been complete.
void expect_each_cookie_once(const Side& side, std::uint64_t count, bool failed) {
  std::set<std::uint64_t> cookies;
  for (const auto& [cookie, status] : side.sent) {
    EXPECT_TRUE(cookies.insert(cookie).second) << "cookie " << cookie << " came twice";
    EXPECT_FALSE(failed && status.ok());
    EXPECT_FALSE(status.is_again());
  }
  EXPECT_EQ(cookies.size(), count);
}

TEST_P(Conformance, DisconnectingCompletesEverySendThenReportsOnceThenNothing) {
  for (const bool by_client : {true, false}) {
    start(one_seed());
    connect_pair();
    Side& leaver = by_client ? client_ : server_;
    Side& left = by_client ? server_ : client_;
    regions_.push_back(make_region(4096));
    const GatherRef ref{attach(client_, regions_.back()), 64, 0};
    for (std::uint64_t i = 0; i < 50; ++i) ASSERT_TRUE(send(client_, {}, {&ref, 1}, i).ok());
    ASSERT_TRUE(run_until([&] { return server_.received.size() == 50; }));
    leaver.endpoint->disconnect(kEnough);
    leaver.endpoint->disconnect(Status::error(Code::kTimeout, "late"));
    EXPECT_FALSE(leaver.endpoint->connected());
    EXPECT_EQ(leaver.endpoint->begin_send(1).status().code(), Code::kDisconnected);
    ASSERT_TRUE(run_until([&] { return server_.disconnected && client_.disconnected; }));
    EXPECT_FALSE(left.endpoint->connected());
    EXPECT_STREQ(leaver.disconnected->text(), "enough");
    EXPECT_EQ(left.disconnected->code(), Code::kDisconnected) << left.disconnected->to_string();
    expect_each_cookie_once(client_, 50, GetParam().lends);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(client_.poll() + server_.poll(), 0u);
    EXPECT_EQ(client_.completions_after_disconnected, 0);
    EXPECT_EQ(server_.completions_after_disconnected, 0);
    for (const Side* side : {&client_, &server_}) {
      EXPECT_EQ(side->endpoint->begin_send(1).status().code(), Code::kDisconnected);
      EXPECT_EQ(side->endpoint->replenish(), 0u);
      side->endpoint->flush();
    }
  }
}

TEST_P(Conformance, CompletionsOfAnEndFitAnySizeOfPoll) {
  connect_pair();
  regions_.push_back(make_region(4096));
  const GatherRef ref{attach(client_, regions_[0]), 64, 0};
  for (std::uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(send(client_, {}, {&ref, 1}, i).ok());
  client_.endpoint->disconnect(kEnough);
  ASSERT_TRUE(eventually([&] {
    EXPECT_LE(client_.poll(1), 1u);
    return client_.disconnected.has_value();
  }));
  expect_each_cookie_once(client_, 20, false);
  EXPECT_EQ(client_.poll(1), 0u);
}

// The peer neither polls nor does anything else.
TEST_P(Conformance, AnEndNeedsNoHelpFromThePeer) {
  connect_pair();
  regions_.push_back(make_region(65536));
  const GatherRef ref{attach(client_, regions_[0]), 60'000, 0};
  std::uint64_t sent = 0;
  while (sent < 64 && client_.send({}, {&ref, 1}, sent).ok()) ++sent;
  client_.endpoint->disconnect(kEnough);
  ASSERT_TRUE(test::eventually({client_fabric_.get()}, [&] {
    client_.poll();
    return client_.disconnected.has_value();
  }));
  expect_each_cookie_once(client_, sent, false);
}

TEST_P(Conformance, WhatWasSentBeforeTheEndArrivesBeforeIt) {
  connect_pair(small_options(100));
  regions_.push_back(make_region(1 << 20));
  fill(regions_[0], 2);
  const RegionKey key = attach(client_, regions_[0]);
  for (unsigned i = 0; i < 60; ++i) {
    const GatherRef ref{key, 512, i * 512ull};
    ASSERT_TRUE(queue(client_, pattern(40, i), {&ref, i % 2}, i).ok());
  }
  client_.endpoint->disconnect(kEnough);  // without a flush()
  ASSERT_TRUE(eventually([&] {
    if (!client_.disconnected) client_.poll();
    server_.poll(7);
    return server_.disconnected.has_value();
  }));
  ASSERT_EQ(server_.received.size(), 60u);
  for (unsigned i = 0; i < 60; ++i) {
    Bytes expected = pattern(40, i);
    const std::byte* from = regions_[0].data() + i * 512;
    if (i % 2 == 1) expected.insert(expected.end(), from, from + 512);
    EXPECT_EQ(server_.received[i].content, expected) << i;
  }
  EXPECT_EQ(server_.disconnected->code(), Code::kDisconnected);
}

TEST_P(Conformance, LoansStayReadableAfterTheEndAndAfterThePeerHasGone) {
  connect_pair();
  regions_.push_back(make_region(64 * 1024));
  fill(regions_[0], 6);
  const GatherRef ref{attach(client_, regions_[0]), 65536, 0};
  ASSERT_TRUE(send(client_, {}, {&ref, 1}, 1).ok());
  ASSERT_TRUE(run_until([&] { return server_.received.size() == 1; }));
  client_ = Side();
  regions_.clear();
  ASSERT_TRUE(eventually([&] {
    server_.poll();
    return server_.disconnected.has_value();
  }));
  EXPECT_EQ(server_.received[0].content, pattern(65536, 6));
  EXPECT_TRUE(server_.received[0].intact());
}

}  // namespace
}  // namespace sanproxy::fabric::test
