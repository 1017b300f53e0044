#include "lwproto/cluster/session.h"

#include <gtest/gtest.h>

#include "tests/lwproto/base/sanitized.h"
#include "tests/lwproto/cluster/fake_etcd.h"

namespace sanproxy::cluster {
namespace {

using testing::FakeEtcd;

const std::string kRoot = "/sanproxy/c/";
const std::string kWeb = "config/service/10.77.0.10:80";
const std::string kOwn = "node/proxy/p1";

struct SessionTest : ::testing::Test {
  FakeEtcd etcd;
  std::map<std::string, Entry> known;
  std::mutex mutex;
  std::vector<std::string> logged;

  SessionOptions options() {
    SessionOptions out;
    out.etcd.endpoints = {etcd.url()};
    out.etcd.timeout_ms = 20'000;  // however slow the machine is: nothing here is silent
    out.cluster = "c";
    out.ttl_s = 3;
    out.instance = "us";
    return out;
  }
  std::unique_ptr<Session> start(const SessionOptions& options) {
    return std::make_unique<Session>(options, [this](LogLevel, const std::string& text) {
      const std::lock_guard<std::mutex> lock(mutex);
      logged.push_back(text);
    });
  }
  void apply(Session& session) {
    for (Change& change : session.take()) {
      if (change.entry) {
        known.insert_or_assign(change.key, std::move(*change.entry));
      } else {
        known.erase(change.key);
      }
    }
  }
  // Until the taker of the session knows what `condition` asks for.
  template <typename Condition>
  bool until(Session& session, Condition condition) {
    return etcd.wait_for([&] {
      apply(session);
      return condition();
    });
  }
  bool is_logged(const std::string& part) {
    const std::lock_guard<std::mutex> lock(mutex);
    for (const std::string& line : logged) {
      if (line.find(part) != std::string::npos) return true;
    }
    return false;
  }
  std::string balance() {
    const auto it = known.find(kWeb);
    return it == known.end() ? "none" : std::get<ServicePolicy>(it->second).balance;
  }
  void set_up_schema() { etcd.put(kRoot + "schema", schema_value()); }
};

TEST_F(SessionTest, WhatIsAnnouncedIsUnderTheLeaseAndGoesWithTheSession) {
  auto session = start(options());
  session->announce(kOwn, {{"instance", "us"}});
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + kOwn).has_value(); }));
  EXPECT_EQ(etcd.lease_count(), 1u);
  session->withdraw(kOwn);
  EXPECT_TRUE(etcd.wait_for([&] { return !etcd.get(kRoot + kOwn); }));
  session->announce(kOwn, {{"instance", "us"}});
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + kOwn).has_value(); }));
  session.reset();
  EXPECT_FALSE(etcd.get(kRoot + kOwn)) << "an orderly end gives the lease back";
  EXPECT_EQ(etcd.lease_count(), 0u);
}

TEST_F(SessionTest, WhatIsThereAndWhatChangesIsHandedOver) {
  set_up_schema();
  etcd.put(kRoot + kWeb, R"({"balance":"weighted"})");
  auto session = start(options());
  EXPECT_TRUE(until(*session, [&] { return balance() == "weighted"; }));
  etcd.put(kRoot + kWeb, R"({"balance":"round-robin"})");
  EXPECT_TRUE(until(*session, [&] { return balance() == "round-robin"; }));
  etcd.erase(kRoot + kWeb);
  EXPECT_TRUE(until(*session, [&] { return balance() == "none"; }));
}

TEST_F(SessionTest, AMemberWhoseWatchesAreNotAnsweredIsLeft) {
  set_up_schema();
  FakeEtcd deaf;
  deaf.put(kRoot + "schema", schema_value());
  deaf.hold_watches(true);
  SessionOptions both = options();
  both.etcd.endpoints = {deaf.url(), etcd.url()};
  both.etcd.timeout_ms = 500;
  auto session = start(both);
  EXPECT_TRUE(etcd.wait_for([&] { return session->status().endpoint == etcd.url(); }));
  EXPECT_TRUE(is_logged("the watch is not answered"));
  etcd.put(kRoot + kWeb, R"({"balance":"weighted"})");
  EXPECT_TRUE(until(*session, [&] { return balance() == "weighted"; }));
}

