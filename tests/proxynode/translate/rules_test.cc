// Every state rule of docs/wire_format.md that an application can break, with its consequence.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

class Rules : public World {
 protected:
  void SetUp() override {
    make();
    node_ = &add_member({.name = "rogue"});
    good_ = &add_node({.name = "good"});
    good_->join("10.77.0.20:80");
    run();
    good_client_ = &add_client("10.77.0.20:80");
    good_client_->send(bytes_of("hello"));
    run();
    ASSERT_EQ(good_->order.size(), 1u);
    good_id_ = good_->order[0];
  }
  void TearDown() override {
    expect_the_others_work();
    World::TearDown();
  }
  void expect_the_others_work() {
    const std::size_t before = good_client_->received.size();
    good_->send(good_id_, bytes_of("fine"));
    run();
    EXPECT_EQ(good_client_->received.size(), before + 4);
    EXPECT_TRUE(good_->alive());
  }
  std::uint64_t open_one() {
    client_ = nullptr;
    return open(client_, *node_);
  }
  // "stream": RST to the client, CLOSE kProtocolError to the breaching side, the channel goes on.
  void expect_stream_breach(std::uint64_t id, const char* what) {
    run();
    EXPECT_TRUE(client_->reset) << what;
    EXPECT_TRUE(node_->alive()) << what;
    ASSERT_EQ(node_->conns.count(id), 1u);
    ASSERT_FALSE(node_->conns[id].closes.empty()) << what;
    EXPECT_EQ(node_->conns[id].closes.back(), CloseCode::kProtocolError) << what;
    EXPECT_EQ(counters().closed_protocol, ++breaches_) << what;
    // Another connection of the same channel still works.
    const std::uint64_t next = open_one();
    node_->send(next, bytes_of("on"));
    run();
    EXPECT_EQ(text_of(client_->received), "on") << what;
  }
  void expect_channel_breach(CloseCode code, const char* what) {
    run();
    EXPECT_FALSE(node_->alive()) << what;
    EXPECT_EQ(node_->code, code) << what;
    EXPECT_EQ(node_in_proxy("rogue"), nullptr) << what;
  }
  void expect_late(std::uint64_t before, const char* what) {
    run();
    EXPECT_GT(counters().late_messages, before) << what;
    EXPECT_TRUE(node_->alive()) << what;
    EXPECT_EQ(counters().closed_protocol, breaches_) << what;
  }

  Node* node_ = nullptr;
  Node* good_ = nullptr;
  Client* client_ = nullptr;
  Client* good_client_ = nullptr;
  std::uint64_t good_id_ = 0;
  std::uint64_t breaches_ = 0;
};

struct Strange {
  const char* name;
  std::function<std::uint64_t(std::uint64_t live, std::uint64_t of_another)> id;
};

class S1 : public Rules, public ::testing::WithParamInterface<Strange> {};

TEST_P(S1, EndsTheChannelWithNotFound) {
  const std::uint64_t live = open_one();
  const std::uint64_t id = GetParam().id(live, good_id_);
  node_->raw_credit(id, 0);
  expect_channel_breach(CloseCode::kNotFound, GetParam().name);
  EXPECT_TRUE(client_->reset) << "its connections end as if it had died";
}

constexpr std::uint64_t id_of(std::uint16_t epoch, std::uint32_t generation, std::uint32_t index) {
  return wire::make_connection_id(epoch, generation, index);
}

