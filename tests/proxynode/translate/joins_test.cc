// Nodes come, join, leave, shut services down; and are refused.
#include <spdlog/sinks/ostream_sink.h>

#include <algorithm>
#include <functional>
#include <sstream>

#include "lwproto/daemon/log.h"
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

using Joins = World;

wire::Message last_answer(const Node& node) {
  if (node.answers.empty()) {
    ADD_FAILURE() << "no answer";
    return {};
  }
  return node.answers.back();
}

TEST_F(Joins, TheFirstJoinOpensTheServiceAndTheLastLeaveClosesIt) {
  make();
  Client& early = add_client();
  EXPECT_TRUE(early.reset) << "nobody serves it yet";
  Node& a = add_member({.name = "a"});
  const std::uint32_t service = a.answers[0].join.service;
  EXPECT_NE(service, 0u);
  EXPECT_EQ(a.answers[0].flags, wire::kFlagAnswer);
  EXPECT_EQ(a.answers[0].join.request, 1u);
  EXPECT_EQ(opened_, (std::vector{*SocketAddress::parse(kWeb)}));
  Node& b = add_member({.name = "b"});
  EXPECT_EQ(b.answers[0].join.service, service);
  EXPECT_EQ(opened_.size(), 1u);
  EXPECT_TRUE(add_client().connected);

  a.leave(service, 31);
  run();
  EXPECT_EQ(last_answer(a).type, MessageType::kLeaveService);
  EXPECT_EQ(last_answer(a).code, CloseCode::kNone);
  EXPECT_EQ(last_answer(a).service.request, 31u);
  EXPECT_TRUE(closed_.empty());
  EXPECT_TRUE(add_client().connected);
  b.leave(service, 32);
  run();
  EXPECT_EQ(closed_, opened_);
  EXPECT_TRUE(add_client().reset);
  EXPECT_EQ(counters().joins, 2u);
  EXPECT_EQ(counters().leaves, 2u);
}

TEST_F(Joins, ConnectionsGoOnWhenTheirServiceIsClosed) {
  make();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  node.leave(node.answers[0].join.service);
  run();
  client->send(bytes_of(" again"));
  node.send(id, bytes_of("answer"));
  run();
  EXPECT_EQ(text_of(node.conns[id].received), "hello again");
  EXPECT_EQ(text_of(client->received), "answer");
}

TEST_F(Joins, WhoWaitsUnboundWhenTheServiceClosesIsReset) {
  make();
  Node& node = add_member();
  Client& client = add_client();
  ASSERT_TRUE(client.connected);
  node.leave(node.answers[0].join.service);
  run();
  EXPECT_FALSE(client.reset);
  client.send(bytes_of("x"));
  run();
  EXPECT_TRUE(client.reset);
  EXPECT_EQ(counters().unserved, 1u);
}

class WaitingRequests : public World {
 protected:
  // More clients than a stopped node has credits for.
  void start() {
    make();
    a_ = &add_member({.name = "a", .credits = 8, .reserve = 2});
    a_->stopped = true;
    for (int i = 0; i < 30; ++i) {
      clients_of_a_.push_back(&add_client());
      clients_of_a_.back()->send(bytes_of("x"));
      run();
    }
    ASSERT_GT(node_in_proxy("a")->requests_pending, 8u);
  }
  std::uint32_t service() const { return a_->answers[0].join.service; }
  bool the_last_word_came_behind_the_requests() const {
    const char* const word = wire::message_type_name(last_answer(*a_).type);
    const auto last = std::find(a_->story.rbegin(), a_->story.rend(), word);
    return std::find(a_->story.rbegin(), last, "CONNECTION_REQUEST") == last;
  }
  void expect_all_served_before_the_end() {
    a_->stopped = false;
    run();
    EXPECT_EQ(a_->order.size(), 30u);
    ASSERT_EQ(a_->answers.size(), 2u);
    EXPECT_TRUE(the_last_word_came_behind_the_requests());
    for (const Client* client : clients_of_a_) EXPECT_FALSE(client->reset);
    EXPECT_TRUE(node_in_proxy("a")->ends.empty());
    EXPECT_EQ(node_in_proxy("a")->requests_pending, 0u);
  }
  Node* a_ = nullptr;
  std::vector<Client*> clients_of_a_;
};

