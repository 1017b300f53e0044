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

std::vector<std::string> left_out;
std::size_t left_out_count = 0;

steer::ProxySet view(const steer::ProxySet& configured, const Entries& entries,
                     std::span<const IpAddress> nat_addresses = {}) {
  LeftOut found;
  steer::ProxySet out = with_cluster(configured, {"here", nat_addresses}, entries, found);
  left_out = found.texts();
  left_out_count = found.count();
  return out;
}

TEST(ClusterView, WithoutEntriesTheFileHolds) {
  const auto set = view(two_proxies(), {});
  EXPECT_EQ(set.proxies.size(), 2u);
  EXPECT_EQ(set.proxies[0].weight, 5u);
  EXPECT_FALSE(set.proxies[0].draining);
}

TEST(ClusterView, WeightsAndDrainsOfTheClusterStandBeforeTheFile) {
  Entries entries;
  put(entries, "config/proxy/p1", R"({"weight": 7})");
  put(entries, "drain/proxy/p2", "{}");
  const auto set = view(two_proxies(), entries);
  EXPECT_EQ(set.proxies[0].weight, 7u);
  EXPECT_FALSE(set.proxies[0].draining);
  EXPECT_EQ(set.proxies[1].weight, 5u);
  EXPECT_TRUE(set.proxies[1].draining);
}

