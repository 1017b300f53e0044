#include "lwproto/cluster/model.h"

#include <gtest/gtest.h>

namespace sanproxy::cluster {
namespace {

std::string error_of(const std::string& key, const std::string& value) {
  const Parsed parsed = parse_entry(key, value);
  EXPECT_FALSE(parsed.entry && !parsed.error.empty());
  return parsed.error;
}

std::string repeated(const std::string& one, int count) {
  std::string out = one;
  for (int i = 1; i < count; ++i) out.append(",").append(one);
  return out;
}

std::string members(int count) {
  std::string out = "\"a\":1";
  for (int i = 1; i < count; ++i) out.append(",\"a").append(std::to_string(i)).append("\":1");
  return out;
}

template <typename T>
T entry(const std::string& key, const std::string& value) {
  Parsed parsed = parse_entry(key, value);
  EXPECT_TRUE(parsed.entry) << key << ": " << parsed.error;
  return std::get<T>(parsed.entry.value_or(Entry(T{})));
}

TEST(ClusterModel, AServiceHasWhatOperatorsSayOfIt) {
  const auto service = entry<ServicePolicy>(
      "config/service/10.77.0.10:80",
      R"({"balance":"weighted","binding":"delayed","allow":["uid:33","key:web"],"weights":{"w1":3}})");
  EXPECT_EQ(service.address.to_string(), "10.77.0.10:80");
  EXPECT_EQ(service.balance, "weighted");
  EXPECT_EQ(service.binding, "delayed");
  ASSERT_TRUE(service.allow);
  EXPECT_EQ(service.allow->size(), 2u);
  EXPECT_EQ(service.weights.at("w1"), 3u);
}

TEST(ClusterModel, AServiceMayAskItsMembersWhetherTheyAreWell) {
  const std::string key = "config/service/10.77.0.10:80";
  const auto service = entry<ServicePolicy>(
      key,
      R"({"health":{"request":"GET / HTTP/1.0\r\n\r\n","expect":"200","interval_ms":500,"fall":4}})");
  ASSERT_TRUE(service.health);
  EXPECT_EQ(service.health->request, "GET / HTTP/1.0\r\n\r\n");
  EXPECT_EQ(service.health->expect, "200");
  EXPECT_EQ(service.health->asking, (Asking{.interval_ms = 500, .fall = 4}));
  const auto off = entry<ServicePolicy>(key, R"({"health":false})");
  ASSERT_TRUE(off.health) << "which is not the same as nothing said";
  EXPECT_EQ(*off.health, HealthPolicy{});
  EXPECT_FALSE(entry<ServicePolicy>(key, "{}").health);
}

TEST(ClusterModel, HeartbeatsAreThoseOfAllApplicationNodes) {
  const auto said = entry<HeartbeatPolicy>("config/cluster/heartbeat",
                                           R"({"interval_ms":0,"timeout_ms":50,"rise":1})");
  EXPECT_EQ(said.asking, (Asking{.interval_ms = 0, .timeout_ms = 50, .rise = 1}));
}

TEST(ClusterModel, AProxyThatNothingIsSaidOfHasNoWeightOfTheCluster) {
  EXPECT_FALSE(entry<ProxyPolicy>("config/proxy/p1", "{}").weight);
  EXPECT_EQ(entry<ProxyPolicy>("config/proxy/p1", R"({"weight":3})").weight, 3u);
  EXPECT_EQ(entry<NodeRecord>("node/proxy/p1", R"({"weight":9})").weight, 9u);
}

TEST(ClusterModel, WhatIsNotSaidIsLeftOpen) {
  const auto service = entry<ServicePolicy>("config/service/[fd77::1]:80", "{}");
  EXPECT_EQ(service.balance, "");
  EXPECT_FALSE(service.allow);
  EXPECT_TRUE(entry<ServicePolicy>("config/service/10.0.0.1:80", R"({"allow":[]})").allow)
      << "an empty list allows nobody, which is not the same";
}

TEST(ClusterModel, WrongValuesAreRefusedWithTheFieldAndWhatWasExpected) {
  const std::string key = "config/service/10.77.0.10:80";
  const struct {
    std::string key, value, error;
  } kCases[] = {
      {key, "", "not JSON"},
      {key, "{", "not JSON"},
      {key, "[]", "a JSON object"},
      {key, R"({"balanse":"weighted"})", "unknown field \"balanse\"; known: balance"},
      {key, R"({"balance":"random"})", "expected one of \"round-robin\""},
      {key, R"({"balance":5})", "balance: expected a string"},
      {key, R"({"binding":"late"})", "binding: expected one of"},
      {key, R"({"allow":"any"})", "allow: expected a list"},
      {key, R"({"allow":["uid:x"]})", "allow: expected \"any\""},
      {key, R"({"weights":{"a":0}})", "from 1 to 65535"},
      {key, R"({"weights":{"a":-1}})", "from 1 to 65535"},
      {key, R"({"weights":{"a":1.5}})", "from 1 to 65535"},
      {key, R"({"weights":[1]})", "weights: expected"},
      {key, R"({"weights":)" + std::string(60'000, '[') + "}", "nested deeper than 16 levels"},
      {key, R"({"balance":")" + std::string(300, 'x') + "\"}", "balance: longer than 256 bytes"},
      {key, R"({"balance":"\n\u001b[2J"})", "not \"\\x0a\\x1b[2J\""},
      {key, R"({"allow":[)" + repeated("\"any\"", 1'025) + "]}", "allow: more than 1024 entries"},
      {key, R"({"weights":{")" + std::string(65, 'x') + "\":1}}", "weights: names no node"},
      {key, R"({"weights":{)" + members(1'025) + "}}", "weights: more than 1024 entries"},
      {"config/service/10.77.0.10", "{}", "expected IP:PORT"},
      {"config/service/10.77.0.10:0", "{}", "expected IP:PORT"},
      {"config/service/[fd77:0::1]:80", "{}", "shortest form"},
      {"config/proxy/p 1", "{}", "names no proxy"},
      {"config/proxy/p1", R"({"weight":1001})", "from 1 to 1000"},
      {key, R"({"health":true})", "health: expected {"},
      {key, R"({"health":{}})", "health.request: expected 1 to 1024 bytes"},
      {key, R"({"health":{"request":""}})", "health.request: expected 1 to 1024 bytes"},
      {key, R"({"health":{"request":")" + std::string(1'025, 'x') + "\"}}",
       "health.request: longer than 1024"},
      {key, R"({"health":{"request":"x","expect":"a\nb"}})", "health.expect: expected one line"},
      {key, R"({"health":{"request":"x","interval_ms":99}})", "health.interval_ms: expected"},
      {key, R"({"health":{"request":"x","often":1}})", "unknown field \"often\""},
      {"config/cluster/heartbeat", R"({"fall":0})", "fall: expected an integer from 1 to 100"},
      {"config/cluster/heartbeat", R"({"falls":1})", "unknown field \"falls\""},
      {"config/cluster/heartbeats", "{}", "no such kind"},
      {"config/cluster/other", "{}", "no such kind"},
      {"node/proxy/p1", R"({"weight":0})", "weight: expected an integer from 1 to 1000"},
      {"config/servise/10.0.0.1:80", "{}", "no such kind"},
      {"drain/proxi/p1", "{}", "expected drain/proxy"},
      {"drain/proxy/", "{}", "names no node"},
      {"drain/appnode/a%2", "{}", "names no node"},
      {"drain/proxy/p1", R"({"until":1})", "unknown field"},
      {"node/proxy/p1", R"({"state":"asleep"})", "state: expected one of"},
      {"node/proxy/p1", R"({"fabrics":[1]})", "fabrics: expected"},
      {"node/proxy/p1", R"({"fabrics":[)" + repeated("\"tcp://h:1\"", 65) + "]}",
       "fabrics: more than 64 entries"},
      {"node/proxy/p1", R"({"admin":")" + std::string(257, 'x') + "\"}", "admin: longer than 256"},
      {"node/proxy/" + std::string(65, 'x'), "{}", "names no node"},
      {"node/proxy/p1", R"({"workers":0})", "workers: expected an integer from 1"},
      {"node/proxy/p1", R"({"tag":1024})", "tag: expected an integer from 0 to 1023"},
      {"node/proxy/p1", R"({"connections":-1})", "connections: expected an integer"},
      {"node/appnode/p1/0", R"({"services":[)" + repeated("\"a\"", 1'025) + "]}",
       "services: more than 1024 entries"},
      {"node/appnode/p1/99999999999", "{}", "expected PROXY/NUMBER"},
      {"drain/appnode/" + std::string(65, 'x'), "{}", "names no node"},
      {"node/appnode/p1", "{}", "expected PROXY/NUMBER"},
      {"node/appnode/p1/x", "{}", "expected PROXY/NUMBER"},
  };
  for (const auto& one : kCases) {
    EXPECT_NE(error_of(one.key, one.value).find(one.error), std::string::npos)
        << one.key << " " << one.value.substr(0, 60) << "\n got: " << error_of(one.key, one.value);
  }
}

TEST(ClusterModel, ProgramsMayWriteFieldsThatWeDoNotKnowYet) {
  const auto node = entry<NodeRecord>("node/proxy/p1", R"({"admin":"10.9.0.1:9477","colour":1})");
  EXPECT_EQ(node.name, "p1");
  EXPECT_EQ(node.admin, "10.9.0.1:9477");
}

TEST(ClusterModel, RecordsComeBackAsTheyWereWritten) {
  NodeRecord proxy;
  proxy.name = "p1";
  proxy.instance = "ab";
  proxy.fabrics = {"tcp://10.9.0.1:7471"};
  proxy.state = "draining";
  proxy.connections = 12;
  proxy.leaving = {"10.77.0.10:80"};
  const auto back = entry<NodeRecord>(node_key(NodeKind::kProxy, "p1"), to_json(proxy).dump());
  EXPECT_EQ(back.fabrics, proxy.fabrics);
  EXPECT_EQ(back.state, "draining");
  EXPECT_EQ(back.connections, 12u);
  EXPECT_EQ(back.leaving, proxy.leaving);

  ApplicationRecord app;
  app.name = "httpd:12";
  app.services = {"10.77.0.10:80"};
  const auto app_back = entry<ApplicationRecord>(application_key("p1", 7), to_json(app).dump());
  EXPECT_EQ(app_back.proxy, "p1");
  EXPECT_EQ(app_back.number, 7u);
  EXPECT_EQ(app_back.services, app.services);
}

TEST(ClusterModel, AnyNameOfAnApplicationNodeFitsIntoAKey) {
  for (const std::string name : {"httpd:12", "a/b", "ü %", "x"}) {
    const std::string key = drain_key(NodeKind::kApplicationNode, name);
    EXPECT_EQ(std::count(key.begin(), key.end(), '/'), 2) << key;
    EXPECT_EQ(entry<Drain>(key, "{}").name, name);
  }
  EXPECT_FALSE(decode_name("%41")) << "one name has one key";
}

TEST(ClusterModel, AWorkersNameTellsItsProxy) {
  EXPECT_EQ(worker_name("p1", 0), "p1");
  EXPECT_EQ(worker_name("p1", 12), "p1.w12");
  EXPECT_EQ(proxy_of_worker("p1.w12"), "p1");
  for (const char* name : {"p1", "p1.w", "p1.wx", ".w1", "p1.w1x"}) {
    EXPECT_EQ(proxy_of_worker(name), name);
  }
}

TEST(ClusterModel, KeysOfOthersAreIgnored) {
  for (const char* key : {"head", "history/1", "something/else", "schema"}) {
    EXPECT_TRUE(parse_entry(key, "x").ignored) << key;
  }
}

TEST(ClusterModel, ASchemaHasAVersion) {
  EXPECT_EQ(parse_schema(schema_value()), kSchemaVersion);
  EXPECT_FALSE(parse_schema("1"));
  EXPECT_FALSE(parse_schema(R"({"version":"1"})"));
}

}  // namespace
}  // namespace sanproxy::cluster
