// Rules 1 to 5 and 7 of fabric.h, and connecting.
#include <random>

#include "tests/lwproto/fabric/conformance_fixture.h"

namespace sanproxy::fabric::test {
namespace {

INSTANTIATE_TEST_SUITE_P(Fabrics, Conformance, testing::ValuesIn(fabrics_under_test()),
                         [](const auto& fabric) { return fabric.param.name; });

TEST_P(Conformance, PrivateDataTravelsBothWaysAndThePeerIsKnown) {
  listen();
  const Bytes hello = pattern(700, 1);
  const Bytes welcome = pattern(900, 2);
  auto connecting = client_fabric_->connect(address_, hello, {});
  ASSERT_TRUE(connecting.ok());
  auto request = next_request(*listener_, {server_fabric_.get(), client_fabric_.get()});
  ASSERT_TRUE(request);
  EXPECT_EQ(request->private_data, hello);
  EXPECT_FALSE(request->peer.address.empty());
  EXPECT_TRUE((*connecting)->poll().status().is_again());
  auto accepted = listener_->accept(*request, welcome);
  ASSERT_TRUE(accepted.ok()) << accepted.status().to_string();
  EXPECT_EQ((*accepted)->peer().address, request->peer.address);
  auto connected = finish(**connecting, {server_fabric_.get(), client_fabric_.get()});
  ASSERT_TRUE(connected.ok()) << connected.status().to_string();
  const auto answer = (*connecting)->private_data();
  EXPECT_EQ(Bytes(answer.begin(), answer.end()), welcome);
  EXPECT_TRUE((*accepted)->connected());
  EXPECT_TRUE((*connected)->connected());
}

TEST_P(Conformance, ARejectionCarriesItsReason) {
  listen();
  auto connecting = client_fabric_->connect(address_, {}, {});
  ASSERT_TRUE(connecting.ok());
  auto request = next_request(*listener_, {server_fabric_.get(), client_fabric_.get()});
  ASSERT_TRUE(request);
  listener_->reject(*request, bytes_of("no such service"));
  auto connected = finish(**connecting, {server_fabric_.get(), client_fabric_.get()});
  ASSERT_FALSE(connected.ok());
  EXPECT_EQ(connected.status().code(), Code::kRefused);
  EXPECT_EQ(text_of((*connecting)->private_data()), "no such service");
  EXPECT_FALSE(listener_->accept(*request, {}).ok());
}

TEST_P(Conformance, ConnectingToNobodyFails) {
  auto connecting = client_fabric_->connect(address_, {}, {});
  ASSERT_TRUE(connecting.ok());
  auto connected = finish(**connecting, {client_fabric_.get()});
  ASSERT_FALSE(connected.ok());
  EXPECT_NE(connected.status().code(), Code::kRefused);
  EXPECT_NE(connected.status().code(), Code::kAgain);
}

TEST_P(Conformance, AnAddressOfAnotherFabricIsRefused) {
  EXPECT_FALSE(server_fabric_->listen("nonsense:/x", {}).ok());
  EXPECT_FALSE(client_fabric_->connect("nonsense:/x", {}, {}).ok());
}

TEST_P(Conformance, TransfersArriveInOrderAndUnchanged) {
  connect_pair();
  server_.replenish = server_.release_at_once = true;
  regions_.push_back(make_region(1 << 20));
  fill(regions_[0], 7);
  const RegionKey key = attach(client_, regions_[0]);
  std::mt19937 random(1);
  constexpr std::size_t kTransfers = 20'000;
  std::deque<Bytes> expected;
  std::size_t sent = 0;
  std::size_t got = 0;
  std::size_t in_flight = 0;
  ASSERT_TRUE(run_until([&] {
    while (!server_.received.empty()) {
      EXPECT_EQ(server_.received.front().content, expected.front()) << "transfer " << got;
      server_.received.pop_front();
      expected.pop_front();
      ++got;
      --in_flight;
    }
    while (sent < kTransfers && in_flight < 400) {
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
      ++sent;
      ++in_flight;
    }
    client_.endpoint->flush();
    return got == kTransfers || testing::Test::HasFailure();
  }));
}

TEST_P(Conformance, TheInlinePartIsWhollyInTheFirstSegment) {
  connect_pair();
  regions_.push_back(make_region(4096));
  const RegionKey key = attach(client_, regions_[0]);
  const Bytes inline_part = pattern(8192, 3);
  const GatherRef ref{key, 100, 50};
  ASSERT_TRUE(client_.send(inline_part, {&ref, 1}, 1).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  const Received& received = server_.received.front();
  EXPECT_EQ(received.content.size(), inline_part.size() + 100);
  EXPECT_GE(received.segments.front().length, inline_part.size());
}

TEST_P(Conformance, TinyAndLargeTransfersAndReferencesAloneArrive) {
  connect_pair();
  regions_.push_back(make_region(64 * 1024));
  fill(regions_[0], 9);
  const RegionKey key = attach(client_, regions_[0]);
  ASSERT_TRUE(client_.send(pattern(1, 5)).ok());
  const GatherRef one{key, 1, 65535};
  ASSERT_TRUE(client_.send({}, {&one, 1}, 11).ok());
  const GatherRef all{key, 65536, 0};
  ASSERT_TRUE(client_.send(pattern(8192, 6), {&all, 1}, 12).ok());
  ASSERT_TRUE(run_until([&] { return server_.received.size() == 3; }));
  EXPECT_EQ(server_.received[0].content, pattern(1, 5));
  EXPECT_EQ(server_.received[1].content, Bytes(1, regions_[0].data()[65535]));
  Bytes expected = pattern(8192, 6);
  expected.insert(expected.end(), regions_[0].data(), regions_[0].data() + 65536);
  EXPECT_EQ(server_.received[2].content, expected);
  for (const Received& r : server_.received) {
    if (r.loan != kNoLoan) server_.endpoint->release(r.loan);
  }
}

TEST_P(Conformance, ATransientSegmentIsUntouchedUntilTheNextPoll) {
  connect_pair();
  server_.replenish = client_.replenish = true;
  const Bytes first = pattern(4000, 1);
  ASSERT_TRUE(client_.send(first).ok());
  ASSERT_TRUE(eventually([&] { return server_.poll() != 0; }));
  // The sender fills whatever it believes to be free.
  for (unsigned i = 0; i < 300; ++i) {
    if (!client_.send(pattern(8192, i)).ok()) break;
  }
  client_.poll();
  for (const Segment& s : server_.received.front().segments) {
    EXPECT_EQ(std::memcmp(s.data, first.data(), s.length), 0);
  }
}

TEST_P(Conformance, LoansAreReleasedInAnyOrderAndComeBackOnceEach) {
  connect_pair();
  regions_.push_back(make_region(256 * 1024));
  fill(regions_[0], 4);
  const RegionKey key = attach(client_, regions_[0]);
  constexpr unsigned kLoans = 200;
  for (unsigned i = 0; i < kLoans; ++i) {
    const GatherRef ref{key, 1024, i * 1024ull};
    ASSERT_TRUE(client_.queue(pattern(8, i), {&ref, 1}, 1000 + i).ok());
  }
  client_.endpoint->flush();
  ASSERT_TRUE(run_until([&] { return server_.received.size() == kLoans; }));
  EXPECT_TRUE(client_.sent.empty()) << "a completion before the loan was released";
  server_.poll();  // ends the transient segments
  std::vector<std::size_t> order(kLoans);
  for (unsigned i = 0; i < kLoans; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937(3));
  for (const std::size_t i : order) {
    const Received& r = server_.received[i];
    ASSERT_NE(r.loan, kNoLoan);
    std::size_t at = 0;
    for (const Segment& s : r.segments) {
      if (!s.transient) {
        EXPECT_EQ(std::memcmp(s.data, r.content.data() + at, s.length), 0);
      }
      at += s.length;
    }
    server_.endpoint->release(r.loan);
  }
  server_.endpoint->flush();
  ASSERT_TRUE(run_until([&] { return client_.sent.size() == kLoans; }));
  std::vector<std::uint64_t> cookies;
  for (const auto& [cookie, status] : client_.sent) {
    EXPECT_TRUE(status.ok()) << status.to_string();
    cookies.push_back(cookie);
  }
  std::sort(cookies.begin(), cookies.end());
  for (unsigned i = 0; i < kLoans; ++i) EXPECT_EQ(cookies[i], 1000 + i);
}

TEST_P(Conformance, TransfersWithoutReferencesCompleteSilentlyAndLendNothing) {
  connect_pair();
  for (unsigned i = 0; i < 100; ++i) ASSERT_TRUE(client_.send(pattern(64, i), {}, i).ok());
  ASSERT_TRUE(run_until([&] { return server_.received.size() == 100; }));
  client_.poll();
  EXPECT_TRUE(client_.sent.empty());
}

TEST_P(Conformance, NothingIsVisibleToThePeerOnceAnAbandonedTransferIsReplaced) {
  connect_pair();
  auto abandoned = client_.endpoint->begin_send(100);
  ASSERT_TRUE(abandoned.ok());
  std::fill(abandoned->begin(), abandoned->end(), std::byte{0xee});
  ASSERT_TRUE(client_.send(bytes_of("second")).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  EXPECT_EQ(text_of(server_.received[0].content), "second");
}

TEST_P(Conformance, ReplenishPostsWhatWasConsumed) {
  EndpointOptions options;
  options.receive_depth = 16;
  connect_pair(options);
  EXPECT_EQ(server_.endpoint->replenish(), 0u);
  for (int round = 0; round < 5; ++round) {
    for (unsigned i = 0; i < 16; ++i) ASSERT_TRUE(client_.send(pattern(32, i)).ok());
    server_.received.clear();
    ASSERT_TRUE(run_until([&] { return server_.received.size() == 16; }));
    EXPECT_EQ(server_.endpoint->replenish(), 16u);
    EXPECT_EQ(server_.endpoint->replenish(), 0u);
    server_.endpoint->flush();
  }
}

TEST_P(Conformance, AFullSendQueueSaysAgainAndRecovers) {
  EndpointOptions options;
  options.receive_depth = 5000;
  connect_pair(options);
  unsigned sent = 0;
  Status last;
  while (sent < 5000 && (last = client_.send(pattern(8192, sent))).ok()) ++sent;
  ASSERT_TRUE(last.is_again()) << "5000 transfers of 8 KB fit a queue: " << last.to_string();
  ASSERT_GE(sent, 4u);
  unsigned got = 0;
  ASSERT_TRUE(run_until([&] {
    for (; !server_.received.empty(); server_.received.pop_front(), ++got) {
      EXPECT_EQ(server_.received.front().content, pattern(8192, got));
    }
    while (sent < 4000 && client_.send(pattern(8192, sent)).ok()) ++sent;
    return got == 4000;
  }));
  EXPECT_TRUE(client_.endpoint->connected());
}

TEST_P(Conformance, OutstandingReferencesAreBoundedBySendDepth) {
  EndpointOptions options;
  options.send_depth = 8;
  connect_pair(options);
  regions_.push_back(make_region(4096));
  const RegionKey key = attach(client_, regions_[0]);
  const GatherRef ref{key, 16, 0};
  std::uint64_t sent = 0;
  while (sent < 100 && client_.send({}, {&ref, 1}, sent).ok()) ++sent;
  EXPECT_EQ(sent, 8u);
  EXPECT_TRUE(client_.endpoint->begin_send(1).status().is_again());
  ASSERT_TRUE(run_until([&] { return server_.received.size() == 8; }));
  server_.endpoint->release(server_.received[3].loan);
  server_.endpoint->flush();
  ASSERT_TRUE(run_until([&] { return client_.sent.size() == 1; }));
  EXPECT_EQ(client_.sent[0].first, 3u);
  EXPECT_TRUE(client_.send({}, {&ref, 1}, 99).ok());
}

TEST_P(Conformance, ManyRegionsCanBeAttachedAtAnyTimeFromBothSides) {
  connect_pair();
  for (unsigned i = 0; i < 40; ++i) {
    regions_.push_back(make_region(8192));
    fill(regions_.back(), i);
    Side& from = i % 2 == 0 ? client_ : server_;
    Side& to = i % 2 == 0 ? server_ : client_;
    const GatherRef ref{attach(from, regions_.back()), 8192, 0};
    ASSERT_TRUE(from.send({}, {&ref, 1}, i).ok());
    ASSERT_TRUE(run_until([&] { return !to.received.empty(); }));
    EXPECT_EQ(to.received.front().content, pattern(8192, i));
    to.endpoint->release(to.received.front().loan);
    to.received.clear();
  }
}

TEST_P(Conformance, MoreRegionsThanThePeerTakesAreRefusedWithoutHarm) {
  EndpointOptions options;
  options.regions_max = 2;
  options.peer_region_bytes_max = 1 << 20;
  connect_pair(options);
  regions_.push_back(make_region(4096));
  regions_.push_back(make_region(2 << 20));
  const RegionKey key = attach(client_, regions_[0]);
  EXPECT_EQ(client_.endpoint->attach(regions_[1]).status().code(), Code::kExhausted);
  attach(client_, regions_[0]);
  EXPECT_EQ(client_.endpoint->attach(regions_[0]).status().code(), Code::kExhausted);
  const GatherRef ref{key, 10, 0};
  ASSERT_TRUE(client_.send({}, {&ref, 1}, 1).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
}

TEST_P(Conformance, MisuseIsAnErrorAndNotTheEndOfTheChannel) {
  connect_pair();
  regions_.push_back(make_region(4096));
  const RegionKey key = attach(client_, regions_[0]);
  EXPECT_EQ(client_.endpoint->begin_send(1 << 20).status().code(), Code::kInvalidArgument);
  const GatherRef bad[] = {{key + 1, 1, 0}, {0, 1, 0},       {key, 4097, 0},       {key, 1, 4096},
                           {key, 0, 0},     {key, 1, ~0ull}, {key, ~0u, ~0ull - 1}};
  for (const GatherRef& ref : bad) {
    EXPECT_EQ(client_.queue(bytes_of("x"), {&ref, 1}, 1).code(), Code::kInvalidArgument);
  }
  const std::vector<GatherRef> many(kGatherRefsMax + 1, GatherRef{key, 1, 0});
  EXPECT_EQ(client_.queue({}, many, 1).code(), Code::kInvalidArgument);
  EXPECT_EQ(client_.queue({}, {}, 1).code(), Code::kInvalidArgument);
  ASSERT_TRUE(client_.send(bytes_of("still here")).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
  EXPECT_EQ(text_of(server_.received[0].content), "still here");
}

TEST_P(Conformance, OneFabricServesManyEndpointsAndOneRegion) {
  listen();
  constexpr unsigned kPairs = 64;
  regions_.push_back(make_region(kPairs * 4096));
  fill(regions_[0], 1);
  std::vector<Side> servers(kPairs);
  std::vector<Side> clients(kPairs);
  for (unsigned i = 0; i < kPairs; ++i) {
    ASSERT_TRUE(
        connect_sides(*server_fabric_, *listener_, *client_fabric_, {}, servers[i], clients[i]));
    servers[i].release_at_once = true;
    const GatherRef ref{attach(clients[i], regions_[0]), 4096, i * 4096ull};
    ASSERT_TRUE(clients[i].send(pattern(10, i), {&ref, 1}, i).ok());
  }
  ASSERT_TRUE(eventually([&] {
    bool all = true;
    for (unsigned i = 0; i < kPairs; ++i) {
      servers[i].poll();
      servers[i].endpoint->flush();
      clients[i].poll();
      all = all && clients[i].sent.size() == 1;
    }
    return all;
  }));
  for (unsigned i = 0; i < kPairs; ++i) {
    Bytes expected = pattern(10, i);
    const std::byte* from = regions_[0].data() + i * 4096;
    expected.insert(expected.end(), from, from + 4096);
    EXPECT_EQ(servers[i].received[0].content, expected);
  }
}

}  // namespace
}  // namespace sanproxy::fabric::test
