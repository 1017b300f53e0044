#include "netnode/main/cluster_view.h"

#include <gtest/gtest.h>

namespace sanproxy::netnode {
namespace {

using cluster::Entry;
using Entries = std::map<std::string, Entry>;

steer::ProxySet two_proxies() {
  steer::ProxySet out;
  for (const char* name : {"p1", "p2"}) {
    steer::ProxyConfig proxy;
    proxy.name = name;
    proxy.weight = 5;
    out.proxies.push_back(proxy);
  }
  return out;
}

void put(Entries& entries, const std::string& key, const std::string& value) {
  cluster::Parsed parsed = cluster::parse_entry(key, value);
  ASSERT_TRUE(parsed.entry) << parsed.error;
  entries.insert_or_assign(key, std::move(*parsed.entry));
}

TEST(ClusterView, WithoutEntriesTheFileHolds) {
  const auto set = with_cluster(two_proxies(), {});
  EXPECT_EQ(set.proxies.size(), 2u);
  EXPECT_EQ(set.proxies[0].weight, 5u);
  EXPECT_FALSE(set.proxies[0].draining);
}

TEST(ClusterView, WeightsAndDrainsOfTheClusterStandBeforeTheFile) {
  Entries entries;
  put(entries, "config/proxy/p1", R"({"weight": 7})");
  put(entries, "drain/proxy/p2", "{}");
  const auto set = with_cluster(two_proxies(), entries);
  EXPECT_EQ(set.proxies[0].weight, 7u);
  EXPECT_FALSE(set.proxies[0].draining);
  EXPECT_EQ(set.proxies[1].weight, 5u);
  EXPECT_TRUE(set.proxies[1].draining);
}

TEST(ClusterView, AProxyThatSaysThatItDrainsIsDraining) {
  Entries entries;
  put(entries, "node/proxy/p1", R"({"state": "draining"})");
  EXPECT_TRUE(with_cluster(two_proxies(), entries).proxies[0].draining);
}

TEST(ClusterView, AProxyWithAWayForNetworkNodesIsFoundAndNoOtherIs) {
  Entries entries;
  put(entries, "node/proxy/p1", R"({"channels": ["tcp://10.9.0.1:7472"]})");
  put(entries, "node/proxy/p3", R"({"channels": ["tcp://10.9.0.3:7472"], "tag": 3})");
  put(entries, "node/proxy/p4", R"({"fabrics": ["tcp://10.9.0.4:7471"]})");
  put(entries, "node/netnode/n1", R"({"channels": ["tcp://10.9.0.5:7472"]})");
  const auto set = with_cluster(two_proxies(), entries);
  ASSERT_EQ(set.proxies.size(), 3u);
  EXPECT_EQ(set.proxies[2].name, "p3");
  EXPECT_EQ(set.proxies[2].channel, "tcp://10.9.0.3:7472");
  EXPECT_EQ(set.proxies[2].id, 3u);
  EXPECT_EQ(set.proxies[2].mode, steer::Mode::kChannel);
}

TEST(ClusterView, AProxyWithTheTagOfAnotherIsNotTaken) {
  Entries entries;
  put(entries, "node/proxy/a", R"({"channels": ["tcp://10.9.0.3:7472"], "tag": 3})");
  put(entries, "node/proxy/b", R"({"channels": ["tcp://10.9.0.4:7472"], "tag": 3})");
  EXPECT_EQ(with_cluster({}, entries).proxies.size(), 1u);
}

TEST(ClusterView, ServicesAreThoseThatAreJoinedOrConfigured) {
  Entries entries;
  put(entries, "config/service/10.77.0.10:80", "{}");
  put(entries, "node/appnode/p1/0", R"({"services": ["10.77.0.10:80", "10.77.0.11:80"]})");
  put(entries, "node/appnode/p1/1", R"({"services": ["0.0.0.0:80"]})");
  steer::ProxySet file;
  file.services.push_back({.address = *SocketAddress::parse("10.77.0.11:80"), .proxies = {"p1"}});
  const auto set = with_cluster(file, entries);
  ASSERT_EQ(set.services.size(), 2u);
  EXPECT_EQ(set.services[0].proxies, (std::vector<std::string>{"p1"})) << "as the file says";
  EXPECT_EQ(set.services[1].address.to_string(), "10.77.0.10:80");
}

}  // namespace
}  // namespace sanproxy::netnode
