#include "lwproto/cluster/state.h"

#include <gtest/gtest.h>

namespace sanproxy::cluster {
namespace {

constexpr std::uint64_t kGraceNs = 1000;
const std::string kRoot = "/sanproxy/c/";
const std::string kWeb = "config/service/10.77.0.10:80";

struct ClusterStateTest : ::testing::Test {
  std::vector<std::string> reports;
  static constexpr Bounds kBounds = {.entries_max = 10, .total_bytes_max = 2'000};
  ClusterState state{kRoot, kBounds, kGraceNs,
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

TEST_F(ClusterStateTest, TheGraceTimeBeginsAnewWhenEtcdWasLostAgain) {
  store["node/proxy/p1"] = "{}";
  (void)snapshot();
  store.erase("node/proxy/p1");
  (void)snapshot(100);
  state.pause();
  (void)snapshot(100 + 10 * kGraceNs);
  state.expire(100 + 11 * kGraceNs - 1, changes);
  EXPECT_EQ(take(), Names{});
  state.expire(100 + 11 * kGraceNs, changes);
  EXPECT_EQ(take(), Names{"-node/proxy/p1"});
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

TEST_F(ClusterStateTest, MoreThanTotalBytesMaxOfValuesAreRefusedWithTheirKey) {
  const std::string long_value = R"({"name":")" + std::string(200, 'x') + "\"}";
  for (int i = 0; i < 10; ++i) {
    (void)event("node/appnode/p1/" + std::to_string(i), long_value);
  }
  EXPECT_LT(state.entries().size(), 10u);
  EXPECT_EQ(state.entries().size() + state.counters().refused_full, 10u);
  EXPECT_NE(reports.back().find("node/appnode/p1/9 is refused: max_total_bytes"), std::string::npos)
      << reports.back();
  (void)gone("node/appnode/p1/0");
  EXPECT_EQ(event("node/appnode/p1/9", long_value).size(), 1u) << "there is room again";
  EXPECT_EQ(event("node/appnode/p1/9", "{}").size(), 1u) << "less is always taken";
}

TEST_F(ClusterStateTest, ValuesAndKeysThatAreTooLongAreRefusedWithTheirKey) {
  (void)snapshot();
  (void)event(kWeb, "{}");
  state.apply_event({false, {kRoot + kWeb, "", 2, 0, Fault::kValueTooLong}}, changes);
  EXPECT_EQ(take(), Names{}) << "the last good value stays";
  EXPECT_NE(reports.back().find(kWeb + " is refused (the last good value stays)"),
            std::string::npos);
  EXPECT_NE(state.refused().at(kWeb).find("max_value_bytes"), std::string::npos);
  // What a key that is too long begins like is another key.
  state.apply_event({false, {kRoot + kWeb, "", 3, 0, Fault::kKeyTooLong}}, changes);
  state.apply_event({true, {kRoot + kWeb, "", 4, 0, Fault::kKeyTooLong}}, changes);
  EXPECT_EQ(take(), Names{});
  EXPECT_EQ(state.entries().count(kWeb), 1u);
  EXPECT_EQ(state.counters().refused_length, 2u);
}

TEST_F(ClusterStateTest, ASnapshotThatWasCutShortTakesNothingAway) {
  store[kWeb] = "{}";
  store["node/proxy/p1"] = "{}";
  (void)snapshot();
  std::vector<KeyValue> values = {{kRoot + "schema", schema_value(), 1, 0}};
  state.apply_snapshot(values, 100, changes, /*truncated=*/true);
  state.expire(100 + 10 * kGraceNs, changes);
  EXPECT_EQ(take(), Names{});
  EXPECT_EQ(state.counters().refused_unseen, 1u);
  EXPECT_NE(reports.back().find("more keys than are looked at"), std::string::npos);
  EXPECT_EQ(event("node/proxy/p2", "{}"), Names{"+node/proxy/p2"});
}

TEST_F(ClusterStateTest, NoMoreRefusedKeysThanTheBoundAreRemembered) {
  for (std::size_t i = 0; i < kRefusedMax + 50; ++i) {
    (void)event("node/proxy/p" + std::to_string(i), "no JSON");
  }
  EXPECT_EQ(state.refused().size(), kRefusedMax);
  EXPECT_EQ(state.counters().refused_values, kRefusedMax + 50);
  (void)event("node/proxy/p0", "{}");
  EXPECT_EQ(state.refused().size(), kRefusedMax - 1);
}

TEST_F(ClusterStateTest, WhatIsReportedIsOnePrintableLine) {
  (void)event("node/proxy/a\nb\x1b[2J", "no JSON");
  (void)event("drain/proxy/p1", "{}");
  (void)event("node/proxy/" + std::string(900, 'x'), R"({"state": "\n\u0007"})");
  for (const std::string& line : reports) {
    EXPECT_EQ(line, printable(line, 10'000));
    EXPECT_LT(line.size(), 3 * kShownBytesMax);
  }
  EXPECT_NE(reports[0].find("a\\x0ab\\x1b[2J"), std::string::npos) << reports[0];
}

TEST_F(ClusterStateTest, KeysOfAnotherClusterAreNotOurs) {
  state.apply_event({false, {"/sanproxy/d/" + kWeb, "{}", 1, 0}}, changes);
  EXPECT_EQ(take(), Names{});
}

}  // namespace
}  // namespace sanproxy::cluster
