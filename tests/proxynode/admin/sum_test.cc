// The pages of several workers as one.
#include "proxynode/admin/sum.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace sanproxy::admin {
namespace {

using nlohmann::json;

WorkerPage worker(std::uint32_t index, std::string body) {
  return {{index, 100 + index, true, index}, {200, "", std::move(body)}};
}

bool has_line(const std::string& text, const std::string& line) {
  return ("\n" + text).find("\n" + line + "\n") != std::string::npos;
}

TEST(SumMetrics, ShowEachSeriesAsTheSumAndOfEachWorker) {
  const std::string head = "# HELP sanproxy_x_total X\n# TYPE sanproxy_x_total counter\n";
  const Page page = sum_metrics({worker(0, head + "sanproxy_x_total{kind=\"a b\"} 3\n"),
                                 worker(1, head + "sanproxy_x_total{kind=\"a b\"} 4\n")});
  EXPECT_TRUE(has_line(page.body, "sanproxy_x_total{kind=\"a b\"} 7")) << page.body;
  EXPECT_TRUE(has_line(page.body, "sanproxy_x_total{worker=\"0\",kind=\"a b\"} 3"));
  EXPECT_TRUE(has_line(page.body, "sanproxy_x_total{worker=\"1\",kind=\"a b\"} 4"));
  EXPECT_EQ(page.body.find("# TYPE sanproxy_x_total"), page.body.rfind("# TYPE sanproxy_x_total"));
}

TEST(SumMetrics, DoNotAddUpWhatEveryWorkerTellsOfTheSameThing) {
  const Page page = sum_metrics({worker(0,
                                        "sanproxy_up{version=\"1\"} 1\nsanproxy_draining 1\n"
                                        "sanproxy_cluster_connected 1\n"
                                        "sanproxy_cluster_revision 57\n"),
                                 worker(1,
                                        "sanproxy_up{version=\"1\"} 1\nsanproxy_draining 0\n"
                                        "sanproxy_cluster_connected 0\n"
                                        "sanproxy_cluster_revision 56\n")});
  for (const char* line : {"sanproxy_up{version=\"1\"} 1", "sanproxy_draining 1",
                           "sanproxy_cluster_connected 0", "sanproxy_cluster_revision 57"}) {
    EXPECT_TRUE(has_line(page.body, line)) << line << " in\n" << page.body;
  }
}

TEST(SumMetrics, DoNotAddUpSeriesThatOnlyCarryLabels) {
  const Page page = sum_metrics({worker(0, "sanproxy_node_info{node=\"0\"} 1\n"),
                                 worker(1, "sanproxy_node_info{node=\"0\"} 1\n")});
  EXPECT_EQ(page.body.find("sanproxy_node_info{node"), std::string::npos) << page.body;
  EXPECT_TRUE(has_line(page.body, "sanproxy_node_info{worker=\"1\",node=\"0\"} 1"));
}

TEST(SumMetrics, TellWhichWorkersServeAndHowOftenTheyWereStartedAgain) {
  auto gone = worker(1, "");
  gone.state.ready = false;
  gone.page.http_status = 0;
  const Page page = sum_metrics({worker(0, "sanproxy_up 1\n"), gone});
  EXPECT_TRUE(has_line(page.body, "sanproxy_up 1")) << page.body;
  EXPECT_TRUE(has_line(page.body, "sanproxy_worker_up{worker=\"0\"} 1"));
  EXPECT_TRUE(has_line(page.body, "sanproxy_worker_up{worker=\"1\"} 0"));
  EXPECT_TRUE(has_line(page.body, "sanproxy_worker_restarts_total{worker=\"1\"} 1"));
}

json status(int open, const char* address, const char* state) {
  return {{"name", "p"},
          {"version", "1"},
          {"uptime_s", 1.5},
          {"state", state},
          {"connections", {{"open", open}, {"states", {{"ESTABLISHED", open}}}}},
          {"tcp_memory", {{"used_bytes", 10}, {"max_bytes", 100}}},
          {"pools", {{"ingress", {{"slots", 8}, {"slot_bytes", 64}}}}},
          {"tx_records", 2},
          {"services",
           {{{"address", address},
             {"accepted", open},
             {"unserved", 1},
             {"members", {{{"node", 0}, {"connections", open}}}}}}},
          {"nodes", {{{"node", 0}, {"name", "web"}}}},
          {"interfaces", {{{"name", "san0"}, {"packets_in", open}, {"packets_out", 1}}}}};
}

TEST(SumStatus, HasTheShapeOfOneWorkersAndNamesTheWorkerOfNodesAndMembers) {
  const Page page = sum_status("p", {worker(0, status(3, "10.0.0.1:80", "running").dump()),
                                     worker(1, status(4, "10.0.0.1:80", "draining").dump())});
  const json all = json::parse(page.body);
  EXPECT_EQ(all["connections"]["open"], 7);
  EXPECT_EQ(all["connections"]["states"]["ESTABLISHED"], 7);
  EXPECT_EQ(all["tcp_memory"]["max_bytes"], 200);
  EXPECT_EQ(all["pools"]["ingress"]["slots"], 16);
  EXPECT_EQ(all["pools"]["ingress"]["slot_bytes"], 64);
  EXPECT_EQ(all["state"], "draining");
  ASSERT_EQ(all["services"].size(), 1u);
  EXPECT_EQ(all["services"][0]["accepted"], 7);
  EXPECT_EQ(all["services"][0]["unserved"], 2);
  ASSERT_EQ(all["services"][0]["members"].size(), 2u);
  EXPECT_EQ(all["services"][0]["members"][1]["worker"], 1);
  EXPECT_EQ(all["nodes"][1]["worker"], 1);
  EXPECT_EQ(all["interfaces"][0]["packets_in"], 7);
  EXPECT_EQ(all["workers"][1]["restarts"], 1);
  EXPECT_EQ(all["workers"][1]["connections"]["open"], 4);
}

TEST(SumStatus, GoesOnWithoutAWorkerThatDoesNotAnswerOrAnswersNonsense) {
  auto silent = worker(1, "");
  silent.page.http_status = 0;
  const json all =
      json::parse(sum_status("p", {worker(0, status(3, "10.0.0.1:80", "running").dump()), silent,
                                   worker(2, "{nonsense")})
                      .body);
  EXPECT_EQ(all["connections"]["open"], 3);
  EXPECT_EQ(all["workers"].size(), 3u);
}

TEST(SumStatus, IsNotDrainedWhileAWorkerThatRunsDoesNotAnswer) {
  auto silent = worker(1, "");
  silent.page.http_status = 0;
  const auto drained = worker(0, status(0, "10.0.0.1:80", "drained").dump());
  json all = json::parse(sum_status("p", {drained, silent}).body);
  EXPECT_EQ(all["state"], "draining") << "it may have connections";
  EXPECT_EQ(all["workers"][1]["answered"], false);
  EXPECT_FALSE(all["workers"][0].contains("answered"));
  silent.state.pid = 0;  // its connections have ended with it
  all = json::parse(sum_status("p", {drained, silent}).body);
  EXPECT_EQ(all["state"], "drained");
}

TEST(SumStatus, SaysWhoItIsAlsoWhileNobodyAnswers) {
  auto silent = worker(0, "");
  silent.page.http_status = 0;
  EXPECT_EQ(json::parse(sum_status("p", {silent}).body)["name"], "p");
}

TEST(SumConnections, KeepTheLimitAndCountAll) {
  const json page = {{"total", 5}, {"connections", {{{"client", "a"}}, {{"client", "b"}}}}};
  const json all =
      json::parse(sum_connections({worker(0, page.dump()), worker(1, page.dump())}, 3).body);
  EXPECT_EQ(all["total"], 10);
  EXPECT_EQ(all["shown"], 3);
  EXPECT_EQ(all["connections"][2]["worker"], 1);
}

TEST(SumConnections, SayWhatIsWrongWithTheQuestion) {
  auto refusing = worker(0, "state is a state of TCP\n");
  refusing.page.http_status = 400;
  const Page page = sum_connections({refusing, refusing}, 3);
  EXPECT_EQ(page.http_status, 400);
  EXPECT_EQ(page.body, "state is a state of TCP\n");
}

TEST(SumHealth, IsGoodOnlyWhileEveryWorkerServesAndNobodyDrains) {
  std::vector<WorkerPage> workers = {worker(0, ""), worker(1, "")};
  EXPECT_EQ(sum_health(workers, false).http_status, 200);
  EXPECT_EQ(sum_health(workers, true).http_status, 503);
  workers[1].state.ready = false;
  EXPECT_EQ(sum_health(workers, false).http_status, 503);
  EXPECT_NE(sum_health(workers, false).body.find(" 1"), std::string::npos);
}

}  // namespace
}  // namespace sanproxy::admin