TEST_F(SessionTest, ALeaseThatRanOutIsReplacedAndEverythingIsRegisteredAgain) {
  auto session = start(options());
  session->announce(kOwn, {{"instance", "us"}});
  session->announce("node/appnode/p1/0", {{"name", "a"}});
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.all().size() == 2; }));
  etcd.expire_leases();
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.all().size() == 2 && etcd.lease_count() == 1; }));
}

TEST_F(SessionTest, AWrongValueIsRefusedWithItsKeyAndTheLastGoodOneStays) {
  set_up_schema();
  etcd.put(kRoot + kWeb, R"({"balance":"weighted"})");
  auto session = start(options());
  EXPECT_TRUE(until(*session, [&] { return balance() == "weighted"; }));
  etcd.put(kRoot + kWeb, R"({"balance":"wrong"})");
  EXPECT_TRUE(until(*session, [&] { return session->status().state.refused_values == 1; }));
  EXPECT_EQ(balance(), "weighted");
  EXPECT_TRUE(is_logged(kRoot + kWeb));
  EXPECT_EQ(session->status().refused.count(kWeb), 1u);
}

TEST_F(SessionTest, WithoutEtcdTheLastStateStaysAndItIsCaughtUpWithAfterwards) {
  set_up_schema();
  etcd.put(kRoot + kWeb, R"({"balance":"weighted"})");
  auto session = start(options());
  session->announce(kOwn, {{"instance", "us"}});
  EXPECT_TRUE(until(*session, [&] { return balance() == "weighted" && known.contains(kOwn); }));
  etcd.stop();
  EXPECT_TRUE(until(*session, [&] { return !session->status().connected; }));
  EXPECT_EQ(balance(), "weighted");
  EXPECT_FALSE(session->status().error.empty());
  etcd.put(kRoot + kWeb, R"({"balance":"round-robin"})");
  etcd.expire_leases();
  session->announce("node/appnode/p1/3", {{"name", "late"}});
  etcd.start();
  EXPECT_TRUE(until(*session, [&] { return balance() == "round-robin"; }));
  EXPECT_TRUE(etcd.wait_for([&] {
    return etcd.get(kRoot + kOwn).has_value() && etcd.get(kRoot + "node/appnode/p1/3").has_value();
  }));
  EXPECT_TRUE(known.contains(kOwn)) << "a proxy that had no chance to come back is not gone";
}

TEST_F(SessionTest, AWatchThatWasCompactedIsMadeGoodByAList) {
  set_up_schema();
  auto session = start(options());
  EXPECT_TRUE(etcd.wait_for([&] { return session->status().connected; }));
  etcd.stop();
  EXPECT_TRUE(etcd.wait_for([&] { return !session->status().connected; }));
  etcd.put(kRoot + kWeb, R"({"balance":"weighted"})");
  etcd.compact();
  etcd.start();
  EXPECT_TRUE(until(*session, [&] { return balance() == "weighted"; }));
}

TEST_F(SessionTest, AWipedStoreKeepsTheConfigurationAndGetsTheRegistrationsBack) {
  set_up_schema();
  etcd.put(kRoot + kWeb, R"({"balance":"weighted"})");
  auto session = start(options());
  session->announce(kOwn, {{"instance", "us"}});
  EXPECT_TRUE(until(*session, [&] { return balance() == "weighted" && known.contains(kOwn); }));
  etcd.stop();
  etcd.wipe();
  etcd.start();
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + kOwn).has_value(); }));
  apply(*session);
  EXPECT_EQ(balance(), "weighted");
}