TEST_F(WaitingRequests, ComeBeforeTheAnswerToLeave) {
  start();
  a_->leave(service(), 31);
  expect_all_served_before_the_end();
  EXPECT_EQ(last_answer(*a_).type, MessageType::kLeaveService);
  EXPECT_EQ(last_answer(*a_).code, CloseCode::kNone);
  EXPECT_EQ(last_answer(*a_).service.request, 31u);
}

TEST_F(WaitingRequests, ComeBeforeTheNewsThatAnotherMemberShutsTheServiceDown) {
  start();
  Node& b = add_member({.name = "b"});
  b.shut_down(service());
  run();
  expect_all_served_before_the_end();
  EXPECT_EQ(last_answer(*a_).code, CloseCode::kServiceShutdown);
}

TEST_F(WaitingRequests, ComeBeforeTheAnswerToALeaveThatCrossesTheProxysShutdown) {
  start();
  translator_->start_drain();
  a_->leave(service(), 31);
  a_->stopped = false;
  run();
  EXPECT_EQ(a_->order.size(), 30u);
  ASSERT_EQ(a_->answers.size(), 3u);
  EXPECT_EQ(a_->answers[1].code, CloseCode::kProxyShutdown);
  EXPECT_EQ(a_->answers[2].code, CloseCode::kNotFound);
  EXPECT_TRUE(the_last_word_came_behind_the_requests());
}

TEST_F(WaitingRequests, OfClientsThatGoHoldNoEndBack) {
  start();
  a_->leave(service(), 31);
  for (Client* client : clients_of_a_) client->send_reset();
  a_->stopped = false;
  run();
  EXPECT_LT(a_->order.size(), 30u);
  EXPECT_EQ(last_answer(*a_).type, MessageType::kLeaveService);
  EXPECT_EQ(node_in_proxy("a")->requests_pending, 0u);
}

TEST_F(WaitingRequests, OfANodeThatDiesAreForgotten) {
  start();
  Node& b = add_member({.name = "b"});
  b.shut_down(service());
  run();
  a_->die();
  run();
  EXPECT_EQ(node_in_proxy("a"), nullptr);
}

TEST_F(Joins, ANodeMayServeManyAddresses) {
  make();
  Node& node = add_node();
  for (const char* address : {"10.77.0.10:80", "10.77.0.10:81", "[fd77::10]:80"}) {
    node.join(address);
  }
  run();
  ASSERT_EQ(node.answers.size(), 3u);
  for (const char* address : {"10.77.0.10:81", "[fd77::10]:80"}) {
    Client& client = add_client(address);
    client.send(bytes_of(address));
    run();
    const Node::Conn& conn = node.conns.at(node.order.back());
    EXPECT_EQ(text_of(conn.received), address);
    EXPECT_EQ(wire::from_wire(conn.request.local)->to_string(), address);
  }
}

TEST_F(Joins, S14_JoiningTwiceIsAddressInUse) {
  make();
  Node& node = add_member();
  node.join(kWeb);
  run();
  EXPECT_EQ(last_answer(node).code, CloseCode::kAddressInUse);
  EXPECT_EQ(last_answer(node).join.service, 0u);
  EXPECT_TRUE(node.alive());
  EXPECT_EQ(counters().joins_refused, 1u);
}

TEST_F(Joins, S15_BeyondServicesMaxIsLimitReached) {
  WorldOptions options;
  options.services_max = 2;
  make(options);
  Node& node = add_node();
  for (const char* address : {"10.77.0.10:80", "10.77.0.10:81", "10.77.0.10:82"}) {
    node.join(address);
  }
  run();
  EXPECT_EQ(last_answer(node).code, CloseCode::kLimitReached);
  EXPECT_TRUE(add_client("10.77.0.10:82").reset);
  EXPECT_TRUE(add_client("10.77.0.10:81").connected);
}

TEST_F(Joins, S15_WhatPolicyForbidsIsNotPermitted) {
  WorldOptions options;
  options.policies = {{.address = *SocketAddress::parse(kWeb),
                       .allow = service::AllowList{*service::AllowEntry::parse("uid:33")}}};
  make(options);
  Node& stranger = add_node({.name = "stranger", .uid = 1000});
  stranger.join(kWeb);
  run();
  EXPECT_EQ(last_answer(stranger).code, CloseCode::kNotPermitted);
  EXPECT_TRUE(stranger.alive());
  EXPECT_TRUE(opened_.empty());
  Node& www = add_node({.name = "www", .uid = 33});
  www.join(kWeb);
  run();
  EXPECT_EQ(last_answer(www).code, CloseCode::kNone);
}

