// The pages are what their readers expect: Prometheus text and JSON.
#include "proxynode/admin/pages.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/proxynode/admin/prometheus_text.h"
#include "tests/proxynode/translate/world.h"

namespace sanproxy::admin::testing {
namespace {

using nlohmann::json;
using translate::testing::Client;
using translate::testing::kWeb;
using translate::testing::Node;

// An interface that is nothing but a name and counters.
class NamedIo final : public packet_io::PacketIo {
 public:
  explicit NamedIo(const std::string& name) {
    options_.name = name;
    options_.driver = "named";
    counters_.rx_packets = 11;
    counters_.tx_bytes = 12;
  }
  const packet_io::InterfaceOptions& options() const override { return options_; }
  std::uint32_t mtu_bytes() const override { return 1500; }
  int fd() const override { return -1; }
  std::size_t receive(std::span<const packet_io::ReceiveBuffer>,
                      std::span<packet_io::ReceivedPacket>) override {
    return 0;
  }
  std::size_t send(std::span<const packet_io::SendPacket> packets) override {
    return packets.size();
  }
  void flush() override {}
  void add_local_address(const IpAddress&) override {}
  void remove_local_address(const IpAddress&) override {}
  const packet_io::Counters& counters() const override { return counters_; }

 private:
  packet_io::InterfaceOptions options_;
  packet_io::Counters counters_;
};

class Pages : public translate::testing::World {
 protected:
  void SetUp() override { make(); }
  Sources sources() const {
    Sources out;
    out.name = "edge";
    out.version = "1.2.3";
    out.uptime_s = 4.5;
    out.draining = draining_;
    if (draining_) out.state = "draining";
    out.cluster = &cluster_;
    out.operations = operations_;
    out.stack = stack_.get();
    out.translator = translator_.get();
    out.ingress = ingress_.get();
    out.egress = egress_.get();
    out.interfaces = interfaces_;
    out.loop = &loop_;
    return out;
  }
  Page page(const std::string& path, std::uint32_t limit = 100) const {
    return render(sources(), {path, limit});
  }
  PrometheusText metrics() const {
    const Page got = page("/metrics");
    EXPECT_EQ(got.http_status, 200);
    EXPECT_EQ(got.content_type, "text/plain; version=0.0.4; charset=utf-8");
    return PrometheusText(got.body);
  }
  json parsed(const std::string& path, std::uint32_t limit = 100) const {
    const Page got = page(path, limit);
    EXPECT_EQ(got.http_status, 200);
    EXPECT_EQ(got.content_type, "application/json");
    json out = json::parse(got.body, nullptr, false);
    EXPECT_FALSE(out.is_discarded()) << got.body;
    return out;
  }

