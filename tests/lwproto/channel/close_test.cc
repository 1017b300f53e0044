// Every end of a channel is reported once, last, and with its reason.
#include "tests/lwproto/channel/channel_fixture.h"

namespace sanproxy::channel::testing {
namespace {

using Close = PairTest;
using RawClose = RawTest;

TEST_F(Close, OurDecisionIsTheirsToReadAndOursToHearFromPollAlone) {
  make();
  ASSERT_TRUE(a_.leave(1).ok());
  a_.channel->close(wire::CloseCode::kProxyShutdown, "good night");
  EXPECT_TRUE(a_.channel->closed());
  EXPECT_EQ(a_.recorder.closed, 0);
  EXPECT_EQ(a_.leave(1).code(), Code::kDisconnected);
  EXPECT_EQ(a_.channel->send_data_inline(1, 0, pattern(1, 1)).code(), Code::kDisconnected);
  EXPECT_EQ(a_.refer(pattern(2000, 1), 0, 1).code(), Code::kDisconnected);
  EXPECT_FALSE(a_.channel->data_writable());
  a_.channel->close(wire::CloseCode::kReset, "again");
  a_.poll();
  EXPECT_EQ(a_.recorder.closed, 1);
  EXPECT_EQ(a_.recorder.code, wire::CloseCode::kProxyShutdown);
  EXPECT_NE(a_.recorder.status.to_string().find("good night"), std::string::npos);
  b_.poll();
  EXPECT_EQ(b_.recorder.messages.size(), 1u) << "what was sent before arrives";
  EXPECT_EQ(b_.recorder.closed, 1);
  EXPECT_EQ(b_.recorder.code, wire::CloseCode::kProxyShutdown);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(a_.poll(), 0u);
    EXPECT_EQ(b_.poll(), 0u);
    a_.channel->flush();
    b_.channel->flush();
  }
}

TEST_F(Close, APeerThatVanishesIsANodeThatDied) {
  make();
  a_.channel.reset();
  b_.poll();
  EXPECT_EQ(b_.recorder.closed, 1);
  EXPECT_EQ(b_.recorder.code, wire::CloseCode::kNodeDied);
  EXPECT_EQ(b_.recorder.status.code(), Code::kDisconnected);
  EXPECT_EQ(b_.leave(1).code(), Code::kDisconnected);
}

TEST_F(Close, ALongReasonIsCutToWhatAnErrorMayCarry) {
  make();
  a_.channel->close(wire::CloseCode::kRefused, std::string(1000, 'x').c_str());
  b_.poll();
  EXPECT_EQ(b_.recorder.closed, 1);
  EXPECT_EQ(b_.recorder.code, wire::CloseCode::kRefused);
  a_.poll();
}

TEST_F(Close, InsideACallbackNothingMoreOfTheTransferIsRead) {
  for (const bool data : {false, true}) {
    make();
    a_.recorder = b_.recorder = Recorder{};
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(a_.channel->send_data_inline(1, 0, pattern(1, 1)).ok());
      ASSERT_TRUE(a_.leave(1).ok());
    }
    a_.channel->flush();
    (data ? b_.recorder.in_data : b_.recorder.in_message) = [&] {
      b_.channel->close(wire::CloseCode::kNotFound, "enough");
    };
    while (b_.poll() != 0) {
    }
    EXPECT_EQ(b_.recorder.story.size(), data ? 1u : 2u);
    EXPECT_EQ(b_.recorder.closed, 1);
    EXPECT_EQ(b_.recorder.code, wire::CloseCode::kNotFound);
    a_.poll();
    EXPECT_EQ(a_.recorder.code, wire::CloseCode::kNotFound);
  }
}

TEST_F(Close, TransfersBehindTheClosingOneAreNotReadEither) {
  make();
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(a_.leave(1).ok());
    a_.channel->flush();
  }
  b_.recorder.in_message = [&] { b_.channel->close(wire::CloseCode::kReset, "enough"); };
  while (b_.poll() != 0) {
  }
  EXPECT_EQ(b_.recorder.messages.size(), 1u);
  EXPECT_EQ(b_.recorder.closed, 1);
  while (a_.poll() != 0) {
  }
  EXPECT_EQ(a_.recorder.closed, 1);
}

