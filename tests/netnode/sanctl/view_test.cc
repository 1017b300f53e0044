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

}  // namespace
}  // namespace sanproxy::sanctl
