// What operators change while the proxy runs: policies, and who is out for new connections.
#include "tests/proxynode/translate/world.h"

namespace sanproxy::translate::testing {
namespace {

using Operations = World;

const SocketAddress kAddress = *SocketAddress::parse(kWeb);

service::Policy allowing(const char* entry) {
  return {.address = kAddress, .allow = service::AllowList{*service::AllowEntry::parse(entry)}};
}

TEST_F(Operations, APausedProxyTakesNoConnectionsAndKeepsItsOwn) {
  make();
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  translator_->set_paused(true);
  EXPECT_TRUE(add_client().reset);
  client->send(bytes_of(" again"));
  run();
  EXPECT_EQ(text_of(node.conns[id].received), "hello again");
  Node& late = add_member({.name = "late"});
  EXPECT_EQ(late.answers.back().code, CloseCode::kNone) << "it may join what is paused";
  translator_->set_paused(false);
  EXPECT_TRUE(add_client().connected);
}

TEST_F(Operations, AServiceThatIsFirstJoinedWhilePausedListensAfterwards) {
  make();
  translator_->set_paused(true);
  (void)add_member();
  EXPECT_TRUE(add_client().reset);
  translator_->set_paused(false);
  EXPECT_TRUE(add_client().connected);
}

TEST_F(Operations, AServiceMayEndWhilePaused) {
  make();
  Node& node = add_member();
  translator_->set_paused(true);
  node.leave(node.answers[0].join.service);
  run();
  EXPECT_EQ(translator_->services().size(), 0u);
  translator_->set_paused(false);
  EXPECT_TRUE(add_client().reset);
}

TEST_F(Operations, ADrainedNodeGetsNothingNewAndKeepsWhatItHas) {
  make();
  Node& a = add_member({.name = "a"});
  Client* client = nullptr;
  const std::uint64_t id = open(client, a);
  Node& b = add_member({.name = "b"});
  translator_->set_drained("a", true, DrainedBy::kOperator);
  for (int i = 0; i < 4; ++i) (void)open(client, b);
  EXPECT_EQ(a.conns.size(), 1u);
  a.send(id, bytes_of("still here"));
  run();
  EXPECT_EQ(text_of(clients_.front().received), "still here");
  translator_->set_drained("a", false, DrainedBy::kOperator);
  for (int i = 0; i < 4; ++i) {
    add_client().send(bytes_of("x"));
    run();
  }
  EXPECT_GT(a.conns.size(), 1u);
}

TEST_F(Operations, AServiceWithDrainedNodesAloneRefuses) {
  make();
  (void)add_member({.name = "a"});
  translator_->set_drained("a", true, DrainedBy::kOperator);
  Client& client = add_client();
  client.send(bytes_of("x"));
  run();
  EXPECT_TRUE(client.reset);
  EXPECT_EQ(counters().unserved, 1u);
}

TEST_F(Operations, ANodeIsDrainedByItsNameWithoutItsPidAndWhenItComesBack) {
  make();
  translator_->set_drained("httpd", true, DrainedBy::kCluster);
  (void)add_member({.name = "httpd:12"});
  (void)add_member({.name = "other:12"});
  EXPECT_TRUE(node_in_proxy("httpd:12")->drained);
  EXPECT_FALSE(node_in_proxy("other:12")->drained);
}

TEST_F(Operations, WhoeverDrainsIsToUndrain) {
  make();
  (void)add_member({.name = "a"});
  translator_->set_drained("a", true, DrainedBy::kOperator);
  translator_->set_drained("a", true, DrainedBy::kCluster);
  translator_->set_drained("a", false, DrainedBy::kOperator);
  EXPECT_TRUE(node_in_proxy("a")->drained);
  EXPECT_TRUE(translator_->is_drained("a", DrainedBy::kCluster));
  translator_->set_drained("a", false, DrainedBy::kCluster);
  EXPECT_FALSE(node_in_proxy("a")->drained);
  EXPECT_TRUE(translator_->drained_names().empty());
}

// As many names as before may be other names.
TEST_F(Operations, EveryDrainAndUndrainIsNews) {
  make();
  translator_->set_drained("a", true, DrainedBy::kOperator);
  const std::uint64_t before = translator_->drain_changes();
  translator_->set_drained("a", false, DrainedBy::kOperator);
  translator_->set_drained("b", true, DrainedBy::kOperator);
  EXPECT_EQ(translator_->drained_names(), std::vector<std::string>{"b"});
  EXPECT_GT(translator_->drain_changes(), before);
}

TEST_F(Operations, WhoMayNoLongerServeIsToldAndItsConnectionsGoOn) {
  make();
  Node& a = add_member({.name = "a", .uid = 1});
  Client* client = nullptr;
  const std::uint64_t id = open(client, a);
  Node& b = add_member({.name = "b", .uid = 2});
  translator_->set_policy(kAddress, allowing("uid:2"));
  run();
  EXPECT_EQ(a.answers.back().type, MessageType::kShutdownService);
  EXPECT_EQ(a.answers.back().code, CloseCode::kNotPermitted);
  EXPECT_EQ(counters().expelled, 1u);
  client->send(bytes_of(" again"));
  run();
  EXPECT_EQ(text_of(a.conns[id].received), "hello again");
  (void)open(client, b);
  EXPECT_EQ(a.conns.size(), 1u);
}

TEST_F(Operations, ThePolicyOfOneAddressDecidesAboutWhoServesAllOfThem) {
  make();
  Node& node = add_node({.name = "a", .uid = 1});
  node.join("0.0.0.0:80");
  run();
  ASSERT_EQ(translator_->services().size(), 1u);
  translator_->set_policy(kAddress, allowing("uid:2"));
  run();
  EXPECT_EQ(translator_->services().size(), 0u)
      << "or it would get the connections of that address";
}

TEST_F(Operations, WithoutTheClustersPolicyTheConfiguredOneHoldsAgain) {
  make({.policies = {allowing("uid:1")}});
  (void)add_member({.name = "a", .uid = 1});
  translator_->set_policy(
      kAddress,
      {{.address = kAddress, .balance = service::Balance::kWeighted, .allow = service::anybody()}});
  Node& b = add_node({.name = "b", .uid = 2});
  b.join(kWeb);
  run();
  EXPECT_EQ(b.answers.back().code, CloseCode::kNone);
  translator_->set_policy(kAddress, std::nullopt);
  run();
  EXPECT_EQ(b.answers.back().type, MessageType::kShutdownService);
  EXPECT_EQ(counters().expelled, 1u);
}

}  // namespace
}  // namespace sanproxy::translate::testing
