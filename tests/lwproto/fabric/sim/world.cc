#include "tests/lwproto/fabric/sim/world.h"

#include <algorithm>

namespace sanproxy::fabric::sim {

Weather Weather::rough(std::uint64_t seed) {
  std::mt19937_64 random(seed ^ 0x77656174686572);
  const auto below = [&](unsigned bound) { return static_cast<unsigned>(random() % bound); };
  // Half of the time each thing does not happen at all: what fails is easier to read then.
  const auto sometimes = [&](unsigned bound) { return below(2) == 0 ? 0 : below(bound); };
  Weather weather;
  weather.delay_ns_max = 1 + below(3) * below(100'000);
  weather.refuse_per_mille = sometimes(300);
  weather.early_per_mille = sometimes(500);
  weather.partial_per_mille = sometimes(500);
  weather.transient_per_mille = sometimes(500);
  weather.cut_per_mille = sometimes(500);
  return weather;
}

std::uint64_t World::after(std::uint64_t delay_ns, std::function<void()> what,
                           std::uint64_t not_before_ns) {
  const std::uint64_t when = std::max(clock_.now_ns() + delay_ns, not_before_ns);
  if (weather_.delay_ns_max == 0) {
    what();
  } else {
    events_.emplace(std::pair(when, next_++), std::move(what));
  }
  return when;
}

bool World::step() {
  if (events_.empty()) return false;
  auto event = events_.extract(events_.begin());
  clock_.advance_ns(event.key().first - clock_.now_ns());
  event.mapped()();
  return true;
}

}  // namespace sanproxy::fabric::sim
