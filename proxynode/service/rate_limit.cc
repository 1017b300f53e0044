#include "proxynode/service/rate_limit.h"

#include <algorithm>

namespace sanproxy::service {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;

}  // namespace

bool PeerLimiter::may_try(const std::string& name, std::uint64_t now_ns) {
  Peer& peer = peer_of(name, now_ns);
  return peer.penalty_until_ns <= now_ns && peer.joins.take(limits_.joins, now_ns);
}

void PeerLimiter::on_failure(const std::string& name, std::uint64_t now_ns) {
  Peer& peer = peer_of(name, now_ns);
  if (peer.failures.take(limits_.failures, now_ns)) return;
  peer.penalty_until_ns = now_ns + limits_.penalty_ms * kNsPerMs;
}

PeerLimiter::Peer& PeerLimiter::peer_of(const std::string& name, std::uint64_t now_ns) {
  auto it = peers_.find(name);
  if (it == peers_.end()) {
    if (peers_.size() >= limits_.peers_max) make_room(now_ns);
    it = peers_.emplace(name, Peer{}).first;
  }
  it->second.seen_ns = now_ns;
  return it->second;
}

void PeerLimiter::make_room(std::uint64_t now_ns) {
  std::erase_if(peers_, [now_ns](const auto& entry) {
    const Peer& peer = entry.second;
    return peer.joins.full(now_ns) && peer.failures.full(now_ns) && peer.penalty_until_ns <= now_ns;
  });
  if (peers_.size() < limits_.peers_max) return;
  peers_.erase(std::min_element(peers_.begin(), peers_.end(), [](const auto& a, const auto& b) {
    return a.second.seen_ns < b.second.seen_ns;
  }));
}

}  // namespace sanproxy::service
