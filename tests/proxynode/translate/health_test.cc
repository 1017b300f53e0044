// Heartbeats of application nodes and requests to the members of services.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

const SocketAddress kAddress = *SocketAddress::parse(kWeb);
const std::string kQuestion = "GET /healthz HTTP/1.0\r\n\r\n";

WorldOptions beating(std::uint32_t dead_after_ms = 0) {
  WorldOptions out;
  out.translator.heartbeat = {
      .interval_ms = 1000, .timeout_ms = 1000, .thresholds = {.rise = 2, .fall = 3}};
  out.dead_after_ms = dead_after_ms;
  return out;
}

service::Policy checked(const std::string& expect = "200", std::uint32_t fall = 2) {
  service::HealthCheck check;
  check.request = kQuestion;
  check.expect = expect;
  check.interval_ms = 1000;
  check.timeout_ms = 500;
  check.thresholds = {.rise = 2, .fall = fall};
  return {.address = kAddress, .health = check};
}

WorldOptions probing(std::uint32_t fall = 2) {
  WorldOptions out;
  out.policies = {checked("200", fall)};
  return out;
}

class Health : public World {
 protected:
  bool up(const std::string& name) { return node_in_proxy(name)->heartbeat.up(); }
  const service::Member& member(std::size_t i = 0) {
    const service::Member* found = nullptr;
    translator_->services().for_each(
        [&](service::Service& service) { found = &service.members().at(i); });
    return *found;
  }
  // Answers each probe that has come to `node` and is not answered yet.
  void answer_probes(Node& node, const std::string& answer) {
    for (const std::uint64_t id : node.order) {
      Node::Conn& conn = node.conns[id];
      if (text_of(conn.received) != kQuestion || !conn.outbox.empty() || conn.ended()) continue;
      node.send(id, bytes_of(answer));
    }
    run();
  }
  std::size_t probes_at(const Node& node) const {
    return static_cast<std::size_t>(std::count_if(
        node.order.begin(), node.order.end(),
        [&](std::uint64_t id) { return node.conns.at(id).request.client.port == 0; }));
  }
};

// --- heartbeats

