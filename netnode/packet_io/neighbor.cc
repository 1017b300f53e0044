#include "netnode/packet_io/neighbor.h"

#include <algorithm>

namespace sanproxy::packet_io {
namespace {

bool is_unicast(const IpAddress& ip) {
  if (ip.is_any()) {
    return false;
  }
  return ip.family == Family::kIpv6 ? ip.bytes[0] != 0xff : ip.bytes[0] < 224 && ip.bytes[0] != 127;
}

bool is_pending(NeighborState state) {
  return state == NeighborState::kIncomplete || state == NeighborState::kProbing ||
         state == NeighborState::kDoubted;
}

bool is_link_local6(const IpAddress& ip) {
  return ip.family == Family::kIpv6 && ip.bytes[0] == 0xfe && (ip.bytes[1] & 0xc0) == 0x80;
}

// After how many questions of a second this one has to wait: whatever strangers are asked for,
// who is known and the gateways are asked.
std::uint32_t requests_max(const NeighborEntry& entry) {
  const std::uint32_t reserves = entry.gateway ? 2 : entry.has_mac() ? 1 : 0;
  return kRequestsPerSecondMax + reserves * kRequestsReserve;
}

// Source and destination of a packet whose first piece holds its header; false if it does not.
bool addresses_of(const SendPacket& packet, IpAddress& src, IpAddress& dst) {
  if (packet.piece_count == 0 || packet.pieces[0].iov_len < net::kIpv4HeaderBytesMin) {
    return false;
  }
  const auto* at = static_cast<const std::uint8_t*>(packet.pieces[0].iov_base);
  src = IpAddress{};
  dst = IpAddress{};
  if ((at[0] >> 4) == 4) {
    src.family = dst.family = Family::kIpv4;
    std::memcpy(src.bytes.data(), at + 12, 4);
    std::memcpy(dst.bytes.data(), at + 16, 4);
    return true;
  }
  if ((at[0] >> 4) == 6 && packet.pieces[0].iov_len >= net::kIpv6HeaderBytes) {
    src.family = dst.family = Family::kIpv6;
    std::memcpy(src.bytes.data(), at + 8, 16);
    std::memcpy(dst.bytes.data(), at + 24, 16);
    return true;
  }
  return false;
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
  entry.mac = mac;
  entry.state = NeighborState::kReachable;
  entry.probes = 0;
  entry.confirmed_ns = clock_.now_ns();
  send_held(entry);
}

// --- where packets go

bool Neighbor::on_link(const IpAddress& ip) const {
  if (is_link_local6(ip)) {
    return true;
  }
  return std::any_of(config_.on_link.begin(), config_.on_link.end(),
                     [&](const IpPrefix& prefix) { return prefix.contains(ip); });
}

bool Neighbor::may_ask(const IpAddress& dst) const {
  return on_link(dst) ||
         std::any_of(config_.gateways.begin(), config_.gateways.end(),
                     [&](const IpAddress& gateway) { return gateway.family == dst.family; });
}

Neighbor::Hop Neighbor::next_hop(const IpAddress& dst, const IpAddress& src) {
  if (on_link(dst)) {
    return {dst, table_.find(dst), true};
  }
  const Hop hop = gateway_for(dst.family, src);
  return hop.may_ask ? hop : Hop{dst, table_.find(dst), false};
}

// The first gateway of the family that answers; else the first that may yet, else the first. One
// that was silent is asked again from time to time, whoever stands in for it.
Neighbor::Hop Neighbor::gateway_for(Family family, const IpAddress& src) {
  Hop chosen;
  bool hopeful = false;
  for (const IpAddress& gateway : config_.gateways) {
    if (gateway.family != family) {
      continue;
    }
    NeighborEntry* entry = table_.find(gateway);
    if (entry != nullptr && entry->has_mac()) {
      if (chosen.may_ask && chosen.entry == nullptr) {
        ask_anew(insert(chosen.ip), src);  // it comes first, and nobody else would ask
      }
      return {gateway, table_.find(gateway), true};
    }
    if (entry != nullptr) {
      ask_anew(*entry, src);
    }
    const bool may_answer =
        entry == nullptr || (entry->state == NeighborState::kIncomplete && entry->probes <= 1);
    if (!chosen.may_ask || (may_answer && !hopeful)) {
      chosen = {gateway, entry, true};
    }
    hopeful = hopeful || may_answer;
  }
  return chosen;
}

NeighborEntry& Neighbor::insert(const IpAddress& ip) {
  IpAddress evicted;
  NeighborEntry& entry = table_.insert(ip, evicted);
  if (evicted.family != Family::kNone) {
    drop_held(evicted);
  }
  entry.used_ns = clock_.now_ns();
  entry.gateway = is_gateway(ip);
  return entry;
}

bool Neighbor::resolve(const SendPacket& packet, net::MacAddress& mac) {
  IpAddress src, dst;
  if (!addresses_of(packet, src, dst)) {
    ++counters_.tx_errors;
    return false;
  }
  const Hop hop = next_hop(dst, src);
  NeighborEntry* entry = hop.entry;
  const std::uint64_t now = clock_.now_ns();
  if (entry != nullptr && entry->has_mac()) {
    entry->used_ns = now;
    mac = entry->mac;
    if (entry->state == NeighborState::kReachable &&
        now - entry->confirmed_ns >= kNeighborReachableNs) {
      entry->state = NeighborState::kProbing;
      ask(*entry, src);
    }
    return true;
  }
  if (!hop.may_ask && is_unicast(hop.ip) && !router_of(hop.ip).is_zero()) {
    mac = router_of(hop.ip);
    return true;
  }
  if (!hop.may_ask || !is_unicast(hop.ip)) {
    ++counters_.tx_dropped_unresolved;
    return false;
  }
  if (entry == nullptr) {
    entry = &insert(hop.ip);
  }
  entry->used_ns = now;
  ask_anew(*entry, src);
  if (entry->state == NeighborState::kIncomplete && entry->probes > 0) {
    hold(hop.ip, packet);
  } else {
    ++counters_.tx_dropped_unresolved;
  }
  return false;
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