TEST_F(Close, EveryCookieComesBackOnceWhoeverEndsIt) {
  for (const Delivery delivery : {Delivery::kLoans, Delivery::kReceiveBuffers}) {
    for (int how = 0; how < 4; ++how) {
      a_.recorder = b_.recorder = Recorder{};
      make({.delivery = delivery});
      b_.recorder.retain = true;
      for (std::uint64_t cookie = 100; cookie < 110; ++cookie) {
        ASSERT_TRUE(a_.refer(pattern(2000, 1), cookie * 2000, cookie).ok());
        if (cookie == 106) a_.channel->flush();
        if (cookie == 104) {  // five have arrived and are held, five are on their way
          a_.channel->flush();
          b_.poll();
        }
      }
      if (how == 0) a_.channel->close(wire::CloseCode::kReset, "ours");
      if (how == 1) b_.channel->close(wire::CloseCode::kReset, "theirs");
      if (how == 2) a_.endpoint->disconnect(Status::error(Code::kTimeout, "fabric"));
      if (how == 3) b_.endpoint->disconnect(Status::error(Code::kTimeout, "fabric"));
      while (a_.poll() != 0) {
      }
      EXPECT_EQ(a_.recorder.closed, 1);
      std::vector<std::uint64_t> cookies;
      for (const auto& [cookie, ok] : a_.recorder.sent) cookies.push_back(cookie);
      std::sort(cookies.begin(), cookies.end());
      EXPECT_EQ(cookies.size(), 10u) << how;
      EXPECT_EQ(std::unique(cookies.begin(), cookies.end()), cookies.end());
      while (b_.poll() != 0) {
      }
      EXPECT_EQ(b_.recorder.closed, 1);
      for (const Data& held : b_.recorder.data) b_.channel->release(held.loan);
      EXPECT_EQ(b_.endpoint->loans_out(), 0u);
    }
  }
}

TEST_F(RawClose, AnErrorOfThePeerIsTheReasonAndItsLastMessage) {
  make();
  send([](wire::TransferWriter& writer) {
    add_credit(writer);
    const wire::ErrorBody body{0, 4};
    ASSERT_TRUE(writer.append(wire::MessageType::kError, 0, wire::CloseCode::kLimitReached, &body,
                              sizeof(body), std::as_bytes(std::span("full", 4))));
    add_credit(writer);
  });
  while (a_.poll() != 0) {
  }
  EXPECT_EQ(a_.recorder.messages.size(), 1u) << "nothing behind ERROR is read (rule S19)";
  EXPECT_EQ(a_.recorder.closed, 1);
  EXPECT_EQ(a_.recorder.code, wire::CloseCode::kLimitReached);
  const Got got = take();
  EXPECT_TRUE(got.disconnected);
  EXPECT_TRUE(got.headers.empty()) << "an ERROR is not answered";
}

TEST_F(RawClose, AnErrorGetsTheLastCreditsOfTheReserve) {
  make({.depth = {8, 8}, .reserve = {2, 4}});
  while (a_.credit(1).ok()) a_.channel->flush();
  EXPECT_EQ(a_.channel->ledger().available(), 2u);
  a_.channel->close(wire::CloseCode::kProxyShutdown, "bye");
  EXPECT_EQ(take().error, wire::CloseCode::kProxyShutdown);
  a_.poll();
}

TEST_F(RawClose, WithoutACreditThePeerLearnsOfTheEndFromTheFabric) {
  make({.depth = {8, 4}, .reserve = {2, 2}});
  while (a_.leave(1).ok()) a_.channel->flush();
  a_.channel->close(wire::CloseCode::kProxyShutdown, "bye");
  const Got got = take();
  EXPECT_EQ(got.error, wire::CloseCode::kNone);
  EXPECT_TRUE(got.disconnected);
  a_.poll();
  EXPECT_EQ(a_.recorder.code, wire::CloseCode::kProxyShutdown);
}

}  // namespace
}  // namespace sanproxy::channel::testing
