// Rule 5 of fabric.h and back-pressure: receive depth, send depth, full queues, dry pools.
#include "lwproto/buffer/slot_pool.h"
#include "tests/lwproto/fabric/conformance_fixture.h"

namespace sanproxy::fabric::test {
namespace {

TEST_P(Conformance, ATransferWithoutAPostedReceiveEndsTheChannelOnBothSides) {
  connect_pair(options(8));
  // Each ends as soon as it can know: the sender may get as far as an error.
  for (unsigned i = 0; i < 9; ++i) (void)send(client_, pattern(16, i));
  ASSERT_TRUE(run_until([&] { return server_.disconnected && client_.disconnected; }));
  EXPECT_EQ(server_.disconnected->code(), Code::kProtocol) << server_.disconnected->to_string();
  EXPECT_EQ(client_.disconnected->code(), Code::kProtocol) << client_.disconnected->to_string();
  EXPECT_LE(server_.received.size(), 8u);
}

TEST_P(Conformance, ReplenishPostsWhatWasConsumedAndNeverMore) {
  connect_pair(options(16));
  server_.release_at_once = true;
  EXPECT_EQ(server_.endpoint->replenish(), 0u);
  for (int round = 0; round < 5; ++round) {
    for (unsigned i = 0; i < 16; ++i) ASSERT_TRUE(send(client_, pattern(32, i)).ok());
    server_.received.clear();
    ASSERT_TRUE(run_until([&] { return server_.received.size() == 16; }));
    server_.poll();  // ends transient segments
    ASSERT_TRUE(replenish(server_, 16));
    EXPECT_EQ(server_.endpoint->replenish(), 0u);
  }
  EXPECT_TRUE(client_.endpoint->connected());
}

// What has arrived and was not polled still occupies its receive.
TEST_P(Conformance, WhatIsNotPolledIsNotPostedAgain) {
  connect_pair(options(8));
  for (unsigned i = 0; i < 8; ++i) ASSERT_TRUE(send(client_, pattern(32, i)).ok());
  server_.release_at_once = true;
  std::uint32_t posted = 0;
  ASSERT_TRUE(eventually([&] {
    client_.poll();
    posted += server_.endpoint->replenish();
    EXPECT_LE(posted, server_.received.size());
    server_.poll(1);
    return server_.received.size() == 8;
  }));
}

TEST_P(Conformance, AFullSendQueueSaysAgainAndRecovers) {
  constexpr unsigned kDepth = 2000;
  EndpointOptions with = options(kDepth);
  with.transfer_bytes_max = 8192 + 64;
  connect_pair(with);
  server_.release_at_once = true;
  unsigned sent = 0;
  Status last;
  const auto send_more = [&] {
    while (sent < kDepth && (last = client_.send(pattern(8192, sent))).ok()) ++sent;
  };
  ASSERT_TRUE(eventually([&] {  // the server does not poll
    send_more();
    client_.poll();
    return sent >= 4;
  }));
  for (int i = 0; i < 20; ++i) send_more();
  if (GetParam().blocks_on_receiver) {
    EXPECT_LT(sent, kDepth) << "16 MB fit a queue";
    EXPECT_TRUE(last.is_again()) << last.to_string();
  }
  unsigned got = 0;
  ASSERT_TRUE(run_until([&] {
    for (; !server_.received.empty(); server_.received.pop_front(), ++got) {
      EXPECT_EQ(server_.received.front().content, pattern(8192, got));
    }
    server_.endpoint->flush();
    send_more();
    return got == kDepth;
  }));
  EXPECT_TRUE(client_.endpoint->connected());
}

TEST_P(Conformance, CookiesThatWereNotTakenAreBoundedBySendDepth) {
  EndpointOptions with = options();
  with.send_depth = 8;
  connect_pair(with);
  regions_.push_back(make_region(4096));
  const RegionKey key = attach(client_, regions_[0]);
  const GatherRef ref{key, 16, 0};
  std::uint64_t sent = 0;
  ASSERT_TRUE(eventually([&] {  // the client does not poll
    while (sent < 20 && client_.send({}, {&ref, 1}, sent).ok()) ++sent;
    server_.poll();
    return server_.received.size() >= 8;
  }));
  EXPECT_EQ(sent, 8u);
  EXPECT_TRUE(client_.endpoint->begin_send(1).status().is_again());
  ASSERT_EQ(server_.received.size(), 8u);
  const unsigned released = 3;
  server_.release(server_.received[released]);
  server_.endpoint->flush();
  ASSERT_TRUE(run_until([&] { return !client_.sent.empty(); }));
  if (GetParam().lends) {
    EXPECT_EQ(client_.sent.size(), 1u);
    EXPECT_EQ(client_.sent[0].first, released);
  }
  EXPECT_TRUE(send(client_, {}, {&ref, 1}, 99).ok());
  ASSERT_TRUE(run_until([&] { return server_.received.size() == 9; }));
}

// Two endpoints of the server share one pool; both have four slots more than they must.
class SharedPool : public Conformance {
 protected:
  static constexpr std::uint32_t kDepth = 8;
  static constexpr std::size_t kSlotBytes = 16 * 1024;

