// Peers that have a channel and then do anything but what they should.
#include "tests/lwproto/fabric/verbs/hostile_fixture.h"

namespace sanproxy::fabric::verbs::test {
namespace {

TEST_F(VerbsHostile, ATransferThatOvertookAnotherWaitsForItsTurn) {
  start();
  RawPeer second;
  while_serving([&] {
    const ChannelToken token = open_channel(peer_, 2);
    EXPECT_TRUE(second.connect(address_, encode(header_of(1, 2, token)), 8));
    EXPECT_TRUE(peer_.say_hello(with_queue_pairs(2)));
    for (std::size_t number : {2, 4, 6}) {
      EXPECT_EQ(peer_.send(Kind::kInline, 0, number), IBV_WC_SUCCESS);
    }
  });
  EXPECT_TRUE(side_.received.empty());
  while_serving([&] {
    for (std::size_t number : {1, 3, 5}) {
      EXPECT_EQ(second.send(Kind::kInline, 0, number), IBV_WC_SUCCESS);
    }
  });
  EXPECT_TRUE(fabric::test::eventually({fabric_.get()}, [&] {
    serve();
    return side_.received.size() == 6;
  }));
  for (std::size_t i = 0; i < side_.received.size(); ++i) {
    EXPECT_EQ(side_.received[i].content.size(), i + 1);
  }
  // One of them is enough to end the channel.
  second.close();
  EXPECT_EQ(served_to_the_end(), Code::kDisconnected) << end_;
  expect_honest_peers_are_served();
}

TEST_F(VerbsHostile, ATransferThatIsTooLargeEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kReferenced, 8, 100'000); }), Code::kProtocol)
      << end_;
}

TEST_F(VerbsHostile, AnInlinePartThatIsTooLargeEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kInline, 0, 8193); }), Code::kProtocol) << end_;
}

TEST_F(VerbsHostile, AnEmptyTransferEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kInline, 0, 0); }), Code::kProtocol) << end_;
}

TEST_F(VerbsHostile, AnInlinePartLongerThanItsTransferEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kReferenced, 100, 100); }), Code::kProtocol)
      << end_;
}

TEST_F(VerbsHostile, AnInlinePartBeyondItsLimitEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kReferenced, 8193, 9000); }), Code::kProtocol)
      << end_;
}

TEST_F(VerbsHostile, AnUnknownKindEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(static_cast<Kind>(200), 0, 10); }), Code::kProtocol)
      << end_;
}

TEST_F(VerbsHostile, AnInlineTransferWithImmediateDataEndsItsChannel) {
  start();
  const std::uint32_t immediate = make_immediate(Kind::kInline, 0);
  EXPECT_EQ(after([=](RawPeer& p) { p.send(Bytes(10), immediate); }), Code::kProtocol) << end_;
}

TEST_F(VerbsHostile, MoreTransfersThanCreditsEndTheirChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send_burst(Kind::kInline, 0, 10, 40); }), Code::kProtocol)
      << end_;
  EXPECT_LE(side_.received.size(), 16u);
}

TEST_F(VerbsHostile, AByeWithAnyNumberEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.send(Kind::kBye, 77, 0); }), Code::kDisconnected) << end_;
}

TEST_F(VerbsHostile, AWriteIntoOurMemoryBreaksOnlyItsQueuePair) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { EXPECT_NE(p.write_where_nothing_is(), IBV_WC_SUCCESS); }),
            Code::kDisconnected)
      << end_;
}

TEST_F(VerbsHostile, AWriteOfNothingThatMeetsAReceiveEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.write_nothing(make_immediate(Kind::kReferenced, 8)); }),
            Code::kProtocol)
      << end_;
}

TEST_F(VerbsHostile, APeerThatVanishesEndsItsChannel) {
  start();
  EXPECT_EQ(after([](RawPeer& p) { p.close(); }), Code::kDisconnected) << end_;
}

TEST_F(VerbsHostile, APeerThatPostsNoReceivesGetsNoMoreAndOurCookiesComeBack) {
  start();
  auto region = buffer::MemoryRegion::create("hostile", 65'536);
  ASSERT_TRUE(region.ok());
  while_serving([&] {
    EXPECT_TRUE(peer_.connect_honestly(address_, 1));  // for our answer
    EXPECT_TRUE(peer_.say_hello());
  });
  ASSERT_TRUE(side_.endpoint);
  auto key = side_.endpoint->attach(*region);
  ASSERT_TRUE(key.ok());
  for (std::uint64_t i = 0; i < 5; ++i) {
    const GatherRef ref{*key, 1000, i * 1000};
    EXPECT_TRUE(side_.queue(fabric::test::pattern(10, 1), {&ref, 1}, i).ok());
  }
  side_.endpoint->flush();
  EXPECT_EQ(served_to_the_end(), Code::kProtocol);
  EXPECT_EQ(side_.sent.size(), 5u);
  for (const auto& [cookie, status] : side_.sent) EXPECT_FALSE(status.ok()) << cookie;
  side_ = Side();
}

}  // namespace
}  // namespace sanproxy::fabric::verbs::test
