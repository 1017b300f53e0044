// Services come with their first member, go with their last, and policy says who may join.
#include <algorithm>

#include "tests/proxynode/service/service_fixture.h"

namespace sanproxy::service::testing {
namespace {

TEST(ServiceTable, TheFirstMemberCreatesTheServiceAndTheOthersFindIt) {
  ServiceTable table({}, 10);
  const auto first = table.join(request(1));
  ASSERT_TRUE(first.ok());
  EXPECT_TRUE(first->created);
  EXPECT_NE(first->service->id(), 0u);
  EXPECT_EQ(first->service->address(), kWeb);
  const auto second = table.join(request(2));
  ASSERT_TRUE(second.ok());
  EXPECT_FALSE(second->created);
  EXPECT_EQ(second->service, first->service);
  EXPECT_EQ(table.size(), 1u);
  EXPECT_EQ(first->service->members().size(), 2u);
}

TEST(ServiceTable, EachAddressAndPortIsAServiceOfItsOwn) {
  ServiceTable table({}, 10);
  std::vector<ServiceId> ids;
  for (const char* text : {"10.77.0.10:80", "10.77.0.10:81", "10.77.0.11:80", "[fd77::10]:80",
                           "0.0.0.0:80", "[::]:80"}) {
    const auto joined = table.join(request(1, address(text)));
    ASSERT_TRUE(joined.ok()) << text;
    EXPECT_TRUE(joined->created) << text;
    ids.push_back(joined->service->id());
  }
  std::vector<ServiceId> sorted = ids;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(std::unique(sorted.begin(), sorted.end()), sorted.end());
  std::vector<ServiceId> of_node = table.services_of(1);
  std::sort(of_node.begin(), of_node.end());
  EXPECT_EQ(of_node, sorted);
  EXPECT_TRUE(table.services_of(2).empty());
}

TEST(ServiceTable, TheSameNodeMayNotJoinTwice) {
  ServiceTable table({}, 10);
  ASSERT_TRUE(table.join(request(1)).ok());
  const auto again = table.join(request(1));
  EXPECT_EQ(again.status().code(), Code::kExists);
  EXPECT_EQ(table.find(1)->members().size(), 1u);
}

TEST(ServiceTable, OnlyTheLastLeaveEndsAService) {
  ServiceTable table({}, 10);
  const ServiceId id = table.join(request(1))->service->id();
  ASSERT_TRUE(table.join(request(2)).ok());
  auto last = table.leave(id, 1);
  ASSERT_TRUE(last.ok());
  EXPECT_FALSE(*last);
  last = table.leave(id, 2);
  ASSERT_TRUE(last.ok());
  EXPECT_TRUE(*last);
  EXPECT_NE(table.find(id), nullptr) << "the caller erases it, after its listener";
  table.erase(id);
  EXPECT_EQ(table.find(id), nullptr);
  EXPECT_EQ(table.size(), 0u);
}

TEST(ServiceTable, LeavingWhatOneHasNotJoinedIsNotFound) {
  ServiceTable table({}, 10);
  const ServiceId id = table.join(request(1))->service->id();
  EXPECT_EQ(table.leave(id, 2).status().code(), Code::kNotFound);
  EXPECT_EQ(table.leave(id + 1, 1).status().code(), Code::kNotFound);
  EXPECT_EQ(table.leave(0, 1).status().code(), Code::kNotFound);
  EXPECT_EQ(table.find(id)->members().size(), 1u);
}

TEST(ServiceTable, ErasingWhatIsNotThereChangesNothing) {
  ServiceTable table({}, 10);
  ASSERT_TRUE(table.join(request(1)).ok());
  table.erase(99);
  EXPECT_EQ(table.size(), 1u);
}

TEST(ServiceTable, IdsAreNeverUsedAgain) {
  ServiceTable table({}, 10);
  ServiceId highest = 0;
  for (int round = 0; round < 100; ++round) {
    const auto joined = table.join(request(1));
    ASSERT_TRUE(joined.ok());
    const ServiceId id = joined->service->id();
    EXPECT_GT(id, highest);
    highest = id;
    ASSERT_TRUE(*table.leave(id, 1));
    table.erase(id);
    EXPECT_EQ(table.find(id), nullptr);
  }
}

TEST(ServiceTable, BeyondServicesMaxNewAddressesAreRefusedAndOldOnesStillTaken) {
  ServiceTable table({}, 2);
  ASSERT_TRUE(table.join(request(1, address("10.0.0.1:1"))).ok());
  const ServiceId second = table.join(request(1, address("10.0.0.1:2")))->service->id();
  EXPECT_EQ(table.join(request(1, address("10.0.0.1:3"))).status().code(), Code::kExhausted);
  EXPECT_EQ(table.size(), 2u);
  EXPECT_TRUE(table.join(request(2, address("10.0.0.1:2"))).ok());
  EXPECT_FALSE(*table.leave(second, 1));
  EXPECT_TRUE(*table.leave(second, 2));
  table.erase(second);
  EXPECT_TRUE(table.join(request(1, address("10.0.0.1:3"))).ok());
}

TEST(ServiceTable, AnAllowListNamesWhoMayJoinItsAddressAndNoOther) {
  ServiceTable table({Policy{.address = kWeb, .allow = AllowList{uid(33), uid(0)}}}, 10);
  JoinRequest ask = request(1);
  for (const std::int64_t other :
       {std::int64_t{1000}, std::int64_t{-1}, std::int64_t{0x1'0000'0021}}) {
    ask.who.uid = other;
    EXPECT_EQ(table.join(ask).status().code(), Code::kPermission) << other;
  }
  EXPECT_EQ(table.size(), 0u) << "a refused join leaves nothing behind";
  ask.who.uid = 33;
  EXPECT_TRUE(table.join(ask).ok());
  ask.node = 2;
  ask.who.uid = 0;
  EXPECT_TRUE(table.join(ask).ok());
  ask.node = 3;
  ask.who.uid = 1000;
  EXPECT_EQ(table.join(ask).status().code(), Code::kPermission) << "also when it exists already";
  ask.address = address("10.77.0.10:81");
  EXPECT_TRUE(table.join(ask).ok());
}

TEST(ServiceTable, AnEmptyAllowListLetsNobodyIn) {
  ServiceTable table({Policy{.address = kWeb, .allow = AllowList{}}}, 10);
  EXPECT_EQ(table.join(request(1)).status().code(), Code::kPermission);
}

TEST(ServiceTable, BindingIsThePolicysOrElseImmediateIfAnyMemberAskedForIt) {
  const auto immediate_with = [](Binding binding, bool first, bool second) {
    ServiceTable table({Policy{.address = kWeb, .binding = binding}}, 10);
    JoinRequest ask = request(1);
    ask.immediate = first;
    const Service& service = *table.join(ask)->service;
    ask.node = 2;
    ask.immediate = second;
    EXPECT_TRUE(table.join(ask).ok());
    return service.immediate();
  };
  EXPECT_TRUE(immediate_with(Binding::kAsJoined, true, false));
  EXPECT_TRUE(immediate_with(Binding::kAsJoined, false, true));
  EXPECT_FALSE(immediate_with(Binding::kAsJoined, false, false));
  EXPECT_TRUE(immediate_with(Binding::kImmediate, false, false));
  EXPECT_FALSE(immediate_with(Binding::kDelayed, true, true));
}

TEST(ServiceTable, BindingIsDelayedAgainWhenTheLastMemberThatAskedForImmediateHasLeft) {
  ServiceTable table({}, 10);
  JoinRequest ask = request(1);
  ask.immediate = true;
  Service& service = *table.join(ask)->service;
  ASSERT_TRUE(table.join(request(2)).ok());
  EXPECT_TRUE(service.immediate());
  ASSERT_TRUE(table.leave(service.id(), 1).ok());
  EXPECT_FALSE(service.immediate());
}

TEST(ServiceTable, AServiceWithoutAPolicyIsRoundRobinForEveryone) {
  ServiceTable table(
      {Policy{
          .address = address("10.0.0.9:9"), .balance = Balance::kWeighted, .allow = AllowList{}}},
      10);
  const auto joined = table.join(request(1));
  ASSERT_TRUE(joined.ok());
  EXPECT_EQ(joined->service->policy().balance, Balance::kRoundRobin);
  EXPECT_FALSE(joined->service->immediate());
}

TEST(ServiceTable, ForEachVisitsEveryServiceOnce) {
  ServiceTable table({}, 10);
  for (std::uint16_t port = 1; port <= 5; ++port) {
    ASSERT_TRUE(table.join(request(1, {kWeb.ip, port})).ok());
  }
  std::vector<std::uint16_t> ports;
  table.for_each([&](Service& service) { ports.push_back(service.address().port); });
  std::sort(ports.begin(), ports.end());
  EXPECT_EQ(ports, (std::vector<std::uint16_t>{1, 2, 3, 4, 5}));
}

TEST(ServiceTable, APolicyMayChangeWhileTheServiceIsThere) {
  ServiceTable table({Policy{.address = kWeb, .balance = Balance::kWeighted}}, 10);
  JoinRequest ask = request(1, kWeb, 5);
  ask.name = "web:12";
  Service& service = *table.join(ask)->service;
  Policy policy{.address = kWeb, .balance = Balance::kLeastConnections};
  policy.weights = {{"web", 9}};
  table.override_policy(kWeb, policy);
  EXPECT_EQ(service.policy().balance, Balance::kLeastConnections);
  EXPECT_EQ(service.find(1)->weight, 9u) << "by its name without the pid";
  policy.weights["web:12"] = 7;
  table.override_policy(kWeb, policy);
  EXPECT_EQ(service.find(1)->weight, 7u) << "the whole name stands before that";
  table.override_policy(kWeb, std::nullopt);
  EXPECT_EQ(service.policy().balance, Balance::kWeighted) << "as configured";
  EXPECT_EQ(service.find(1)->weight, 5u) << "as joined";
}

TEST(ServiceTable, APolicyThatCameWhileRunningHoldsForLaterServices) {
  ServiceTable table({}, 10);
  table.override_policy(kWeb, Policy{.address = kWeb, .balance = Balance::kLeastConnections});
  EXPECT_EQ(table.join(request(1))->service->policy().balance, Balance::kLeastConnections);
  EXPECT_EQ(table.join(request(1, address("10.77.0.11:80")))->service->policy().balance,
            Balance::kRoundRobin);
}

}  // namespace
}  // namespace sanproxy::service::testing
