#include "lwproto/cluster/state.h"

#include <gtest/gtest.h>

namespace sanproxy::cluster {
namespace {

constexpr std::uint64_t kGraceNs = 1000;
const std::string kRoot = "/sanproxy/c/";
const std::string kWeb = "config/service/10.77.0.10:80";

struct ClusterStateTest : ::testing::Test {
  std::vector<std::string> reports;
  ClusterState state{kRoot, 10, kGraceNs,
                     [this](const std::string& text) { reports.push_back(text); }};
  std::vector<Change> changes;
  std::map<std::string, std::string> store = {{"schema", schema_value()}};

  std::vector<std::string> take() {
    std::vector<std::string> out;
    for (const Change& one : changes) out.push_back((one.entry ? "+" : "-") + one.key);
    changes.clear();
    return out;
  }
  std::vector<std::string> snapshot(std::uint64_t now_ns = 0) {
    std::vector<KeyValue> values;
    for (const auto& [key, value] : store) values.push_back({kRoot + key, value, 1, 0});
    state.apply_snapshot(values, now_ns, changes);
    return take();
  }
  std::vector<std::string> event(const std::string& key, const std::string& value) {
    state.apply_event({false, {kRoot + key, value, 1, 0}}, changes);
    return take();
  }
  std::vector<std::string> gone(const std::string& key) {
    state.apply_event({true, {kRoot + key, "", 1, 0}}, changes);
    return take();
  }
  std::string balance() { return std::get<ServicePolicy>(state.entries().at(kWeb)).balance; }
};
using Names = std::vector<std::string>;

TEST_F(ClusterStateTest, OnlyWhatDiffersIsAChange) {
  store[kWeb] = R"({"balance":"weighted"})";
  store["node/proxy/p1"] = "{}";
  EXPECT_EQ(snapshot(), (Names{"+" + kWeb, "+node/proxy/p1"}));
  EXPECT_EQ(snapshot(), Names{});
  store[kWeb] = "{}";
  EXPECT_EQ(snapshot(), Names{"+" + kWeb});
  store.erase(kWeb);
  EXPECT_EQ(snapshot(), Names{"-" + kWeb});
}

TEST_F(ClusterStateTest, AWrongValueLeavesTheLastGoodOneAndIsReportedWithItsKeyOnce) {
  store[kWeb] = R"({"balance":"weighted"})";
  (void)snapshot();
  EXPECT_EQ(event(kWeb, R"({"balance":"wrong"})"), Names{});
  EXPECT_EQ(balance(), "weighted");
  ASSERT_EQ(reports.size(), 1u);
  EXPECT_NE(reports[0].find(kRoot + kWeb), std::string::npos);
  EXPECT_EQ(state.counters().refused_values, 1u);
  EXPECT_EQ(state.refused().count(kWeb), 1u);
  store[kWeb] = R"({"balance":"wrong"})";
  EXPECT_EQ(snapshot(), Names{});
  EXPECT_EQ(reports.size(), 1u) << "the same words are not said again";
  EXPECT_EQ(event(kWeb, R"({"balance":"round-robin"})"), Names{"+" + kWeb});
  EXPECT_TRUE(state.refused().empty());
}

TEST_F(ClusterStateTest, GoingBackToTheGoodValueEndsTheRefusal) {
  store[kWeb] = "{}";
  (void)snapshot();
  (void)event(kWeb, "x");
  EXPECT_EQ(event(kWeb, "{}"), Names{});
  EXPECT_TRUE(state.refused().empty());
}

TEST_F(ClusterStateTest, ANodeThatIsMissingFromASnapshotIsGoneAfterAGraceTimeOnly) {
  store["node/proxy/p1"] = "{}";
  (void)snapshot();
  store.erase("node/proxy/p1");
  EXPECT_EQ(snapshot(100), Names{});
  state.expire(100 + kGraceNs - 1, changes);
  EXPECT_EQ(take(), Names{});
  state.expire(100 + kGraceNs, changes);
  EXPECT_EQ(take(), Names{"-node/proxy/p1"});
}

TEST_F(ClusterStateTest, ANodeThatComesBackInItsGraceTimeWasNeverGone) {
  store["node/proxy/p1"] = "{}";
  (void)snapshot();
  store.erase("node/proxy/p1");
  (void)snapshot(100);
  EXPECT_EQ(event("node/proxy/p1", "{}"), Names{});
  state.expire(100 + 10 * kGraceNs, changes);
  EXPECT_EQ(take(), Names{});
}

TEST_F(ClusterStateTest, ALeaseThatRanOutIsAtOnce) {
  store["node/proxy/p1"] = "{}";
  (void)snapshot();
  EXPECT_EQ(gone("node/proxy/p1"), Names{"-node/proxy/p1"});
}

TEST_F(ClusterStateTest, AStoreThatWasWipedChangesNothingOfTheConfiguration) {
  store[kWeb] = R"({"balance":"weighted"})";
  (void)snapshot();
  store.clear();
  EXPECT_EQ(snapshot(), Names{});
  EXPECT_EQ(balance(), "weighted");
  EXPECT_GT(state.counters().refused_schema, 0u);
}

TEST_F(ClusterStateTest, ASchemaOfALaterVersionChangesNothing) {
  store[kWeb] = R"({"balance":"weighted"})";
  (void)snapshot();
  store["schema"] = R"({"version":2})";
  store[kWeb] = "{}";
  EXPECT_EQ(snapshot(), Names{});
  EXPECT_EQ(gone(kWeb), Names{});
  EXPECT_EQ(balance(), "weighted");
}

TEST_F(ClusterStateTest, MoreThanEntriesMaxAreRefusedAndCounted) {
  for (int i = 0; i < 12; ++i) store["node/proxy/p" + std::to_string(100 + i)] = "{}";
  EXPECT_EQ(snapshot().size(), 10u);
  EXPECT_EQ(state.counters().refused_full, 2u);
  EXPECT_EQ(event("node/proxy/p100", R"({"admin":"1.2.3.4:5"})").size(), 1u)
      << "those that are known may change";
}

TEST_F(ClusterStateTest, KeysOfAnotherClusterAreNotOurs) {
  state.apply_event({false, {"/sanproxy/d/" + kWeb, "{}", 1, 0}}, changes);
  EXPECT_EQ(take(), Names{});
}

}  // namespace
}  // namespace sanproxy::cluster
