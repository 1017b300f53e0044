#include "netnode/steer/maglev.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>

namespace sanproxy::steer {
namespace {

std::vector<MaglevBackend> backends(int count, std::uint32_t weight = 1) {
  std::vector<MaglevBackend> out;
  for (int i = 0; i < count; ++i) {
    out.push_back(
        {backend_hash("proxy-" + std::to_string(i)), weight, static_cast<std::uint16_t>(i)});
  }
  return out;
}

std::map<std::uint16_t, std::uint32_t> shares(const MaglevTable& table) {
  std::map<std::uint16_t, std::uint32_t> out;
  for (const std::uint16_t value : table.entries()) ++out[value];
  return out;
}

void expect_shares(const std::vector<MaglevBackend>& of, std::uint32_t entries) {
  MaglevTable table;
  table.build(of, entries);
  double total = 0;
  for (const MaglevBackend& one : of) total += one.weight;
  auto found = shares(table);
  for (const MaglevBackend& one : of) {
    const double exact = entries * (one.weight / total);
    EXPECT_NEAR(found[one.value], exact, exact * 0.01 + 1) << "backend " << one.value;
  }
}

TEST(Maglev, GivesEveryBackendItsShareWithinOnePercentOfItsWeight) {
  for (const int count : {1, 2, 3, 10, 100}) expect_shares(backends(count), kMaglevEntriesDefault);
  auto mixed = backends(100);
  for (std::size_t i = 0; i < mixed.size(); ++i) {
    mixed[i].weight = static_cast<std::uint32_t>(1 + i * 7 % 13);
  }
  expect_shares(mixed, kMaglevEntriesDefault);
  mixed[0].weight = 1000;
  expect_shares(mixed, 655'373);
}

TEST(Maglev, MovesAtMostTwoPercentBeyondTheUnavoidableWhenOneOfAHundredGoes) {
  MaglevTable before;
  before.build(backends(100), kMaglevEntriesDefault);
  for (std::size_t gone = 0; gone < 100; gone += 9) {
    auto rest = backends(100);
    rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(gone));
    MaglevTable after;
    after.build(rest, kMaglevEntriesDefault);
    std::size_t moved = 0;
    for (std::size_t i = 0; i < before.entries().size(); ++i) {
      moved += before.entries()[i] != gone && before.entries()[i] != after.entries()[i] ? 1 : 0;
    }
    EXPECT_LE(static_cast<double>(moved) / kMaglevEntriesDefault, 0.02) << "without " << gone;
  }
}

TEST(Maglev, DoesNotDependOnTheOrderOfTheBackends) {
  auto some = backends(20);
  MaglevTable a;
  a.build(some, 5003);
  std::reverse(some.begin(), some.end());
  MaglevTable b;
  b.build(some, 5003);
  EXPECT_TRUE(std::equal(a.entries().begin(), a.entries().end(), b.entries().begin()));
}

TEST(Maglev, WeightZeroGetsNothingAndNobodyMeansNone) {
  auto some = backends(3);
  some[1].weight = 0;
  MaglevTable table;
  EXPECT_EQ(table.lookup(42), MaglevTable::kNone);
  table.build(some, 5003);
  EXPECT_EQ(shares(table).count(1), 0U);
  EXPECT_EQ(shares(table).size(), 2U);
  for (auto& one : some) one.weight = 0;
  table.build(some, 5003);
  EXPECT_TRUE(table.empty());
  EXPECT_EQ(table.lookup(42), MaglevTable::kNone);
}

TEST(Maglev, LooksUpTheWholeTableAndNothingBehindIt) {
  MaglevTable table;
  table.build(backends(2), 3);
  EXPECT_EQ(table.lookup(0), table.entries()[0]);
  EXPECT_EQ(table.lookup(~std::uint64_t{0}), table.entries()[2]);
  EXPECT_TRUE(is_prime(kMaglevEntriesDefault));
  EXPECT_TRUE(is_prime(kMaglevEntriesMax));
  EXPECT_FALSE(is_prime(65'536));
  EXPECT_FALSE(is_prime(1));
}

}  // namespace
}  // namespace sanproxy::steer