  std::size_t held_by_each() const { return kDepth + GetParam().extra_slots; }
  std::size_t slots() const { return 2 * held_by_each() + 4; }
  void make_pool(std::size_t count, std::size_t slot_bytes = kSlotBytes) {
    regions_.push_back(make_region(count * slot_bytes));
    pool_.emplace(regions_.back().bytes(), slot_bytes);
  }
  EndpointOptions pooled(std::size_t keep_free = 0) {
    EndpointOptions out = small_options(kDepth);
    out.receive_memory = {&*pool_, &regions_.back(), keep_free};
    return out;
  }
  void end_all() {
    for (Side* side : {&server_, &client_, &server2_, &client2_}) {
      side->release_all();
      *side = Side();
    }
  }
  void TearDown() override {
    end_all();
    listener_.reset();
    Conformance::TearDown();
  }
  void poll_all() {
    poll_both();
    server2_.poll();
    client2_.poll();
  }
  // The pool runs dry under what server_ and server2_ hold.
  void hold_everything() {
    for (unsigned i = 0; i < kDepth; ++i) {
      ASSERT_TRUE(send(client_, pattern(1000, i)).ok());
      ASSERT_TRUE(send(client2_, pattern(1000, 100 + i)).ok());
    }
    ASSERT_TRUE(eventually([&] {
      poll_all();
      return server_.received.size() == kDepth && server2_.received.size() == kDepth;
    }));
    poll_all();  // ends transient segments
  }
  static std::size_t held(const Side& side) {
    return static_cast<std::size_t>(std::count_if(side.received.begin(), side.received.end(),
                                                  [](const auto& r) { return r.loan != kNoLoan; }));
  }

