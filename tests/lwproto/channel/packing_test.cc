// Messages share transfers, in order and whole.
#include "tests/lwproto/channel/channel_fixture.h"

namespace sanproxy::channel::testing {
namespace {

using Packing = PairTest;

TEST_F(Packing, SeveralMessagesShareOneTransferInOrder) {
  make();
  ASSERT_TRUE(a_.leave(1).ok());
  ASSERT_TRUE(a_.channel->send_data_inline(5, 0, pattern(10, 1)).ok());
  ASSERT_TRUE(a_.credit(6).ok());
  ASSERT_TRUE(a_.leave(2).ok());
  EXPECT_EQ(a_.channel->counters().transfers_out, 0u);
  a_.channel->flush();
  EXPECT_EQ(a_.channel->counters().transfers_out, 1u);
  EXPECT_EQ(a_.channel->counters().messages_out, 4u);
  b_.poll();
  EXPECT_EQ(b_.recorder.story,
            (std::vector<std::string>{"LEAVE_SERVICE", "data", "CREDIT", "LEAVE_SERVICE"}));
  EXPECT_EQ(b_.channel->counters().transfers_in, 1u);
  EXPECT_EQ(b_.channel->counters().messages_in, 4u);
}

TEST_F(Packing, NothingIsVisibleBeforeFlushAndFlushWithNothingSendsNothing) {
  make();
  ASSERT_TRUE(a_.leave(1).ok());
  EXPECT_EQ(b_.endpoint->to_poll(), 0u);
  a_.channel->flush();
  EXPECT_EQ(b_.endpoint->to_poll(), 1u);
  for (int i = 0; i < 10; ++i) a_.channel->flush();
  EXPECT_EQ(b_.endpoint->to_poll(), 1u);
  EXPECT_EQ(a_.channel->ledger().available(), 63u);
}

TEST_F(Packing, AFullTransferIsFollowedByAnother) {
  make();
  constexpr int kMessages = 1000;  // 16 bytes each, 32 with the header and body of a LEAVE
  for (std::uint32_t i = 1; i <= kMessages; ++i) ASSERT_TRUE(a_.leave(i).ok());
  a_.channel->flush();
  const std::uint64_t per_transfer =
      (wire::kTransferInlineBytesMax - sizeof(wire::TransferHeader)) /
      (sizeof(wire::MessageHeader) + sizeof(wire::ServiceBody));
  EXPECT_EQ(a_.channel->counters().transfers_out, (kMessages + per_transfer - 1) / per_transfer);
  b_.poll();
  ASSERT_EQ(b_.recorder.messages.size(), std::size_t{kMessages});
  for (std::uint32_t i = 0; i < kMessages; ++i) {
    EXPECT_EQ(b_.recorder.messages[i].service.service, i + 1);
  }
}

TEST_F(Packing, AReferencedPayloadIsTheLastOfItsTransfer) {
  make();
  const Bytes bytes = pattern(5000, 3);
  ASSERT_TRUE(a_.leave(1).ok());
  ASSERT_TRUE(a_.refer(bytes, 0, 77).ok());
  EXPECT_EQ(a_.channel->counters().transfers_out, 1u);
  ASSERT_TRUE(a_.leave(2).ok());
  a_.channel->flush();
  EXPECT_EQ(a_.channel->counters().transfers_out, 2u);
  b_.poll();
  EXPECT_EQ(b_.recorder.story,
            (std::vector<std::string>{"LEAVE_SERVICE", "data", "LEAVE_SERVICE"}));
  EXPECT_EQ(b_.recorder.data[0].bytes, bytes);
}

TEST_F(Packing, PayloadsOfEveryBoundarySizeArriveWhole) {
  for (const Delivery delivery : {Delivery::kLoans, Delivery::kReceiveBuffers}) {
    make({.delivery = delivery});
    std::uint64_t offset = 0;
    std::vector<Bytes> sent;
    for (const std::size_t size : {1, 7, 8, 9, 1023, 1024}) {
      sent.push_back(pattern(size, static_cast<unsigned>(size)));
      ASSERT_TRUE(a_.channel->send_data_inline(~0ull, offset, sent.back()).ok()) << size;
      offset += size;
    }
    std::size_t at = 0;
    for (const std::size_t size : {1025, 1026, 4096, 65535, 65536}) {
      sent.push_back(pattern(size, static_cast<unsigned>(size)));
      ASSERT_TRUE(a_.refer(sent.back(), at, size, ~0ull, offset).ok()) << size;
      at += size;
      offset += size;
    }
    a_.channel->flush();
    b_.poll();
    ASSERT_EQ(b_.recorder.data.size(), sent.size());
    std::uint64_t expected = 0;
    for (std::size_t i = 0; i < sent.size(); ++i) {
      EXPECT_EQ(b_.recorder.data[i].connection, ~0ull);
      EXPECT_EQ(b_.recorder.data[i].offset, expected);
      EXPECT_TRUE(b_.recorder.data[i].bytes == sent[i]) << sent[i].size();
      expected += sent[i].size();
    }
    EXPECT_EQ(a_.channel->counters().data_bytes_out, expected);
    EXPECT_EQ(b_.channel->counters().data_bytes_in, expected);
    EXPECT_EQ(a_.channel->counters().inline_bytes_out, 1u + 7 + 8 + 9 + 1023 + 1024);
    EXPECT_EQ(b_.channel->counters().inline_bytes_in, 1u + 7 + 8 + 9 + 1023 + 1024);
    settle();
    EXPECT_EQ(a_.recorder.sent.size(), 5u);
    b_.recorder = Recorder{};
    a_.recorder = Recorder{};
  }
}

TEST_F(Packing, AGatherListOfSevenPiecesArrivesAsOnePayload) {
  make();
  const Bytes bytes = pattern(70'000, 9);
  std::copy(bytes.begin(), bytes.end(), a_.region.data());
  std::vector<fabric::GatherRef> refs;
  Bytes expected;
  for (std::uint32_t i = 0; i < fabric::kGatherRefsMax; ++i) {
    const std::uint32_t at = 9000 * (6 - i), length = 1000 + i;
    refs.push_back({a_.key, length, at});
    expected.insert(expected.end(), bytes.begin() + at, bytes.begin() + at + length);
  }
  ASSERT_TRUE(a_.channel->send_data_reference(1, 0, refs, 5).ok());
  a_.channel->flush();
  b_.poll();
  ASSERT_EQ(b_.recorder.data.size(), 1u);
  EXPECT_TRUE(b_.recorder.data[0].bytes == expected);
  settle();
  EXPECT_EQ(a_.recorder.sent, (std::vector<std::pair<std::uint64_t, bool>>{{5, true}}));
}

// Sends `count` references of `bytes` each, one behind the other in stream 1, with `more`.
void refer_with_more(End& end, std::size_t count, std::uint32_t bytes, const Bytes& content) {
  std::copy(content.begin(), content.end(), end.region.data());
  for (std::size_t i = 0; i < count; ++i) {
    const fabric::GatherRef ref{end.key, bytes, i * bytes};
    ASSERT_TRUE(end.channel->send_data_reference(1, i * bytes, {&ref, 1}, 100 + i, true).ok());
  }
}

TEST_F(Packing, ReferencesThatContinueAStreamBecomeOneDataUpToAGatherList) {
  for (const Delivery delivery : {Delivery::kLoans, Delivery::kReceiveBuffers}) {
    make({.delivery = delivery});
    a_.recorder = Recorder{};
    b_.recorder = Recorder{};
    const Bytes content = pattern(20'000, 4);
    refer_with_more(a_, 10, 2000, content);
    a_.channel->flush();
    EXPECT_EQ(a_.channel->counters().messages_out, 10u);
    EXPECT_EQ(a_.channel->counters().transfers_out, 2u);
    b_.poll();
    ASSERT_EQ(b_.recorder.data.size(), 2u);
    EXPECT_EQ(b_.recorder.data[0].bytes.size(), 14'000u);
    EXPECT_EQ(b_.recorder.data[1].offset, 14'000u);
    Bytes got = b_.recorder.data[0].bytes;
    got.insert(got.end(), b_.recorder.data[1].bytes.begin(), b_.recorder.data[1].bytes.end());
    EXPECT_TRUE(got == content);
    settle();
    std::vector<std::pair<std::uint64_t, bool>> all;
    for (std::uint64_t i = 0; i < 10; ++i) all.emplace_back(100 + i, true);
    EXPECT_EQ(a_.recorder.sent, all);
  }
}

TEST_F(Packing, NothingJoinsADataThatItDoesNotContinue) {
  make();
  const auto send = [&](std::uint64_t connection, std::uint64_t offset, std::uint32_t bytes) {
    const fabric::GatherRef ref{a_.key, bytes, 0};
    return a_.channel->send_data_reference(connection, offset, {&ref, 1}, 1, true);
  };
  ASSERT_TRUE(send(1, 0, 2000).ok());
  ASSERT_TRUE(send(2, 2000, 2000).ok());    // another stream
  ASSERT_TRUE(send(2, 5000, 2000).ok());    // not where the last ended
  ASSERT_TRUE(send(2, 7000, 65'000).ok());  // too much for one DATA
  ASSERT_TRUE(a_.leave(1).ok());            // something else in between
  ASSERT_TRUE(send(2, 72'000, 2000).ok());
  EXPECT_EQ(send(2, 74'000, 1024).code(), Code::kInvalidArgument);
  ASSERT_TRUE(send(2, 74'000, 1025).ok());
  a_.channel->flush();
  b_.poll();
  EXPECT_EQ(b_.recorder.story,
            (std::vector<std::string>{"data", "data", "data", "data", "LEAVE_SERVICE", "data"}));
  ASSERT_EQ(b_.recorder.data.size(), 5u);
  EXPECT_EQ(b_.recorder.data[4].bytes.size(), 3025u);
  settle();
  EXPECT_EQ(a_.recorder.sent.size(), 6u);
}

TEST_F(Packing, ReferencesThatWaitedForMoreComeBackUnsentWhenTheChannelEnds) {
  make();
  refer_with_more(a_, 3, 2000, pattern(6000, 5));
  b_.channel->close(wire::CloseCode::kReset, "end");
  b_.poll();
  while (a_.poll() != 0) {
  }
  EXPECT_EQ(a_.recorder.closed, 1);
  EXPECT_EQ(a_.recorder.sent, (std::vector<std::pair<std::uint64_t, bool>>{
                                  {100, false}, {101, false}, {102, false}}));
}

TEST_F(Packing, PayloadsOfTheWrongSizeAreRefusedAndHarmNothing) {
  make();
  EXPECT_EQ(a_.channel->send_data_inline(1, 0, {}).code(), Code::kInvalidArgument);
  EXPECT_EQ(a_.channel->send_data_inline(1, 0, pattern(1025, 1)).code(), Code::kInvalidArgument);
  EXPECT_EQ(a_.refer(pattern(1024, 1), 0, 1).code(), Code::kInvalidArgument);
  EXPECT_EQ(a_.refer(pattern(65537, 1), 0, 2).code(), Code::kInvalidArgument);
  EXPECT_EQ(a_.channel->counters().messages_out, 0u);
  ASSERT_TRUE(a_.channel->send_data_inline(1, 0, pattern(5, 1)).ok());
  settle();
  ASSERT_EQ(b_.recorder.data.size(), 1u);
  EXPECT_TRUE(b_.recorder.messages.empty());
  EXPECT_TRUE(a_.recorder.sent.empty());
}

TEST_F(Packing, ABudgetBoundsWhatOnePollTakes) {
  make();
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(a_.leave(1).ok());
    a_.channel->flush();
  }
  EXPECT_EQ(b_.poll(3), 3u);
  EXPECT_EQ(b_.recorder.messages.size(), 3u);
  EXPECT_EQ(b_.poll(), 7u);
  EXPECT_EQ(b_.recorder.messages.size(), 10u);
  EXPECT_EQ(b_.poll(), 0u);
}

// --- publish(): who may be left asleep for a few rounds

TEST_F(Packing, PublishWakesThePeerAtOnceForWhatSomebodyWaitsFor) {
  make();
  int round = 0;
  for (const auto& send : std::vector<std::function<Status()>>{
           [&] { return a_.leave(1); },
           [&] { return a_.channel->send_data_inline(1, 0, pattern(5, 1)); }}) {
    ASSERT_TRUE(send().ok());
    a_.channel->publish();
    EXPECT_EQ(a_.endpoint->flushes, static_cast<std::uint64_t>(++round));
  }
  ASSERT_TRUE(a_.refer(pattern(2000, 1), 0, 1).ok());
  ASSERT_TRUE(a_.leave(2).ok());
  a_.channel->publish();
  EXPECT_EQ(a_.endpoint->flushes, 3u) << "bulk with something urgent behind it";
  EXPECT_EQ(a_.endpoint->publishes, 0u);
  settle();
}

TEST_F(Packing, PublishShowsBulkAtOnceAndWakesForItWithinAFewCalls) {
  make();
  for (unsigned burst = 1; burst <= 3; ++burst) {
    ASSERT_TRUE(a_.refer(pattern(2000, burst), burst * 4000, burst).ok());
    ASSERT_TRUE(a_.credit(1).ok());
    a_.channel->publish();
    EXPECT_EQ(a_.endpoint->flushes, burst - 1);
    b_.poll();
    EXPECT_EQ(b_.recorder.data.size(), burst) << "who is awake sees it";
    EXPECT_EQ(b_.recorder.messages.size(), burst);
    for (int calls = 0; a_.endpoint->flushes < burst; ++calls) {
      ASSERT_LT(calls, 10) << "a sleeper would not be woken for it";
      a_.channel->publish();
    }
  }
  settle();
}

// --- hold_end()

TEST_F(Packing, AHeldEndIsToldToThePeerWhenItIsFinished) {
  make();
  a_.channel->hold_end();
  ASSERT_TRUE(a_.channel->send_data_inline(1, 0, pattern(5, 1)).ok());
  a_.channel->flush();
  a_.channel->close(wire::CloseCode::kTimedOut, "it is slow");
  EXPECT_TRUE(a_.channel->closed());
  EXPECT_EQ(a_.recorder.closed, 0) << "not from inside close()";
  EXPECT_EQ(a_.leave(1).code(), Code::kDisconnected);
  a_.poll();
  EXPECT_EQ(a_.recorder.closed, 1);
  b_.poll();
  EXPECT_EQ(b_.recorder.data.size(), 1u) << "what was sent before arrives";
  EXPECT_EQ(b_.recorder.closed, 0);
  ASSERT_TRUE(b_.leave(1).ok());
  b_.channel->flush();
  a_.poll();
  EXPECT_TRUE(a_.recorder.messages.empty()) << "what comes meanwhile is for nobody";
  EXPECT_TRUE(a_.channel->end_held());
  a_.channel->finish_end();
  a_.channel->finish_end();
  EXPECT_FALSE(a_.channel->end_held());
  b_.poll();
  EXPECT_EQ(b_.recorder.closed, 1);
  a_.poll();
  EXPECT_EQ(a_.recorder.closed, 1) << "told once";
}

// --- wake_early()

TEST_F(Packing, ASleeperIsWokenOnceAFewSmallMessagesHaveGathered) {
  make();
  a_.channel->wake_early();
  a_.endpoint->sleeper = true;
  int sent = 0;
  while (a_.endpoint->flushes == 0) {
    ASSERT_LT(sent, 64) << "nobody has woken it";
    ASSERT_TRUE(a_.channel->send_data_inline(1, sent, pattern(1, 1)).ok());
    ++sent;
  }
  EXPECT_GT(sent, 1) << "one message waits for the end of the round";
  b_.poll();
  EXPECT_EQ(b_.recorder.data.size(), static_cast<std::size_t>(sent));
  a_.endpoint->sleeper = false;
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(a_.channel->send_data_inline(1, sent + i, pattern(1, 1)).ok());
  }
  EXPECT_EQ(a_.endpoint->flushes, 1u) << "who is awake needs no more";
  a_.channel->flush();
  settle();
}

TEST_F(Packing, WithoutWakeEarlyASleeperWaitsForTheFlush) {
  make();
  a_.endpoint->sleeper = true;
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(a_.channel->send_data_inline(1, i, pattern(1, 1)).ok());
  }
  EXPECT_EQ(a_.endpoint->flushes, 0u);
  a_.channel->flush();
  settle();
}

TEST_F(Packing, PublishAfterTheEndDoesNothing) {
  make();
  a_.channel->close(wire::CloseCode::kReset, "end");
  a_.channel->publish();
  a_.channel->publish();
  EXPECT_EQ(a_.poll(), 1u);
  EXPECT_EQ(a_.recorder.closed, 1);
  b_.poll();
}

TEST_F(Packing, HelloCarriesTheEndpointsDepthAndTheNodesName) {
  fabric::EndpointOptions options;
  for (const auto& [depth, reserve] :
       {std::pair{512u, 32u}, {64u, 4u}, {32u, 4u}, {8u, 4u}, {4u, 2u}}) {
    options.receive_depth = depth;
    const wire::HelloBody hello = make_hello(0x1'2345, options, 77, 88, "knot");
    EXPECT_EQ(hello.credits_initial, depth);
    EXPECT_EQ(hello.credits_reserved, reserve);
    EXPECT_EQ(hello.stream_window_bytes, 77u);
    EXPECT_EQ(hello.streams_max, 88u);
    EXPECT_EQ(hello.epoch, 0x1'2345u);
    std::array<std::byte, sizeof(wire::HelloBody)> bytes{};
    wire::encode_hello(hello, bytes);
    EXPECT_TRUE(wire::decode_hello(bytes).ok()) << depth;
  }
  EXPECT_NE(std::memcmp(make_hello(1, options, 1, 1, "x").nonce,
                        make_hello(1, options, 1, 1, "x").nonce, wire::kNonceBytes),
            0)
      << "a nonce is for one channel";
  make();
  EXPECT_EQ(a_.channel->peer_name(), "b");
  EXPECT_EQ(b_.channel->peer_name(), "a");
  // A name that fills the field has no terminator.
  wire::HelloBody full = make_hello(1, options, 1, 1, std::string(100, 'n'));
  auto pair = endpoints_of({});
  Recorder recorder;
  const Channel channel(std::move(pair.a), full, full, recorder);
  EXPECT_EQ(channel.peer_name(), std::string(wire::kNodeNameBytesMax, 'n'));
}

}  // namespace
}  // namespace sanproxy::channel::testing
