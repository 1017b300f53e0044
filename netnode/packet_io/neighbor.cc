#include "netnode/packet_io/neighbor.h"

#include <algorithm>

namespace sanproxy::packet_io {
namespace {

bool is_pending(NeighborState state) {
  return state == NeighborState::kIncomplete || state == NeighborState::kProbing ||
         state == NeighborState::kDoubted;
}

// After how many questions of a second this one has to wait: whatever strangers are asked for,
// who is known and the gateways are asked.
std::uint32_t requests_max(const NeighborEntry& entry) {
  const std::uint32_t reserves = entry.gateway ? 2 : entry.has_mac() ? 1 : 0;
  return kRequestsPerSecondMax + reserves * kRequestsReserve;
}

}  // namespace

Neighbor::Neighbor(NeighborConfig config, const Clock& clock, FrameSink& sink, Counters& counters,
                   std::uint64_t seed)
    : config_(std::move(config)),
      clock_(clock),
      sink_(sink),
      counters_(counters),
      link_local_(link_local_address(config_.mac)),
      table_(seed) {
  locals_.push_back(link_local_);
}

// --- our own addresses

bool Neighbor::add_local(const IpAddress& ip) {
  const auto at = std::lower_bound(locals_.begin(), locals_.end(), ip);
  if (at != locals_.end() && *at == ip) {
    return true;
  }
  if (locals_.size() >= kLocalAddressesMax || is_gateway(ip)) {
    return false;  // who answers for a gateway takes its questions for an impostor's
  }
  locals_.insert(at, ip);
  // Whoever knew the address under another MAC (a proxy that died) learns ours at once.
  if (ip.family == Family::kIpv4) {
    const ArpMessage message{kArpRequest, config_.mac, ip, {}, ip};
    sink_.send_frame(build_arp(message, net::MacAddress::broadcast(), config_.mac), {});
    ++counters_.arp_out;
  } else {
    const NdMessage message{kNdAdvertisement, kNdOverride, ip, all_nodes_address(), ip, true,
                            config_.mac};
    sink_.send_frame(build_nd(message, ipv6_multicast_mac(all_nodes_address()), config_.mac), {});
    ++counters_.nd_out;
  }
  return true;
}

void Neighbor::remove_local(const IpAddress& ip) {
  const auto at = std::lower_bound(locals_.begin(), locals_.end(), ip);
  if (at != locals_.end() && *at == ip && ip != link_local_) {
    locals_.erase(at);
  }
}

bool Neighbor::is_gateway(const IpAddress& ip) const {
  return std::find(config_.gateways.begin(), config_.gateways.end(), ip) != config_.gateways.end();
}

bool Neighbor::is_local(const IpAddress& ip) const {
  return std::binary_search(locals_.begin(), locals_.end(), ip);
}

// --- what others say

void Neighbor::input_arp(std::span<const std::byte> frame) {
  ++counters_.arp_in;
  ArpMessage arp;
  if (!parse_arp(frame, arp) || arp.sender_mac.is_group() || arp.sender_mac.is_zero() ||
      arp.sender_mac == config_.mac || is_local(arp.sender_ip)) {
    return;
  }
  if (arp.operation == kArpReply) {
    NeighborEntry* entry = table_.find(arp.sender_ip);
    if (entry != nullptr && is_pending(entry->state) && arp.target_mac == config_.mac) {
      confirm(*entry, arp.sender_mac);
    } else {
      announce_change(arp.sender_ip, arp.sender_mac, arp.target_mac == config_.mac);
    }
    return;
  }
  if (!is_local(arp.target_ip)) {
    announce_change(arp.sender_ip, arp.sender_mac, false);
    return;
  }
  met(arp.sender_ip, arp.sender_mac);
  const ArpMessage reply{kArpReply, config_.mac, arp.target_ip, arp.sender_mac, arp.sender_ip};
  sink_.send_frame(build_arp(reply, arp.sender_mac, config_.mac), {});
  ++counters_.arp_out;
}

void Neighbor::input_nd(std::span<const std::byte> packet, const net::ParsedPacket& parsed) {
  ++counters_.nd_in;
  NdMessage nd;
  if (!parse_nd(packet, parsed, nd) || is_local(nd.src) ||
      (nd.has_mac && (nd.mac.is_group() || nd.mac.is_zero() || nd.mac == config_.mac))) {
    return;
  }
  if (nd.type == kNdSolicitation) {
    answer_solicitation(nd);
    return;
  }
  if (!is_local(nd.target)) {
    input_advertisement(nd);
  }
}

// RFC 4861 7.2.5.
void Neighbor::input_advertisement(const NdMessage& nd) {
  NeighborEntry* entry = table_.find(nd.target);
  const bool replaces = (nd.flags & kNdOverride) != 0;
  const bool solicited = (nd.flags & kNdSolicited) != 0;
  if (entry != nullptr && is_pending(entry->state) && solicited) {
    if (!nd.has_mac && entry->state == NeighborState::kProbing) {
      confirm(*entry, entry->mac);  // who is asked alone need not say its MAC
    } else if (nd.has_mac && (replaces || !entry->has_mac() || nd.mac == entry->mac)) {
      confirm(*entry, nd.mac);
    }
  } else if (nd.has_mac && replaces) {
    announce_change(nd.target, nd.mac, solicited);
  }
}

void Neighbor::answer_solicitation(const NdMessage& nd) {
  if (!is_local(nd.target)) {
    return;
  }
  NdMessage answer{kNdAdvertisement, kNdOverride, nd.target, nd.src, nd.target, true, config_.mac};
  net::MacAddress to;
  if (nd.src.is_any()) {
    answer.dst = all_nodes_address();  // duplicate address detection: everyone must hear it
    to = ipv6_multicast_mac(answer.dst);
  } else {
    if (!nd.has_mac) {
      // Unicast without the option: we can answer only whom we know.
      const NeighborEntry* known = table_.find(nd.src);
      if (known == nullptr || !known->has_mac()) {
        return;
      }
      to = known->mac;
    } else {
      met(nd.src, nd.mac);
      to = nd.mac;
    }
    answer.flags = kNdOverride | kNdSolicited;
  }
  sink_.send_frame(build_nd(answer, to, config_.mac), {});
  ++counters_.nd_out;
}

void Neighbor::learn(const IpAddress& src, const net::MacAddress& mac) {
  if (mac.is_group() || !is_unicast(src)) {
    return;
  }
  if (may_ask(src)) {
    return;  // ARP or ND knows better
  }
  router_of(src) = mac;
  NeighborEntry* entry = table_.find(src);
  if (entry == nullptr) {
    entry = &insert(src);
    entry->state = NeighborState::kLearned;
  }
  entry->mac = mac;
  entry->used_ns = clock_.now_ns();
}

// Someone asked for us, giving address and MAC: we shall have to answer packets from there.
void Neighbor::met(const IpAddress& ip, const net::MacAddress& mac) {
  if (!is_unicast(ip) || !on_link(ip)) {
    return;
  }
  NeighborEntry* entry = table_.find(ip);
  if (entry == nullptr) {
    confirm(insert(ip), mac);
  } else if (!entry->has_mac()) {
    confirm(*entry, mac);
  } else {
    announce_change(ip, mac, false);
  }
}

// One more answer to a question of ours, which two hosts may have given, raises no doubt.
void Neighbor::announce_change(const IpAddress& ip, const net::MacAddress& mac, bool answer) {
  NeighborEntry* entry = table_.find(ip);
  if (entry == nullptr || entry->state < NeighborState::kReachable) {
    return;
  }
  if (entry->mac == mac) {
    return;  // an announcement is no answer: it confirms nothing
  }
  const std::uint64_t now = clock_.now_ns();
  if (now - entry->confirmed_ns >= kNeighborLockNs) {
    entry->mac = mac;
    ++changes_;
    entry->confirmed_ns = now;
    verify(*entry, NeighborState::kProbing);
  } else if (!answer && entry->state != NeighborState::kDoubted) {
    verify(*entry, NeighborState::kDoubted);
  }
}

// Asks at once, but not more often than each kNeighborProbeNs, however much is announced.
void Neighbor::verify(NeighborEntry& entry, NeighborState state) {
  entry.state = state;
  entry.probes = 0;
  if (clock_.now_ns() >= entry.next_probe_ns) {
    ask(entry, source_for(entry.ip));
  } else {
    ++pending_;
  }
}

void Neighbor::confirm(NeighborEntry& entry, const net::MacAddress& mac) {
  if (entry.state != NeighborState::kDoubted) {
    entry.next_probe_ns = 0;  // the first doubt is looked into at once
  }
  // Of one that had none nothing was told, but a gateway may be a better one than another.
  if (entry.has_mac() ? entry.mac != mac : entry.gateway) ++changes_;
  entry.mac = mac;
  entry.state = NeighborState::kReachable;
  entry.probes = 0;
  entry.confirmed_ns = clock_.now_ns();
  send_held(entry);
}

// --- asking

// Of one that was never asked, or was silent and has been left alone for long enough.
void Neighbor::ask_anew(NeighborEntry& entry, const IpAddress& src) {
  if (entry.state == NeighborState::kFree ||
      (entry.state == NeighborState::kFailed && clock_.now_ns() >= entry.next_probe_ns)) {
    entry.state = NeighborState::kIncomplete;
    entry.probes = 0;
    ask(entry, src);
  }
}

// A question that finds no room in its second comes later, and counts as none.
void Neighbor::ask(NeighborEntry& entry, const IpAddress& src) {
  const std::uint64_t now = clock_.now_ns();
  entry.next_probe_ns = now + kNeighborProbeNs;
  ++pending_;
  const std::uint64_t second = now / kNeighborSecondNs;
  if (second != request_second_) {
    request_second_ = second;
    requests_in_second_ = 0;
  }
  if (requests_in_second_ < requests_max(entry)) {
    ++requests_in_second_;
    ++entry.probes;
    send_request(entry, src);
  }
}

void Neighbor::send_request(const NeighborEntry& entry, const IpAddress& src) {
  // One that we knew is asked alone: RFC 1122 2.3.2.1, RFC 4861 7.3.3.
  const bool unicast = entry.state == NeighborState::kProbing;
  if (entry.ip.family == Family::kIpv4) {
    const net::MacAddress to = unicast ? entry.mac : net::MacAddress::broadcast();
    // Not in the name of an address that others answer for (where tunnels end).
    const IpAddress own = is_local(src) ? src : source_for(entry.ip);
    const ArpMessage message{kArpRequest, config_.mac, own, {}, entry.ip};
    sink_.send_frame(build_arp(message, to, config_.mac), {});
    ++counters_.arp_out;
    return;
  }
  const IpAddress group = solicited_node_address(entry.ip);
  const bool own = config_.ask_from_own_address && is_local(src);
  const NdMessage message{
      kNdSolicitation, 0, own ? src : link_local_, unicast ? entry.ip : group, entry.ip, true,
      config_.mac};
  const net::MacAddress to = unicast ? entry.mac : ipv6_multicast_mac(group);
  sink_.send_frame(build_nd(message, to, config_.mac), {});
  ++counters_.nd_out;
}

// The address in whose name an old question is asked again.
IpAddress Neighbor::source_for(const IpAddress& target) const {
  for (const IpAddress& ip : locals_) {
    if (ip.family == target.family && ip != link_local_) {
      return ip;
    }
  }
  return IpAddress::any(target.family);
}

void Neighbor::on_time() {
  if (pending_ == 0) {
    return;
  }
  const std::uint64_t now = clock_.now_ns();
  if (now < next_sweep_ns_) {
    return;
  }
  next_sweep_ns_ = now + kNeighborProbeNs / 4;
  pending_ = 0;
  for (NeighborEntry& entry : table_.entries()) {
    if (!is_pending(entry.state)) {
      continue;
    }
    if (now >= entry.next_probe_ns) {
      give_up_or_ask(entry);
    } else {
      ++pending_;
    }
  }
}

void Neighbor::give_up_or_ask(NeighborEntry& entry) {
  if (entry.probes < kNeighborProbesMax) {
    ask(entry, source_for(entry.ip));
    return;
  }
  if (entry.state == NeighborState::kProbing) {
    // The MAC is gone; perhaps the address lives on under another.
    ++changes_;
    entry.state = NeighborState::kIncomplete;
    entry.probes = 0;
    ask(entry, source_for(entry.ip));
    return;
  }
  entry.state = NeighborState::kFailed;
  entry.next_probe_ns = clock_.now_ns() + kNeighborFailedNs;
  drop_held(entry.ip);
}

// --- packets that wait

void Neighbor::hold(const IpAddress& next_hop, const SendPacket& packet) {
  if (!held_.hold(next_hop, packet)) {
    ++counters_.tx_dropped_unresolved;
  }
}

void Neighbor::send_held(const NeighborEntry& entry) {
  while (HeldPackets::Held* held = held_.take(entry.ip)) {
    const std::uint16_t type =
        (std::to_integer<unsigned>(held->frame[net::kEthernetHeaderBytes]) >> 4) == 4
            ? net::kEtherTypeIpv4
            : net::kEtherTypeIpv6;
    net::write_ethernet(held->frame.data(), entry.mac, config_.mac, type);
    sink_.send_frame(std::span(held->frame).first(net::kEthernetHeaderBytes + held->length),
                     held->offload);
    ++counters_.tx_packets;
    counters_.tx_bytes += held->length;
  }
}

void Neighbor::drop_held(const IpAddress& next_hop) {
  while (held_.take(next_hop) != nullptr) {
    ++counters_.tx_dropped_unresolved;
  }
}

}  // namespace sanproxy::packet_io