  std::optional<buffer::SlotPool> pool_;
  Side server2_, client2_;
};
INSTANTIATE_TEST_SUITE_P(Fabrics, SharedPool, testing::ValuesIn(fabrics_under_test()), fabric_name);

TEST_P(SharedPool, ThatRunsDryIsBackPressureAndNotTheEnd) {
  make_pool(slots());
  listen(pooled());
  ASSERT_TRUE(connect_more(small_options(kDepth), server_, client_));
  ASSERT_TRUE(connect_more(small_options(kDepth), server2_, client2_));
  if (GetParam().lends) {
    hold_everything();
    EXPECT_EQ(pool_->free_count_min(), slots()) << "nothing is received into memory of ours";
    return;
  }
  EXPECT_EQ(pool_->posted_count(), 2 * held_by_each());
  hold_everything();
  EXPECT_EQ(pool_->received_count(), held(server_) + held(server2_));
  std::uint32_t posted = 0;
  std::uint32_t posted2 = 0;
  for (int i = 0; i < 100; ++i) {
    posted += server_.endpoint->replenish();
    posted2 += server2_.endpoint->replenish();
    poll_all();
  }
  EXPECT_LE(posted + posted2, slots() - held(server_) - held(server2_));
  // So many credits are there, and no more are used.
  for (unsigned i = 0; i < posted; ++i) ASSERT_TRUE(send(client_, pattern(9, i)).ok());
  ASSERT_TRUE(eventually([&] {
    poll_all();
    return server_.received.size() == kDepth + posted;
  }));
  EXPECT_TRUE(server_.endpoint->connected() && server2_.endpoint->connected());
  // What one endpoint lets go another may post.
  server_.release_all();
  ASSERT_TRUE(eventually([&] {
    poll_all();
    posted2 += server2_.endpoint->replenish();
    server2_.endpoint->flush();
    return posted2 == kDepth;
  }));
  for (unsigned i = 0; i < kDepth; ++i) ASSERT_TRUE(send(client2_, pattern(700, i)).ok());
  ASSERT_TRUE(eventually([&] {
    poll_all();
    return server2_.received.size() == 2u * kDepth;
  }));
  EXPECT_EQ(server2_.received.back().content, pattern(700, kDepth - 1));
}

TEST_P(SharedPool, GetsAllItsSlotsBackHoweverTheEndpointsEnd) {
  make_pool(slots());
  for (int how = 0; how < 4; ++how) {
    SCOPED_TRACE(how);
    address_ = GetParam().unused_address();
    listen(pooled());
    ASSERT_TRUE(connect_more(small_options(kDepth), server_, client_));
    ASSERT_TRUE(connect_more(small_options(kDepth), server2_, client2_));
    hold_everything();
    // Some that are posted, some on their way, some that arrive later.
    for (unsigned i = server_.endpoint->replenish(); i > 0; --i) {
      ASSERT_TRUE(send(client_, pattern(77, i)).ok());
    }
    const Status enough = Status::error(Code::kDisconnected, "enough");
    if (how == 1) server_.endpoint->disconnect(enough);
    if (how == 2) client_.endpoint->disconnect(enough);
    if (how == 3) client_ = Side();
    if (how != 0) {
      ASSERT_TRUE(run_until([&] { return server_.disconnected.has_value(); }));
    }
    end_all();
    EXPECT_EQ(pool_->free_count(), slots());
  }
}

TEST_P(SharedPool, GetsAllButTheLoansBackWhileAnEndedEndpointLivesOn) {
  regions_.reserve(2);
  make_pool(slots());
  listen(pooled());
  ASSERT_TRUE(connect_more(small_options(kDepth), server_, client_));
  ASSERT_TRUE(connect_more(small_options(kDepth), server2_, client2_));
  regions_.push_back(make_region(4096));
  const GatherRef ref{attach(client_, regions_.back()), 4096, 0};
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(send(client_, {}, {&ref, 1}, 1).ok());
  ASSERT_TRUE(run_until([&] { return server_.received.size() == 2; }));
  server2_.endpoint->disconnect(Status::error(Code::kDisconnected, "enough"));
  client_ = Side();
  ASSERT_TRUE(eventually([&] {
    poll_all();
    return server_.disconnected && server2_.disconnected;
  }));
  poll_all();
  EXPECT_EQ(pool_->free_count(), slots() - (GetParam().lends ? 0 : held(server_)));
}

TEST_P(SharedPool, LeavesToItsOwnerWhatIsTheOwners) {
  constexpr std::size_t kKeep = 3;
  make_pool(slots());
  listen(pooled(kKeep));
  ASSERT_TRUE(connect_more(small_options(kDepth), server_, client_));
  ASSERT_TRUE(connect_more(small_options(kDepth), server2_, client2_));
  hold_everything();
  for (int i = 0; i < 100; ++i) {
    server_.endpoint->replenish();
    server2_.endpoint->replenish();
    poll_all();
  }
  EXPECT_GE(pool_->free_count_min(), kKeep);
}

TEST_P(SharedPool, TooSmallForTheFirstReceivesRefusesTheEndpointAlone) {
  if (GetParam().lends) return;  // not used
  make_pool(held_by_each() + 1);
  listen(pooled());
  ASSERT_TRUE(connect_more(small_options(kDepth), server_, client_));
  auto connecting = client_fabric_->connect(address_, {}, small_options(kDepth));
  ASSERT_TRUE(connecting.ok());
  auto request = next_request(*listener_, both());
  ASSERT_TRUE(request);
  EXPECT_EQ(listener_->accept(*request, {}).status().code(), Code::kExhausted);
  EXPECT_FALSE(finish(**connecting, both()).ok());
  EXPECT_EQ(pool_->free_count(), 1u);
  ASSERT_TRUE(send(client_, bytes_of("unharmed")).ok());
  ASSERT_TRUE(run_until([&] { return !server_.received.empty(); }));
}

TEST_P(SharedPool, OfSlotsTooSmallForATransferIsRefused) {
  if (GetParam().lends) return;  // not used
  make_pool(slots(), 4096);
  EXPECT_EQ(server_fabric_->listen(address_, pooled()).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(client_fabric_->connect(address_, {}, pooled()).status().code(),
            Code::kInvalidArgument);
}

TEST_P(SharedPool, ServesTheConnectingSideAlike) {
  make_pool(slots());
  listen(small_options(kDepth));
  ASSERT_TRUE(connect_more(pooled(), server_, client_));
  ASSERT_TRUE(connect_more(pooled(), server2_, client2_));
  for (unsigned i = 0; i < kDepth; ++i) {
    ASSERT_TRUE(send(server_, pattern(900, i)).ok());
    ASSERT_TRUE(send(server2_, pattern(901, i)).ok());
  }
  ASSERT_TRUE(eventually([&] {
    poll_all();
    return client_.received.size() == kDepth && client2_.received.size() == kDepth;
  }));
  EXPECT_EQ(client_.received.back().content, pattern(900, kDepth - 1));
  EXPECT_EQ(client2_.received.back().content, pattern(901, kDepth - 1));
  end_all();
  EXPECT_EQ(pool_->free_count(), slots());
}

}  // namespace
}  // namespace sanproxy::fabric::test
