// Seeds of tests that leave something to chance: what one has shown, it shows again.
//
// Environment: SANPROXY_SEED=N replays one seed; SANPROXY_SEEDS=N runs so many instead of the few
// that are enough for every day (a share of them under the sanitizers).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "tests/lwproto/base/sanitized.h"

namespace sanproxy::fabric::test {

inline std::optional<std::uint64_t> number_of_environment(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  return std::strtoull(text, nullptr, 10);
}
inline std::uint64_t one_seed() { return number_of_environment("SANPROXY_SEED").value_or(1); }
inline std::vector<std::uint64_t> seeds(unsigned count) {
  if (const auto only = number_of_environment("SANPROXY_SEED")) return {*only};
  const unsigned usual = std::max(count / sanproxy::test::kSanitizedShare, std::min(count, 3u));
  std::vector<std::uint64_t> out(number_of_environment("SANPROXY_SEEDS").value_or(usual));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = i + 1;
  return out;
}
inline std::string replay_text(std::uint64_t seed) {
  return "to see it again: SANPROXY_SEED=" + std::to_string(seed);
}

}  // namespace sanproxy::fabric::test
