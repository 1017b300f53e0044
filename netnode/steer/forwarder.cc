#include "netnode/steer/forwarder.h"

#include <algorithm>

#include "netnode/net/icmp.h"
#include "netnode/net/tcp_header.h"

namespace sanproxy::steer {
namespace {

constexpr std::size_t kSetsAgedMax = 2'048;  // of the flow table, at each age()

const std::uint8_t* bytes_of(std::span<const std::byte> packet) {
  return reinterpret_cast<const std::uint8_t*>(packet.data());
}

std::uint32_t seconds(std::uint64_t ms) { return static_cast<std::uint32_t>(ms / 1'000); }

bool is_bare_syn(std::uint8_t flags) {
  return (flags & (net::kTcpSyn | net::kTcpAck | net::kTcpRst)) == net::kTcpSyn;
}

// Of a TCP header, which may go on in a later fragment: then it has no options to be read.
std::size_t tcp_header_bytes(const net::ParsedPacket& parsed, const std::uint8_t* tcp) {
  const std::size_t bytes = (tcp[12] >> 4) * 4U;
  return bytes <= parsed.l4_bytes() ? bytes : net::kTcpHeaderBytesMin;
}

// Turns a hash into another one, to look for another proxy by.
constexpr std::uint64_t kNextCandidate = 0x9e3779b97f4a7c15U;

}  // namespace

const char* drop_name(Drop drop) {
  static constexpr std::array<const char*, static_cast<std::size_t>(Drop::kCount)> kNames = {
      "none",          "malformed",        "not_for_us",        "no_service",
      "no_proxy",      "fragment_tiny",    "fragment_protocol", "fragment_malformed",
      "fragment_held", "fragment_timeout", "icmp_unknown",      "icmp_unclaimed"};
  return kNames[static_cast<std::size_t>(drop)];
}

const char* proxy_state_name(ProxyState state) {
  switch (state) {
    case ProxyState::kDown:
      return "down";
    case ProxyState::kDraining:
      return "draining";
    case ProxyState::kUp:
      return "up";
  }
  return "unknown";
}

Forwarder::Forwarder(const ForwarderOptions& options)
    : options_(options),
      flows_(options.flows),
      fragments_(options.fragments, options.hash_seed),
      nat_(options.nat, options.hash_seed) {
  index_services();
}

void Forwarder::drop(Verdict& out, Drop why) {
  out.action = Action::kDrop;
  out.drop = why;
  count(why);
}

void Forwarder::steer(std::span<const Arrival> packets, std::span<Verdict> out,
                      std::uint64_t now_ms) {
  counters_.packets += packets.size();
  for (std::size_t i = 0; i < packets.size(); ++i) prepare(packets[i], out[i]);
  for (std::size_t i = 0; i < packets.size(); ++i) decide(packets[i], out[i], now_ms);
}

// Everything that needs no table, and the order for what the tables will be asked.
void Forwarder::prepare(const Arrival& packet, Verdict& out) {
  out.action = Action::kDrop;
  out.drop = Drop::kNone;
  out.proxy = FlowTable::kNone;
  out.has_ports = true;
  out.first_fragment = false;
  out.final = false;
  const net::DropReason reason = net::parse_packet(packet.bytes, out.parsed);
  if (reason != net::DropReason::kNone) {
    ++counters_.malformed[static_cast<std::size_t>(reason)];
    drop(out, Drop::kMalformed);
    return;
  }
  out.flow = net::flow_key(out.parsed, packet.bytes.data());
  out.hash = out.flow.hash(options_.hash_seed);
  flows_.prefetch(out.hash);
}

void Forwarder::decide(const Arrival& packet, Verdict& out, std::uint64_t now_ms) {
  if (out.drop != Drop::kNone) return;
  if (out.parsed.fragment) {
    decide_fragment(packet, out, now_ms);
  } else if (out.parsed.l4 == net::L4::kIcmp || out.parsed.l4 == net::L4::kIcmp6) {
    decide_icmp(packet, out, now_ms);
  } else if (const ServiceCell* cell = service_of(out)) {
    decide_flow(packet, out, cell->service, now_ms);
  } else if (nat_.is_ours(out.parsed.dst, out.parsed.family)) {
    out.action = Action::kToClient;
  } else {
    drop(out, is_service_address(out.flow) ? Drop::kNoService : Drop::kNotForUs);
  }
}

void Forwarder::decide_flow(const Arrival& packet, Verdict& out, std::uint16_t service,
                            std::uint64_t now_ms) {
  const std::uint32_t now_s = seconds(now_ms);
  const Pool& pool = pools_[services_[service].pool];
  const std::uint8_t* l4 = bytes_of(packet.bytes) + out.parsed.l3_header_bytes;
  const bool tcp = out.flow.protocol == net::kProtocolTcp;
  const std::uint8_t flags = tcp && out.has_ports ? l4[13] : std::uint8_t{net::kTcpAck};
  FlowState state = tcp ? FlowState::kEstablished : FlowState::kClosing;  // UDP says no goodbye
  FlowTable::Entry* entry = flows_.find(out.hash, now_s);
  if (tcp && is_bare_syn(flags)) {
    // A SYN that somebody made up must not move an established flow. What is only said to have
    // begun, or has ended, stays as long as new sessions are taken there.
    if (entry != nullptr && usable(entry->proxy) &&
        (proxies_[entry->proxy].state == ProxyState::kUp ||
         entry->state == FlowState::kEstablished)) {
      if (entry->state == FlowState::kClosing) entry->state = FlowState::kHalfOpen;
      deliver(out, entry->proxy);
      return;
    }
    out.proxy = pool.current().lookup(out.hash);
    ++counters_.new_sessions;
    state = FlowState::kHalfOpen;
  } else if (entry != nullptr && usable(entry->proxy)) {
    ++counters_.by_flow;
    if ((flags & (net::kTcpFin | net::kTcpRst)) != 0 || entry->state == FlowState::kClosing) {
      state = FlowState::kClosing;
    }
    entry->used_s = now_s;
    entry->state = state;
    deliver(out, entry->proxy);
    return;
  } else {
    out.proxy = locate(out, l4, pool);
    // Somebody's word for it: until a second packet confirms it, it displaces no established flow.
    state = FlowState::kHalfOpen;
  }
  if (!usable(out.proxy)) {
    drop(out, Drop::kNoProxy);
    return;
  }
  if ((flags & (net::kTcpFin | net::kTcpRst)) != 0) state = FlowState::kClosing;
  flows_.put(out.hash, out.proxy, state, now_s);
  deliver(out, out.proxy);
}

std::uint16_t Forwarder::locate(const Verdict& packet, const std::uint8_t* l4, const Pool& pool) {
  if (const std::uint16_t proxy = nat_.proxy_of(packet.flow); usable(proxy)) {
    ++counters_.by_nat;
    return proxy;
  }
  if (packet.flow.protocol == net::kProtocolTcp && packet.has_ports) {
    const std::uint16_t tag = net::echoed_session_tag(l4, tcp_header_bytes(packet.parsed, l4));
    if (const std::uint16_t proxy = by_tag(tag, pool); proxy != FlowTable::kNone) {
      ++counters_.by_tag;
      return proxy;
    }
  }
  ++counters_.by_maglev;
  // A datagram may as well begin a session, which a proxy that drains shall not get.
  const bool goes_on = packet.flow.protocol == net::kProtocolTcp;
  return (goes_on ? pool.keeping() : pool.current()).lookup(packet.hash);
}

void Forwarder::Candidates::add(std::uint16_t proxy) {
  const auto end = proxies.begin() + static_cast<std::ptrdiff_t>(count);
  if (proxy == FlowTable::kNone || count == proxies.size() ||
      std::find(proxies.begin(), end, proxy) != end) {
    return;
  }
  proxies[count++] = proxy;
}

// All that may have a flow, in the order in which they are asked.
void Forwarder::candidates(const Verdict& packet, std::uint16_t tag, const Pool& pool,
                           Candidates& out) const {
  const auto add = [&](std::uint16_t proxy) {
    if (usable(proxy)) out.add(proxy);
  };
  if (tag != 0) add(by_tag(tag, pool));
  add(pool.keeping().lookup(packet.hash));
  add(pool.current().lookup(packet.hash));
  for (const MaglevTable& table : pool.before()) add(table.lookup(packet.hash));
}

// All that may serve a new session, in the order in which they are asked. A proxy that has just
// come up has no application nodes yet; which others have is not known here.
void Forwarder::candidates_of_syn(const Verdict& packet, const Pool& pool, Candidates& out) const {
  std::uint64_t hash = packet.hash;
  for (std::size_t i = 0; i < kSynLooks; ++i) {
    const std::uint16_t proxy = pool.current().lookup(hash);
    if (usable(proxy)) out.add(proxy);
    hash = net::multiply_mix(hash ^ kNextCandidate, kNextCandidate);
  }
}

void Forwarder::retry(std::span<const std::byte> packet, std::uint16_t from, Verdict& out,
                      std::uint64_t now_ms) {
  ++counters_.retries;
  const Arrival arrival{packet, 0};
  prepare(arrival, out);
  if (out.drop != Drop::kNone) return;
  if (!out.parsed.fragment &&
      (out.parsed.l4 == net::L4::kIcmp || out.parsed.l4 == net::L4::kIcmp6)) {
    retry_error(arrival, from, out, now_ms);
    return;
  }
  const ServiceCell* cell = service_of(out);
  if (cell == nullptr || out.parsed.fragment) {
    drop(out, Drop::kNoService);
    return;
  }
  const Pool& pool = pools_[services_[cell->service].pool];
  const std::uint8_t* l4 = bytes_of(packet) + out.parsed.l3_header_bytes;
  const bool tcp = out.flow.protocol == net::kProtocolTcp;
  const std::uint8_t flags = tcp ? l4[13] : std::uint8_t{net::kTcpAck};
  const bool syn = tcp && is_bare_syn(flags);
  Candidates all;
  if (syn) {
    candidates_of_syn(out, pool, all);
  } else {
    candidates(out,
               tcp ? net::echoed_session_tag(l4, out.parsed.l4_header_bytes) : std::uint16_t{0},
               pool, all);
  }
  // One that only the flow table knew is not among them: then the first is next.
  const auto end = all.proxies.begin() + static_cast<std::ptrdiff_t>(all.count);
  const auto at = std::find(all.proxies.begin(), end, from);
  const std::size_t next = at == end ? 0 : static_cast<std::size_t>(at - all.proxies.begin()) + 1;
  // Whoever forges what comes back moves no flow that is another proxy's.
  const FlowTable::Entry* entry = flows_.find(out.hash, seconds(now_ms));
  if (entry != nullptr && entry->proxy != from && usable(entry->proxy)) {
    deliver(out, entry->proxy);
    return;
  }
  flows_.erase(out.hash);
  if (next < all.count) {
    out.proxy = all.proxies[next];
    out.final = next + 1 == all.count;
    // Still somebody's word alone, as in decide_flow().
    const bool ends = (flags & (net::kTcpFin | net::kTcpRst)) != 0;
    flows_.put(out.hash, out.proxy, ends ? FlowState::kClosing : FlowState::kHalfOpen,
               seconds(now_ms));
  } else {
    out.proxy = usable(from) ? from : FlowTable::kNone;
    out.final = true;
  }
  counters_.retries_final += out.final ? 1 : 0;
  if (!usable(out.proxy)) {
    drop(out, Drop::kNoProxy);
    return;
  }
  deliver(out, out.proxy);
}

bool Forwarder::on_reply(const net::ParsedPacket& parsed, std::span<const std::byte> first,
                         std::uint16_t from, std::uint64_t now_ms) {
  const net::FlowKey flow = net::flow_key(parsed, first.data()).reversed();
  if (!is_service_address(flow)) return false;
  // A look at one byte for nearly all packets.
  if (parsed.l4 != net::L4::kTcp) return true;
  const std::uint8_t flags = bytes_of(first)[parsed.l3_header_bytes + 13];
  if ((flags & (net::kTcpFin | net::kTcpRst)) == 0) return true;
  end_flow(flow, from, now_ms);
  return true;
}

void Forwarder::on_translated(const net::FlowKey& client, std::uint8_t tcp_flags,
                              std::uint64_t now_ms) {
  if ((tcp_flags & (net::kTcpFin | net::kTcpRst)) == 0) return;
  end_flow(client, nat_.proxy_of(client), now_ms);
}

void Forwarder::end_flow(const net::FlowKey& flow, std::uint16_t from, std::uint64_t now_ms) {
  FlowTable::Entry* entry = flows_.find(flow.hash(options_.hash_seed), seconds(now_ms));
  if (entry == nullptr || entry->proxy != from) return;
  entry->state = FlowState::kClosing;
  entry->used_s = seconds(now_ms);
}

void Forwarder::decide_fragment(const Arrival& packet, Verdict& out, std::uint64_t now_ms) {
  net::FragmentView view;
  if (!net::parse_fragment(packet.bytes, out.parsed, view)) {
    drop(out, Drop::kFragmentMalformed);
    return;
  }
  const bool nat = nat_.is_ours(out.parsed.dst, out.parsed.family);
  if (!nat && !is_service_address(out.flow)) {
    drop(out, Drop::kNotForUs);
    return;
  }
  const bool tcp = out.parsed.protocol == net::kProtocolTcp;
  if (!tcp && out.parsed.protocol != net::kProtocolUdp) {
    drop(out, Drop::kFragmentProtocol);
    return;
  }
  out.datagram = Fragments::datagram(out.parsed, view);
  if (view.offset_bytes == 0) {
    const std::size_t needed = tcp ? net::kTcpHeaderBytesMin : net::kUdpHeaderBytes;
    if (out.parsed.l4_bytes() < needed) {
      drop(out, Drop::kFragmentTiny);
      return;
    }
    out.parsed.l4 = tcp ? net::L4::kTcp : net::L4::kUdp;
    out.flow = net::flow_key(out.parsed, packet.bytes.data());
    out.first_fragment = true;
  } else {
    // RFC 3128: it would overwrite ports or flags of the first one.
    if (tcp && view.offset_bytes < net::kTcpHeaderBytesMin) {
      drop(out, Drop::kFragmentTiny);
      return;
    }
    const net::FlowKey* flow = fragments_.find(out.datagram, now_ms);
    out.has_ports = false;
    if (flow == nullptr) {
      if (!fragments_.hold(out.datagram, packet.token, now_ms)) {
        drop(out, Drop::kFragmentHeld);
        return;
      }
      ++counters_.fragments_held;
      out.action = Action::kHeld;
      return;
    }
    out.flow = *flow;
  }
  out.hash = out.flow.hash(options_.hash_seed);
  const ServiceCell* cell =
      nat ? nullptr : find_service(out.flow, out.flow.protocol, out.flow.dst_port);
  if (!nat && cell == nullptr) {
    drop(out, Drop::kNoService);
    return;
  }
  if (out.first_fragment) fragments_.learn(out.datagram, out.flow, now_ms);
  if (nat) {
    out.action = Action::kToClient;
    return;
  }
  decide_flow(packet, out, cell->service, now_ms);
}

void Forwarder::decide_icmp(const Arrival& packet, Verdict& out, std::uint64_t now_ms) {
  if (note_path_mtu(packet, out, now_ms)) {
    ++counters_.icmp_errors;
    out.action = Action::kNoted;
    return;
  }
  const bool nat = nat_.is_ours(out.parsed.dst, out.parsed.family);
  if (!nat && !is_service_address(out.flow)) {
    drop(out, Drop::kNotForUs);
    return;
  }
  const std::uint8_t type = bytes_of(packet.bytes)[out.parsed.l3_header_bytes];
  const bool v4 = out.parsed.l4 == net::L4::kIcmp;
  if (type == (v4 ? net::kIcmpEchoRequest : net::kIcmp6EchoRequest)) {
    out.action = Action::kEcho;
    return;
  }
  if (nat) {
    if (!net::is_icmp_error(packet.bytes, out.parsed) ||
        !net::parse_icmp_error(packet.bytes, out.parsed, out.error)) {
      drop(out, Drop::kIcmpUnknown);
      return;
    }
    ++counters_.icmp_errors;
    out.action = Action::kErrorToClient;
    return;
  }
  std::uint16_t tag = 0;
  const ServiceCell* cell = read_error(packet, out, tag);
  if (cell == nullptr) return;
  ++counters_.icmp_errors;
  const FlowTable::Entry* entry = flows_.find(out.hash, seconds(now_ms));
  if (entry != nullptr && usable(entry->proxy)) {
    out.proxy = entry->proxy;
  } else if (const std::uint16_t proxy = nat_.proxy_of(out.flow); usable(proxy)) {
    out.proxy = proxy;
  } else {
    const Pool& pool = pools_[services_[cell->service].pool];
    if (tag != 0) out.proxy = by_tag(tag, pool);
    if (out.proxy == FlowTable::kNone) out.proxy = pool.keeping().lookup(out.hash);
  }
  if (!usable(out.proxy)) {
    drop(out, Drop::kNoProxy);
    return;
  }
  out.action = Action::kErrorToProxy;
  ++proxies_[out.proxy].packets;
}

const Forwarder::ServiceCell* Forwarder::read_error(const Arrival& packet, Verdict& out,
                                                    std::uint16_t& tag) {
  if (!net::is_icmp_error(packet.bytes, out.parsed) ||
      !net::parse_icmp_error(packet.bytes, out.parsed, out.error)) {
    drop(out, Drop::kIcmpUnknown);
    return nullptr;
  }
  // The quoted packet went from the service to the client.
  out.flow = out.error.inner.reversed();
  out.hash = out.flow.hash(options_.hash_seed);
  const ServiceCell* cell = find_service(out.flow, out.flow.protocol, out.flow.dst_port);
  if (cell == nullptr) {
    drop(out, Drop::kNoService);
    return nullptr;
  }
  // The quoted segment carries the proxy's own timestamp, if enough of it is quoted.
  const std::size_t quoted = std::size_t{out.error.inner_offset} + out.error.inner_bytes;
  const std::uint8_t* tcp = bytes_of(packet.bytes) + out.error.inner_l4_offset;
  if (out.flow.protocol == net::kProtocolTcp &&
      out.error.inner_l4_offset + std::size_t{32} <= quoted &&
      net::load_be32(tcp + 20) == 0x0101080aU) {
    tag = net::session_tag_of(net::load_be32(tcp + 24));
  }
  return cell;
}

// Anybody can make one up: what is known of flows stays as it is.
void Forwarder::retry_error(const Arrival& packet, std::uint16_t from, Verdict& out,
                            std::uint64_t now_ms) {
  std::uint16_t tag = 0;
  const ServiceCell* cell = read_error(packet, out, tag);
  if (cell == nullptr) return;
  Candidates all;
  if (const FlowTable::Entry* entry = flows_.find(out.hash, seconds(now_ms));
      entry != nullptr && usable(entry->proxy)) {
    all.add(entry->proxy);
  }
  candidates(out, tag, pools_[services_[cell->service].pool], all);
  const auto end = all.proxies.begin() + static_cast<std::ptrdiff_t>(all.count);
  const auto at = std::find(all.proxies.begin(), end, from);
  const std::size_t next = at == end ? 0 : static_cast<std::size_t>(at - all.proxies.begin()) + 1;
  out.final = next + 1 >= all.count;
  counters_.retries_final += out.final ? 1 : 0;
  if (next >= all.count) {
    drop(out, Drop::kIcmpUnclaimed);
    return;
  }
  out.action = Action::kErrorToProxy;
  out.proxy = all.proxies[next];
  ++proxies_[out.proxy].packets;
}

const Forwarder::ServiceCell* Forwarder::find_service(const net::FlowKey& flow,
                                                      std::uint8_t protocol,
                                                      std::uint16_t port) const {
  for (std::size_t at = home(flow.dst, port, protocol);; at = (at + 1) & cell_mask_) {
    const ServiceCell& cell = cells_[at];
    if (cell.family == Family::kNone) return nullptr;
    if (cell.port == port && cell.protocol == protocol && cell.family == flow.family &&
        cell.address == flow.dst) {
      return &cell;
    }
  }
}

void Forwarder::age(std::uint64_t now_ms) {
  flows_.age(seconds(now_ms), kSetsAgedMax);
  nat_.age(seconds(now_ms));
}

}  // namespace sanproxy::steer
