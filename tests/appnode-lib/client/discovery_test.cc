// The proxies of a cluster by one address: how it is written, and which way to a proxy is taken.
#include "appnode-lib/client/discovery.h"

#include <gtest/gtest.h>

namespace sanproxy::app::internal {
namespace {

using Names = std::vector<std::string>;

TEST(Discovery, AnAddressThatWasSplitAtItsCommasIsPutTogetherAgain) {
  EXPECT_EQ(rejoin_cluster_addresses({"etcd://a:1", "b:2", "c:3/web", "shm:/x"}),
            (Names{"etcd://a:1,b:2,c:3/web", "shm:/x"}));
  EXPECT_EQ(rejoin_cluster_addresses({"shm:/x", "etcd://a:1/web", "tcp://1.2.3.4:5"}),
            (Names{"shm:/x", "etcd://a:1/web", "tcp://1.2.3.4:5"}));
}

TEST(Discovery, AnAddressNamesTheMembersAndTheCluster) {
  const auto options = parse_cluster_address("etcd://10.9.0.1:2379,[fd77::1]:2379/web");
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options->etcd.endpoints, (Names{"http://10.9.0.1:2379", "http://[fd77::1]:2379"}));
  EXPECT_EQ(options->cluster, "web");
  EXPECT_FALSE(options->registers) << "applications write nothing";
  EXPECT_EQ(parse_cluster_address("etcds://h:1/c")->etcd.endpoints, (Names{"https://h:1"}));
}

TEST(Discovery, WhatIsNoAddressOfAClusterIsRefused) {
  for (const char* address : {"etcd://", "etcd://h:1", "etcd://h:1/", "etcd:///c", "etcd://h:1/a/b",
                              "etcd://h:1,/c", "etcd://u@h:1/c", "etcd://h:1/a b"}) {
    EXPECT_FALSE(parse_cluster_address(address).ok()) << address;
  }
}

TEST(Discovery, TheBestWayThatCanBeUsedIsTaken) {
  cluster::NodeRecord proxy;
  proxy.host = "here";
  proxy.fabrics = {"tcp://10.9.0.1:7471", "verbs://10.9.0.1:7472", "shm:/run/p.sock"};
  const auto all = [](const std::string&) { return true; };
  const auto no_rdma = [](const std::string& address) { return !address.starts_with("verbs:"); };
  EXPECT_EQ(best_address(proxy, "here", all), "shm:/run/p.sock");
  EXPECT_EQ(best_address(proxy, "there", all), "verbs://10.9.0.1:7472");
  EXPECT_EQ(best_address(proxy, "there", no_rdma), "tcp://10.9.0.1:7471");
  EXPECT_EQ(best_address(proxy, "", no_rdma), "tcp://10.9.0.1:7471") << "unknown is not here";
  proxy.fabrics = {"shm:/run/p.sock"};
  EXPECT_EQ(best_address(proxy, "there", all), "");
}

}  // namespace
}  // namespace sanproxy::app::internal
