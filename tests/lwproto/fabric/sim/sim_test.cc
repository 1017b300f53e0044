// The simulated fabric itself: it replays, it breaks links, and it notices what users do wrong.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include "tests/lwproto/fabric/channel_pair.h"
#include "tests/lwproto/fabric/peer_plan.h"
#include "tests/lwproto/fabric/seed.h"
#include "tests/lwproto/fabric/sim/endpoint.h"
#include "tests/lwproto/fabric/sim/sim_fabric.h"

namespace sanproxy::fabric::sim {
namespace {

using test::Side;
using test::Talker;
using test::TalkerPlan;

// A conversation in a world of its own.
class Simulated {
 public:
  Simulated(std::uint64_t seed, Delivery delivery, const Weather& weather, std::uint32_t transfers)
      : plan_(test::endless_plan(seed, false)), other_(test::endless_plan(seed, true)) {
    plan_.target = other_.target = plan_.peer_target = other_.peer_target = transfers;
    const auto network = make_network(std::make_shared<World>(seed, weather));
    SimOptions options;
    options.link.delivery = delivery;
    options.link.spare_buffers = plan_.depth;
    server_ = make_sim_fabric(network, options).value();
    client_ = make_sim_fabric(network, options).value();
    auto listener = server_->listen("sim:here", test::options_of(plan_)).value();
    Side server;
    Side client;
    EXPECT_TRUE(test::connect_sides(*server_, *listener, *client_, test::options_of(plan_), server,
                                    client));
    a_.emplace(plan_);
    b_.emplace(other_);
    a_->start(std::move(server.endpoint));
    b_->start(std::move(client.endpoint));
  }
  void until(const std::function<bool()>& done) {
    EXPECT_TRUE(test::eventually({server_.get(), client_.get()},
                                 [&] {
                                   bool finished = false;
                                   for (bool moved = true; moved && !finished;) {
                                     moved = a_->round();
                                     moved = b_->round() || moved;
                                     story_ += a_->state() + "|" + b_->state() + "\n";
                                     finished =
                                         done() || !a_->wrong().empty() || !b_->wrong().empty();
                                   }
                                   return finished;
                                 }))
        << "a: " << a_->state() << "\nb: " << b_->state();
    EXPECT_EQ(a_->wrong(), "");
    EXPECT_EQ(b_->wrong(), "");
  }
  Talker& a() { return *a_; }
  Talker& b() { return *b_; }
  const std::string& story() const { return story_; }

 private:
  TalkerPlan plan_, other_;
  std::unique_ptr<Fabric> server_, client_;
  std::optional<Talker> a_, b_;
  std::string story_;  // every state after every round
};

std::string story_of(std::uint64_t seed) {
  Simulated run(seed, Delivery::kLoans, Weather::rough(seed), 100);
  run.until([&] { return run.a().done() && run.b().done(); });
  return run.story();
}

TEST(Simulation, IsTheSameRunForTheSameSeedAndAnotherForAnother) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const std::string story = story_of(seed);
    EXPECT_TRUE(story == story_of(seed)) << seed;
    EXPECT_FALSE(story == story_of(seed + 1)) << seed;
  }
}

TEST(Simulation, LinksThatBreakAnywhereGiveEverythingBackOnBothSides) {
  unsigned broken = 0;
  for (const std::uint64_t seed : test::seeds(300)) {
    SCOPED_TRACE(test::replay_text(seed));
    Weather weather = Weather::rough(seed);
    weather.break_per_million = 5000;
    Simulated run(seed, seed % 2 == 0 ? Delivery::kLoans : Delivery::kReceiveBuffers, weather, 200);
    run.until([&] {
      return (run.a().done() && run.b().done()) ||
             (run.a().disconnected() && run.b().disconnected());
    });
    if (run.a().disconnected()) {
      ++broken;
      EXPECT_EQ(run.a().disconnected()->code(), Code::kDisconnected);
      EXPECT_EQ(run.b().disconnected()->code(), Code::kDisconnected);
      EXPECT_EQ(run.a().cookies_out() + run.b().cookies_out(), 0u);
    }
    if (testing::Test::HasFailure()) return;
  }
  if (test::number_of_environment("SANPROXY_SEED")) return;
  EXPECT_GT(broken, 50u);
}

