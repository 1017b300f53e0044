// FlowTable and ProxySet.
#include <gtest/gtest.h>

#include "netnode/net/flow_key.h"
#include "netnode/steer/flow_table.h"
#include "netnode/steer/proxy_set.h"

namespace sanproxy::steer {
namespace {

std::uint64_t hash_of(std::uint64_t i) { return net::multiply_mix(i + 1, 0x9e3779b97f4a7c15U); }

TEST(FlowTable, RemembersNearlyAllOfTheFlowsThatItIsMadeFor) {
  FlowTable table({.flows_max = 100'000});
  for (std::uint64_t i = 0; i < 100'000; ++i) {
    table.put(hash_of(i), static_cast<std::uint16_t>(i % 7), FlowState::kEstablished, 10);
  }
  std::uint32_t known = 0;
  for (std::uint64_t i = 0; i < 100'000; ++i) {
    const FlowTable::Entry* entry = table.find(hash_of(i), 20);
    if (entry == nullptr) continue;
    ++known;
    EXPECT_EQ(entry->proxy, i % 7);
  }
  EXPECT_GT(known, 99'000U);
  EXPECT_EQ(known, table.size());
  std::uint32_t sum = 0;
  for (std::uint16_t p = 0; p < 7; ++p) sum += table.flows_of(p);
  EXPECT_EQ(sum, table.size());
}

TEST(FlowTable, AFloodOfSynsDisplacesNoEstablishedFlow) {
  FlowTable table({.flows_max = 1'000});
  for (std::uint64_t i = 0; i < 500; ++i) table.put(hash_of(i), 1, FlowState::kEstablished, 10);
  for (std::uint64_t i = 0; i < 100'000; ++i) {
    table.put(hash_of(1'000'000 + i), 2, FlowState::kHalfOpen, 11);
  }
  EXPECT_EQ(table.flows_of(1), 500U);
  EXPECT_LE(table.size(), table.capacity());
  EXPECT_GT(table.evicted(), 0U);
}

TEST(FlowTable, ForgetsByTheTimerOfTheStateAndByProxy) {
  FlowTable table({.flows_max = 1'000, .half_open_s = 5, .closing_s = 6, .established_s = 100});
  table.put(1, 1, FlowState::kHalfOpen, 0);
  table.put(2, 1, FlowState::kClosing, 0);
  table.put(3, 2, FlowState::kEstablished, 0);
  EXPECT_NE(table.find(1, 5), nullptr);
  EXPECT_EQ(table.find(1, 6), nullptr);
  table.age(6, table.capacity());
  EXPECT_EQ(table.flows_of(1), 1U);
  table.age(7, table.capacity());
  EXPECT_EQ(table.flows_of(1), 0U);
  EXPECT_EQ(table.flows_of(2), 1U);
  table.erase_proxy(2);
  EXPECT_EQ(table.size(), 0U);
  table.put(3, 2, FlowState::kEstablished, 0);
  table.put(3, 4, FlowState::kEstablished, 0);  // moved
  EXPECT_EQ(table.flows_of(2), 0U);
  EXPECT_EQ(table.flows_of(4), 1U);
  table.erase(3);
  EXPECT_EQ(table.size(), 0U);
}

ProxySet right() {
  ProxySet set;
  ProxyConfig channel;
  channel.name = "a";
  channel.id = 1;
  channel.channel = "shm:/run/a";
  ProxyConfig nat;
  nat.name = "b";
  nat.id = 2;
  nat.mode = Mode::kNat;
  nat.targets = {*SocketAddress::parse("10.0.0.1:80")};
  set.proxies = {channel, nat};
  set.services = {{*SocketAddress::parse("10.0.0.10:80")}};
  return set;
}

TEST(ProxySet, ARightSetIsTakenAndEveryWrongOneIsRefusedWithItsReason) {
  EXPECT_EQ(check(right()), "");
  struct Case {
    const char* says;
    void (*spoil)(ProxySet&);
  };
  const Case cases[] = {
      {"name", [](ProxySet& s) { s.proxies[0].name.clear(); }},
      {"two proxies", [](ProxySet& s) { s.proxies[1].name = "a"; }},
      {"taken", [](ProxySet& s) { s.proxies[1].id = 1; }},
      {"1 to 1023", [](ProxySet& s) { s.proxies[1].id = 1024; }},
      {"weight", [](ProxySet& s) { s.proxies[1].weight = 1001; }},
      {"channel", [](ProxySet& s) { s.proxies[0].channel.clear(); }},
      {"needs an address", [](ProxySet& s) { s.proxies[1].targets.clear(); }},
      {"one family", [](ProxySet& s) { s.proxies[1].targets.push_back(s.proxies[1].targets[0]); }},
      {"heartbeat", [](ProxySet& s) { s.proxies[0].probe.kind = ProbeKind::kTcp; }},
      {"probe",
       [](ProxySet& s) {
         s.proxies[1].probe.kind = ProbeKind::kTcp;
         s.proxies[1].targets[0].port = 0;
       }},
      {"port", [](ProxySet& s) { s.services[0].address.port = 0; }},
      {"twice", [](ProxySet& s) { s.services.push_back(s.services[0]); }},
      {"no proxy", [](ProxySet& s) { s.services[0].proxies = {"c"}; }},
  };
  for (const Case& one : cases) {
    ProxySet set = right();
    one.spoil(set);
    EXPECT_NE(check(set).find(one.says), std::string::npos)
        << "expected \"" << one.says << "\", got \"" << check(set) << "\"";
  }
}

}  // namespace
}  // namespace sanproxy::steer
