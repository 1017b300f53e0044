#include "netnode/steer/nat.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "netnode/net/checksum.h"
#include "netnode/net/tcp_header.h"

namespace sanproxy::steer {
namespace {

using net::fold;
using net::load_raw16;
using net::store_raw16;

constexpr std::uint32_t kPortTries = 128;
// After so many searches, one after the other, without a free port, few that will do are enough.
constexpr std::uint32_t kSearchesInVain = 8;
constexpr std::uint32_t kPortTriesInVain = 16;
constexpr std::size_t kAgedMax = 8'192;
// How far a client's ACK may be from the proxy's last segment: behind by a window, ahead by a
// super-packet. Who makes one up hits that once in a thousand times.
constexpr std::uint32_t kAckBehindMax = std::uint32_t{4} << 20;
constexpr std::uint32_t kAckAheadMax = std::uint32_t{1} << 17;
constexpr std::size_t kIpv4ChecksumAt = 10;
constexpr std::size_t kUdpChecksumAt = 6;

std::uint16_t raw_port(std::uint16_t port) { return __builtin_bswap16(port); }

// What replacing the addresses of `from` by those of `to` adds to a one's complement sum
// (RFC 1624 eqn. 3: + ~m + m').
std::uint16_t addresses_delta(const net::FlowKey& from, const net::FlowKey& to) {
  const auto sum = [](const net::FlowKey& key) {
    return fold(net::sum_bytes(key.dst.data(), 16, net::sum_bytes(key.src.data(), 16)));
  };
  return fold(std::uint64_t{sum(to)} + static_cast<std::uint16_t>(~sum(from)));
}
std::uint16_t ports_delta(const net::FlowKey& from, const net::FlowKey& to) {
  return fold(std::uint64_t{raw_port(to.src_port)} + raw_port(to.dst_port) +
              static_cast<std::uint16_t>(~raw_port(from.src_port)) +
              static_cast<std::uint16_t>(~raw_port(from.dst_port)));
}
std::uint16_t inverse(std::uint16_t delta) { return static_cast<std::uint16_t>(~delta); }

// A checksum field after `delta` came upon what it covers.
void adjust(std::uint8_t* field, std::uint16_t delta) {
  const auto before = static_cast<std::uint16_t>(~load_raw16(field));
  store_raw16(field, net::finish(std::uint64_t{before} + delta));
}

void write_addresses(std::uint8_t* ip, const net::FlowKey& to) {
  const bool v4 = to.family == Family::kIpv4;
  const std::size_t bytes = v4 ? 4 : 16;
  std::memcpy(ip + (v4 ? 12 : 8), to.src.data(), bytes);
  std::memcpy(ip + (v4 ? 16 : 24), to.dst.data(), bytes);
}

// The TCP header of a packet that has one.
const std::uint8_t* tcp_of(const Nat::Packet& packet, const net::FlowKey& flow) {
  if (flow.protocol != net::kProtocolTcp || !packet.has_ports) return nullptr;
  return reinterpret_cast<const std::uint8_t*>(packet.bytes.data()) + packet.parsed.l3_header_bytes;
}

bool has_hop(std::span<const std::byte> packet, Family family) {
  return static_cast<std::uint8_t>(packet[family == Family::kIpv6 ? 7 : 8]) > 1;
}

// One hop less; false: it must not go on.
bool spend_hop(std::uint8_t* ip, Family family) {
  if (family == Family::kIpv6) {
    if (ip[7] <= 1) return false;
    --ip[7];
    return true;
  }
  if (ip[8] <= 1) return false;
  const std::uint16_t before = load_raw16(ip + 8);
  --ip[8];
  store_raw16(ip + kIpv4ChecksumAt,
              net::update16(load_raw16(ip + kIpv4ChecksumAt), before, load_raw16(ip + 8)));
  return true;
}

}  // namespace

const char* nat_result_name(NatResult result) {
  switch (result) {
    case NatResult::kOk:
      return "ok";
    case NatResult::kNoSession:
      return "no_session";
    case NatResult::kNoAddress:
      return "no_address";
    case NatResult::kNoPort:
      return "no_port";
    case NatResult::kFull:
      return "sessions_max";
    case NatResult::kHopLimit:
      return "hop_limit";
    case NatResult::kMalformed:
      return "malformed";
  }
  return "unknown";
}

Nat::Table::Table(std::uint32_t sessions_max)
    : cells_(std::bit_ceil(std::size_t{sessions_max} * 2 + 1)), mask_(cells_.size() - 1) {}

void Nat::Table::insert(std::uint64_t hash, Index session) {
  std::size_t at = hash & mask_;
  while (cells_[at].session != kNil) at = (at + 1) & mask_;
  cells_[at] = {static_cast<std::uint32_t>(hash), session};
}

void Nat::Table::erase(std::uint64_t hash, Index session) {
  std::size_t at = hash & mask_;
  while (cells_[at].session != session) {
    if (cells_[at].session == kNil) return;
    at = (at + 1) & mask_;
  }
  for (std::size_t next = (at + 1) & mask_; cells_[next].session != kNil;
       next = (next + 1) & mask_) {
    const std::size_t home = cells_[next].hash & mask_;
    if (((next - home) & mask_) < ((next - at) & mask_)) continue;  // would come before its home
    cells_[at] = cells_[next];
    at = next;
  }
  cells_[at] = {};
}

Nat::Nat(const NatOptions& options, std::uint64_t seed)
    : options_(options),
      seed_(seed),
      sessions_(options.sessions_max),
      by_client_(options.sessions_max),
      by_proxy_(options.sessions_max),
      per_proxy_(std::size_t{kNoProxy} + 1) {
  for (const IpAddress& one : options.addresses) {
    (one.family == Family::kIpv4 ? v4_ : v6_).push_back(one);
  }
  free_.reserve(options.sessions_max);
  for (Index i = options.sessions_max; i-- > 0;) free_.push_back(i);
}

bool Nat::is_ours(const std::uint8_t* address, Family family) const {
  for (const IpAddress& one : family == Family::kIpv4 ? v4_ : v6_) {
    if (std::memcmp(one.bytes.data(), address, one.size()) == 0) return true;
  }
  return false;
}

Nat::Index Nat::find_client(const net::FlowKey& flow) const {
  return by_client_.find(table_hash(flow), [&](Index i) { return sessions_[i].client == flow; });
}
Nat::Index Nat::find_proxy(const net::FlowKey& flow) const {
  return by_proxy_.find(table_hash(flow), [&](Index i) { return sessions_[i].proxy == flow; });
}

std::uint16_t Nat::proxy_of(const net::FlowKey& client_flow) const {
  const Index at = find_client(client_flow);
  return at == kNil ? kNoProxy : sessions_[at].proxy_index;
}

std::uint32_t Nat::idle_s(Timer timer) const {
  return timer == kEstablished ? options_.established_s
         : timer == kUdp       ? options_.udp_s
                               : options_.transitory_s;
}

void Nat::link(Index at, Timer timer, std::uint32_t now_s) {
  Session& s = sessions_[at];
  List& list = lists_[timer];
  s.timer = timer;
  s.used_s = now_s;
  s.newer = kNil;
  s.older = list.newest;
  (list.newest == kNil ? list.oldest : sessions_[list.newest].newer) = at;
  list.newest = at;
  ++list.count;
}

void Nat::unlink(Index at) {
  Session& s = sessions_[at];
  List& list = lists_[s.timer];
  (s.newer == kNil ? list.newest : sessions_[s.newer].older) = s.older;
  (s.older == kNil ? list.oldest : sessions_[s.older].newer) = s.newer;
  --list.count;
}

void Nat::close(Index at) {
  Session& s = sessions_[at];
  if (s.carried) carrier_->leave(s.client, s.proxy);
  unlink(at);
  by_client_.erase(table_hash(s.client), at);
  by_proxy_.erase(table_hash(s.proxy), at);
  --per_proxy_[s.proxy_index];
  --used_;
  s = {};
  free_.push_back(at);
}

void Nat::age(std::uint32_t now_s) {
  for (std::uint8_t timer = 0; timer < kTimers; ++timer) {
    List& list = lists_[timer];
    for (std::size_t aged = 0;
         aged < kAgedMax && list.oldest != kNil &&
         now_s - last_used_s(sessions_[list.oldest]) > idle_s(static_cast<Timer>(timer));
         ++aged) {
      ++counters_.expired;
      close(list.oldest);
    }
  }
}

void Nat::erase_proxy(std::uint16_t proxy) {
  if (per_proxy_[proxy] == 0) return;
  for (Index i = 0; i < sessions_.size(); ++i) {
    if (sessions_[i].used && sessions_[i].proxy_index == proxy) close(i);
  }
}

bool Nat::make_room() {
  if (!free_.empty()) return true;
  const List& most = lists_[lists_[kTransitory].count >= lists_[kUdp].count ? kTransitory : kUdp];
  if (most.oldest == kNil) return false;
  ++counters_.displaced;
  close(most.oldest);
  return true;
}

NatResult Nat::choose_port(const net::FlowKey& flow, const SocketAddress& target,
                           net::FlowKey& proxy_flow) {
  const auto& ours = target.ip.family == Family::kIpv4 ? v4_ : v6_;
  if (ours.empty()) return NatResult::kNoAddress;
  net::FlowKey endpoint = flow;  // the client's alone
  endpoint.dst = {};
  endpoint.dst_port = 0;
  const std::uint64_t hash = endpoint.hash(seed_);
  const IpAddress& address = ours[(hash >> 48) % ours.size()];
  const std::uint32_t range = std::uint32_t{options_.port_max} - options_.port_min + 1;
  auto offset = static_cast<std::uint32_t>((hash & 0xffffffff) % range);
  auto step = static_cast<std::uint32_t>((hash >> 32 & 0xffff) * 2 + 1);
  while (std::gcd(step, range) != 1) step += 2;  // it comes by every port
  proxy_flow.family = target.ip.family;
  proxy_flow.protocol = flow.protocol;
  proxy_flow.src = target.ip.bytes;
  proxy_flow.src_port = target.port != 0 ? target.port : flow.dst_port;
  proxy_flow.dst = address.bytes;
  Index closing = kNil;  // unused for longest of those that end; and of the rest that is not
  Index opening = kNil;  // established: whoever sends SYNs alone takes nobody else's ports for long
  const bool in_vain = searches_in_vain_ >= kSearchesInVain;
  const std::uint32_t tries_max = std::min(range, kPortTries);
  for (std::uint32_t tries = 0; tries < tries_max; ++tries) {
    if (in_vain && tries >= kPortTriesInVain && (closing != kNil || opening != kNil)) break;
    proxy_flow.dst_port = static_cast<std::uint16_t>(options_.port_min + offset);
    const Index taken = find_proxy(proxy_flow);
    if (taken == kNil) {
      searches_in_vain_ = 0;
      return NatResult::kOk;
    }
    offset = (offset + step) % range;
    const Session& s = sessions_[taken];
    if (s.timer == kEstablished) continue;
    const bool ends = s.timer == kTransitory && (s.flags & (kReset | kClientFin | kProxyFin)) != 0;
    Index& best = ends ? closing : opening;
    if (best == kNil || s.used_s < sessions_[best].used_s) best = taken;
  }
  searches_in_vain_ = std::min(searches_in_vain_ + 1, kSearchesInVain);
  const Index from = closing != kNil ? closing : opening;
  if (from == kNil) return NatResult::kNoPort;
  ++(closing != kNil ? counters_.reused_closing : counters_.displaced);
  proxy_flow = sessions_[from].proxy;
  close(from);
  return NatResult::kOk;
}

NatResult Nat::open(const net::FlowKey& flow, std::uint16_t proxy, const SocketAddress& target,
                    Index& out) {
  if (target.ip.family != flow.family) return NatResult::kNoAddress;
  net::FlowKey proxy_flow;
  const NatResult result = choose_port(flow, target, proxy_flow);
  if (result != NatResult::kOk) return result;
  if (!make_room()) return NatResult::kFull;
  out = insert(flow, proxy_flow, proxy);
  link(out, flow.protocol == net::kProtocolUdp ? kUdp : kTransitory, 0);
  ++counters_.created;
  return NatResult::kOk;
}

Nat::Index Nat::insert(const net::FlowKey& flow, const net::FlowKey& proxy_flow,
                       std::uint16_t proxy) {
  const Index at = free_.back();
  free_.pop_back();
  Session& s = sessions_[at];
  s.client = flow;
  s.proxy = proxy_flow;
  const net::FlowKey to = proxy_flow.reversed();
  s.addresses_delta = addresses_delta(flow, to);
  s.ports_delta = ports_delta(flow, to);
  s.proxy_index = proxy;
  s.used = true;
  by_client_.insert(table_hash(flow), at);
  by_proxy_.insert(table_hash(proxy_flow), at);
  ++per_proxy_[proxy];
  ++used_;
  return at;
}

bool Nat::restore(const Saved& saved, std::uint32_t now_s) {
  const net::FlowKey& client = saved.client;
  const net::FlowKey& proxy = saved.proxy;
  const bool udp = client.protocol == net::kProtocolUdp;
  // Behind an IPv4 address is nothing.
  const auto plain = [](const std::array<std::uint8_t, 16>& address, Family family) {
    return family == Family::kIpv6 ||
           std::all_of(address.begin() + 4, address.end(), [](std::uint8_t b) { return b == 0; });
  };
  if (free_.empty() || !plain(client.src, client.family) || !plain(client.dst, client.family) ||
      !plain(proxy.src, client.family) || !plain(proxy.dst, client.family) ||
      (!udp && client.protocol != net::kProtocolTcp) || saved.timer >= kTimers ||
      udp != (saved.timer == kUdp) || proxy.protocol != client.protocol ||
      (client.family != Family::kIpv4 && client.family != Family::kIpv6) ||
      proxy.family != client.family || client.zero != 0 || proxy.zero != 0 ||
      !is_ours(proxy.dst.data(), proxy.family) || proxy.dst_port < options_.port_min ||
      proxy.dst_port > options_.port_max || saved.used_s > now_s ||
      now_s - saved.used_s > idle_s(static_cast<Timer>(saved.timer)) ||
      find_client(client) != kNil || find_proxy(proxy) != kNil) {
    return false;
  }
  const List& list = lists_[saved.timer];
  if (list.newest != kNil && sessions_[list.newest].used_s > saved.used_s) return false;
  const Index at = insert(client, proxy, saved.proxy_index);
  sessions_[at].flags = saved.flags;
  sessions_[at].proxy_seq = saved.proxy_seq;
  link(at, static_cast<Timer>(saved.timer), saved.used_s);
  return true;
}

void Nat::touch(Session& s, Index at, const std::uint8_t* tcp, bool from_client,
                std::uint32_t now_s) {
  Timer timer = s.timer;
  if (tcp != nullptr) {
    const std::uint8_t flags = tcp[13];
    // A new connection on the old tuple. That a client begins one anybody can say; the proxy
    // answers with SYN only if its own is over.
    if ((flags & net::kTcpSyn) != 0 && (!from_client || timer != kEstablished)) {
      s.flags = 0;
      timer = kTransitory;
    }
    // Who ends for good sends nothing more; a made-up RST is followed by more of the connection.
    if ((flags & (net::kTcpRst | net::kTcpFin)) == 0) s.flags &= static_cast<std::uint8_t>(~kReset);
    if (!from_client) {
      s.flags |= kProxySeen;
      if (timer != kEstablished) s.proxy_seq = net::load_be32(tcp + 4);
    }
    if ((flags & net::kTcpFin) != 0) s.flags |= from_client ? kClientFin : kProxyFin;
    if ((flags & net::kTcpRst) != 0) s.flags |= kReset;
    const std::uint8_t both = kClientFin | kProxyFin;
    if ((s.flags & kReset) != 0 || (s.flags & both) == both) {
      timer = kTransitory;
    } else if (from_client && (flags & net::kTcpSyn) == 0 && (s.flags & kProxySeen) != 0 &&
               timer != kEstablished &&
               net::load_be32(tcp + 8) - s.proxy_seq + kAckBehindMax <
                   kAckBehindMax + kAckAheadMax) {
      timer = kEstablished;
    }
  }
  if (timer != s.timer || s.used_s != now_s) {
    unlink(at);
    link(at, timer, now_s);
  }
  if (carrier_ != nullptr && tcp != nullptr) look_at_carrier(s, from_client, now_s);
}

void Nat::look_at_carrier(Session& s, bool from_client, std::uint32_t now_s) {
  if (s.timer != kEstablished) {
    if (s.carried) carrier_->leave(s.client, s.proxy);
    s.carried = false;
    s.seen = 0;
    return;
  }
  if (s.seen < kNatCarryAfter) {
    ++s.seen;
    return;
  }
  const std::uint32_t generation = carrier_->generation();
  if (s.carried && generation == s.carried_generation && now_s - s.carried_s < kNatCarriedS) return;
  if (!from_client) return;  // who is its proxy no more may go on speaking
  const bool before = s.carried;
  s.carried = carrier_->carry(s.client, s.proxy, s.addresses_delta, s.ports_delta);
  if (before && !s.carried) carrier_->leave(s.client, s.proxy);  // or nobody would
  s.carried_generation = generation;
  s.carried_s = now_s;
}

NatResult Nat::rewrite(const Packet& packet, const net::FlowKey& to, std::uint16_t addresses,
                       std::uint16_t ports) {
  auto* ip = reinterpret_cast<std::uint8_t*>(packet.bytes.data());
  if (!spend_hop(ip, to.family)) return NatResult::kHopLimit;
  write_addresses(ip, to);
  if (to.family == Family::kIpv4) adjust(ip + kIpv4ChecksumAt, addresses);
  if (!packet.has_ports) return NatResult::kOk;
  std::uint8_t* l4 = ip + packet.parsed.l3_header_bytes;
  net::store_be16(l4, to.src_port);
  net::store_be16(l4 + 2, to.dst_port);
  const bool udp = to.protocol == net::kProtocolUdp;
  std::uint8_t* field = l4 + (udp ? kUdpChecksumAt : net::kTcpChecksumOffset);
  if (packet.checksum_partial) {
    // A sum of the pseudo-header, not complemented; the ports come in when it is completed.
    store_raw16(field, fold(std::uint64_t{load_raw16(field)} + addresses));
    return NatResult::kOk;
  }
  if (udp && load_raw16(field) == 0) return NatResult::kOk;  // has none
  adjust(field, fold(std::uint64_t{addresses} + ports));
  if (udp && load_raw16(field) == 0) store_raw16(field, 0xffff);
  return NatResult::kOk;
}

NatResult Nat::to_proxy(const Packet& packet, const net::FlowKey& flow, std::uint16_t proxy,
                        const SocketAddress& target, std::uint32_t now_s) {
  if (!has_hop(packet.bytes, flow.family)) return NatResult::kHopLimit;  // before it opens one
  Index at = find_client(flow);
  if (at != kNil && sessions_[at].proxy_index != proxy) {
    close(at);  // it has been sent elsewhere since
    at = kNil;
  }
  if (at == kNil) {
    const NatResult result = open(flow, proxy, target, at);
    if (result != NatResult::kOk) return result;
  }
  Session& s = sessions_[at];
  touch(s, at, tcp_of(packet, flow), true, now_s);
  return rewrite(packet, s.proxy.reversed(), s.addresses_delta, s.ports_delta);
}

NatResult Nat::to_client(const Packet& packet, const net::FlowKey& flow, std::uint32_t now_s) {
  const Index at = find_proxy(flow);
  if (at == kNil) return NatResult::kNoSession;
  Session& s = sessions_[at];
  touch(s, at, tcp_of(packet, flow), false, now_s);
  return rewrite(packet, s.client.reversed(), inverse(s.addresses_delta), inverse(s.ports_delta));
}

// `outer`: source and destination of the error itself; `inner`: what the quoted packet shall say.
NatResult Nat::rewrite_error(const Packet& packet, const net::IcmpError& error,
                             const net::FlowKey& outer, const net::FlowKey& inner) {
  auto* ip = reinterpret_cast<std::uint8_t*>(packet.bytes.data());
  const bool v4 = outer.family == Family::kIpv4;
  std::uint8_t* icmp = ip + packet.parsed.l3_header_bytes;
  const std::uint32_t icmp_bytes = packet.parsed.l4_bytes();
  const auto sum_of = [&] {
    const std::uint64_t pseudo = v4 ? 0
                                    : net::pseudo_header_sum(Family::kIpv6, ip + 8, ip + 24,
                                                             net::kProtocolIcmp6, icmp_bytes);
    return net::finish(net::sum_bytes(icmp, icmp_bytes, pseudo));
  };
  if (!packet.checksum_partial && sum_of() != 0) return NatResult::kMalformed;
  if (!spend_hop(ip, outer.family)) return NatResult::kHopLimit;
  std::uint8_t* quoted = ip + error.inner_offset;
  std::uint8_t* l4 = ip + error.inner_l4_offset;
  const std::uint16_t addresses = addresses_delta(error.inner, inner);
  const std::uint16_t ports = ports_delta(error.inner, inner);
  write_addresses(quoted, inner);
  if (v4) adjust(quoted + kIpv4ChecksumAt, addresses);
  net::store_be16(l4, inner.src_port);
  net::store_be16(l4 + 2, inner.dst_port);
  // The quoted checksum, when it is there and is one (RFC 5508 REQ-4).
  const bool udp = inner.protocol == net::kProtocolUdp;
  const std::size_t field = udp ? kUdpChecksumAt : net::kTcpChecksumOffset;
  const std::size_t quoted_l4 = std::size_t{error.inner_l4_offset} - error.inner_offset;
  if (quoted_l4 + field + 2 <= error.inner_bytes && !(udp && load_raw16(l4 + field) == 0)) {
    adjust(l4 + field, fold(std::uint64_t{addresses} + ports));
  }
  write_addresses(ip, outer);
  if (v4) {
    store_raw16(ip + kIpv4ChecksumAt, 0);
    store_raw16(ip + kIpv4ChecksumAt, net::ipv4_header_checksum(ip, (ip[0] & 15U) * 4U));
  }
  store_raw16(icmp + 2, 0);
  store_raw16(icmp + 2, sum_of());
  return NatResult::kOk;
}

NatResult Nat::error_to_proxy(const Packet& packet, const net::IcmpError& error) {
  const Index at = find_client(error.inner.reversed());  // quotes what went to the client
  if (at == kNil) return NatResult::kNoSession;
  const Session& s = sessions_[at];
  // The reporter becomes one of our addresses: a proxy need not have a route to every router.
  return rewrite_error(packet, error, s.proxy.reversed(), s.proxy);
}

NatResult Nat::error_to_client(const Packet& packet, const net::IcmpError& error) {
  const Index at = find_proxy(error.inner.reversed());  // quotes what went to the proxy
  if (at == kNil) return NatResult::kNoSession;
  const Session& s = sessions_[at];
  return rewrite_error(packet, error, s.client.reversed(), s.client);
}

}  // namespace sanproxy::steer
