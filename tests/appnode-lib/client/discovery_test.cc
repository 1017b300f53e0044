// The proxies of a cluster by one address: how it is written, which way to a proxy is taken, and
// how many are followed.
#include "appnode-lib/client/discovery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "appnode-lib/client/cluster_address.h"

namespace sanproxy::app::internal {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Names = std::vector<std::string>;

TEST(ClusterAddress, OneThatWasSplitAtItsCommasIsPutTogetherAgain) {
  EXPECT_EQ(rejoin_cluster_addresses({"etcd://a:1", "b:2", "c:3/web", "shm:/x"}),
            (Names{"etcd://a:1,b:2,c:3/web", "shm:/x"}));
  EXPECT_EQ(rejoin_cluster_addresses({"shm:/x", "etcd://a:1/web", "tcp://1.2.3.4:5"}),
            (Names{"shm:/x", "etcd://a:1/web", "tcp://1.2.3.4:5"}));
}

TEST(ClusterAddress, NamesTheMembersAndTheCluster) {
  const auto options = parse_cluster_address("etcd://10.9.0.1:2379,[fd77::1]:2379/web", {});
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options->etcd.endpoints, (Names{"http://10.9.0.1:2379", "http://[fd77::1]:2379"}));
  EXPECT_EQ(options->cluster, "web");
  EXPECT_EQ(options->prefix, "/sanproxy");
  EXPECT_FALSE(options->registers) << "applications write nothing";
  EXPECT_EQ(parse_cluster_address("etcds://h:1/c", {})->etcd.endpoints, (Names{"https://h:1"}));
  const auto elsewhere = parse_cluster_address("etcd://h:1/corp/san/web", {});
  ASSERT_TRUE(elsewhere.ok());
  EXPECT_EQ(elsewhere->prefix, "/corp/san");
  EXPECT_EQ(elsewhere->cluster, "web");
}

TEST(ClusterAddress, WhatIsNoneIsRefused) {
  std::string many = "etcd://h:1";
  for (int i = 0; i < 16; ++i) many += ",h:1";
  for (const std::string& address :
       Names{"etcd://", "etcd://h:1", "etcd://h:1/", "etcd:///c", "etcd://h:1//c",
             "etcd://h:1/a//b", "etcd://h:1,/c", "etcd://u@h:1/c", "etcd://h:1/a b", "etcd://h/c",
             many + "/c", "etcd://h:1/" + std::string(300, 'x')}) {
    EXPECT_FALSE(parse_cluster_address(address, {}).ok()) << address;
  }
}

TEST(ClusterAddress, ImpossibleOptionsAreRefused) {
  const auto taken = [](ClusterOptions options) { return take_cluster_environment(options).ok(); };
  EXPECT_TRUE(taken({}));
  ClusterOptions options;
  options.proxies_max = 1025;
  EXPECT_FALSE(taken(options));
  options = {};
  options.user = "reader";
  EXPECT_FALSE(taken(options)) << "a password is missing";
  options = {};
  options.ca = "/nowhere/ca.pem";
  EXPECT_FALSE(taken(options));
  options = {};
  options.key = "/proc/self/exe";
  EXPECT_FALSE(taken(options)) << "a certificate is missing";
}

TEST(ClusterAddress, TheEnvironmentSaysWhatTheProgramDoesNot) {
  setenv("SANPROXY_CLUSTER_PROXIES_MAX", "7", 1);
  ClusterOptions options;
  EXPECT_TRUE(take_cluster_environment(options).ok());
  EXPECT_EQ(options.proxies_max, 7u);
  options.proxies_max = 9;
  EXPECT_TRUE(take_cluster_environment(options).ok());
  EXPECT_EQ(options.proxies_max, 9u);
  for (const char* wrong : {"many", "7x", "-1", "0", "99999999999999999999999"}) {
    setenv("SANPROXY_CLUSTER_PROXIES_MAX", wrong, 1);
    options.proxies_max = 0;
    EXPECT_FALSE(take_cluster_environment(options).ok()) << wrong;
  }
  unsetenv("SANPROXY_CLUSTER_PROXIES_MAX");
}

bool all(const std::string&) { return true; }
bool no_rdma(const std::string& address) { return !address.starts_with("verbs:"); }

