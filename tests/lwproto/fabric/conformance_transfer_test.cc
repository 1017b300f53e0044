// Rules 1 to 4 and 7 of fabric.h: what arrives, in which shape, and whose the memory is.
#include <array>
#include <random>
#include <set>

#include "tests/lwproto/fabric/conformance_fixture.h"

namespace sanproxy::fabric::test {
namespace {

TEST_P(Conformance, TransfersArriveInOrderAndUnchanged) {
  const EndpointOptions with = options(256);
  connect_pair(with);
  server_.release_at_once = true;
  regions_.push_back(make_region(1 << 20));
  fill(regions_[0], 7);
  const RegionKey key = attach(client_, regions_[0]);
  std::mt19937 random(1);
  const std::size_t transfers = GetParam().scaled(20'000);
  std::deque<Bytes> expected;
  std::size_t sent = 0;
  std::size_t got = 0;
  std::size_t credits = with.receive_depth;
  ASSERT_TRUE(run_until([&] {
    for (; !server_.received.empty(); ++got) {
      EXPECT_EQ(server_.received.front().content, expected.front()) << "transfer " << got;
      server_.received.pop_front();
      expected.pop_front();
    }
    credits += server_.endpoint->replenish();
    server_.endpoint->flush();
    for (; sent < transfers && credits > 0; ++sent, --credits) {
      Bytes content = pattern(1 + random() % 300, static_cast<unsigned>(sent));
      const Bytes inline_part = content;
      std::vector<GatherRef> refs(random() % (kGatherRefsMax + 1));
      for (GatherRef& ref : refs) {
        ref = {key, static_cast<std::uint32_t>(1 + random() % 500), random() % 500'000};
        const std::byte* from = regions_[0].data() + ref.offset;
        content.insert(content.end(), from, from + ref.length);
      }
      const Status queued = client_.queue(inline_part, refs, sent);
      if (queued.is_again()) break;
      EXPECT_TRUE(queued.ok()) << queued.to_string();
      expected.push_back(std::move(content));
    }
    client_.endpoint->flush();
    return got == transfers || testing::Test::HasFailure();
  }));
}

struct Shape {
  std::size_t inline_bytes;
  std::vector<std::uint32_t> refs;
};

TEST_P(Conformance, TransfersOfEveryShapeArriveWithTheInlinePartAloneOrInOneSegment) {
  const std::vector<Shape> shapes = {
      {1, {}},
      {2, {}},
      {63, {}},
      {64, {}},
      {65, {}},
      {4096, {}},
      {8191, {}},
      {8192, {}},
      {0, {1}},
      {0, {65536}},
      {1, {1}},
      {8192, {1}},
      {8192, {65536}},
      {0, {1, 1, 1, 1, 1, 1, 1}},
      {16, {1, 4096, 3, 8192, 1, 2, 4097}},
      {8192, {8192, 8192, 8192, 8192, 8192, 8192, 16384}},
  };
  connect_pair();
  server_.release_at_once = true;
  regions_.push_back(make_region(256 * 1024));
  fill(regions_[0], 9);
  const RegionKey key = attach(client_, regions_[0]);
  std::uint64_t cookies = 0;
  for (unsigned i = 0; i < shapes.size(); ++i) {
    SCOPED_TRACE(i);
    Bytes expected = pattern(shapes[i].inline_bytes, i);
    const Bytes inline_part = expected;
    std::vector<GatherRef> refs;
    std::size_t at = regions_[0].size();  // backwards, so that each piece is one of its own
    for (const std::uint32_t length : shapes[i].refs) {
      at -= length + 1;
      refs.push_back({key, length, at});
      expected.insert(expected.end(), regions_[0].data() + at, regions_[0].data() + at + length);
    }
    cookies += refs.empty() ? 0 : 1;
    ASSERT_TRUE(send(client_, inline_part, refs, i).ok());
    ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
    EXPECT_EQ(server_.received[0].content, expected);
    const std::vector<Segment>& segments = server_.received[0].segments;
    if (segments.size() > 1 && !inline_part.empty()) {
      EXPECT_EQ(segments[0].length, inline_part.size());
    }
    for (std::size_t k = 1; k < segments.size(); ++k) EXPECT_GT(segments[k].length, 0u);
    server_.received.clear();
    server_.endpoint->flush();
  }
  EXPECT_TRUE(run_until([&] { return client_.sent.size() == cookies; }));
}

TEST_P(Conformance, LoansAreReleasedInAnyOrderAndCookiesComeBackOnceEach) {
  constexpr unsigned kLoans = 200;
  connect_pair(small_options(kLoans));
  regions_.push_back(make_region(256 * 1024));
  fill(regions_[0], 4);
  const RegionKey key = attach(client_, regions_[0]);
  for (unsigned i = 0; i < kLoans; ++i) {
    const GatherRef ref{key, 1024, i * 1024ull};
    ASSERT_TRUE(queue(client_, pattern(8, i), {&ref, 1}, 1000 + i).ok());
    if (GetParam().lends && i % 50 == 49) {  // send_depth is 64
      client_.endpoint->flush();
      ASSERT_TRUE(run_until([&] { return server_.received.size() == i + 1; }));
      EXPECT_EQ(client_.sent.size(), i + 1 - 50) << "a completion before the loan was released";
      std::vector<std::size_t> order(50);
      for (unsigned k = 0; k < 50; ++k) order[k] = i - k;
      std::shuffle(order.begin(), order.end(), std::mt19937(i));
      for (const std::size_t k : order) server_.release(server_.received[k]);
      server_.endpoint->flush();
      ASSERT_TRUE(run_until([&] { return client_.sent.size() == i + 1; }));
    }
  }
  client_.endpoint->flush();
  ASSERT_TRUE(run_until(
      [&] { return server_.received.size() == kLoans && client_.sent.size() == kLoans; }));
  std::set<std::uint64_t> cookies;
  for (const auto& [cookie, status] : client_.sent) {
    EXPECT_TRUE(status.ok()) << status.to_string();
    EXPECT_TRUE(cookies.insert(cookie).second) << cookie << " came twice";
  }
  EXPECT_EQ(*cookies.begin(), 1000u);
  EXPECT_EQ(*cookies.rbegin(), 1000u + kLoans - 1);
}

TEST_P(Conformance, WhatIsLentStaysUntilItIsReleasedInAnyOrder) {
  constexpr unsigned kLoans = 60;
  connect_pair(small_options(kLoans));
  regions_.push_back(make_region(256 * 1024));
  fill(regions_[0], 4);
  const RegionKey key = attach(client_, regions_[0]);
  for (unsigned i = 0; i < kLoans; ++i) {
    const GatherRef ref{key, 1024, i * 1024ull};
    ASSERT_TRUE(queue(client_, pattern(8, i), {&ref, i % 4 == 0 ? 0u : 1u}, i).ok());
  }
  client_.endpoint->flush();
  ASSERT_TRUE(run_until([&] { return server_.received.size() == kLoans; }));
  server_.poll();  // ends the transient segments
  std::vector<std::size_t> order(kLoans);
  for (unsigned i = 0; i < kLoans; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937(3));
  for (const std::size_t i : order) {
    for (const Received& other : server_.received) {
      EXPECT_TRUE(other.loan == kNoLoan || other.intact());
    }
    server_.release(server_.received[i]);
  }
}

TEST_P(Conformance, TransfersWithoutReferencesCompleteSilently) {
  connect_pair(small_options(100));
  for (unsigned i = 0; i < 100; ++i) ASSERT_TRUE(send(client_, pattern(64, i), {}, i).ok());
  ASSERT_TRUE(run_until([&] { return server_.received.size() == 100; }));
  client_.poll();
  EXPECT_TRUE(client_.sent.empty());
}

TEST_P(Conformance, AnAbandonedTransferNeverLeaves) {
  connect_pair();
  ASSERT_TRUE(eventually([&] {
    auto abandoned = client_.endpoint->begin_send(100);
    if (!abandoned.ok()) {
      client_.poll();
      return false;
    }
    std::fill(abandoned->begin(), abandoned->end(), std::byte{0xee});
    return true;
  }));
  ASSERT_TRUE(send(client_, bytes_of("second")).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  EXPECT_EQ(text_of(server_.received[0].content), "second");
}

TEST_P(Conformance, LessThanWasBegunMayBeCommitted) {
  connect_pair();
  ASSERT_TRUE(eventually([&] {
    auto space = client_.endpoint->begin_send(8192);
    if (!space.ok()) {
      client_.poll();
      return false;
    }
    const Bytes text = bytes_of("short");
    std::copy(text.begin(), text.end(), space->begin());
    EXPECT_TRUE(client_.endpoint->commit_send(text.size(), {}, 0).ok());
    client_.endpoint->flush();
    return true;
  }));
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  EXPECT_EQ(text_of(server_.received[0].content), "short");
}

TEST_P(Conformance, AFlushBetweenBeginAndCommitLeavesTheSpaceWhatItWas) {
  connect_pair();
  server_.release_at_once = true;
  for (unsigned round = 0; round < 3; ++round) {
    const Bytes first = pattern(60, 2 * round);
    const Bytes second = pattern(90, 2 * round + 1);
    ASSERT_TRUE(client_.queue(first).ok());
    auto space = client_.endpoint->begin_send(second.size());
    ASSERT_TRUE(space.ok());
    client_.endpoint->flush();
    std::copy(second.begin(), second.end(), space->begin());
    ASSERT_TRUE(client_.endpoint->commit_send(second.size(), {}, 0).ok());
    client_.endpoint->flush();
    ASSERT_TRUE(run_until([&] { return server_.received.size() == 2; }));
    EXPECT_EQ(server_.received.front().content, first);
    EXPECT_EQ(server_.received.back().content, second);
    server_.received.clear();
  }
}

TEST_P(Conformance, MisuseIsAnErrorAndNotTheEndOfTheChannel) {
  connect_pair();
  regions_.push_back(make_region(4096));
  const RegionKey key = attach(client_, regions_[0]);
  EXPECT_EQ(client_.endpoint->begin_send(1 << 20).status().code(), Code::kInvalidArgument);
  const GatherRef bad[] = {{key + 1, 1, 0}, {0, 1, 0},       {key, 4097, 0},       {key, 1, 4096},
                           {key, 0, 0},     {key, 1, ~0ull}, {key, ~0u, ~0ull - 1}};
  for (const GatherRef& ref : bad) {
    EXPECT_EQ(queue(client_, bytes_of("x"), {&ref, 1}, 1).code(), Code::kInvalidArgument);
  }
  const std::vector<GatherRef> many(kGatherRefsMax + 1, GatherRef{key, 1, 0});
  EXPECT_EQ(queue(client_, {}, many, 1).code(), Code::kInvalidArgument);
  EXPECT_EQ(queue(client_, {}, {}, 1).code(), Code::kInvalidArgument) << "an empty transfer";
  ASSERT_TRUE(send(client_, bytes_of("still here")).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  EXPECT_EQ(text_of(server_.received[0].content), "still here");
  EXPECT_TRUE(client_.sent.empty());
}

TEST_P(Conformance, ManyRegionsCanBeAttachedAtAnyTimeFromBothSides) {
  connect_pair();
  for (unsigned i = 0; i < 40; ++i) {
    regions_.push_back(make_region(8192));
    fill(regions_.back(), i);
    Side& from = i % 2 == 0 ? client_ : server_;
    Side& to = i % 2 == 0 ? server_ : client_;
    const GatherRef ref{attach(from, regions_.back()), 8192, 0};
    ASSERT_TRUE(send(from, {}, {&ref, 1}, i).ok());
    ASSERT_TRUE(run_until([&] { return !to.received.empty(); }));
    EXPECT_EQ(to.received.front().content, pattern(8192, i));
    to.release(to.received.front());
    to.received.clear();
    to.endpoint->flush();
    ASSERT_TRUE(run_until([&] { return from.sent.size() == i / 2 + 1; }));
  }
}

TEST_P(Conformance, MoreRegionsThanThePeerTakesAreRefusedWithoutHarm) {
  if (!GetParam().lends) return;  // nobody but the sender looks at its regions
  EndpointOptions with = options();
  with.regions_max = 2;
  with.peer_region_bytes_max = 1 << 20;
  connect_pair(with);
  regions_.push_back(make_region(4096));
  regions_.push_back(make_region(2 << 20));
  const RegionKey key = attach(client_, regions_[0]);
  EXPECT_EQ(client_.endpoint->attach(regions_[1]).status().code(), Code::kExhausted);
  attach(client_, regions_[0]);
  EXPECT_EQ(client_.endpoint->attach(regions_[0]).status().code(), Code::kExhausted);
  const GatherRef ref{key, 10, 0};
  ASSERT_TRUE(send(client_, {}, {&ref, 1}, 1).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
}

TEST_P(Conformance, OneFabricServesManyEndpointsAndOneRegion) {
  listen(small_options());
  const unsigned pairs = GetParam().scaled(64);
  regions_.push_back(make_region(pairs * 4096));
  fill(regions_[0], 1);
  std::vector<Side> servers(pairs);
  std::vector<Side> clients(pairs);
  for (unsigned i = 0; i < pairs; ++i) {
    ASSERT_TRUE(connect_more(small_options(), servers[i], clients[i]));
    servers[i].release_at_once = true;
  }
  for (unsigned i = 0; i < pairs; ++i) {
    const GatherRef ref{attach(clients[i], regions_[0]), 4096, i * 4096ull};
    ASSERT_TRUE(send(clients[i], pattern(10, i), {&ref, 1}, i).ok());
  }
  ASSERT_TRUE(eventually([&] {
    bool all = true;
    for (unsigned i = 0; i < pairs; ++i) {
      servers[i].poll();
      servers[i].endpoint->flush();
      clients[i].poll();
      all = all && clients[i].sent.size() == 1 && servers[i].received.size() == 1;
    }
    return all;
  }));
  for (unsigned i = 0; i < pairs; ++i) {
    Bytes expected = pattern(10, i);
    const std::byte* from = regions_[0].data() + i * 4096;
    expected.insert(expected.end(), from, from + 4096);
    EXPECT_EQ(servers[i].received[0].content, expected);
  }
}

}  // namespace
}  // namespace sanproxy::fabric::test