TEST_F(Joins, S15_AnAddressThatNoHostHasIsRefused) {
  make();
  Node& node = add_node({});
  for (const char* address :
       {"255.255.255.255:80", "224.0.0.1:80", "240.0.0.1:80", "0.0.0.1:80", "[ff02::1]:80"}) {
    node.join(address);
    run();
    EXPECT_EQ(last_answer(node).code, CloseCode::kRefused) << address;
  }
  EXPECT_TRUE(opened_.empty());
  for (const char* address : {"0.0.0.0:80", "[::]:80", "[fe80::1]:80", "127.0.0.1:80"}) {
    node.join(address);
    run();
    EXPECT_EQ(last_answer(node).code, CloseCode::kNone) << address;
  }
}

TEST_F(Joins, S15_WhileTheProxyShutsDownIsProxyShutdown) {
  make();
  Node& node = add_node();
  translator_->start_drain();
  node.join(kWeb);
  run();
  EXPECT_EQ(last_answer(node).code, CloseCode::kProxyShutdown);
}

TEST_F(Joins, S16_LeavingOrShuttingDownWhatOneHasNotJoinedIsNotFound) {
  make();
  Node& member = add_member({.name = "member"});
  const std::uint32_t service = member.answers[0].join.service;
  Node& other = add_node({.name = "other"});
  other.leave(service, 5);
  other.shut_down(service, 6);
  other.leave(service + 1, 7);
  other.shut_down(99, 8);
  run();
  ASSERT_EQ(other.answers.size(), 4u);
  for (std::uint32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(other.answers[i].code, CloseCode::kNotFound);
    EXPECT_EQ(other.answers[i].flags, wire::kFlagAnswer);
    EXPECT_EQ(other.answers[i].service.request, 5 + i);
  }
  EXPECT_TRUE(add_client().connected) << "the service is untouched";
  EXPECT_EQ(member.answers.size(), 1u);
}

TEST_F(Joins, ShutdownTellsEveryOtherMemberAndEndsTheService) {
  make();
  Node& a = add_member({.name = "a"});
  Node& b = add_member({.name = "b"});
  Node& c = add_node({.name = "c"});
  Client* client = nullptr;
  const std::uint64_t id = open(client, a);
  const std::uint32_t service = a.answers[0].join.service;
  a.shut_down(service, 9);
  run();
  EXPECT_EQ(last_answer(a).type, MessageType::kShutdownService);
  EXPECT_EQ(last_answer(a).flags, wire::kFlagAnswer);
  EXPECT_EQ(last_answer(a).code, CloseCode::kNone);
  EXPECT_EQ(last_answer(a).service.request, 9u);
  EXPECT_EQ(a.answers.size(), 2u) << "no announcement to who asked for it";
  EXPECT_EQ(last_answer(b).type, MessageType::kShutdownService);
  EXPECT_EQ(last_answer(b).flags, 0);
  EXPECT_EQ(last_answer(b).code, CloseCode::kServiceShutdown);
  EXPECT_EQ(last_answer(b).service.service, service);
  EXPECT_TRUE(c.answers.empty());
  EXPECT_TRUE(add_client().reset);
  node_in_proxy("a");
  client->send(bytes_of("!"));
  run();
  EXPECT_EQ(text_of(a.conns[id].received), "hello!") << "open connections go on";
  // b is no member any more and may join again, which is another service.
  b.join(kWeb);
  run();
  EXPECT_EQ(last_answer(b).code, CloseCode::kNone);
  EXPECT_NE(last_answer(b).join.service, service);
}

TEST_F(Joins, DrainAnnouncesEveryServiceAndLeavesConnectionsAlone) {
  make();
  Node& node = add_member();
  node.join("10.77.0.10:81");
  run();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  translator_->start_drain();
  run();
  ASSERT_EQ(node.answers.size(), 4u);
  for (const std::size_t i : {2u, 3u}) {
    EXPECT_EQ(node.answers[i].type, MessageType::kShutdownService);
    EXPECT_EQ(node.answers[i].code, CloseCode::kProxyShutdown);
  }
  EXPECT_TRUE(add_client().reset);
  EXPECT_FALSE(translator_->idle());
  node.send(id, bytes_of("bye"));
  node.close(id);
  client->shut();
  run();
  EXPECT_EQ(text_of(client->received), "bye");
  EXPECT_TRUE(client->finished());
  EXPECT_TRUE(translator_->idle());
}

