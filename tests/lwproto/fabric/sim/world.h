// World: the clock, the chance and everything that is under way in one simulation.
//
// Role: what a simulated fabric does later, it does here: as an event with a virtual time. Two
//   runs with the same seed, weather and calls are the same run.
// Owner: a test, shared by its fabrics. Thread: one.
// Invariants:
//   1. Events run in the order of their time, and of their making where that is equal.
//   2. Time moves only in step(). Nothing runs inside after(), except in calm weather, where
//      everything happens at once.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <utility>

#include "lwproto/base/clock.h"

namespace sanproxy::fabric::sim {

// What the contract (fabric.h) allows and real fabrics do now and then. Calm: none of it.
struct Weather {
  std::uint64_t delay_ns_max = 0;    // of each transfer, completion, answer and piece of news
  unsigned refuse_per_mille = 0;     // begin_send() answers kAgain for some time
  unsigned early_per_mille = 0;      // a committed transfer leaves before flush()
  unsigned partial_per_mille = 0;    // poll() returns fewer than there are; replenish() posts fewer
  unsigned transient_per_mille = 0;  // a transfer into a receive buffer is not a loan
  unsigned cut_per_mille = 0;        // an endpoint destroyed too early takes its transfers along
  unsigned break_per_million = 0;    // of the transfers: the link breaks there

  static Weather rough(std::uint64_t seed);  // a different mixture for each seed; no breaks
};

class World {
 public:
  explicit World(std::uint64_t seed, const Weather& weather = {})
      : weather_(weather), random_(seed) {}
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  const Weather& weather() const { return weather_; }
  const Clock& clock() const { return clock_; }
  std::uint64_t below(std::uint64_t bound) { return bound == 0 ? 0 : random_() % bound; }
  bool chance(unsigned per_mille) { return per_mille != 0 && below(1000) < per_mille; }
  std::uint64_t delay_ns() { return below(weather_.delay_ns_max + 1); }

  // `what` runs `delay` from now, but not before `not_before_ns`; returns when.
  std::uint64_t after(std::uint64_t delay_ns, std::function<void()> what,
                      std::uint64_t not_before_ns = 0);
  bool step();  // runs the next event; false if there is none
  void clear() { std::exchange(events_, {}).clear(); }
  bool idle() const { return events_.empty(); }

 private:
  Weather weather_;
  std::mt19937_64 random_;
  ManualClock clock_;
  std::uint64_t next_ = 0;
  std::map<std::pair<std::uint64_t, std::uint64_t>, std::function<void()>> events_;
};

// Events under way hold their link and the link its world: somebody has to end the world, behind
// everything that lives in it.
class WorldLife {
 public:
  explicit WorldLife(std::shared_ptr<World> world) : world_(std::move(world)) {}
  ~WorldLife() { world_->clear(); }
  WorldLife(const WorldLife&) = delete;
  WorldLife& operator=(const WorldLife&) = delete;
  const std::shared_ptr<World>& get() const { return world_; }

 private:
  std::shared_ptr<World> world_;
};

}  // namespace sanproxy::fabric::sim
