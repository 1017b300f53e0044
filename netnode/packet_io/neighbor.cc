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
  return state == NeighborState::kIncomplete || state == NeighborState::kProbing;
}

bool is_link_local6(const IpAddress& ip) {
  return ip.family == Family::kIpv6 && ip.bytes[0] == 0xfe && (ip.bytes[1] & 0xc0) == 0x80;
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
  if (locals_.size() >= kLocalAddressesMax) {
    return false;
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
      announce_change(arp.sender_ip, arp.sender_mac);
    }
    return;
  }
  if (!is_local(arp.target_ip)) {
    announce_change(arp.sender_ip, arp.sender_mac);
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
  if (!nd.has_mac || is_local(nd.target)) {
    return;
  }
  NeighborEntry* entry = table_.find(nd.target);
  if (entry != nullptr && is_pending(entry->state) && (nd.flags & kNdSolicited) != 0) {
    confirm(*entry, nd.mac);
  } else if ((nd.flags & kNdOverride) != 0) {
    announce_change(nd.target, nd.mac);
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
  bool may_ask = false;
  (void)next_hop(src, may_ask);
  if (may_ask) {
    return;  // ARP or ND knows better
  }
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
    announce_change(ip, mac);
  }
}

void Neighbor::announce_change(const IpAddress& ip, const net::MacAddress& mac) {
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
  }
}

void Neighbor::confirm(NeighborEntry& entry, const net::MacAddress& mac) {
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

IpAddress Neighbor::next_hop(const IpAddress& dst, bool& may_ask) const {
  may_ask = true;
  if (on_link(dst)) {
    return dst;
  }
  for (const IpAddress& gateway : config_.gateways) {
    if (gateway.family == dst.family) {
      return gateway;
    }
  }
  may_ask = false;
  return dst;
}

NeighborEntry& Neighbor::insert(const IpAddress& ip) {
  IpAddress evicted;
  NeighborEntry& entry = table_.insert(ip, evicted);
  if (evicted.family != Family::kNone) {
    drop_held(evicted);
  }
  entry.used_ns = clock_.now_ns();
  return entry;
}

bool Neighbor::resolve(const SendPacket& packet, net::MacAddress& mac) {
  IpAddress src, dst;
  if (!addresses_of(packet, src, dst)) {
    ++counters_.tx_errors;
    return false;
  }
  bool may_ask = false;
  const IpAddress hop = next_hop(dst, may_ask);
  NeighborEntry* entry = table_.find(hop);
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
  if (!may_ask || !is_unicast(hop)) {
    ++counters_.tx_dropped_unresolved;
    return false;
  }
  if (entry == nullptr) {
    entry = &insert(hop);
  }
  entry->used_ns = now;
  const bool ask_anew = entry->state == NeighborState::kFree ||
                        (entry->state == NeighborState::kFailed && now >= entry->next_probe_ns);
  if (ask_anew) {
    entry->state = NeighborState::kIncomplete;
    entry->probes = 0;
    hold(hop, packet);
    ask(*entry, src);
  } else if (entry->state == NeighborState::kIncomplete) {
    hold(hop, packet);
  } else {
    ++counters_.tx_dropped_unresolved;
  }
  return false;
}

// --- asking

void Neighbor::ask(NeighborEntry& entry, const IpAddress& src) {
  const std::uint64_t now = clock_.now_ns();
  ++entry.probes;
  entry.next_probe_ns = now + kNeighborProbeNs;
  ++pending_;
  const std::uint64_t second = now / kNeighborSecondNs;
  if (second != request_second_) {
    request_second_ = second;
    requests_in_second_ = 0;
  }
  if (requests_in_second_ < kRequestsPerSecondMax) {
    ++requests_in_second_;
    send_request(entry, src);
  }
}

void Neighbor::send_request(const NeighborEntry& entry, const IpAddress& src) {
  // One that we knew is asked alone: RFC 1122 2.3.2.1, RFC 4861 7.3.3.
  const bool unicast = entry.state == NeighborState::kProbing;
  if (entry.ip.family == Family::kIpv4) {
    const net::MacAddress to = unicast ? entry.mac : net::MacAddress::broadcast();
    const ArpMessage message{kArpRequest, config_.mac, src, {}, entry.ip};
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