TEST_F(SessionTest, WhatSomebodyDeletesOrOverwritesIsWrittenAgain) {
  auto session = start(options());
  const nlohmann::json value = {{"instance", "us"}, {"state", "running"}};
  session->announce(kOwn, value);
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + kOwn) == value.dump(); }));
  etcd.erase(kRoot + kOwn);
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + kOwn) == value.dump(); }));
  etcd.put(kRoot + kOwn, "nonsense");
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + kOwn) == value.dump(); }));
}

TEST_F(SessionTest, AnotherProcessOfTheSameNameIsComplainedAboutAndNotFought) {
  auto session = start(options());
  session->announce(kOwn, {{"instance", "us"}});
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + kOwn).has_value(); }));
  etcd.put(kRoot + kOwn, R"({"instance":"them"})");
  EXPECT_TRUE(etcd.wait_for([&] { return session->status().duplicates == 1; }));
  EXPECT_TRUE(is_logged("another process registers under our name"));
  EXPECT_EQ(etcd.get(kRoot + kOwn), R"({"instance":"them"})");
}

TEST_F(SessionTest, WhatAnotherProcessHasTakenIsNotTouchedWhateverBecomesOfOurs) {
  const std::string later = "node/appnode/p1/7";
  const std::string theirs = R"({"instance":"them"})";
  auto session = start(options());
  session->announce(kOwn, {{"instance", "us"}});
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + kOwn).has_value(); }));
  etcd.put(kRoot + kOwn, theirs);
  EXPECT_TRUE(etcd.wait_for([&] { return session->status().duplicates == 1; }));
  session->announce(kOwn, {{"instance", "us"}, {"state", "draining"}});
  session->announce(later, {{"instance", "us"}});  // written after what comes before it
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + later).has_value(); }));
  EXPECT_EQ(etcd.get(kRoot + kOwn), theirs);
  session->withdraw(kOwn);
  session->withdraw(later);
  EXPECT_TRUE(etcd.wait_for([&] { return !etcd.get(kRoot + later); }));
  EXPECT_EQ(etcd.get(kRoot + kOwn), theirs);
  session->announce(kOwn, {{"instance", "us"}});
  etcd.erase(kRoot + kOwn);
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + kOwn) == R"({"instance":"us"})"; }))
      << "they have gone";
}

TEST_F(SessionTest, ARecordUnderAnothersLeaseIsNotFoughtEither) {
  const std::string key = "node/appnode/p1/0";
  auto session = start(options());
  session->announce(key, {{"name", "ours"}});
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + key).has_value(); }));
  etcd.put(kRoot + key, R"({"name":"theirs"})", /*lease=*/99);
  EXPECT_TRUE(etcd.wait_for([&] { return session->status().duplicates == 1; }));
  EXPECT_EQ(etcd.get(kRoot + key), R"({"name":"theirs"})");
}

TEST_F(SessionTest, ARecordWhoseWritingWasNeverAnsweredIsTakenBack) {
  const std::string key = "node/appnode/p1/0";
  auto session = start(options());
  session->announce(kOwn, {{"instance", "us"}});
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + kOwn).has_value(); }));
  etcd.lose_answers("/v3/kv/txn", true);
  session->announce(key, {{"name", "a"}, {"instance", "us"}});
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + key).has_value(); }));
  session->withdraw(key);
  EXPECT_TRUE(etcd.wait_for([&] { return !session->status().connected; })) << "it gave up";
  etcd.lose_answers("/v3/kv/txn", false);
  EXPECT_TRUE(etcd.wait_for([&] { return !etcd.get(kRoot + key); }));
  EXPECT_TRUE(etcd.get(kRoot + kOwn));
}

TEST_F(SessionTest, OneOfSeveralMembersIsEnough) {
  FakeEtcd away;
  away.stop();
  SessionOptions two = options();
  two.etcd.endpoints = {away.url(), etcd.url()};
  auto session = start(two);
  session->announce(kOwn, {{"instance", "us"}});
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + kOwn).has_value(); }));
}

