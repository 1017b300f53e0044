#include "netnode/steer/fragments.h"

#include <algorithm>
#include <bit>

namespace sanproxy::steer {

Fragments::Datagram Fragments::datagram(const net::ParsedPacket& parsed,
                                        const net::FragmentView& view) {
  net::FlowKey key;
  const std::size_t bytes = parsed.family == Family::kIpv4 ? 4 : 16;
  std::copy_n(parsed.src, bytes, key.src.begin());
  std::copy_n(parsed.dst, bytes, key.dst.begin());
  key.src_port = static_cast<std::uint16_t>(view.id);
  key.dst_port = static_cast<std::uint16_t>(view.id >> 16);
  key.protocol = parsed.protocol;
  key.family = parsed.family;
  return key;
}

Fragments::Fragments(const FragmentOptions& options, std::uint64_t seed)
    : options_(options), seed_(seed) {
  known_.resize(std::bit_ceil(std::max<std::size_t>(options.datagrams_max, kWays)));
  held_.reserve(options.held_max);
}

void Fragments::learn(const Datagram& datagram, const net::FlowKey& flow, std::uint64_t now_ms) {
  Known* set = &known_[datagram.hash(seed_) & (known_.size() - 1) & ~(kWays - 1)];
  Known* place = set;
  for (Known* at = set; at != set + kWays; ++at) {
    if (at->until_ms != 0 && at->datagram == datagram) {
      place = at;
      break;
    }
    if (at->until_ms < place->until_ms) place = at;
  }
  if (place->until_ms > now_ms && !(place->datagram == datagram)) ++displaced_;
  *place = {datagram, flow, now_ms + options_.timeout_ms};
}

const net::FlowKey* Fragments::find(const Datagram& datagram, std::uint64_t now_ms) const {
  const Known* set = &known_[datagram.hash(seed_) & (known_.size() - 1) & ~(kWays - 1)];
  for (const Known* at = set; at != set + kWays; ++at) {
    if (at->until_ms > now_ms && at->datagram == datagram) return &at->flow;
  }
  return nullptr;
}

bool Fragments::hold(const Datagram& datagram, Token token, std::uint64_t now_ms) {
  if (held_.size() >= options_.held_max) return false;
  held_.push_back({datagram, token, now_ms + options_.timeout_ms});
  return true;
}

bool Fragments::release(const Datagram& datagram, Token& token) {
  const auto at = std::find_if(held_.begin(), held_.end(),
                               [&](const Held& held) { return held.datagram == datagram; });
  if (at == held_.end()) return false;
  token = at->token;
  held_.erase(at);
  return true;
}

bool Fragments::expire(std::uint64_t now_ms, Token& token) {
  if (held_.empty() || held_.front().until_ms > now_ms) return false;
  token = held_.front().token;
  held_.erase(held_.begin());
  return true;
}

}  // namespace sanproxy::steer