// What the suites leave to chance does happen: completions that overtake others, delays, refusals.
TEST(Simulation, RoughWeatherBringsCompletionsOutOfOrder) {
  unsigned overtaken = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    for (const Delivery delivery : {Delivery::kLoans, Delivery::kReceiveBuffers}) {
      LinkOptions options;
      options.delivery = delivery;
      Weather weather = Weather::rough(seed);
      weather.refuse_per_mille = 0;
      auto world = std::make_shared<World>(seed, weather);
      const WorldLife life(world);
      auto pair = make_pair(options, {}, world);
      auto region = buffer::MemoryRegion::create("sim-test", 4096).value();
      Side a, b;
      a.endpoint = std::move(pair.a);
      b.endpoint = std::move(pair.b);
      b.release_at_once = true;
      const GatherRef ref{a.endpoint->attach(region).value(), 100, 0};
      for (std::uint64_t cookie = 0; cookie < 10; ++cookie) {
        ASSERT_TRUE(a.queue(test::bytes_of("x"), {&ref, 1}, cookie).ok());
      }
      a.endpoint->flush();
      while (a.sent.size() < 10) {
        b.poll();
        b.endpoint->flush();
        a.poll();
      }
      const auto later = [](const auto& x, const auto& y) { return x.first < y.first; };
      overtaken += std::is_sorted(a.sent.begin(), a.sent.end(), later) ? 0 : 1;
    }
  }
  EXPECT_GT(overtaken, 10u) << "of 40";
}

class Calm : public testing::Test {
 protected:
  void make(Delivery delivery) {
    LinkOptions options;
    options.delivery = delivery;
    auto pair = make_pair(options, {});
    region_ = buffer::MemoryRegion::create("sim-test", 4096).value();
    a_.endpoint = std::move(pair.a);
    b_.endpoint = std::move(pair.b);
    key_ = a_.endpoint->attach(region_).value();
  }
  buffer::MemoryRegion region_;
  Side a_, b_;
  RegionKey key_ = 0;
};

TEST_F(Calm, NothingArrivesBeforeFlushAndEverythingWithIt) {
  for (const Delivery delivery : {Delivery::kLoans, Delivery::kReceiveBuffers}) {
    make(delivery);
    b_.release_at_once = true;
    const GatherRef ref{key_, 100, 0};
    ASSERT_TRUE(a_.queue(test::bytes_of("x"), {&ref, 1}, 7).ok());
    EXPECT_EQ(b_.poll(), 0u);
    a_.endpoint->flush();
    EXPECT_EQ(b_.poll(), 1u);
    if (delivery == Delivery::kLoans) {
      EXPECT_EQ(a_.poll(), 0u) << "a returned loan travels with flush(), too";
    }
    b_.endpoint->flush();
    EXPECT_EQ(a_.poll(), 1u);
    a_ = Side();
    b_ = Side();
  }
}

TEST_F(Calm, MemoryThatChangesWhileItIsTheFabricsFailsTheTest) {
  make(Delivery::kLoans);
  const GatherRef ref{key_, 100, 0};
  ASSERT_TRUE(a_.send({}, {&ref, 1}, 7).ok());
  ASSERT_EQ(b_.poll(), 1u);
  region_.data()[50] = std::byte{1};
  b_.release_all();
  EXPECT_NONFATAL_FAILURE(b_.endpoint->flush(), "referenced memory has changed");
}

TEST_F(Calm, ALoanReleasedTwiceOrNeverFailsTheTest) {
  make(Delivery::kReceiveBuffers);
  ASSERT_TRUE(a_.send(test::bytes_of("x")).ok());
  ASSERT_TRUE(a_.send(test::bytes_of("y")).ok());
  ASSERT_EQ(b_.poll(), 2u);
  const Loan loan = b_.received[0].loan;
  b_.release(b_.received[0]);
  EXPECT_NONFATAL_FAILURE(b_.endpoint->release(loan), "released twice");
  EXPECT_NONFATAL_FAILURE(b_.endpoint.reset(), "loans outside");
}

}  // namespace
}  // namespace sanproxy::fabric::sim
