// No transfer without a credit; who waits is let on again; grants flow back and come to rest.
#include "tests/lwproto/channel/channel_fixture.h"

namespace sanproxy::channel::testing {
namespace {

using Credits = PairTest;
using RawCredits = RawTest;

// One transfer a call.
Status send_one(End& end) {
  const Status status = end.channel->send_data_inline(1, 0, pattern(1, 1));
  end.channel->flush();
  return status;
}
Status send_control(End& end) {
  const Status status = end.leave(1);
  end.channel->flush();
  return status;
}

Status send_credit(End& end) {
  const Status status = end.credit(1);
  end.channel->flush();
  return status;
}

TEST_F(Credits, DataLeavesTheReserveCreditHalfOfItAndControlTheLastOne) {
  make({.depth = {16, 16}, .reserve = {6, 6}});
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(send_one(a_).ok()) << i;
  EXPECT_FALSE(a_.channel->data_writable());
  EXPECT_TRUE(send_one(a_).is_again());
  EXPECT_TRUE(a_.refer(pattern(2000, 1), 0, 1).is_again());
  EXPECT_EQ(a_.channel->ledger().available(), 6u);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(send_credit(a_).ok()) << i;
  EXPECT_TRUE(send_credit(a_).is_again());
  ASSERT_TRUE(send_control(a_).ok());
  ASSERT_TRUE(send_control(a_).ok());
  EXPECT_TRUE(send_control(a_).is_again()) << "the last one would announce nothing";
  EXPECT_EQ(a_.channel->ledger().available(), 1u);
  EXPECT_EQ(b_.endpoint->posted(), 1u);
  EXPECT_TRUE(a_.endpoint->connected());
  EXPECT_EQ(a_.channel->counters().blocked_no_credit, 4u);
  EXPECT_EQ(a_.channel->counters().blocked_no_space, 0u);
}

TEST_F(Credits, WhatFitsTheOpenTransferNeedsNoCreditOfItsOwn) {
  make({.depth = {8, 8}, .reserve = {2, 2}});
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(send_one(a_).ok());
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(a_.credit(1).ok()) << i;
  a_.channel->flush();
  EXPECT_EQ(a_.channel->ledger().available(), 2u);
  EXPECT_TRUE(send_one(a_).is_again());
}

TEST_F(Credits, WhatThePeerMayKeepDoesNotRideInTheReserve) {
  make({.depth = {8, 8}, .reserve = {2, 2}});
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(send_one(a_).ok());
  ASSERT_TRUE(a_.leave(1).ok());
  EXPECT_TRUE(a_.credit(1).ok());
  EXPECT_TRUE(a_.refer(pattern(2000, 1), 0, 1).is_again()) << "the peer might keep the buffer";
  EXPECT_TRUE(a_.channel->send_data_inline(1, 0, pattern(1, 1)).ok());
  a_.channel->flush();
  EXPECT_EQ(a_.channel->ledger().available(), 1u);
  settle();
  EXPECT_EQ(b_.recorder.messages.size(), 2u);
  EXPECT_EQ(b_.recorder.data.size(), 7u);
}

TEST_F(Credits, ACreditThatWaitsIsCalledForWhenDataStillCannotGo) {
  make({.delivery = Delivery::kReceiveBuffers, .depth = {16, 16}, .reserve = {6, 6}});
  b_.recorder.retain = true;  // its buffers come back when it has been heard
  std::uint64_t offset = 0;
  while (a_.refer(pattern(2000, 1), offset, 1).ok()) offset += 2000;
  settle();
  EXPECT_EQ(a_.recorder.writable, 0);
  while (send_credit(a_).ok()) {
  }
  ASSERT_EQ(a_.channel->ledger().available(), 3u);
  bool sent = false;
  a_.recorder.in_writable = [&] {
    EXPECT_FALSE(a_.channel->data_writable());
    sent = sent || a_.credit(1).ok();
  };
  settle();
  EXPECT_TRUE(sent) << "the buffers that CREDITs came in are back, the others are not";
  EXPECT_EQ(b_.recorder.data.size(), 10u);
  for (const Data& data : b_.recorder.data) b_.channel->release(data.loan);
  settle();
  EXPECT_TRUE(a_.channel->data_writable());
}

TEST_F(Credits, ARefusedSendChangesNothing) {
  make({.depth = {8, 8}, .reserve = {2, 2}});
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(send_one(a_).ok());
  const ChannelCounters before = a_.channel->counters();
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(a_.channel->send_data_inline(1, 0, pattern(9, 1)).is_again());
    ASSERT_TRUE(a_.refer(pattern(2000, 1), 0, 9).is_again());
    a_.channel->flush();
  }
  EXPECT_EQ(a_.channel->counters().transfers_out, before.transfers_out);
  EXPECT_EQ(a_.channel->counters().messages_out, before.messages_out);
  EXPECT_EQ(a_.channel->counters().data_bytes_out, before.data_bytes_out);
  EXPECT_EQ(a_.channel->ledger().available(), 2u);
  settle();
  EXPECT_EQ(b_.recorder.data.size(), 6u);
  EXPECT_TRUE(a_.recorder.sent.empty());
}

TEST_F(Credits, WhoWasRefusedIsCalledOnceWhenCreditsAreBack) {
  make({.depth = {8, 8}, .reserve = {2, 2}});
  settle();
  EXPECT_EQ(a_.recorder.writable, 0) << "nobody waits";
  while (send_one(a_).ok()) {
  }
  a_.poll();
  EXPECT_EQ(a_.recorder.writable, 0) << "nothing has come back yet";
  settle();
  EXPECT_EQ(a_.recorder.writable, 1);
  EXPECT_TRUE(a_.channel->data_writable());
  settle();
  EXPECT_EQ(a_.recorder.writable, 1);
}

TEST_F(Credits, AFullSendQueueIsAnotherReasonToWait) {
  make();
  a_.endpoint->refuse_sends = 3;
  EXPECT_TRUE(a_.channel->send_data_inline(1, 0, pattern(1, 1)).is_again());
  EXPECT_TRUE(a_.leave(1).is_again());
  EXPECT_TRUE(a_.refer(pattern(2000, 1), 0, 1).is_again());
  EXPECT_EQ(a_.channel->counters().blocked_no_space, 3u);
  EXPECT_EQ(a_.channel->ledger().available(), 64u);
  a_.recorder.in_writable = [&] { EXPECT_TRUE(a_.leave(1).ok()); };
  settle();
  EXPECT_EQ(a_.recorder.writable, 1);
  EXPECT_EQ(b_.recorder.messages.size(), 1u);
}

TEST_F(Credits, WhoIsRefusedAgainInsideOnWritableIsCalledAgain) {
  make({.depth = {8, 8}, .reserve = {2, 2}});
  int sent = 0;
  const auto pump = [&] {
    while (sent < 500 && a_.channel->send_data_inline(1, 0, pattern(1000, 1)).ok()) {
      ++sent;
      a_.channel->flush();
    }
  };
  a_.recorder.in_writable = pump;
  pump();
  settle();
  EXPECT_EQ(sent, 500);
  EXPECT_EQ(b_.recorder.data.size(), 500u);
}

TEST_F(Credits, AListenerThatNeverSpeaksReturnsCreditsForEver) {
  for (const std::uint32_t depth : {4u, 5u, 8u, 64u, 512u}) {
    make({.depth = {depth, depth}, .reserve = {depth / 2, depth / 2}});
    int sent = 0;
    const int wanted = static_cast<int>(depth) * 50;
    const auto pump = [&] {
      while (sent < wanted && send_one(a_).ok()) ++sent;
    };
    a_.recorder.in_writable = pump;
    pump();
    settle();
    EXPECT_EQ(sent, wanted) << "depth " << depth;
    EXPECT_TRUE(b_.recorder.story.size() == static_cast<std::size_t>(wanted));
    EXPECT_TRUE(a_.recorder.story.empty()) << "pure returns carry nothing";
    EXPECT_GT(b_.channel->counters().transfers_out, 0u);
    a_.recorder = Recorder{};
    b_.recorder = Recorder{};
  }
}

TEST_F(Credits, IdleChannelsDoNotAnswerEachOtherForEver) {
  for (std::uint32_t a = 4; a <= 9; ++a) {
    for (std::uint32_t b = 4; b <= 9; ++b) {
      for (int first = 0; first <= 12; ++first) {
        make({.depth = {a, b}, .reserve = {a / 2, b / 2}});
        for (int i = 0; i < first; ++i) (void)send_one(i % 3 == 0 ? b_ : a_);
        settle();
        const auto rest = transfers();
        for (int round = 0; round < 50; ++round) settle();
        EXPECT_EQ(transfers(), rest) << "depths " << a << ", " << b << ", " << first << " sent";
        EXPECT_TRUE(a_.channel->data_writable() && b_.channel->data_writable());
        a_.recorder = Recorder{};
        b_.recorder = Recorder{};
      }
    }
  }
}

TEST_F(Credits, OneBufferAloneIsNotWorthAReturn) {
  make({.depth = {512, 512}});
  ASSERT_TRUE(send_one(a_).ok());
  settle();
  EXPECT_EQ(b_.channel->counters().transfers_out, 0u);
}

TEST_F(Credits, GrantsRideOnWhateverIsSentAnyway) {
  make({.depth = {512, 512}});
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(send_one(a_).ok());
  settle();
  EXPECT_EQ(a_.channel->ledger().available(), 412u);
  ASSERT_TRUE(send_control(b_).ok());
  settle();
  EXPECT_EQ(a_.channel->ledger().available(), 512u);
  EXPECT_EQ(b_.channel->counters().transfers_out, 1u);
}

TEST_F(Credits, SixtyFourKilobytesAreWorthAReturn) {
  make({.depth = {512, 512}});
  const auto send_full = [&] {  // one transfer of nearly 8 KB
    for (int i = 0; i < 7; ++i) {
      ASSERT_TRUE(a_.channel->send_data_inline(1, 0, pattern(1024, 1)).ok());
    }
    ASSERT_TRUE(a_.channel->send_data_inline(1, 0, pattern(800, 1)).ok());
    a_.channel->flush();
    ASSERT_GT(a_.channel->counters().data_bytes_out, 0u);
  };
  for (int i = 0; i < 8; ++i) {
    send_full();
    settle();
    EXPECT_EQ(b_.channel->counters().transfers_out, 0u) << i;
  }
  send_full();
  settle();
  EXPECT_EQ(b_.channel->counters().transfers_out, 1u);
  EXPECT_EQ(a_.channel->ledger().available(), 512u);
}

TEST_F(Credits, AReturnWaitsWhileItsTransferFindsNoSpaceAndComesLater) {
  make({.depth = {8, 8}, .reserve = {2, 2}});
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(send_one(a_).ok());
  b_.endpoint->refuse_sends = 1;
  b_.poll();
  EXPECT_EQ(b_.channel->counters().transfers_out, 0u);
  settle();
  EXPECT_TRUE(a_.channel->data_writable());
}

TEST_F(Credits, BuffersThatAreHeldAreGrantedLater) {
  make({.depth = {8, 8}, .reserve = {2, 2}});
  b_.endpoint->keep_buffers = true;
  while (send_one(a_).ok()) {
  }
  settle();
  EXPECT_FALSE(a_.channel->data_writable());
  EXPECT_EQ(a_.recorder.writable, 0);
  b_.endpoint->keep_buffers = false;
  b_.poll();
  settle();
  EXPECT_TRUE(a_.channel->data_writable());
}

TEST_F(RawCredits, TheLastCreditGoesOnlyToATransferThatAnnounces) {
  make({.depth = {8, 4}, .reserve = {2, 2}});
  ASSERT_TRUE(a_.leave(1).ok());
  a_.channel->flush();
  ASSERT_TRUE(a_.leave(1).ok());
  a_.channel->flush();
  ASSERT_TRUE(a_.leave(1).ok());
  a_.channel->flush();
  EXPECT_EQ(a_.channel->ledger().available(), 1u);
  EXPECT_TRUE(a_.leave(1).is_again());
  // One message arrives, so that a buffer is to be announced.
  send(add_credit);
  a_.poll();
  EXPECT_EQ(a_.channel->ledger().unannounced(), 1u);
  EXPECT_TRUE(a_.leave(1).ok());
  a_.channel->flush();
  EXPECT_EQ(a_.channel->ledger().available(), 0u);
  EXPECT_TRUE(a_.leave(1).is_again());
  const Got got = take();
  ASSERT_EQ(got.headers.size(), 4u);
  EXPECT_EQ(got.headers[2].credits_granted, 8u);
  EXPECT_EQ(got.headers[3].credits_granted, 9u);
  // And with the grant that comes for it the refused one is called.
  send({});
  a_.poll();
  EXPECT_EQ(a_.recorder.writable, 1);
}

TEST_F(RawCredits, AGrantWithoutMessagesIsReadAndNotAnswered) {
  make({.depth = {64, 64}});
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(send_one(a_).ok());
  (void)take();
  send({});
  a_.poll();
  EXPECT_EQ(a_.channel->ledger().available(), 64u);
  a_.channel->flush();
  EXPECT_TRUE(take().headers.empty());
  EXPECT_EQ(a_.channel->counters().transfers_in, 1u);
  EXPECT_EQ(a_.channel->counters().messages_in, 0u);
}

}  // namespace
}  // namespace sanproxy::channel::testing
