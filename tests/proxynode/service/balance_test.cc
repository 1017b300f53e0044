// Who gets the next connection.
#include <map>

#include "tests/proxynode/service/service_fixture.h"

namespace sanproxy::service::testing {
namespace {

std::map<int, int> shares(const std::vector<int>& picks) {
  std::map<int, int> out;
  for (const int node : picks) ++out[node];
  return out;
}

TEST(Balance, RoundRobinGoesRoundInOrder) {
  OneService one(Balance::kRoundRobin, {1, 1, 1});
  EXPECT_EQ(one.picks(7), (std::vector<int>{0, 1, 2, 0, 1, 2, 0}));
}

TEST(Balance, RoundRobinDoesNotLookAtWeights) {
  OneService one(Balance::kRoundRobin, {100, 1});
  EXPECT_EQ(shares(one.picks(100)), (std::map<int, int>{{0, 50}, {1, 50}}));
}

TEST(Balance, RoundRobinPassesOverWhoIsNotEligible) {
  OneService one(Balance::kRoundRobin, {1, 1, 1});
  const auto not_one = [](NodeId node) { return node != 1; };
  for (int i = 0; i < 10; ++i) EXPECT_NE(one.pick(not_one), 1);
  EXPECT_EQ(one.pick([](NodeId) { return false; }), -1);
}

TEST(Balance, WeightedSharesAreExactOverEachSumOfWeights) {
  for (const auto& weights :
       {std::vector<std::uint32_t>{5, 1, 1}, {1, 2, 3, 4}, {7}, {1, 1}, {65535, 1}, {10, 20, 30}}) {
    OneService one(Balance::kWeighted, weights);
    int sum = 0;
    for (const std::uint32_t weight : weights) sum += static_cast<int>(weight);
    for (int round = 0; round < 2; ++round) {
      const auto got = shares(one.picks(sum));
      for (std::size_t node = 0; node < weights.size(); ++node) {
        EXPECT_EQ(got.at(static_cast<int>(node)), static_cast<int>(weights[node]));
      }
    }
  }
}

TEST(Balance, WeightedIsSmooth) {
  OneService one(Balance::kWeighted, {5, 1, 1});
  EXPECT_EQ(one.picks(7), (std::vector<int>{0, 0, 1, 0, 2, 0, 0}));
}

TEST(Balance, NewWeightsAreNotHeldUpByWhatTheOldOnesLeft) {
  OneService one(Balance::kWeighted, {1000, 1});
  (void)one.picks(500);
  Policy policy{.address = kWeb, .balance = Balance::kWeighted};
  policy.weights = {{"", 1}};  // of all: they have no names
  one.table.override_policy(kWeb, policy);
  const auto got = shares(one.picks(20));
  ASSERT_EQ(got.size(), 2u);
  EXPECT_NEAR(got.at(0), 10, 2);
}

TEST(Balance, ANewcomerIsNotHeldUpByWhatOneWhoHasLeftOwed) {
  OneService one(Balance::kWeighted, {1000, 1});
  (void)one.picks(500);
  ASSERT_FALSE(*one.table.leave(one.service->id(), 0));
  ASSERT_TRUE(one.table.join(request(2)).ok());
  const auto got = shares(one.picks(20));
  ASSERT_EQ(got.size(), 2u);
  EXPECT_NEAR(got.at(2), 10, 2);
}

TEST(Balance, LeastConnectionsGoesByConnectionsForWeight) {
  OneService one(Balance::kLeastConnections, {1, 3});
  const auto got = shares(one.picks(400));
  EXPECT_EQ(got.at(0), 100);
  EXPECT_EQ(got.at(1), 300);
}

TEST(Balance, LeastConnectionsRefillsWhereConnectionsHaveEnded) {
  OneService one(Balance::kLeastConnections, {1, 1, 1});
  (void)one.picks(30);
  for (int i = 0; i < 5; ++i) one.unbind(2);
  EXPECT_EQ(one.picks(5), (std::vector<int>{2, 2, 2, 2, 2}));
}

TEST(Balance, LeastConnectionsSharesAmongTheIdle) {
  OneService one(Balance::kLeastConnections, {1, 1, 1, 1});
  std::map<int, int> got;
  for (int i = 0; i < 400; ++i) {
    const int node = one.pick();
    ++got[node];
    one.unbind(static_cast<NodeId>(node));
  }
  for (int node = 0; node < 4; ++node) EXPECT_EQ(got[node], 100);
}

class EveryBalance : public ::testing::TestWithParam<Balance> {};

TEST_P(EveryBalance, NeverPicksBeyondConnectionsMax) {
  OneService one(GetParam(), {1, 2, 3}, 2);
  EXPECT_EQ(shares(one.picks(6)), (std::map<int, int>{{0, 2}, {1, 2}, {2, 2}}));
  EXPECT_EQ(one.pick(), -1);
  one.unbind(1);
  EXPECT_EQ(one.pick(), 1);
  EXPECT_EQ(one.pick(), -1);
}

TEST_P(EveryBalance, CountsConnectionsAndPicks) {
  OneService one(GetParam(), {1, 1});
  (void)one.picks(10);
  one.unbind(0);
  EXPECT_EQ(one.service->find(0)->connections, 4u);
  EXPECT_EQ(one.service->find(0)->picked, 5u);
  EXPECT_EQ(one.service->find(1)->connections, 5u);
  one.service->unbind(7, 1);
  EXPECT_EQ(one.service->find(7), nullptr);
}

TEST_P(EveryBalance, AFailedPickChangesNobodysTurn) {
  OneService one(GetParam(), {2, 1});
  for (int i = 0; i < 8; ++i) EXPECT_EQ(one.pick([](NodeId) { return false; }), -1);
  EXPECT_EQ(shares(one.picks(2)).size(), 2u) << "both still get their turn";
}

TEST_P(EveryBalance, AMemberThatCanTakeItIsAlwaysFound) {
  OneService one(GetParam(), {1, 1, 1, 1, 1});
  for (int i = 0; i < 20; ++i) {
    for (NodeId only = 0; only < 5; ++only) {
      EXPECT_EQ(one.pick([only](NodeId node) { return node == only; }), static_cast<int>(only));
    }
  }
}

TEST_P(EveryBalance, WhoLeavesIsPickedNoMoreAndTheRestGoOn) {
  OneService one(GetParam(), {1, 1, 1});
  (void)one.picks(4);
  ASSERT_FALSE(*one.table.leave(one.service->id(), 1));
  const auto got = shares(one.picks(10));
  EXPECT_EQ(got.count(1), 0u);
  EXPECT_EQ(got.size(), 2u);
}

TEST_P(EveryBalance, ConnectionsFromBeforeALeaveDoNotEndForTheNewMembership) {
  OneService one(GetParam(), {1, 1}, 1);
  EXPECT_EQ(shares(one.picks(2)), (std::map<int, int>{{0, 1}, {1, 1}}));
  const std::uint32_t before = one.service->find(0)->membership;
  ASSERT_FALSE(*one.table.leave(one.service->id(), 0));
  ASSERT_TRUE(one.table.join(request(0, kWeb, 1, 1)).ok());
  EXPECT_EQ(one.pick(), 0);
  one.service->unbind(0, before);
  EXPECT_EQ(one.pick(), -1) << "its new connection is still open";
  one.unbind(0);
  EXPECT_EQ(one.pick(), 0);
}

INSTANTIATE_TEST_SUITE_P(Balance, EveryBalance,
                         ::testing::Values(Balance::kRoundRobin, Balance::kWeighted,
                                           Balance::kLeastConnections),
                         [](const auto& param) {
                           std::string name = balance_name(param.param);
                           std::erase(name, '-');
                           return name;
                         });

}  // namespace
}  // namespace sanproxy::service::testing
