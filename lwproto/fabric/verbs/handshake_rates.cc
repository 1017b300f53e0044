#include "lwproto/fabric/verbs/handshake_rates.h"

#include <algorithm>

namespace sanproxy::fabric::verbs {
namespace {

constexpr std::uint64_t kNsPerS = 1'000'000'000;

}  // namespace

bool HandshakeRates::take(const IpAddress& host, std::uint32_t queue_pairs, std::uint32_t per_s,
                          std::uint64_t now_ns) {
  if (per_s == 0) return true;
  const auto known = all_back_ns_.find(host);
  const bool rested = known == all_back_ns_.end() || known->second <= now_ns;
  const std::uint64_t from_ns = rested ? now_ns : known->second;
  const std::uint64_t back_ns = from_ns + queue_pairs * (kNsPerS / per_s);
  if (!rested && back_ns > now_ns + kSecondsAtOnce * kNsPerS) return false;
  if (known != all_back_ns_.end()) {
    known->second = back_ns;
    return true;
  }
  if (all_back_ns_.size() >= forget_at_) {
    std::erase_if(all_back_ns_, [&](const auto& one) { return one.second <= now_ns; });
    // So many at a time are hosts that somebody made up.
    if (all_back_ns_.size() > kRememberedMax / 2) all_back_ns_.clear();
    // Not again for each newcomer when nearly all of them are remembered for a reason.
    forget_at_ = std::max(kRemembered, 2 * all_back_ns_.size());
  }
  all_back_ns_.emplace(host, back_ns);
  return true;
}

}  // namespace sanproxy::fabric::verbs