TEST_F(Joins, CloseAllChannelsEndsEveryNodeWithTheCode) {
  make();
  Node& a = add_member({.name = "a"});
  Node& b = add_node({.name = "b"});
  Client* client = nullptr;
  (void)open(client, a);
  translator_->close_all_channels(CloseCode::kProxyShutdown, "the proxy is shutting down");
  run();
  EXPECT_EQ(a.code, CloseCode::kProxyShutdown);
  EXPECT_EQ(b.code, CloseCode::kProxyShutdown);
  EXPECT_TRUE(client->reset);
}

TEST_F(Joins, ABadHelloIsRefusedWithItsCode) {
  make();
  const Node good({});
  struct Case {
    const char* what;
    std::function<void(wire::HelloBody&)> spoil;
    CloseCode code;
  };
  for (const Case& c :
       {Case{"magic", [](auto& h) { h.magic = 1; }, CloseCode::kProtocolError},
        {"version", [](auto& h) { h.version = wire::kVersion + 1; }, CloseCode::kVersionMismatch},
        {"credits", [](auto& h) { h.credits_initial = 3; }, CloseCode::kProtocolError},
        {"name", [](auto& h) { h.node_name[0] = 7; }, CloseCode::kProtocolError}}) {
    wire::HelloBody hello = good.hello();
    c.spoil(hello);
    std::array<std::byte, sizeof(hello)> bytes{};
    wire::encode_hello(hello, bytes);
    EXPECT_EQ(dial_refused(bytes).code, c.code) << c.what;
  }
  EXPECT_EQ(dial_refused({}).code, CloseCode::kProtocolError);
  const std::array<std::byte, 95> shorter{};
  EXPECT_EQ(dial_refused(shorter).code, CloseCode::kProtocolError);
  EXPECT_EQ(counters().channels_refused, 6u);
}

TEST_F(Joins, AFloodOfNewcomersIsWorkedOffAFewAtATime) {
  make();
  std::vector<std::uint64_t> tokens;
  for (int i = 0; i < 40; ++i) tokens.push_back(listener_->dial({}, {}));
  EXPECT_EQ(translator_->poll_listeners(), 16u);
  EXPECT_EQ(translator_->poll_listeners(), 16u);
  EXPECT_EQ(translator_->poll_listeners(), 8u);
  for (const std::uint64_t token : tokens) EXPECT_TRUE(listener_->answer(token));
}

TEST_F(Joins, BeyondNodesMaxIsLimitReachedAndALaterPlaceIsTaken) {
  WorldOptions options;
  options.translator.nodes_max = 2;
  make(options);
  (void)add_member({.name = "a"});
  Node& b = add_node({.name = "b"});
  std::array<std::byte, sizeof(wire::HelloBody)> bytes{};
  wire::encode_hello(b.hello(), bytes);
  EXPECT_EQ(dial_refused(bytes).code, CloseCode::kLimitReached);
  b.die();
  run();
  Node& c = add_node({.name = "c"});
  EXPECT_TRUE(c.alive());
  translator_->start_drain();
  EXPECT_EQ(dial_refused(bytes).code, CloseCode::kProxyShutdown);
}

TEST_F(Joins, ANodeThatNeverJoinedGivesUpItsPlaceOnceItIsNeededAndTheGraceIsOver) {
  WorldOptions options;
  options.translator.nodes_max = 3;
  options.translator.join_grace_ms = 1000;
  make(options);
  Node& member = add_member({.name = "member"});
  Node& oldest = add_node({.name = "oldest"});
  run_ms(10);
  Node& younger = add_node({.name = "younger"});
  std::array<std::byte, sizeof(wire::HelloBody)> bytes{};
  wire::encode_hello(Node({.name = "newcomer"}).hello(), bytes);
  EXPECT_EQ(dial_refused(bytes).code, CloseCode::kLimitReached);
  run();
  EXPECT_TRUE(oldest.alive()) << "within its grace";
  run_ms(2000);
  EXPECT_TRUE(oldest.alive()) << "nobody needs its place";
  EXPECT_EQ(dial_refused(bytes).code, CloseCode::kLimitReached);
  run();
  EXPECT_FALSE(oldest.alive());
  EXPECT_TRUE(younger.alive());
  EXPECT_TRUE(member.alive());
  EXPECT_EQ(counters().channels_evicted, 1u);
  EXPECT_TRUE(add_node({.name = "newcomer"}).alive());
}