  bool draining_ = false;
  cluster::SessionStatus cluster_;
  Operations* operations_ = nullptr;
  LoopCounters loop_{7, 3};
  std::vector<const packet_io::PacketIo*> interfaces_;
};

TEST_F(Pages, MetricsAreValidForAnIdleAndForABusyProxy) {
  (void)metrics();
  NamedIo one("san0"), two("san1");
  interfaces_ = {&one, &two};
  Node& node = add_member();
  Client* client = nullptr;
  (void)open(client, node);
  const PrometheusText text = metrics();
  EXPECT_EQ(text.metrics.at("sanproxy_interface_packets_total").samples.size(), 4u);
  EXPECT_EQ(text.metrics.at("sanproxy_interface_packets_total")
                .at({{"interface", "san1"}, {"direction", "in"}}),
            11);
  EXPECT_EQ(text.metrics.at("sanproxy_interface_bytes_total")
                .at({{"interface", "san0"}, {"direction", "out"}}),
            12);
  EXPECT_EQ(text.metrics.at("sanproxy_loop_rounds_total").at(), 7);
  EXPECT_EQ(text.metrics.at("sanproxy_loop_sleeps_total").at(), 3);
  EXPECT_EQ(text.metrics.at("sanproxy_up").at({{"version", "1.2.3"}}), 1);
  EXPECT_EQ(text.metrics.at("sanproxy_draining").at(), 0);
}

TEST_F(Pages, MetricsFollowWhatHappens) {
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  node.send(id, translate::testing::pattern(5000));
  run();
  PrometheusText text = metrics();
  EXPECT_EQ(text.metrics.at("sanproxy_connections_bound").at(), 1);
  EXPECT_EQ(text.metrics.at("sanproxy_tcp_connections").at({{"state", "ESTABLISHED"}}), 1);
  EXPECT_EQ(text.metrics.at("sanproxy_tcp_connections").at({{"state", "LISTEN"}}), 1);
  EXPECT_EQ(text.metrics.at("sanproxy_tcp_accepted_total").at(), 1);
  EXPECT_EQ(text.metrics.at("sanproxy_joins_total").at({{"result", "accepted"}}), 1);
  EXPECT_EQ(text.metrics.at("sanproxy_channels_total").at({{"event", "opened"}}), 1);
  EXPECT_EQ(text.metrics.at("sanproxy_connection_messages_total").at({{"kind", "accept"}}), 1);
  EXPECT_EQ(text.metrics.at("sanproxy_payload_bytes_total").at({{"direction", "to_client"}}), 5000);
  for (const char* pool : {"ingress", "egress"}) {
    const Metric& slots = text.metrics.at("sanproxy_pool_slots");
    EXPECT_EQ(slots.at({{"pool", pool}, {"state", "free"}}) +
                  slots.at({{"pool", pool}, {"state", "posted"}}) +
                  slots.at({{"pool", pool}, {"state", "received"}}),
              static_cast<double>(pool[0] == 'i' ? ingress_->slot_count() : egress_->slot_count()));
  }
  client->send_reset();
  run();
  (void)add_client("10.77.0.99:1");
  text = metrics();
  EXPECT_EQ(text.metrics.at("sanproxy_connections_bound").at(), 0);
  EXPECT_EQ(text.metrics.at("sanproxy_tcp_closed_total").at(), 1);
  EXPECT_EQ(text.metrics.at("sanproxy_tcp_refused_total").at({{"reason", "no_service"}}), 1);
}

TEST_F(Pages, LabelsWithQuotesBackslashesAndLineEndsStayOneLabel) {
  NamedIo odd("a\"b\\c\nd{e}=,");
  interfaces_ = {&odd};
  const PrometheusText text = metrics();
  bool found = false;
  for (const auto& [labels, value] : text.metrics.at("sanproxy_interface_packets_total").samples) {
    const std::string& name = labels.at("interface");
    found = found || name == "a\"b\\c d{e}=," || name == "a\"b\\c\nd{e}=,";
  }
  EXPECT_TRUE(found);
}

TEST_F(Pages, StatusTellsOfConnectionsPoolsServicesNodesAndInterfaces) {
  NamedIo io("san0");
  interfaces_ = {&io};
  Node& node = add_member({.name = "web \"one\" \\ \xc3\xa4"});
  Client* client = nullptr;
  (void)open(client, node);
  const json status = parsed("/status");
  EXPECT_EQ(status["name"], "edge");
  EXPECT_EQ(status["version"], "1.2.3");
  EXPECT_EQ(status["uptime_s"], 4.5);
  EXPECT_EQ(status["state"], "running");
  EXPECT_EQ(status["connections"]["open"], 1);
  EXPECT_EQ(status["connections"]["bound"], 1);
  EXPECT_EQ(status["connections"]["states"]["ESTABLISHED"], 1);
  EXPECT_EQ(status["connections"]["states"].size(), stack::kTcpStates);
  EXPECT_EQ(status["pools"]["ingress"]["slots"], ingress_->slot_count());
  EXPECT_EQ(status["pools"]["egress"]["free"], egress_->free_count());
  EXPECT_GT(status["tcp_memory"]["used_bytes"], 0);
  ASSERT_EQ(status["services"].size(), 1u);
  const json& service = status["services"][0];
  EXPECT_EQ(service["address"], kWeb);
  EXPECT_EQ(service["balance"], "round-robin");
  EXPECT_EQ(service["binding"], "delayed");
  EXPECT_EQ(service["accepted"], 1);
  ASSERT_EQ(service["members"].size(), 1u);
  EXPECT_EQ(service["members"][0]["connections"], 1);
  EXPECT_EQ(service["members"][0]["picked"], 1);
  ASSERT_EQ(status["nodes"].size(), 1u);
  EXPECT_EQ(status["nodes"][0]["name"], "web \"one\" \\ \xc3\xa4");
  EXPECT_EQ(status["nodes"][0]["uid"], 1000);
  EXPECT_EQ(status["nodes"][0]["connections"], 1);
  EXPECT_EQ(status["nodes"][0]["trust"], "isolated");
  EXPECT_EQ(status["nodes"][0]["dead"], false);
  ASSERT_EQ(status["interfaces"].size(), 1u);
  EXPECT_EQ(status["interfaces"][0]["name"], "san0");
}

TEST_F(Pages, BytesThatAreNoUtf8DoNotBreakJson) {
  NamedIo io("bad\xff\xfename");
  interfaces_ = {&io};
  EXPECT_EQ(parsed("/status")["interfaces"].size(), 1u);
}

TEST_F(Pages, ConnectionsListsAtMostTheLimitAndCountsAll) {
  Node& node = add_member({.name = "web"});
  Client* client = nullptr;
  std::vector<std::uint64_t> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(open(client, node));
  (void)add_client();  // not bound yet
  json page = parsed("/connections");
  EXPECT_EQ(page["total"], 4);
  EXPECT_EQ(page["shown"], 4);
  ASSERT_EQ(page["connections"].size(), 4u);
  int bound = 0;
  for (const json& row : page["connections"]) {
    EXPECT_EQ(row["local"], kWeb);
    EXPECT_EQ(row["state"], "ESTABLISHED");
    EXPECT_EQ(row["client"].get<std::string>().rfind("10.77.0.1:", 0), 0u);
    if (row["node"].is_null()) continue;
    ++bound;
    EXPECT_EQ(row["node"], "web");
    EXPECT_NE(std::find(ids.begin(), ids.end(), row["id"].get<std::uint64_t>()), ids.end());
  }
  EXPECT_EQ(bound, 3);
  page = parsed("/connections", 2);
  EXPECT_EQ(page["total"], 4);
  EXPECT_EQ(page["shown"], 2);
  EXPECT_EQ(page["connections"].size(), 2u);
  EXPECT_EQ(parsed("/connections", 0)["connections"].size(), 0u);
}

TEST_F(Pages, ConnectionsInTimeWaitAreShownWithoutANode) {
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  node.close(id, wire::CloseCode::kFinBoth);
  run();
  client->shut();
  run();
  const json page = parsed("/connections");
  ASSERT_EQ(page["connections"].size(), 1u);
  EXPECT_EQ(page["connections"][0]["state"], "TIME-WAIT");
  EXPECT_EQ(page["connections"][0].count("node"), 0u);
}

TEST_F(Pages, ANodeThatDiedAndStillHasConnectionsIsShownAsDead) {
  Node& node = add_member();
  Client* client = nullptr;
  const std::uint64_t id = open(client, node);
  client->acknowledge = false;
  node.send(id, translate::testing::pattern(100'000));
  node.close(id, wire::CloseCode::kFinBoth);
  run();
  node.die();
  run();
  const json status = parsed("/status");
  ASSERT_EQ(status["nodes"].size(), 1u);
  EXPECT_EQ(status["nodes"][0]["dead"], true);
  (void)metrics();
}

TEST_F(Pages, HealthTurnsWhileDraining) {
  EXPECT_EQ(page("/healthz").http_status, 200);
  EXPECT_EQ(page("/healthz").body, "ok\n");
  draining_ = true;
  EXPECT_EQ(page("/healthz").http_status, 503);
  EXPECT_EQ(page("/healthz").body, "draining\n");
  EXPECT_EQ(parsed("/status")["state"], "draining");
  EXPECT_EQ(metrics().metrics.at("sanproxy_draining").at(), 1);
}

TEST_F(Pages, OtherPathsAreNotFoundAndTheFrontPageSaysWhatThereIs) {
  for (const char* path : {"/metric", "/metrics/", "//metrics", "", "/status?x", "/../status"}) {
    EXPECT_EQ(page(path).http_status, 404) << path;
  }
  const Page front = page("/");
  EXPECT_EQ(front.http_status, 200);
  for (const char* path : {"/metrics", "/status", "/connections", "/healthz"}) {
    EXPECT_NE(front.body.find(path), std::string::npos) << path;
  }
}

struct Operator final : Operations {
  std::string said;
  std::string answer;
  std::string drain() override { return say("drain"); }
  std::string undrain() override { return say("undrain"); }
  std::string drain_node(const std::string& name, bool drained) override {
    return say(name + (drained ? " out" : " in"));
  }
  std::string say(const std::string& what) {
    said = what;
    return answer;
  }
};

TEST_F(Pages, ChangesArePostedAndRefusalsSayWhy) {
  Operator who;
  operations_ = &who;
  const auto post = [&](const std::string& path) {
    PageRequest request{path};
    request.method = "POST";
    return render(sources(), request);
  };
  for (const auto& [path, said] :
       std::vector<std::pair<std::string, std::string>>{{"/drain", "drain"},
                                                        {"/undrain", "undrain"},
                                                        {"/nodes/httpd:12/drain", "httpd:12 out"},
                                                        {"/nodes/a/b/undrain", "a/b in"}}) {
    EXPECT_EQ(post(path).http_status, 200) << path;
    EXPECT_EQ(who.said, said);
  }
  who.said.clear();
  for (const char* path : {"/", "/status", "/nodes/x", "/nodes//drain", "/nodes/x/kill"}) {
    EXPECT_EQ(post(path).http_status, 404) << path;
    EXPECT_EQ(who.said, "");
  }
  who.answer = "not now";
  EXPECT_EQ(post("/undrain").http_status, 409);
  EXPECT_EQ(post("/undrain").body, "not now\n");
  EXPECT_EQ(page("/drain").http_status, 404) << "GET changes nothing";
}

TEST_F(Pages, WhatEtcdHasThatIsWrongIsShownWithItsKey) {
  cluster_.refused = {{"config/service/10.0.0.1:80", "the value is not JSON"}};
  cluster_.state.refused_values = 3;
  EXPECT_EQ(parsed("/status")["cluster"]["refused"]["config/service/10.0.0.1:80"],
            "the value is not JSON");
  EXPECT_NE(page("/metrics").body.find("sanproxy_cluster_refused_total{reason=\"value\"} 3"),
            std::string::npos);
}

TEST_F(Pages, ConnectionsAreChosenByWhatIsAsked) {
  Node* node = &add_member({.name = "web:77"});
  Client* client = nullptr;
  (void)open(client, *node);
  const auto total = [&](const std::string& key, const std::string& value) {
    PageRequest request{"/connections"};
    request.parameters[key] = value;
    return json::parse(render(sources(), request).body)["total"].get<int>();
  };
  EXPECT_EQ(total("service", "10.77.0.10:80"), 1);
  EXPECT_EQ(total("service", "10.77.0.10:81"), 0);
  EXPECT_EQ(total("node", "web:77"), 1);
  EXPECT_EQ(total("node", "web"), 1);
  EXPECT_EQ(total("node", "other"), 0);
  EXPECT_EQ(total("state", "ESTABLISHED"), 1);
  EXPECT_EQ(total("state", "established"), 1);
  EXPECT_EQ(total("state", "CLOSE-WAIT"), 0);
  EXPECT_EQ(total("state", "CLOSE_WAIT"), 0);
  EXPECT_EQ(total("client", "10.77.0.1"), 1);
  EXPECT_EQ(total("client", "10.1.1.1"), 0);
}

TEST_F(Pages, AWrongQuestionForConnectionsIsRefusedAndNamed) {
  for (const auto& [key, value] : std::map<std::string, std::string>{
           {"service", "web"}, {"state", "ESTABLISH"}, {"client", "10.0.0"}, {"sate", ""}}) {
    PageRequest request{"/connections"};
    request.parameters[key] = value;
    const Page page = render(sources(), request);
    EXPECT_EQ(page.http_status, 400) << key;
    EXPECT_NE(page.body.find(key == "sate" ? "known" : key), std::string::npos) << page.body;
  }
}

TEST_F(Pages, EveryMetricOfTheHandbookExists) {
  const PrometheusText text = metrics();
  std::ifstream page(SANPROXY_SOURCE_DIR "/docs/administration.md");
  ASSERT_TRUE(page.good());
  int found = 0;
  for (std::string line; std::getline(page, line);) {
    if (line.rfind("| `sanproxy_", 0) != 0) continue;
    const std::size_t end = line.find_first_of("{`", 3);
    const std::string name = line.substr(3, end - 3);
    if (name.starts_with("sanproxy_netnode_")) continue;   // the other program's
    if (name == "sanproxy_fabric_events_total") continue;  // the fabric of this test counts none
    EXPECT_EQ(text.metrics.count(name), 1u) << name;
    ++found;
  }
  EXPECT_GT(found, 3);
}

}  // namespace
}  // namespace sanproxy::admin::testing
