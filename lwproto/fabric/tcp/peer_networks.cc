#include "lwproto/fabric/tcp/peer_networks.h"

#include <algorithm>

namespace sanproxy::fabric::tcp {

bool PeerNetwork::holds_any() const {
  return std::any_of(counts_.begin(), counts_.end(), [](std::uint32_t n) { return n != 0; });
}

std::uint64_t PeerNetwork::next_begin_ns(std::uint32_t per_s) const {
  const std::uint64_t spare_ns = (kSecondsAtOnce * per_s - 1) * (1'000'000'000 / per_s);
  return all_back_ns_ > spare_ns ? all_back_ns_ - spare_ns : 0;
}

void PeerNetwork::begin(std::uint32_t per_s, std::uint64_t now_ns) {
  all_back_ns_ = std::max(all_back_ns_, now_ns) + 1'000'000'000 / per_s;
}

PeerNetwork& PeerNetworks::of(const IpAddress& peer) {
  const IpAddress network = network_of(peer);
  if (const auto found = networks_.find(network); found != networks_.end()) return found->second;
  if (networks_.size() >= forget_at_) {
    std::erase_if(networks_, [](const auto& entry) { return !entry.second.holds_any(); });
    // Not again for each newcomer when nearly all of them hold something.
    forget_at_ = std::max(kRemembered, 2 * networks_.size());
  }
  return networks_[network];
}

std::uint32_t PeerNetworks::most(HandshakeStage stage) const {
  std::uint32_t most = 0;
  for (const auto& [network, held] : networks_) most = std::max(most, held.count(stage));
  return most;
}

}  // namespace sanproxy::fabric::tcp
