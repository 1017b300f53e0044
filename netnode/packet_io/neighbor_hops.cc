// The part of Neighbor that says where packets go.
#include <algorithm>
#include <cstring>

#include "netnode/packet_io/neighbor.h"

namespace sanproxy::packet_io {
namespace {

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

bool Neighbor::confirmed(const IpAddress& dst, net::MacAddress& mac) {
  const auto told = [&](const IpAddress& ip) {
    const NeighborEntry* entry = table_.find(ip);
    if (entry == nullptr || entry->state != NeighborState::kReachable) return false;
    mac = entry->mac;
    return true;
  };
  if (on_link(dst)) return told(dst);
  for (const IpAddress& gateway : config_.gateways) {
    if (gateway.family != dst.family) continue;
    const NeighborEntry* entry = table_.find(gateway);
    if (entry != nullptr && entry->has_mac()) return told(gateway);
  }
  return false;
}

}  // namespace sanproxy::packet_io