TEST_F(SessionTest, AStoreWithMoreKeysThanAreLookedAtIsJoinedAllTheSame) {
  set_up_schema();
  SessionOptions few = options();
  few.etcd.bounds.entries_max = 16;
  for (int i = 0; i < 20; ++i) {
    etcd.put(kRoot + "config/service/10.0.0.1:" + std::to_string(100 + i), "{}");
    etcd.put(kRoot + "history/" + std::to_string(100 + i), std::string(100'000, 'x'));
  }
  auto session = start(few);
  EXPECT_TRUE(until(*session, [&] { return session->status().connected && known.size() == 16; }));
  EXPECT_EQ(session->status().state.refused_unseen, 1u);
  EXPECT_EQ(session->status().state.refused_schema, 0u) << "the schema is behind them, and known";
  EXPECT_TRUE(is_logged("more keys than are looked at"));
  EXPECT_TRUE(is_logged("max_entries is reached"));
}

TEST_F(SessionTest, ValuesThatAreTooLongHurtNoOthers) {
  set_up_schema();
  SessionOptions small = options();
  small.etcd.bounds.value_bytes_max = 1'024;
  small.etcd.bounds.answer_bytes_max = 100'000;
  etcd.put(kRoot + kWeb, R"({"balance":"weighted"})");
  etcd.put(kRoot + "config/service/10.0.0.1:1", std::string(50'000, ' '));
  etcd.put(kRoot + "node/proxy/" + std::string(2'000, 'x'), "{}");
  auto session = start(small);
  EXPECT_TRUE(until(*session, [&] { return balance() == "weighted"; }));
  etcd.put(kRoot + "config/service/10.0.0.1:2", std::string(50'000, ' '));
  etcd.put(kRoot + kWeb, "{}");
  EXPECT_TRUE(until(*session, [&] { return balance().empty(); }));
  EXPECT_EQ(session->status().state.refused_length, 3u);
  EXPECT_TRUE(is_logged("10.0.0.1:2 is refused: the value is longer than max_value_bytes"));
  EXPECT_TRUE(is_logged("the key is longer than 1024 bytes"));
}

TEST_F(SessionTest, AFloodOfWrongValuesIsCountedAndLoggedInPart) {
  for (std::size_t i = 0; i < 3 * kReportsMax; ++i) {
    etcd.put(kRoot + "node/proxy/p" + std::to_string(i), "no JSON");
  }
  auto session = start(options());
  EXPECT_TRUE(
      etcd.wait_for([&] { return session->status().state.refused_values == 3 * kReportsMax; }));
  const std::lock_guard<std::mutex> lock(mutex);
  EXPECT_LE(logged.size(), kReportsMax + 5);
  EXPECT_GE(logged.size(), kReportsMax);
}

TEST_F(SessionTest, MoreThanAnnouncedMaxIsRefusedAndCounted) {
  SessionOptions few = options();
  few.announced_max = 2;
  auto session = start(few);
  for (int i = 0; i < 3; ++i) session->announce("node/appnode/p1/" + std::to_string(i), {});
  EXPECT_EQ(session->status().announcements_refused, 1u);
}

nlohmann::json application_of(const std::string& name, std::size_t services,
                              std::size_t service_bytes = 0) {
  nlohmann::json list = nlohmann::json::array();
  for (std::size_t i = 0; i < services; ++i) {
    std::string service = "10.0.0.1:" + std::to_string(i);
    list.push_back(service +
                   std::string(std::max(service_bytes, service.size()) - service.size(), ' '));
  }
  return {{"name", name}, {"services", list}};
}

TEST_F(SessionTest, ManyLargeRecordsAreWrittenInTransactionsThatEtcdTakes) {
  // The sanitizers take longer over a full transaction than a call may: there all fit one.
  constexpr std::size_t kRecords = test::kSanitizedShare == 1 ? 100 : 8;
  auto session = start(options());
  for (std::size_t i = 0; i < kRecords; ++i) {
    session->announce("node/appnode/p1/" + std::to_string(i), application_of("a", 250, 240));
  }
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.all().size() == kRecords; }));
  EXPECT_TRUE(etcd.wait_for([&] { return session->status().connected; }));
  EXPECT_EQ(session->status().records_refused, 0u);
}

TEST_F(SessionTest, ARecordThatIsTooLongIsNamedAndCountedAndTheOthersGoOn) {
  auto session = start(options());
  session->announce("node/appnode/p1/1", application_of("a", 2));
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.all().size() == 1; }));
  const auto before = etcd.get(kRoot + "node/appnode/p1/1");
  session->announce("node/appnode/p1/1", application_of("a", 1'000, 250));
  session->announce("node/appnode/p1/2", application_of("b", 1'025));
  session->announce("node/appnode/p1/3", application_of("c", 1));
  session->announce(kOwn, {{"instance", "us"}});
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.all().size() == 3; }));
  EXPECT_EQ(etcd.get(kRoot + "node/appnode/p1/1"), before) << "the last good one stays";
  EXPECT_FALSE(etcd.get(kRoot + "node/appnode/p1/2"));
  EXPECT_TRUE(etcd.wait_for([&] { return session->status().records_refused == 2; }));
  EXPECT_TRUE(is_logged("/1 cannot be registered"));
  EXPECT_TRUE(is_logged("more than max_value_bytes"));
  EXPECT_TRUE(is_logged("/2 cannot be registered: services: more than 1024 entries"));
  EXPECT_TRUE(etcd.wait_for([&] { return session->status().refused.size() == 2; }));
  session->announce("node/appnode/p1/2", application_of("b", 3));
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.all().size() == 4; })) << "shorter, it is written";
}