INSTANTIATE_TEST_SUITE_P(
    Rules, S1,
    ::testing::Values(
        Strange{"AnotherChannelsConnection", [](auto, auto other) { return other; }},
        Strange{"AnIndexNeverUsed", [](auto, auto) { return id_of(0xbeef, 1, 60); }},
        Strange{"AnIndexBeyondTheTable", [](auto, auto) { return id_of(0xbeef, 1, 64); }},
        Strange{"TheLargestIndex", [](auto, auto) { return id_of(0xbeef, 1, 0xff'ffff); }},
        Strange{"ALaterGeneration", [](auto live, auto) { return live + (1u << 24); }},
        Strange{"GenerationZero", [](auto live, auto) { return live & ~0xffff'ff00'0000ull; }},
        Strange{"AnotherEpoch", [](auto live, auto) { return live ^ (1ull << 60); }}),
    [](const auto& param) { return std::string(param.param.name); });

TEST_F(Rules, S1_AGenerationFarAheadWasNeverIssuedEither) {
  const std::uint64_t live = open_one();
  node_->raw_credit(id_of(0xbeef, 0xff'ffff, wire::connection_index(live)), 0);
  expect_channel_breach(CloseCode::kNotFound, "generation 2^24 - 1");
}

TEST_F(Rules, S1_AConnectionThatWaitsUnboundIsNobodysYet) {
  Client& waiting = add_client();
  const std::uint64_t live = open_one();
  // The waiting one was accepted before: the index in front of the live one.
  const std::uint64_t id = id_of(0xbeef, 1, wire::connection_index(live) - 1);
  node_->raw_close(id, CloseCode::kReset, 0);
  expect_channel_breach(CloseCode::kNotFound, "unbound");
  EXPECT_FALSE(waiting.reset);
}

TEST_F(Rules, S2_EverythingOnADeadConnectionIsLate) {
  const std::uint64_t id = open_one();
  client_->send_reset();
  run();
  const std::uint64_t before = counters().late_messages;
  node_->raw_data(id, 0, bytes_of("x"));
  node_->raw_data(id, 0, pattern(5000));
  node_->raw_close(id, CloseCode::kFin, 0);
  node_->raw_close(id, CloseCode::kReset, 0);
  node_->raw_credit(id, 5);
  node_->accept_connection(id);
  node_->reject_connection(id);
  expect_late(before, "dead");
  EXPECT_EQ(counters().late_messages, before + 7);
  EXPECT_EQ(node_->cookies_out(), 0u);
}

TEST_F(Rules, S2_AnOldIdStaysLateWhenItsIndexIsUsedAgain) {
  const std::uint64_t id = open_one();
  client_->send_reset();
  run();
  for (int i = 0; i < 70; ++i) {  // more than there are indexes
    (void)open_one();
    client_->send_reset();
    run();
  }
  const std::uint64_t before = counters().late_messages;
  node_->raw_data(id, 0, bytes_of("x"));
  expect_late(before, "old");
}

TEST_F(Rules, S3_NothingButCreditAndAbortBeforeAccept) {
  node_->accept = false;
  std::uint64_t id = open_one();
  node_->raw_data(id, 0, bytes_of("x"));
  node_->accept = true;
  expect_stream_breach(id, "DATA");
  for (const CloseCode code : {CloseCode::kFin, CloseCode::kFinBoth}) {
    node_->accept = false;
    id = open_one();
    node_->raw_close(id, code, 0);
    node_->accept = true;
    expect_stream_breach(id, "CLOSE");
  }
  node_->accept = node_->free = false;
  id = open_one();
  node_->raw_credit(id, 5);
  run();
  EXPECT_FALSE(client_->reset);
  node_->accept_connection(id);
  node_->send(id, bytes_of("ok"));
  run();
  EXPECT_EQ(text_of(client_->received), "ok");
}

TEST_F(Rules, S4_AcceptAndRejectOnce) {
  std::uint64_t id = open_one();
  node_->accept_connection(id);
  expect_stream_breach(id, "ACCEPT twice");
  id = open_one();
  node_->reject_connection(id);
  expect_stream_breach(id, "REJECT behind ACCEPT");
}

TEST_F(Rules, S5_AcceptNamesTheWindowOfItsHello) {
  for (const std::uint32_t window : {1u, 512u * 1024 - 1, 512u * 1024 + 1, 1u << 30}) {
    node_->accept = false;
    const std::uint64_t id = open_one();
    node_->accept_connection(id, window);
    node_->accept = true;
    expect_stream_breach(id, "window");
  }
}

TEST_F(Rules, S6_DataStartsWhereTheLastOneEnded) {
  struct Case {
    std::uint64_t offset;
    std::size_t bytes;
    const char* what;
  };
  for (const Case& c : {Case{11, 5, "a gap"},
                        {9, 5, "an overlap"},
                        {0, 10, "a repetition"},
                        {11, 5000, "a gap by reference"},
                        {~0ull, 5, "the last offset of all"},
                        {1ull << 63, 5000, "far away"}}) {
    const std::uint64_t id = open_one();
    node_->raw_data(id, 0, pattern(10));
    node_->raw_data(id, c.offset, pattern(c.bytes));
    expect_stream_breach(id, c.what);
  }
}

TEST_F(Rules, S7_DataStaysInsideTheWindow) {
  const std::uint64_t id = open_one();
  client_->acknowledge = false;
  const std::size_t window = node_->conns[id].window;
  for (std::size_t at = 0; at < window; at += 65'536) {
    node_->raw_data(id, at, pattern(std::min<std::size_t>(65'536, window - at)));
  }
  run();
  EXPECT_FALSE(client_->reset) << "all of the window is legal";
  node_->raw_data(id, window, bytes_of("x"));
  expect_stream_breach(id, "one byte more");
}

TEST_F(Rules, S8_NoDataBehindFin) {
  const std::uint64_t id = open_one();
  node_->raw_data(id, 0, bytes_of("bye"));
  node_->raw_close(id, CloseCode::kFin, 3);
  node_->raw_data(id, 3, bytes_of("!"));
  expect_stream_breach(id, "DATA behind kFin");
}

TEST_F(Rules, S9_FinNamesWhatWasSent) {
  for (const CloseCode code : {CloseCode::kFin, CloseCode::kFinBoth}) {
    for (const std::uint64_t offset : {0ull, 2ull, 4ull, ~0ull}) {
      const std::uint64_t id = open_one();
      node_->raw_data(id, 0, bytes_of("bye"));
      node_->raw_close(id, code, offset);
      expect_stream_breach(id, "offset");
    }
  }
}

TEST_F(Rules, S10_FinOnce) {
  const std::uint64_t id = open_one();
  node_->raw_close(id, CloseCode::kFin, 0);
  node_->raw_close(id, CloseCode::kFin, 0);
  expect_stream_breach(id, "kFin twice");
}

TEST_F(Rules, S11_BehindItsOwnTerminalCloseEverythingIsLate) {
  for (const CloseCode code : {CloseCode::kFinBoth, CloseCode::kReset}) {
    const std::uint64_t before = counters().late_messages;
    const std::uint64_t id = open_one();
    node_->raw_close(id, code, 0);
    node_->raw_close(id, code, 0);
    node_->raw_data(id, 0, bytes_of("x"));
    node_->raw_data(id, 0, pattern(5000));
    node_->raw_credit(id, 1);
    expect_late(before, wire::close_code_name(code));
    EXPECT_EQ(counters().late_messages, before + 4);
    EXPECT_TRUE(client_->received.empty());
  }
  node_->accept = false;
  const std::uint64_t before = counters().late_messages;
  const std::uint64_t id = open_one();
  node_->reject_connection(id);
  node_->raw_credit(id, 1);
  node_->accept_connection(id);
  expect_late(before, "behind REJECT");
}

TEST_F(Rules, S11_ABothSidedFinIsTerminalToo) {
  const std::uint64_t id = open_one();
  client_->shut();
  run();
  node_->raw_close(id, CloseCode::kFin, 0);
  const std::uint64_t before = counters().late_messages;
  node_->raw_data(id, 0, bytes_of("x"));
  expect_late(before, "behind both kFin");
  EXPECT_TRUE(client_->finished());
  EXPECT_FALSE(client_->reset);
}

TEST_F(Rules, S12_CreditFreesWhatWasSentAndNeverGoesBack) {
  node_->free = false;
  std::uint64_t id = open_one();
  node_->raw_credit(id, 6);
  expect_stream_breach(id, "more than was sent");
  id = open_one();
  node_->raw_credit(id, 3);
  node_->raw_credit(id, 3);
  run();
  EXPECT_FALSE(client_->reset) << "the same again is no breach";
  node_->raw_credit(id, 2);
  expect_stream_breach(id, "back");
  id = open_one();
  node_->raw_credit(id, ~0ull);
  expect_stream_breach(id, "all there is");
}

TEST_F(Rules, S13_CreditAcknowledgesNothing) {
  node_->free = false;
  const std::uint64_t id = open_one();
  node_->raw_credit(id, 5, 1);
  expect_stream_breach(id, "acked");
}

TEST_F(Rules, S19_NothingBehindErrorIsRead) {
  const std::uint64_t id = open_one();
  node_->raw_data(id, 0, bytes_of("seen"));
  node_->channel().close(CloseCode::kRefused, "I am off");
  run();
  EXPECT_EQ(node_in_proxy("rogue"), nullptr);
  EXPECT_TRUE(client_->reset);
}

// --- direction

TEST_F(Rules, D1_AnswersAreTheProxysToGive) {
  node_->join("10.77.0.30:80", wire::kFlagAnswer);
  expect_channel_breach(CloseCode::kProtocolError, "JOIN answer");
}

TEST_F(Rules, D2_ShutdownTowardsTheProxyHasNoCode) {
  ASSERT_TRUE(node_->channel()
                  .send_control(MessageType::kShutdownService, 0, CloseCode::kServiceShutdown,
                                wire::ServiceBody{1, 0})
                  .ok());
  expect_channel_breach(CloseCode::kProtocolError, "SHUTDOWN with a code");
}

TEST_F(Rules, D3_PassiveRequestsAreTheProxysToMake) {
  const std::uint64_t id = open_one();
  wire::ConnectionRequestBody body = node_->conns[id].request;
  ASSERT_TRUE(node_->channel()
                  .send_stream_control(MessageType::kConnectionRequest, 0, CloseCode::kNone, body)
                  .ok());
  expect_channel_breach(CloseCode::kProtocolError, "passive request");
}

TEST_F(Rules, D4_AcceptAndRejectTowardsTheProxyNameNoRequest) {
  wire::AcceptConnectionBody body{};
  body.connection = open_one();
  body.request = 5;
  body.send_window_bytes = 1;
  body.local = wire::to_wire(*SocketAddress::parse(kWeb));
  ASSERT_TRUE(node_->channel()
                  .send_control(MessageType::kAcceptConnection, 0, CloseCode::kNone, body)
                  .ok());
  expect_channel_breach(CloseCode::kProtocolError, "ACCEPT with a request");
}

TEST_F(Rules, EveryBreachOfAChannelIsCountedAsOne) {
  node_->raw_credit(good_id_, 0);  // S1
  run();
  EXPECT_EQ(counters().channels_breached, 1u);
}

}  // namespace
}  // namespace sanproxy::translate::testing
