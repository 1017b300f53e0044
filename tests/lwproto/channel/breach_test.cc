// A peer that breaks a rule of transfers ends its channel, with the reason, once.
#include "tests/lwproto/channel/channel_fixture.h"

namespace sanproxy::channel::testing {
namespace {

using Breach = RawTest;

TEST_F(Breach, AGrantOfMoreThanCanBePosted) {
  make();
  send(add_credit, granted_ + 1);
  expect_breach("grant");
  EXPECT_TRUE(a_.recorder.messages.empty());
}

TEST_F(Breach, AGrantThatGoesBack) {
  make();
  send(add_credit, granted_ - 1);
  expect_breach("grant");
}

TEST_F(Breach, AGrantThatReturnsMoreThanWasSent) {
  make();
  ASSERT_TRUE(a_.leave(1).ok());
  a_.channel->flush();
  send(add_credit, granted_ + 1);
  a_.poll();
  EXPECT_FALSE(a_.channel->closed()) << "one was sent, one may come back";
  send(add_credit, granted_ + 2);
  expect_breach("grant");
}

TEST_F(Breach, ATransferWithoutACredit) {
  // More buffers are posted than HELLO promises, or the fabric itself would end the channel.
  Settings settings{.depth = {64, 64}};
  auto pair = endpoints_of(settings);
  ours_ = hello_of(settings, 0);
  theirs_ = hello_of(settings, 1);
  ours_.credits_initial = 4;
  raw_ = std::move(pair.b);
  granted_ = theirs_.credits_initial;
  a_.make(std::move(pair.a), ours_, theirs_);
  a_.endpoint->keep_buffers = true;
  for (int i = 0; i < 4; ++i) send(add_credit);
  a_.poll();
  EXPECT_FALSE(a_.channel->closed());
  send(add_credit);
  expect_breach("without a credit");
  EXPECT_EQ(a_.recorder.messages.size(), 4u);
}

TEST_F(Breach, MessagesInFrontOfAMalformedOneHaveHappened) {
  make();
  send([](wire::TransferWriter& writer) {
    add_credit(writer);
    ASSERT_TRUE(writer.append(wire::MessageType::kCredit, 0, wire::CloseCode::kNone,
                              wire::CreditBody{0, 0, 0}));  // connection 0
    add_credit(writer);
  });
  while (a_.poll() != 0) {
  }
  EXPECT_EQ(a_.recorder.messages.size(), 1u);
  EXPECT_EQ(a_.recorder.closed, 1);
  EXPECT_EQ(a_.recorder.code, wire::CloseCode::kProtocolError);
  EXPECT_EQ(take().error, wire::CloseCode::kProtocolError);
}

TEST_F(Breach, BytesThatAreNoTransfer) {
  for (const std::size_t length : {1u, 7u, 8u, 16u, 64u}) {
    a_.recorder = Recorder{};
    make();
    auto space = raw_->begin_send(length);
    ASSERT_TRUE(space.ok());
    std::fill(space->begin(), space->end(), std::byte{0xff});
    ASSERT_TRUE(raw_->commit_send(length, {}, 0).ok());
    raw_->flush();
    expect_breach("");
  }
}

TEST_F(Breach, IsReportedWithoutAMessageWhenNoCreditIsLeft) {
  make({.depth = {8, 4}, .reserve = {2, 2}});
  while (a_.leave(1).ok()) a_.channel->flush();
  ASSERT_EQ(a_.channel->ledger().available(), 1u);
  send({}, granted_ + 1000);
  while (a_.poll() != 0) {
  }
  EXPECT_EQ(a_.recorder.closed, 1);
  EXPECT_EQ(a_.recorder.code, wire::CloseCode::kProtocolError);
  const Got got = take();
  EXPECT_TRUE(got.disconnected);
  EXPECT_EQ(got.error, wire::CloseCode::kNone);
}

TEST_F(Breach, WhatTheFabricFindsIsOneToo) {
  make({.depth = {4, 64}, .reserve = {2, 4}});
  for (int i = 0; i < 5; ++i) send(add_credit);  // the fifth meets no buffer
  while (a_.poll() != 0) {
  }
  EXPECT_EQ(a_.recorder.closed, 1);
  EXPECT_EQ(a_.recorder.code, wire::CloseCode::kProtocolError);
  EXPECT_EQ(a_.recorder.status.code(), Code::kProtocol);
}

TEST_F(Breach, NoneInManyOrderlyTransfers) {
  make({.depth = {8, 8}});
  for (int i = 0; i < 1000; ++i) {
    send(add_credit);
    a_.poll();
    a_.channel->flush();
    for (const auto& header : take().headers) EXPECT_EQ(header.message_count, 0u);
    ASSERT_FALSE(a_.channel->closed()) << i << ": " << a_.recorder.status.to_string();
  }
  EXPECT_EQ(a_.recorder.messages.size(), 1000u);
}

}  // namespace
}  // namespace sanproxy::channel::testing
