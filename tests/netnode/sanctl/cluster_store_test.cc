// What sanctl reads and changes of a cluster, against an etcd in process.
#include "netnode/sanctl/cluster_store.h"

#include <gtest/gtest.h>

#include "tests/lwproto/cluster/fake_etcd.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;

const std::string kRoot = "/sanproxy/default/";
const std::string kProxyKey = "config/proxy/pa";

class ClusterStoreTest : public testing::Test {
 protected:
  ClusterStoreTest() { options_.etcd.endpoints = {etcd_.url()}; }

  std::string get(const std::string& key) { return etcd_.get(kRoot + key).value_or("(nothing)"); }
  void put(const std::string& key, const std::string& value) { etcd_.put(kRoot + key, value); }
  std::int64_t set(const std::string& key, const std::string& value) {
    ClusterStore store(options_);
    const Configuration before = store.configuration();
    Keys after = before.keys;
    after[key] = value;
    return store.set(before, after, "");
  }
  // The words of the failure; "" if there is none.
  template <typename Work>
  std::string failure_of(const Work& work) {
    try {
      ClusterStore store(options_);
      work(store);
      return "";
    } catch (const Failure& failure) {
      return failure.what();
    }
  }

  cluster::testing::FakeEtcd etcd_;
  Options options_;
};

TEST_F(ClusterStoreTest, VersionsAreCountedAndKept) {
  EXPECT_EQ(set(kProxyKey, R"({"weight":1})"), 1);
  EXPECT_EQ(set(kProxyKey, R"({"weight":2})"), 2);
  EXPECT_EQ(get(kProxyKey), R"({"weight":2})");
  EXPECT_EQ(get("schema"), cluster::schema_value());
  ClusterStore store(options_);
  EXPECT_EQ(store.version(1).config["proxies"]["pa"]["weight"], 1);
  EXPECT_EQ(store.history().front().number, 2);
}

TEST_F(ClusterStoreTest, WithoutASchemaThatNodesKnowWhatOperatorsWroteIsRefused) {
  const auto refused = [&] {
    std::map<std::string, std::string> out;
    (void)ClusterStore(options_).entries(&out);
    return out;
  };
  put("node/proxy/pa", "{}");
  EXPECT_TRUE(refused().empty()) << "a cluster that nobody has configured";
  put(kProxyKey, "{}");
  EXPECT_EQ(refused().count("schema"), 1u);
  put("schema", R"({"version":2})");
  EXPECT_EQ(refused().count("schema"), 1u);
  put("schema", cluster::schema_value());
  EXPECT_TRUE(refused().empty());
}

TEST_F(ClusterStoreTest, ADamagedHeadOverwritesNoVersion) {
  set(kProxyKey, R"({"weight":1})");
  const std::string first = get("history/000000000001");
  for (const char* head : {"garbage", R"({"version":0})", R"({"version":-5})"}) {
    put("head", head);
    const auto number = ClusterStore(options_).configuration().version + 1;
    EXPECT_EQ(set(kProxyKey, json{{"weight", number}}.dump()), number) << head;
    EXPECT_EQ(get("history/000000000001"), first) << head;
  }
  EXPECT_EQ(ClusterStore(options_).history().size(), 4u);
}

TEST_F(ClusterStoreTest, AHeadBeyondAllVersionsIsRefused) {
  put("head", R"({"version": 9223372036854775807})");
  EXPECT_NE(failure_of([&](ClusterStore&) { set(kProxyKey, "{}"); }).find("damaged by hand"),
            std::string::npos);
  EXPECT_EQ(etcd_.requests("/v3/kv/txn"), 0u);
}

TEST_F(ClusterStoreTest, AVersionThatSomebodyElseKeptMeanwhileIsNotOverwritten) {
  ClusterStore store(options_);
  const Configuration before = store.configuration();
  put("history/000000000001", "another's");
  EXPECT_THROW((void)store.set(before, {{kProxyKey, "{}"}}, ""), Failure);
  EXPECT_EQ(get("history/000000000001"), "another's");
}

TEST_F(ClusterStoreTest, ADamagedVersionIsNamedAndTheOthersAreShown) {
  set(kProxyKey, R"({"weight":1})");
  for (const char* damaged : {"garbage", "5", R"({"version":2,"config":5})"}) {
    put("history/000000000002", damaged);
    EXPECT_NE(failure_of([](ClusterStore& store) { (void)store.version(2); }).find("damaged"),
              std::string::npos)
        << damaged;
    EXPECT_EQ(ClusterStore(options_).history().size(), 2u);
  }
}

TEST_F(ClusterStoreTest, WhatNoNodeTakesIsLeftOutOfTheHistory) {
  put("config/service/1.1.1.1:80", "garbage");
  set(kProxyKey, R"({"weight":1})");
  EXPECT_EQ(get("config/service/1.1.1.1:80"), "garbage") << "nobody asked to change it";
  EXPECT_EQ(keys_of(ClusterStore(options_).version(1).config),
            (Keys{{kProxyKey, R"({"weight":1})"}}));
}

TEST_F(ClusterStoreTest, ADrainUnderASchemaThatNoNodeTakesFails) {
  const auto drain = [](ClusterStore& store) { store.drain(cluster::NodeKind::kProxy, "pb"); };
  put("schema", R"({"version": 2})");
  EXPECT_NE(failure_of(drain).find("schema version 2"), std::string::npos);
  EXPECT_EQ(get("drain/proxy/pb"), "(nothing)");
  put("schema", "garbage");
  EXPECT_EQ(failure_of(drain), "");
  EXPECT_EQ(get("schema"), cluster::schema_value());
  EXPECT_NE(get("drain/proxy/pb"), "(nothing)");
}

TEST_F(ClusterStoreTest, AnotherKeyThatBeginsWithSchemaIsNone) {
  put("schema-of-others", "{}");
  ClusterStore(options_).drain(cluster::NodeKind::kProxy, "pb");
  EXPECT_EQ(get("schema"), cluster::schema_value());
}

TEST_F(ClusterStoreTest, ANodeIsUndrainedByItsWholeName) {
  ClusterStore store(options_);
  store.drain(cluster::NodeKind::kProxy, "pa");
  EXPECT_FALSE(store.undrain(cluster::NodeKind::kProxy, "p"));
  EXPECT_NE(get("drain/proxy/pa"), "(nothing)");
  EXPECT_TRUE(store.undrain(cluster::NodeKind::kProxy, "pa"));
  EXPECT_EQ(get("drain/proxy/pa"), "(nothing)");
}

TEST_F(ClusterStoreTest, ANameThatNoNodeCanHaveIsNotDrained) {
  for (const std::string& name : {std::string(), std::string(65, 'x')}) {
    EXPECT_NE(failure_of([&](ClusterStore& store) {
                store.drain(cluster::NodeKind::kProxy, name);
              }).find("1 to 64 bytes"),
              std::string::npos);
  }
  EXPECT_TRUE(etcd_.all().empty());
}

TEST_F(ClusterStoreTest, AChangeThatOneRequestDoesNotHoldSaysWhatItCarries) {
  etcd_.set_request_bytes_max(1'000);
  const std::string long_one = json{{"allow", {"key:" + std::string(60, 'a')}}}.dump();
  Keys all;
  for (int i = 10; i < 30; ++i) all["config/service/10.0.0.1:" + std::to_string(i)] = long_one;
  const std::string why =
      failure_of([&](ClusterStore& store) { (void)store.set(store.configuration(), all, ""); });
  EXPECT_NE(why.find("--max-request-bytes"), std::string::npos) << why;
}

}  // namespace
}  // namespace sanproxy::sanctl