TEST_F(SessionTest, AnEtcdThatTakesLessGetsLessAndLosesOnlyWhatIsTooLargeForIt) {
  etcd.set_request_bytes_max(4'000);
  auto session = start(options());
  for (int i = 0; i < 40; ++i) {
    session->announce("node/appnode/p1/" + std::to_string(i), application_of("a", 20));
  }
  session->announce("node/appnode/p1/40", application_of("large", 100, 100));
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.all().size() == 40; }));
  EXPECT_FALSE(etcd.get(kRoot + "node/appnode/p1/40"));
  EXPECT_TRUE(etcd.wait_for([&] { return session->status().records_refused == 1; }));
  EXPECT_TRUE(is_logged("p1/40 cannot be registered"));
  EXPECT_TRUE(etcd.wait_for([&] { return session->status().connected; }));
  EXPECT_EQ(session->status().losses, 0u);
  etcd.stop();
  EXPECT_TRUE(etcd.wait_for([&] { return !session->status().connected; }));
  etcd.set_request_bytes_max(1'000'000);
  etcd.start();
  EXPECT_TRUE(etcd.wait_for([&] { return etcd.get(kRoot + "node/appnode/p1/40").has_value(); }));
  EXPECT_TRUE(etcd.wait_for([&] { return session->status().refused.empty(); }));
}

TEST_F(SessionTest, WhoOnlyLooksTakesNoLeaseAndSeesItsPartAlone) {
  set_up_schema();
  etcd.put(kRoot + kWeb, "{}");
  etcd.put(kRoot + "node/proxy/p9", "{}");
  SessionOptions reader = options();
  reader.registers = false;
  reader.watched = "node/proxy/";
  auto session = start(reader);
  EXPECT_TRUE(until(*session, [&] { return known.contains("node/proxy/p9"); }));
  EXPECT_EQ(known.size(), 1u);
  EXPECT_EQ(etcd.lease_count(), 0u);
}

TEST_F(SessionTest, ASessionThatNeverFoundEtcdEndsAtOnce) {
  etcd.stop();
  auto session = start(options());
  session->announce(kOwn, {});
  session.reset();
  EXPECT_TRUE(etcd.all().empty());
}

}  // namespace
}  // namespace sanproxy::cluster
