// What sanctl makes of the /status of a proxy.
#include "netnode/sanctl/view.h"

#include <gtest/gtest.h>

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;
using Texts = std::vector<std::string>;

json node(int number, const char* name, int connections, int worker) {
  return {{"node", number},
          {"name", name},
          {"fabric", "shm"},
          {"health", "up"},
          {"connections", connections},
          {"worker", worker}};
}

json member(int number, const char* name, int connections, int worker) {
  return {{"node", number}, {"name", name}, {"connections", connections}, {"worker", worker}};
}

json service(const char* address, json members) {
  return {{"address", address}, {"members", std::move(members)}};
}

TEST(SanctlView, AnApplicationNodeIsNotEmptyWhileAWorkerIsSilent) {
  json web = node(0, "web:1", 0, 0);
  web["drained"] = true;
  json status = {{"nodes", {web}},
                 {"workers", {{{"worker", 0}}, {{"worker", 1}, {"answered", false}}}}};
  View silent, all;
  add_told(silent, "p1", status);
  EXPECT_EQ(silent.nodes.at(0).state, "draining");
  status["workers"][1].erase("answered");
  add_told(all, "p1", status);
  EXPECT_EQ(all.nodes.at(0).state, "drained");
}

TEST(SanctlView, AnApplicationNodeAtTwoWorkersIsOne) {
  View view;
  // The workers number their nodes by themselves.
  add_told(view, "p1",
           {{"nodes",
             {node(0, "web:1", 3, 0), node(1, "echo:2", 5, 0), node(0, "echo:2", 6, 1),
              node(1, "web:1", 4, 1)}},
            {"services",
             {service("10.0.0.1:80", {member(0, "web:1", 3, 0), member(1, "web:1", 4, 1)}),
              service("10.0.0.1:7", {member(1, "echo:2", 5, 0)})}}});
  ASSERT_EQ(view.nodes.size(), 2u);
  EXPECT_EQ(view.nodes[0].name, "web:1");
  EXPECT_EQ(view.nodes[0].connections, 7u);
  EXPECT_EQ(view.nodes[0].services, Texts{"10.0.0.1:80"});
  EXPECT_EQ(view.nodes[1].connections, 11u);
  EXPECT_EQ(view.nodes[1].services, Texts{"10.0.0.1:7"});
  EXPECT_EQ(view.services.at("10.0.0.1:80").members, 1u);
  EXPECT_EQ(view.services.at("10.0.0.1:80").connections, 7u);
}

TEST(SanctlView, TwoApplicationNodesOfOneNameAreTwo) {
  View view;
  add_told(view, "p1",
           {{"nodes", {node(0, "web", 1, 0), node(1, "web", 2, 0), node(0, "web", 4, 1)}},
            {"services",
             {service("10.0.0.1:80",
                      {member(0, "web", 1, 0), member(1, "web", 2, 0), member(0, "web", 4, 1)})}}});
  ASSERT_EQ(view.nodes.size(), 2u);
  EXPECT_EQ(*view.nodes[0].connections + *view.nodes[1].connections, 7u);
  EXPECT_EQ(view.services.at("10.0.0.1:80").members, 2u);
}

TEST(SanctlView, ANodeThatOneWorkerSeesOtherwiseIsShownAsWorse) {
  View view;
  json down = node(0, "web", 0, 1);
  down["health"] = "down";
  json drained = node(1, "echo", 0, 1);
  drained["drained"] = true;
  add_told(view, "p1", {{"nodes", {node(0, "web", 1, 0), node(1, "echo", 2, 0), down, drained}}});
  ASSERT_EQ(view.nodes.size(), 2u);
  EXPECT_EQ(view.nodes[0].state, "down");
  EXPECT_EQ(view.nodes[1].state, "draining");
}

TEST(SanctlView, ServicesThatNobodyServesAndProxiesThatAreDownAreTroubles) {
  View view;
  json down = member(0, "web", 0, 0);
  down["health"] = "down";
  json ill = node(0, "web", 0, 0);
  ill["health"] = "down";
  const json well = {member(0, "web", 0, 0)};
  add_told(view, "p1",
           {{"nodes", {ill}},
            {"services",
             {service("10.0.0.1:80", {down}), service("10.0.0.2:80", well),
              service("10.0.0.3:80", json::array())}}});
  add_told(view, "p2",
           {{"nodes", {node(0, "echo", 0, 0)}},
            {"services", {service("10.0.0.4:7", {member(0, "echo", 0, 0)})}}});
  view.status["n1"] = {
      {"proxies", {{{"name", "p1"}, {"state", "up"}}, {{"name", "p2"}, {"state", "down"}}}}};
  EXPECT_EQ(troubles(view),
            (Texts{"10.0.0.1:80: no application node that serves it is well",
                   "10.0.0.3:80: no application node serves it", "n1 does not reach proxy p2"}));
  View asked;
  asked.network_node = true;
  asked.status["n1"] = {{"proxies", {{{"name", "p1"}, {"state", "down"}}}},
                        {"services", {{{"address", "10.0.0.1:80"}}}}};
  add_steered(asked, "n1", asked.status["n1"]);
  EXPECT_EQ(troubles(asked), Texts{"proxy p1 is down, behind n1"});
}

TEST(SanctlView, ANetworkNodeTellsWhichProxiesServeAndNoNumbers) {
  View view;
  add_steered(view, "n1",
              {{"proxies", {{{"name", "p1"}, {"state", "up"}, {"sessions", 4}}, {{"name", "p2"}}}},
               {"services",
                {{{"address", "10.0.0.1:80"}, {"protocol", "tcp"}, {"proxies", json::array()}},
                 {{"address", "10.0.0.1:80"}, {"protocol", "udp"}, {"proxies", {"p2"}}}}}});
  ASSERT_EQ(view.nodes.size(), 2u);
  EXPECT_EQ(view.nodes[0].connections, 4u);
  EXPECT_EQ(view.services.at("10.0.0.1:80").proxies, (Texts{"p1", "p2"}));
  EXPECT_EQ(view.services.at("10.0.0.1:80/udp").proxies, Texts{"p2"});
  EXPECT_FALSE(view.services.at("10.0.0.1:80").counted);
  EXPECT_TRUE(to_json(view.services.at("10.0.0.1:80")).at("members").is_null());
}

}  // namespace
}  // namespace sanproxy::sanctl