TEST(ProxyRoster, TheBestWayThatCanBeUsedIsTaken) {
  cluster::NodeRecord proxy;
  proxy.host = "here";
  proxy.fabrics = {"tcp://10.9.0.1:7471", "verbs://10.9.0.1:7472", "shm:/run/p.sock"};
  EXPECT_EQ(best_address(proxy, "here", all), "shm:/run/p.sock");
  EXPECT_EQ(best_address(proxy, "there", all), "verbs://10.9.0.1:7472");
  EXPECT_EQ(best_address(proxy, "there", no_rdma), "tcp://10.9.0.1:7471");
  EXPECT_EQ(best_address(proxy, "", no_rdma), "tcp://10.9.0.1:7471") << "unknown is not here";
  proxy.fabrics = {"shm:/run/p.sock"};
  EXPECT_EQ(best_address(proxy, "there", all), "");
}

// What a roster makes of changes, with room for `proxies_max`.
struct RosterTest : ::testing::Test {
  ProxyRoster roster{"here"};
  std::size_t proxies_max = 100;

  static cluster::Change record(const std::string& name, const std::string& address,
                                std::uint32_t worker = 0) {
    cluster::NodeRecord out;
    out.name = name;
    out.fabrics = {address};
    out.worker = worker;
    return {"node/proxy/" + name, cluster::Entry(out)};
  }
  static cluster::Change gone(const std::string& name) {
    return {"node/proxy/" + name, std::nullopt};
  }
  ProxyRoster::News apply(const std::vector<cluster::Change>& changes) {
    ProxyRoster::News news;
    roster.apply(changes, no_rdma, news);
    roster.fill(proxies_max - roster.followed(), news);
    return news;
  }
};

TEST_F(RosterTest, ProxiesComeMoveAndGo) {
  EXPECT_THAT(apply({record("p1", "tcp://a"), record("p2", "tcp://b")}).added,
              ElementsAre("tcp://a", "tcp://b"));
  EXPECT_THAT(apply({record("p1", "tcp://a")}).added, IsEmpty()) << "nothing that matters changed";
  const auto moved = apply({record("p1", "tcp://c")});
  EXPECT_THAT(moved.added, ElementsAre("tcp://c"));
  EXPECT_THAT(moved.removed, ElementsAre("tcp://a"));
  EXPECT_THAT(apply({gone("p2"), gone("nobody")}).removed, ElementsAre("tcp://b"));
  EXPECT_TRUE(roster.follows("tcp://c"));
  EXPECT_FALSE(roster.follows("tcp://b"));
  EXPECT_EQ(roster.followed(), 1u);
}

TEST_F(RosterTest, FurtherWorkersAreFoundThroughTheFirst) {
  EXPECT_THAT(apply({record("p1", "tcp://a"), record("p1.w1", "tcp://b", 1)}).added,
              ElementsAre("tcp://a"));
}

TEST_F(RosterTest, AProxyWithoutAWayFromHereIsToldOfOnce) {
  const auto news = apply({record("p1", "verbs://a")});
  EXPECT_THAT(news.added, IsEmpty());
  EXPECT_THAT(news.texts, ElementsAre(HasSubstr("\"p1\"")));
  EXPECT_EQ(roster.left_out(), 1u);
  EXPECT_THAT(apply({record("p1", "verbs://a")}).texts, IsEmpty());
  EXPECT_THAT(apply({record("p1", "tcp://a")}).added, ElementsAre("tcp://a"));
  EXPECT_EQ(roster.left_out(), 0u);
}

TEST_F(RosterTest, ThoseBeyondTheBoundWaitForAPlace) {
  proxies_max = 2;
  const auto news = apply({record("p1", "tcp://a"), record("p2", "tcp://b"),
                           record("p3", "tcp://c"), record("p4", "tcp://d")});
  EXPECT_THAT(news.added, ElementsAre("tcp://a", "tcp://b"));
  EXPECT_THAT(news.texts, ElementsAre("proxies_max is reached: 2 proxies are left out"));
  EXPECT_EQ(roster.left_out(), 2u);
  const auto later = apply({gone("p1")});
  EXPECT_THAT(later.removed, ElementsAre("tcp://a"));
  EXPECT_THAT(later.added, ElementsAre("tcp://c"));
  EXPECT_EQ(roster.left_out(), 1u);
}

}  // namespace
}  // namespace sanproxy::app::internal