TEST(ClusterView, WhereNobodySaysAWeightTheProxysOwnHolds) {
  steer::ProxySet file = two_proxies();
  file.proxies[0].weight_said = true;
  file.proxies[1].weight = 1;
  Entries entries;
  put(entries, "node/proxy/p1", R"({"weight": 7})");
  put(entries, "node/proxy/p2", R"({"weight": 8})");
  put(entries, "node/proxy/p3", R"({"weight": 9, "channels": ["tcp://10.9.0.3:7472"]})");
  put(entries, "node/proxy/p4", R"({"weight": 9, "channels": ["tcp://10.9.0.4:7472"]})");
  put(entries, "config/proxy/p3", "{}");
  put(entries, "config/proxy/p4", R"({"weight": 2})");
  const auto set = view(file, entries);
  ASSERT_EQ(set.proxies.size(), 4u);
  EXPECT_EQ(set.proxies[0].weight, 5u) << "the file says";
  EXPECT_EQ(set.proxies[1].weight, 8u);
  EXPECT_EQ(set.proxies[2].weight, 9u) << "an entry without a weight says none";
  EXPECT_EQ(set.proxies[3].weight, 2u);
  for (const steer::ProxyConfig& proxy : set.proxies) EXPECT_TRUE(proxy.weight_said);
}

TEST(ClusterView, AServiceThatNobodyServesStaysWhileAProxySaysThatItHasConnections) {
  Entries entries;
  put(entries, "node/proxy/p1", R"({"leaving": ["10.77.0.10:80", "10.77.0.11:80"]})");
  put(entries, "node/proxy/p2", R"({"leaving": ["10.77.0.10:80", "nowhere"]})");
  put(entries, "node/appnode/p1/1", R"({"name": "a", "services": ["10.77.0.11:80"]})");
  const auto set = view(two_proxies(), entries);
  ASSERT_EQ(set.services.size(), 2u);
  EXPECT_EQ(set.services[0].address.to_string(), "10.77.0.11:80");
  EXPECT_EQ(set.services[1].address.to_string(), "10.77.0.10:80");
  EXPECT_EQ(left_out.size(), 1u) << "what is no address is left out and named";
  put(entries, "node/proxy/p1", "{}");
  put(entries, "node/proxy/p2", R"({"leaving": []})");
  EXPECT_EQ(view(two_proxies(), entries).services.size(), 1u);
}

TEST(ClusterView, AProxyThatTellsAnAddressOfNobodyIsLeftOut) {
  Entries entries;
  put(entries, "node/proxy/p3", R"({"channels": ["tcp://0.0.0.0:7471"]})");
  put(entries, "node/proxy/p4", R"({"channels": ["nowhere"]})");
  EXPECT_EQ(view(two_proxies(), entries).proxies.size(), 2u);
  ASSERT_EQ(left_out.size(), 2u);
  EXPECT_NE(left_out[0].find("\"p3\": channel \"tcp://0.0.0.0:7471\": nobody can connect"),
            std::string::npos)
      << left_out[0];
}

TEST(ClusterView, AWayOfAnotherNameIsDrainedByItOrWithTheNodeThatItLeadsTo) {
  steer::ProxySet file = two_proxies();
  file.proxies[0].node = "q1";
  file.proxies[1].node = "q2";
  Entries entries;
  put(entries, "drain/proxy/p2", "{}");
  EXPECT_FALSE(view(file, entries).proxies[0].draining);
  EXPECT_TRUE(view(file, entries).proxies[1].draining);
  entries.clear();
  put(entries, "drain/proxy/q1", "{}");
  put(entries, "node/proxy/q2", R"({"weight": 7})");
  auto set = view(file, entries);
  EXPECT_TRUE(set.proxies[0].draining);
  EXPECT_FALSE(set.proxies[1].draining);
  EXPECT_EQ(set.proxies[1].weight, 7u);
  put(entries, "node/proxy/q2", R"({"state": "draining"})");
  set = view(file, entries);
  EXPECT_TRUE(set.proxies[1].draining);
}

TEST(ClusterView, AProxyThatSaysThatItDrainsIsDraining) {
  Entries entries;
  put(entries, "node/proxy/p1", R"({"state": "draining"})");
  EXPECT_TRUE(view(two_proxies(), entries).proxies[0].draining);
}

TEST(ClusterView, AProxyWithAWayForNetworkNodesIsFoundAndNoOtherIs) {
  Entries entries;
  put(entries, "node/proxy/p1", R"({"channels": ["tcp://10.9.0.1:7472"]})");
  put(entries, "node/proxy/p3", R"({"channels": ["tcp://10.9.0.3:7472"], "tag": 3})");
  put(entries, "node/proxy/p4", R"({"fabrics": ["tcp://10.9.0.4:7471"]})");
  put(entries, "node/netnode/n1", R"({"channels": ["tcp://10.9.0.5:7472"]})");
  const auto set = view(two_proxies(), entries);
  ASSERT_EQ(set.proxies.size(), 3u);
  EXPECT_EQ(set.proxies[2].name, "p3");
  EXPECT_EQ(set.proxies[2].channel, "tcp://10.9.0.3:7472");
  EXPECT_EQ(set.proxies[2].id, 3u);
  EXPECT_EQ(set.proxies[2].mode, steer::Mode::kChannel);
}

TEST(ClusterView, SharedMemoryIsAWayToProxiesOfTheSameHostAlone) {
  Entries entries;
  put(entries, "node/proxy/a", R"({"host": "there", "channels": ["shm:/run/net.sock"]})");
  put(entries, "node/proxy/b", R"({"host": "here", "channels": ["shm:/run/net.sock"]})");
  put(entries, "node/proxy/c",
      R"({"host": "there", "channels": ["shm:/run/net.sock", "tcp://10.9.0.3:7472"]})");
  put(entries, "node/proxy/d",
      R"({"host": "here", "channels": ["shm:/run/d.sock", "tcp://10.9.0.4:7472"]})");
  put(entries, "node/proxy/e", R"({"channels": ["shm:/run/e.sock"]})");
  const auto set = view({}, entries);
  std::vector<std::string> found;
  for (const auto& proxy : set.proxies) found.push_back(proxy.name + " " + proxy.channel);
  EXPECT_EQ(found, (std::vector<std::string>{"b shm:/run/net.sock", "c tcp://10.9.0.3:7472",
                                             "d shm:/run/d.sock"}));
  ASSERT_EQ(left_out.size(), 2u);
  EXPECT_EQ(left_out[0], "proxy \"a\": its channel is shared memory of another host");
}

TEST(ClusterView, AProxyWithTheTagOfAnotherIsNotTaken) {
  Entries entries;
  put(entries, "node/proxy/a", R"({"channels": ["tcp://10.9.0.3:7472"], "tag": 3})");
  put(entries, "node/proxy/b", R"({"channels": ["tcp://10.9.0.4:7472"], "tag": 3})");
  EXPECT_EQ(view({}, entries).proxies.size(), 1u);
  ASSERT_EQ(left_out.size(), 1u);
  EXPECT_EQ(left_out[0], "proxy \"b\": it has the id of \"a\"");
}

TEST(ClusterView, AServiceThatCannotBeAtItsAddressIsNotTaken) {
  steer::ProxySet file = two_proxies();
  file.proxies[0].mode = steer::Mode::kNat;
  file.proxies[0].channel.clear();
  file.proxies[0].targets = {*SocketAddress::parse("10.5.0.1:80")};
  Entries entries;
  put(entries, "node/appnode/p1/0",
      R"({"services": ["224.0.0.1:80", "10.5.0.1:80", "10.0.0.10:80"]})");
  const auto set = view(file, entries);
  EXPECT_EQ(set.services.size(), file.services.size() + 1);
  EXPECT_EQ(left_out.size(), 2u);
}

TEST(ClusterView, AServiceWhereAnswersOfServersBehindTheNatArriveIsNotTaken) {
  const IpAddress nat[] = {*IpAddress::parse("10.77.0.100"), *IpAddress::parse("fd77::100")};
  Entries entries;
  put(entries, "config/service/10.77.0.100:40001", "{}");
  put(entries, "node/appnode/p1/1", R"({"services": ["[fd77::100]:80", "10.77.0.10:80"]})");
  put(entries, "node/proxy/p1", R"({"leaving": ["10.77.0.100:40002"]})");
  const auto set = view(two_proxies(), entries, nat);
  ASSERT_EQ(set.services.size(), 1u);
  EXPECT_EQ(set.services[0].address.to_string(), "10.77.0.10:80");
  ASSERT_EQ(left_out.size(), 3u);
  EXPECT_NE(left_out[0].find("10.77.0.100:40001: [nat] has its address"), std::string::npos);
}

TEST(ClusterView, AServiceOfTheFileForAnotherProtocolHidesNone) {
  steer::ProxySet file = two_proxies();
  file.services.push_back(
      {.address = *SocketAddress::parse("10.77.0.10:80"), .protocol = net::kProtocolUdp});
  Entries entries;
  put(entries, "node/appnode/p1/1", R"({"name": "a", "services": ["10.77.0.10:80"]})");
  const auto set = view(file, entries);
  ASSERT_EQ(set.services.size(), 2u);
  EXPECT_EQ(set.services[1].protocol, net::kProtocolTcp);
}

TEST(ClusterView, WhatIsBeyondTheBoundsOrNoAddressIsLeftOutAndToldOf) {
  Entries entries;
  put(entries, "node/appnode/p1/0", R"({"services": ["nonsense", "10.77.0.10:0"]})");
  steer::ProxySet file;
  for (std::size_t i = 0; i < steer::kServicesMax; ++i) {
    file.services.push_back(
        {.address = *SocketAddress::parse("10.77.0.1:" + std::to_string(i + 1))});
  }
  put(entries, "config/service/10.77.0.10:80", "{}");
  for (std::size_t i = 0; i < steer::kProxiesMax; ++i) {
    steer::ProxyConfig proxy;
    proxy.name = "f" + std::to_string(i);
    file.proxies.push_back(proxy);
  }
  put(entries, "node/proxy/p1", R"({"channels": ["tcp://10.9.0.1:7472"]})");
  const auto set = view(file, entries);
  EXPECT_EQ(set.services.size(), steer::kServicesMax);
  EXPECT_EQ(set.proxies.size(), steer::kProxiesMax);
  EXPECT_EQ(left_out, (std::vector<std::string>{"service 10.77.0.10:80: there are 4096 already",
                                                "service \"nonsense\": it is no IP:PORT",
                                                "service \"10.77.0.10:0\": it is no IP:PORT",
                                                "proxy \"p1\": there are 1023 already"}));
}

TEST(ClusterView, OfManyThatAreLeftOutAllAreCountedAndSomeAreNamed) {
  Entries entries;
  std::string services = "\"a\\n[error] b\\u001b[31m\"";
  for (std::size_t i = 1; i < 1'000; ++i) services += ",\"x" + std::to_string(i) + "\"";
  put(entries, "node/appnode/p1/0", R"({"services": [)" + services + "]}");
  EXPECT_TRUE(view(two_proxies(), entries).services.empty());
  EXPECT_EQ(left_out_count, 1'000u);
  ASSERT_EQ(left_out.size(), LeftOut::kTextsMax);
  EXPECT_EQ(left_out[0], R"(service "a\x0a[error] b\x1b[31m": it is no IP:PORT)");
}

TEST(ClusterView, WhatManyNameIsLookedAtOnce) {
  Entries entries;
  for (int i = 0; i < 10; ++i) {
    put(entries, "node/appnode/p1/" + std::to_string(i),
        R"({"services": ["10.77.0.10:80", "nonsense"]})");
  }
  EXPECT_EQ(view(two_proxies(), entries).services.size(), 1u);
  EXPECT_EQ(left_out_count, 1u);
}

TEST(ClusterView, ServicesAreThoseThatAreJoinedOrConfigured) {
  Entries entries;
  put(entries, "config/service/10.77.0.10:80", "{}");
  put(entries, "node/appnode/p1/0", R"({"services": ["10.77.0.10:80", "10.77.0.11:80"]})");
  put(entries, "node/appnode/p1/1", R"({"services": ["0.0.0.0:80"]})");
  steer::ProxySet file;
  file.services.push_back({.address = *SocketAddress::parse("10.77.0.11:80"), .proxies = {"p1"}});
  const auto set = view(file, entries);
  ASSERT_EQ(set.services.size(), 2u);
  EXPECT_EQ(set.services[0].proxies, (std::vector<std::string>{"p1"})) << "as the file says";
  EXPECT_EQ(set.services[1].address.to_string(), "10.77.0.10:80");
}

TEST(IsUp, ByAnyWayThatLeadsToTheProxyOrOneOfItsWorkersWhateverTheWayIsCalled) {
  std::vector<steer::Forwarder::Proxy> ways(4);
  const auto set = [&](std::size_t i, const char* name, const char* node, steer::ProxyState state) {
    ways[i].config.name = name;
    ways[i].config.node = node;
    ways[i].state = state;
    ways[i].in_use = true;
  };
  set(0, "p1", "", steer::ProxyState::kDown);
  set(1, "p1-tunnel", "p1", steer::ProxyState::kDown);
  set(2, "p2.w1", "", steer::ProxyState::kDraining);
  EXPECT_FALSE(is_up(ways, "p1"));
  EXPECT_TRUE(is_up(ways, "p2")) << "a worker's way; it drains";
  set(1, "p1-tunnel", "p1", steer::ProxyState::kUp);
  EXPECT_TRUE(is_up(ways, "p1"));
  EXPECT_FALSE(is_up(ways, "p1-tunnel")) << "no proxy has that name";
  ways[1].in_use = false;
  EXPECT_FALSE(is_up(ways, "p1"));
  EXPECT_FALSE(is_up(ways, ""));
}

// Which records hold when they go from etcd.
struct ClusterEntriesTest : ::testing::Test {
  ClusterEntries entries;
  std::set<std::string> up = {"p1"};

  ClusterEntries::IsUp is_up() {
    return [this](const std::string& proxy) { return up.contains(proxy); };
  }
  void apply(const std::vector<std::string>& there, const std::vector<std::string>& gone) {
    std::vector<cluster::Change> changes;
    changes.reserve(gone.size() + there.size());
    for (const std::string& key : gone) changes.push_back({key, std::nullopt});
    for (const std::string& key : there) {
      changes.push_back({key, *cluster::parse_entry(key, "{}").entry});
    }
    entries.apply(changes, is_up());
  }
  std::vector<std::string> keys() {
    std::vector<std::string> out;
    out.reserve(entries.all().size());
    for (const auto& [key, entry] : entries.all()) out.push_back(key);
    return out;
  }
};

using Keys = std::vector<std::string>;
const Keys kTwo = {"node/appnode/p1/0", "node/proxy/p1"};

TEST_F(ClusterEntriesTest, AnApplicationNodeThatLeavesAProxyWhichStaysIsGoneAtOnce) {
  apply(kTwo, {});
  apply({}, {"node/appnode/p1/0"});
  EXPECT_EQ(keys(), (Keys{"node/proxy/p1"}));
  EXPECT_FALSE(entries.forget_lost(is_up()));
}

TEST_F(ClusterEntriesTest, WhatWentWithTheLeaseOfAProxyThatIsUpStaysUntilItIsDown) {
  apply(kTwo, {});
  apply({}, kTwo);
  EXPECT_EQ(keys(), kTwo);
  EXPECT_FALSE(entries.forget_lost(is_up()));
  EXPECT_EQ(keys(), kTwo);
  up.clear();
  EXPECT_TRUE(entries.forget_lost(is_up()));
  EXPECT_EQ(keys(), Keys{});
  EXPECT_TRUE(entries.held().empty());
}

TEST_F(ClusterEntriesTest, OneThatRegistersAgainIsNotForgotten) {
  apply(kTwo, {});
  apply({}, kTwo);
  apply(kTwo, {});
  up.clear();
  EXPECT_FALSE(entries.forget_lost(is_up()));
  EXPECT_EQ(keys(), kTwo);
}

TEST_F(ClusterEntriesTest, WhatLeftAProxyWhileItWasHeldIsGoneWhenItIsBack) {
  const Keys three = {"node/appnode/p1/0", "node/appnode/p1/1", "node/proxy/p1"};
  apply(three, {});
  apply({}, three);
  // In two transactions, the proxy's own record last.
  apply({"node/appnode/p1/0"}, {});
  EXPECT_EQ(keys(), three);
  apply({"node/proxy/p1"}, {});
  EXPECT_EQ(keys(), kTwo);
}

TEST_F(ClusterEntriesTest, NothingOfAForgottenProxyIsTakenFromItsSuccessor) {
  apply(kTwo, {});
  apply({}, kTwo);
  up.clear();
  EXPECT_TRUE(entries.forget_lost(is_up()));
  up = {"p1"};
  apply({"node/appnode/p1/0"}, {});
  apply({"node/proxy/p1"}, {});
  EXPECT_EQ(keys(), kTwo);
}

TEST_F(ClusterEntriesTest, AProxyThatIsDownIsForgottenWithItsRecord) {
  up.clear();
  apply(kTwo, {});
  apply({}, kTwo);
  EXPECT_EQ(keys(), Keys{});
}

TEST_F(ClusterEntriesTest, WorkersAreUpWithTheirProxy) {
  const Keys worker = {"node/appnode/p1.w1/0", "node/proxy/p1.w1"};
  apply(worker, {});
  apply({}, worker);
  EXPECT_EQ(keys(), worker);
  up.clear();
  EXPECT_TRUE(entries.forget_lost(is_up()));
}

TEST_F(ClusterEntriesTest, WhatOperatorsTakeAwayIsGone) {
  apply({"drain/proxy/p1", "config/proxy/p1"}, {});
  apply({}, {"drain/proxy/p1", "config/proxy/p1"});
  EXPECT_EQ(keys(), Keys{});
}

}  // namespace
}  // namespace sanproxy::netnode