TEST_F(Joins, OneUserWhoMayJoinNothingLeavesPlacesToOthers) {
  WorldOptions options;
  options.translator.nodes_max = 8;
  options.allow = {*service::AllowEntry::parse("uid:33")};
  make(options);
  std::array<std::byte, sizeof(wire::HelloBody)> bytes{};
  wire::encode_hello(Node({.name = "newcomer"}).hello(), bytes);
  const auto refused = [&] { return dial_refused(bytes).code; };
  for (int i = 0; i < 4; ++i) (void)add_node({.name = "stranger"});
  EXPECT_EQ(refused(), CloseCode::kLimitReached) << "half of the places";
  for (int i = 0; i < 2; ++i) (void)add_member({.name = "member", .uid = 33});
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(refused(), CloseCode::kLimitReached);
    EXPECT_TRUE(add_node({.name = "newcomer", .uid = 33}).alive()) << "who may join counts not";
  }
  EXPECT_EQ(refused(), CloseCode::kLimitReached) << "max_nodes";
}

TEST_F(Joins, StrangersOfOnePeerKeepOthersOfItOutForNoLongerThanTheGrace) {
  WorldOptions options;
  options.translator.nodes_max = 8;
  options.translator.join_grace_ms = 1000;
  options.allow = {*service::AllowEntry::parse("uid:33")};
  make(options);
  std::array<std::byte, sizeof(wire::HelloBody)> bytes{};
  wire::encode_hello(Node({.name = "newcomer"}).hello(), bytes);
  std::vector<Node*> strangers;
  for (int i = 0; i < 4; ++i) strangers.push_back(&add_node({.name = "stranger"}));
  EXPECT_EQ(dial_refused(bytes).code, CloseCode::kLimitReached);
  run();
  EXPECT_TRUE(strangers.front()->alive()) << "within its grace";
  run_ms(2000);
  EXPECT_EQ(dial_refused(bytes).code, CloseCode::kLimitReached);
  run();
  EXPECT_FALSE(strangers.front()->alive()) << "half of the places are free all the time";
  EXPECT_TRUE(strangers.back()->alive());
  EXPECT_EQ(counters().channels_evicted, 1u);
  EXPECT_TRUE(add_node({.name = "newcomer"}).alive()) << "it may have a key to show";
}

// What the proxy logs meanwhile.
std::string logged_during(const std::function<void()>& what) {
  std::ostringstream log;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "joins", std::make_shared<spdlog::sinks::ostream_sink_st>(log)));
  what();
  spdlog::set_default_logger(before);
  return log.str();
}

TEST_F(Joins, WhoComesAndGoesWithoutJoiningFillsNoLog) {
  make();
  const std::string text = logged_during([&] {
    for (int i = 0; i < 200; ++i) {
      add_node({.name = "restless"}).die();
      run();
    }
    add_member({.name = "member"}).die();
    run();
  });
  EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 60);
  EXPECT_NE(text.find("\"restless\" connected"), std::string::npos);
  EXPECT_NE(text.find("\"member\" is gone"), std::string::npos) << "it has joined";
}

TEST_F(Joins, WhoJoinsAndLeavesWithoutEndFillsNoLog) {
  make();
  const std::string text = logged_during([&] {
    Node& node = add_node({.name = "restless"});
    for (int i = 0; i < 1500; ++i) {
      node.join(kWeb);
      run();
      node.leave(last_answer(node).join.service);
      run();
    }
  });
  EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 1100);
  EXPECT_NE(text.find("\"restless\" joined"), std::string::npos);
}

TEST_F(Joins, TheProxysHelloSaysWhatItPromises) {
  make();
  Node& node = add_node({.name = "curious"});
  const wire::HelloBody& hello = node.channel().peer_hello();
  EXPECT_EQ(hello.epoch, 0xbeefu);
  EXPECT_EQ(hello.credits_initial, 64u);
  EXPECT_EQ(hello.stream_window_bytes, 256u * 1024);
  EXPECT_EQ(hello.streams_max, 64u);
  EXPECT_EQ(node.channel().peer_name(), "proxy");
  ASSERT_NE(node_in_proxy("curious"), nullptr);
  EXPECT_EQ(node_in_proxy("curious")->peer.uid, 1000);
}

}  // namespace
}  // namespace sanproxy::translate::testing