TEST_F(Health, AnIdleNodeIsAskedOnceAnIntervalAndStaysUp) {
  make(beating());
  Node& node = add_member({.name = "a"});
  run_ms(10'000);
  EXPECT_GE(node.heartbeats.size(), 8u);
  EXPECT_LE(node.heartbeats.size(), 10u);
  EXPECT_TRUE(up("a"));
  EXPECT_EQ(counters().heartbeats_missed, 0u);
  EXPECT_EQ(node.heartbeats.back().silence_ms, 0u) << "without dead_after_ms nothing is promised";
}

TEST_F(Health, ABusyNodeIsNotAsked) {
  make(beating());
  Node& node = add_member({.name = "a"});
  Client* client = nullptr;
  (void)open(client, node);
  const std::size_t before = node.heartbeats.size();
  for (int i = 0; i < 50; ++i) {
    client->send(bytes_of("more"));
    run_ms(200);
  }
  EXPECT_EQ(node.heartbeats.size(), before) << "its answers show that it lives";
}

TEST_F(Health, ANodeThatDoesNotAnswerGetsNothingNewKeepsWhatItHasAndReturns) {
  make(beating());
  Node& a = add_member({.name = "a"});
  Node& b = add_member({.name = "b"});
  Client* client = nullptr;
  const std::uint64_t id = open(client, a);
  a.stopped = true;
  run_ms(2'500);
  EXPECT_TRUE(up("a")) << "fewer than `fall` answers are missing";
  run_ms(2'500);
  EXPECT_FALSE(up("a"));
  EXPECT_EQ(counters().nodes_went_down, 1u);
  Client* other = nullptr;
  for (int i = 0; i < 4; ++i) (void)open(other, b);
  client->send(bytes_of(" again"));
  run_ms(60'000);
  EXPECT_FALSE(client->reset) << "its open connection stays, however long it takes";
  EXPECT_EQ(a.conns.size(), 1u);
  a.stopped = false;
  run();
  EXPECT_EQ(text_of(a.conns[id].received), "hello again") << "every stalled byte arrives";
  EXPECT_LE(a.heartbeats.size(), 10u) << "it was asked once while it was away";
  run_ms(2'500);
  EXPECT_TRUE(up("a"));
  EXPECT_EQ(counters().nodes_came_up, 1u);
}

TEST_F(Health, WhereNobodyAnswersNewConnectionsAreRefused) {
  make(beating());
  (void)add_member({.name = "a"});
  nodes_.front()->stopped = true;
  run_ms(6'000);
  Client& client = add_client();
  client.send(bytes_of("x"));
  run();
  EXPECT_TRUE(client.reset);
  EXPECT_EQ(counters().unserved, 1u);
}

TEST_F(Health, AChannelThatIsSilentForDeadAfterIsClosedWithACode) {
  make(beating(8'000));
  Node& node = add_member({.name = "a"});
  Client* client = nullptr;
  (void)open(client, node);
  run_ms(3'000);
  EXPECT_EQ(node.heartbeats.back().silence_ms, 8'000u) << "it holds both ways";
  node.stopped = true;
  run_ms(7'000);
  EXPECT_FALSE(client->reset);
  run_ms(3'000);
  EXPECT_TRUE(client->reset);
  EXPECT_EQ(counters().channels_timed_out, 1u);
  EXPECT_EQ(counters().closed_node_died, 1u);
  EXPECT_EQ(translator_->services().size(), 0u);
  node.stopped = false;
  run();
  EXPECT_EQ(node.closed, 1);
  EXPECT_EQ(node.code, CloseCode::kTimedOut);
}

TEST_F(Health, WithoutHeartbeatsNobodyIsAsked) {
  make();
  Node& node = add_member();
  run_ms(30'000);
  EXPECT_TRUE(node.heartbeats.empty());
}

TEST_F(Health, HeartbeatsCanBeginChangeAndEndWhileNodesAreHere) {
  make();
  Node& node = add_member({.name = "a"});
  run_ms(5'000);
  EXPECT_TRUE(node.heartbeats.empty());
  HeartbeatOptions options{.interval_ms = 1000, .timeout_ms = 1000};
  options.thresholds = {.rise = 2, .fall = 3};
  translator_->set_heartbeat(options);
  node.answers_heartbeats = false;
  run_ms(20'000);
  EXPECT_FALSE(node.heartbeats.empty());
  EXPECT_FALSE(up("a"));
  options.interval_ms = 0;
  translator_->set_heartbeat(options);
  EXPECT_TRUE(up("a")) << "who is not asked counts as up";
  const std::size_t asked = node.heartbeats.size();
  run_ms(20'000);
  EXPECT_EQ(node.heartbeats.size(), asked);
}

// Its silence before somebody asked is not held against it.
TEST_F(Health, AnIdleNodeIsNotDeadBeforeItIsAsked) {
  WorldOptions options = beating(2'000);
  options.translator.heartbeat.interval_ms = 0;
  make(options);
  Node& node = add_member({.name = "a"});
  run_ms(60'000);
  translator_->set_heartbeat(
      {.interval_ms = 5000, .timeout_ms = 1000, .thresholds = {.rise = 2, .fall = 3}});
  run_ms(60'000);
  EXPECT_EQ(node.closed, 0);
  EXPECT_FALSE(node.heartbeats.empty());
  EXPECT_EQ(counters().channels_timed_out, 0u);
}

struct BadAnswer {
  const char* name;
  void (*say)(Node&);
};

class BadAnswers : public Health, public ::testing::WithParamInterface<BadAnswer> {};

TEST_P(BadAnswers, EndTheirChannelAndNoOther) {
  make(beating());
  Node& good = add_member({.name = "good"});
  Node& bad = add_member({.name = "bad"});
  Client* client = nullptr;
  const std::uint64_t id = open(client, good);
  run_ms(2'500);
  ASSERT_FALSE(bad.heartbeats.empty());
  GetParam().say(bad);
  run();
  EXPECT_EQ(bad.closed, 1);
  EXPECT_EQ(bad.code, CloseCode::kProtocolError);
  EXPECT_EQ(counters().channels_breached, 1u);
  client->send(bytes_of(" again"));
  run();
  EXPECT_EQ(text_of(good.conns[id].received), "hello again");
}

INSTANTIATE_TEST_SUITE_P(
    All, BadAnswers,
    ::testing::Values(BadAnswer{"twice",
                                [](Node& n) { n.raw_heartbeat(n.heartbeats.back().number); }},
                      BadAnswer{"number_to_come",
                                [](Node& n) { n.raw_heartbeat(n.heartbeats.back().number + 1); }},
                      BadAnswer{"flood",
                                [](Node& n) {
                                  for (std::uint32_t i = 0; i < 40; ++i) n.raw_heartbeat(i);
                                }}),
    [](const auto& one) { return std::string(one.param.name); });

// --- requests

TEST_F(Health, AMemberThatAnswersAsExpectedIsWellAndProbesLeaveNothingBehind) {
  make(probing());
  Node& node = add_member({.name = "a"});
  for (int i = 0; i < 25; ++i) {
    run_ms(200);
    answer_probes(node, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n");
  }
  EXPECT_TRUE(member().health.up());
  EXPECT_GE(counters().probes_good, 4u);
  EXPECT_EQ(counters().probes_bad, 0u);
  EXPECT_EQ(probes_at(node), counters().probes);
  EXPECT_EQ(translator_->bound_streams(), 0u) << "no TCP connection belongs to a probe";
  for (const std::uint64_t id : node.order) EXPECT_TRUE(node.conns[id].ended());
}

TEST_F(Health, AMemberIsTakenOutByWrongAnswersAndComesBackByGoodOnes) {
  make(probing());
  Node& a = add_member({.name = "a"});
  const std::string good = "HTTP/1.1 200 OK\r\n\r\n";
  run_ms(100);
  answer_probes(a, good);
  ASSERT_TRUE(member().health.up());
  run_ms(1'000);
  answer_probes(a, "HTTP/1.1 503 no\r\nX: 200\r\n\r\n");
  EXPECT_TRUE(member().health.up()) << "one bad answer is fewer than `fall`";
  run_ms(1'000);
  answer_probes(a, "HTTP/1.1 503 no\r\n\r\n");
  EXPECT_TRUE(member().health.down());
  EXPECT_STREQ(member().probe_trouble, "another answer than expected");
  Client& refused = add_client();
  refused.send(bytes_of("x"));
  run();
  EXPECT_TRUE(refused.reset);
  for (int i = 0; i < 2; ++i) {
    run_ms(1'000);
    answer_probes(a, good);
  }
  EXPECT_TRUE(member().health.up());
  Client* client = nullptr;
  (void)open(client, a);
  EXPECT_FALSE(client->reset);
  EXPECT_EQ(counters().members_went_down, 1u);
  EXPECT_EQ(counters().members_came_up, 1u);
}

TEST_F(Health, TheFirstProbeDecidesAtOnce) {
  make(probing());
  Node& node = add_member({.name = "a"});
  run_ms(100);
  node.reject_connection(node.order.front());  // it was accepted: a breach of that stream alone
  run();
  EXPECT_TRUE(member().health.down());
  EXPECT_EQ(node.closed, 0);
  EXPECT_EQ(node.conns[node.order.front()].closes.back(), CloseCode::kProtocolError);
}

TEST_F(Health, ARejectedProbeIsABadOne) {
  make(probing());
  Node& node = add_node({.name = "a"});
  node.accept = false;
  node.join(kWeb);
  run_ms(100);
  ASSERT_EQ(node.order.size(), 1u);
  node.reject_connection(node.order.front());
  run();
  EXPECT_TRUE(member().health.down());
  EXPECT_STREQ(member().probe_trouble, "it rejects");
}

TEST_F(Health, ASilentMemberIsTakenOutByTheTimeout) {
  make(probing());
  Node& node = add_member({.name = "a"});
  run_ms(700);
  EXPECT_TRUE(member().health.down());
  EXPECT_STREQ(member().probe_trouble, "no answer in time");
  // The answer that comes too late crosses the CLOSE: nobody is hurt.
  node.raw_data(node.order.front(), 0, bytes_of("HTTP/1.0 200 OK\r\n"));
  run();
  EXPECT_EQ(node.closed, 0);
  EXPECT_GE(counters().late_messages, 1u);
}

TEST_F(Health, ProbesOfAStoppedNodeDoNotPileUpAndDoNotEndIt) {
  WorldOptions options = probing();
  options.translator.heartbeat = beating().translator.heartbeat;
  make(options);
  Node& node = add_member({.name = "a", .credits = 16});
  node.stopped = true;
  run_ms(3'600'000 / 20);
  EXPECT_LE(counters().probes, 6u) << "who answers no heartbeat is not asked for more";
  EXPECT_EQ(node_in_proxy("a")->owed.size(), 0u);
  node.stopped = false;
  run_ms(5'000);
  EXPECT_EQ(node.closed, 0);
  EXPECT_TRUE(up("a"));
  answer_probes(node, "200\n");
}

TEST_F(Health, WithoutHeartbeatsAStoppedNodeIsAskedNoMoreThanItsCreditsLast) {
  make(probing());
  Node& node = add_member({.name = "a", .credits = 16});
  node.stopped = true;
  run_ms(200'000);
  EXPECT_LE(counters().probes, 20u);
  EXPECT_LE(node_in_proxy("a")->owed.size(), 2u);
  EXPECT_GE(counters().probes_bad, 100u);
  node.stopped = false;
  run_ms(2'000);
  EXPECT_EQ(node.closed, 0);
}

TEST_F(Health, AnAnswerBeyondTheWindowOfAProbeEndsThatProbeAlone) {
  make(probing());
  Node& node = add_member({.name = "a"});
  run_ms(100);
  node.raw_data(node.order.front(), 0, Bytes(Probe::kAnswerBytesMax + 1, 'x'));
  run();
  EXPECT_EQ(node.conns[node.order.front()].closes.back(), CloseCode::kProtocolError);
  EXPECT_EQ(node.closed, 0);
  EXPECT_EQ(counters().closed_protocol, 1u);
}

TEST_F(Health, AnAnswerWithoutAnEndOfLineIsJudgedAtItsEnd) {
  make(probing());
  Node& node = add_member({.name = "a"});
  run_ms(100);
  node.send(node.order.front(), bytes_of("status 200"));
  run();
  EXPECT_FALSE(member().health.up());
  node.close(node.order.front(), CloseCode::kFinBoth);
  run();
  EXPECT_TRUE(member().health.up());
}

TEST_F(Health, AProbesIdIsUnknownOnEveryOtherChannel) {
  make(probing());
  Node& node = add_member({.name = "a"});
  Node& thief = add_node({.name = "thief"});
  run_ms(100);
  thief.raw_close(node.order.front(), CloseCode::kReset, 0);
  run();
  EXPECT_EQ(thief.code, CloseCode::kNotFound);
  answer_probes(node, "200\n");
  EXPECT_TRUE(member().health.up());
}

TEST_F(Health, ANodeThatLeavesOrDiesInTheMiddleOfAProbeLeavesNothing) {
  make(probing());
  Node& a = add_member({.name = "a"});
  Node& b = add_member({.name = "b"});
  run_ms(100);
  a.leave(a.answers.front().join.service);
  run();
  answer_probes(a, "200\n");
  b.die();
  run();
  EXPECT_EQ(translator_->services().size(), 0u);
  EXPECT_EQ(node_in_proxy("a")->open_probes, 0u);
}

TEST_F(Health, AProbeThatHasNotLeftIsNotSentBehindTheAnswerToLeave) {
  make();
  Node& a = add_member({.name = "a", .credits = 8, .reserve = 2});
  a.stopped = true;
  Client* last = nullptr;
  for (int i = 0; i < 20 && node_in_proxy("a")->requests_pending == 0; ++i) {
    last = &add_client();
    last->send(bytes_of("x"));
    run();
  }
  ASSERT_EQ(node_in_proxy("a")->requests_pending, 1u) << "no credit is left for a request";
  last->send_reset();
  run();
  ASSERT_EQ(node_in_proxy("a")->requests_pending, 0u);
  (void)add_member({.name = "b"});
  translator_->set_policy(kAddress, checked());
  run_ms(100);
  ASSERT_EQ(node_in_proxy("a")->open_probes, 1u);
  a.leave(a.answers.front().join.service);
  a.stopped = false;
  run();
  EXPECT_EQ(a.story.back(), wire::message_type_name(MessageType::kLeaveService));
  EXPECT_EQ(node_in_proxy("a")->open_probes, 0u);
}

TEST_F(Health, ACheckIsTakenAwayAndGivenWhileRunning) {
  make(probing());
  Node& node = add_member({.name = "a"});
  run_ms(700);
  ASSERT_TRUE(member().health.down());
  translator_->set_policy(kAddress, service::Policy{.address = kAddress});
  run_ms(100);
  Client* client = nullptr;
  (void)open(client, node);
  const std::uint64_t before = counters().probes;
  run_ms(5'000);
  EXPECT_EQ(counters().probes, before);
  translator_->set_policy(kAddress, std::nullopt);
  run_ms(100);
  EXPECT_EQ(counters().probes, before + 1) << "the configured one again, at once";
}

TEST_F(Health, AnAnswerToTheQuestionOfACheckThatHasChangedMeanwhileCountsForNothing) {
  make(probing());
  Node& node = add_member({.name = "a"});
  run_ms(100);
  ASSERT_EQ(probes_at(node), 1u) << "under way";
  translator_->set_policy(kAddress, checked("well"));
  answer_probes(node, "HTTP/1.0 200 OK\r\n\r\n");
  EXPECT_EQ(counters().probes_bad, 0u);
  EXPECT_FALSE(member().health.down());
  EXPECT_EQ(node.closed, 0);
  run_ms(100);
  ASSERT_EQ(probes_at(node), 2u) << "asked anew at once";
  answer_probes(node, "well\n");
  EXPECT_TRUE(member().health.up());
  EXPECT_EQ(counters().probes_good, 1u);
}

TEST_F(Health, MoreMembersThanProbesTakeTurns) {
  WorldOptions options = probing();
  options.translator.probes_max = 1;
  make(options);
  Node& a = add_member({.name = "a"});
  Node& b = add_member({.name = "b"});
  for (int i = 0; i < 4; ++i) {
    run_ms(100);
    answer_probes(a, "200\n");
    run_ms(100);
    answer_probes(b, "200\n");
  }
  EXPECT_GE(counters().probes_deferred, 1u);
  EXPECT_TRUE(member(0).health.up());
  EXPECT_TRUE(member(1).health.up());
}

TEST(AnswerOfAProbe, CountsByItsFirstLineAlone) {
  EXPECT_TRUE(answer_is_as_expected("HTTP/1.0 200 OK\r\n", "200"));
  EXPECT_FALSE(answer_is_as_expected("HTTP/1.0 500\r\nContent-Length: 200\r\n", "200"));
  EXPECT_TRUE(answer_is_as_expected("+PONG\r\n", "+PONG"));
  EXPECT_TRUE(answer_is_as_expected("anything", ""));
  EXPECT_FALSE(answer_is_as_expected("", "")) << "an answer has at least one byte";
  EXPECT_FALSE(first_line_complete("no end yet"));
  EXPECT_TRUE(first_line_complete("end\n"));
  EXPECT_TRUE(first_line_complete(std::string(Probe::kAnswerBytesMax, 'x')));
}

}  // namespace
}  // namespace sanproxy::translate::testing
