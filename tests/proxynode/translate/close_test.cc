// Every way a connection can end, as docs/life_of_a_connection.md lists them.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

using Ends = World;

TEST_F(Ends, AClientsResetIsCloseReset) {
  make();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->send_reset();
  run();
  EXPECT_EQ(node.conns[id].closes, (std::vector{CloseCode::kReset}));
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_F(Ends, AClientThatNeverAnswersIsCloseTimedOut) {
  WorldOptions options;
  options.stack.min_rto_ms = options.stack.initial_rto_ms = 100;
  make(options);
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->acknowledge = false;
  node.send(id, bytes_of("anybody?"));
  for (int i = 0; i < 1200 && node.conns[id].closes.empty(); ++i) {
    clock_.advance_ns(1'000'000'000);
    run();
  }
  EXPECT_EQ(node.conns[id].closes, (std::vector{CloseCode::kTimedOut}));
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_F(Ends, EveryAbortiveCloseOfTheApplicationIsAReset) {
  make();
  Node& node = add_member();
  for (const CloseCode code :
       {CloseCode::kReset, CloseCode::kRefused, CloseCode::kTimedOut, CloseCode::kNodeDied,
        CloseCode::kLimitReached, CloseCode::kProtocolError, CloseCode::kUnreachable}) {
    Client* client = nullptr;
    const std::uint64_t id = open(client, node);
    node.close(id, code);
    run();
    EXPECT_TRUE(client->reset) << wire::close_code_name(code);
    EXPECT_TRUE(node.conns[id].closes.empty()) << "a terminal close is not answered";
  }
  EXPECT_EQ(counters().closed_protocol, 0u);
}

TEST_F(Ends, AnAbortiveCloseMayComeBeforeTheAccept) {
  make();
  Node& node = add_member();
  node.accept = false;
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  node.close(id, CloseCode::kReset);
  run();
  EXPECT_TRUE(client->reset);
  EXPECT_TRUE(node.alive());
}

TEST_F(Ends, FinBothBehindEverythingIsAFinAndTheClientsFinEndsIt) {
  make();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  const Bytes bytes = pattern(200'000);
  node.send(id, bytes);
  node.close(id, CloseCode::kFinBoth);
  run();
  EXPECT_TRUE(client->received == bytes);
  EXPECT_TRUE(client->fin);
  EXPECT_FALSE(client->reset);
  EXPECT_EQ(node.conns[id].closes.size(), 0u);
  client->shut();
  run();
  EXPECT_TRUE(client->finished());
  EXPECT_FALSE(client->reset);
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_F(Ends, FinBothBehindTheClientsFinEndsItAtOnce) {
  make();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->shut();
  run();
  node.send(id, bytes_of("bye"));
  node.close(id, CloseCode::kFinBoth);
  run();
  EXPECT_EQ(text_of(client->received), "bye");
  EXPECT_TRUE(client->finished());
  EXPECT_FALSE(client->reset);
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_F(Ends, BytesThatComeBehindFinBothAreAnsweredWithAReset) {
  make();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  node.close(id, CloseCode::kFinBoth);
  run();
  EXPECT_TRUE(client->fin);
  client->send(bytes_of("too late"));
  run();
  EXPECT_TRUE(client->reset);
  EXPECT_EQ(text_of(node.conns[id].received), "hello");
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_F(Ends, FinBothWhileBytesWaitForTheApplicationIsAReset) {
  make();
  Node& node = add_member({.window_bytes = 1000});
  node.free = false;
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->send(pattern(5000));
  run();
  EXPECT_EQ(node.conns[id].received.size(), 1000u);
  node.close(id, CloseCode::kFinBoth);
  run();
  EXPECT_TRUE(client->reset) << "they were not handed over (RFC 9293, 3.10.4)";
}

TEST_F(Ends, FinBothWithUnfreedBytesCountsThemAsConsumed) {
  make();
  Node& node = add_member();
  node.free = false;
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->send(pattern(5000));
  run();
  node.close(id, CloseCode::kFinBoth);
  run();
  EXPECT_TRUE(client->fin);
  EXPECT_FALSE(client->reset);
  client->shut();
  run();
  EXPECT_TRUE(client->finished());
}

TEST_F(Ends, FinBothMayFollowFin) {
  make();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  node.send(id, bytes_of("bye"));
  node.close(id, CloseCode::kFin);
  run();
  node.close(id, CloseCode::kFinBoth);
  run();
  EXPECT_EQ(counters().closed_protocol, 0u);
  EXPECT_FALSE(client->reset);
  client->shut();
  run();
  EXPECT_TRUE(client->finished());
  EXPECT_EQ(node.conns[id].closes.size(), 0u) << "nothing is told behind a terminal close";
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_F(Ends, AnAbortiveCloseMayFollowFin) {
  make();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  node.close(id, CloseCode::kFin);
  run();
  node.close(id, CloseCode::kReset);
  run();
  EXPECT_TRUE(client->reset);
  EXPECT_EQ(counters().closed_protocol, 0u);
}

TEST_F(Ends, FinWaitsForBytesThatTheClientIsSlowToTake) {
  make();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->acknowledge = false;
  const Bytes bytes = pattern(250'000);
  node.send(id, bytes);
  node.close(id, CloseCode::kFinBoth);
  run();
  EXPECT_FALSE(client->fin);
  client->acknowledge = true;
  run_ms(5000);
  EXPECT_TRUE(client->received == bytes);
  EXPECT_TRUE(client->fin);
}

TEST_F(Ends, AFinBothThatTheClientNeverAnswersEndsByItself) {
  WorldOptions options;
  options.stack.fin_wait_2_ms = 2000;
  make(options);
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  node.close(id, CloseCode::kFinBoth);
  run();
  EXPECT_EQ(translator_->bound_streams(), 1u);
  run_ms(3000);
  EXPECT_EQ(translator_->bound_streams(), 0u);
}

TEST_F(Ends, AResetWhileBytesOfTheApplicationAreUnacknowledgedGivesThemBack) {
  make();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->acknowledge = false;
  node.send(id, pattern(200'000));
  run();
  EXPECT_GT(translator_->records_used(), 0u);
  EXPECT_GT(node.cookies_out(), 0u);
  client->send_reset();
  run();
  EXPECT_EQ(translator_->records_used(), 0u);
  EXPECT_EQ(node.cookies_out(), 0u);
  EXPECT_EQ(node.conns[id].closes, (std::vector{CloseCode::kReset}));
}

}  // namespace
}  // namespace sanproxy::translate::testing
