// What routers tell a Forwarder of the paths of its tunnels (docs/netnode.md "MTU").
#include <algorithm>

#include "netnode/net/tunnel.h"
#include "netnode/steer/forwarder.h"

namespace sanproxy::steer {
namespace {

// Anybody who knows both ends can make one up: not below what everybody must carry, and for a time.
constexpr std::uint32_t kPathMtuMin4 = 576;
constexpr std::uint32_t kPathMtuMin6 = 1280;
constexpr std::uint64_t kPathMtuMs = 600'000;  // RFC 1191 6.3

bool is_tunnel_of(const ProxyConfig& proxy, const net::TunnelTooBig& error) {
  if (proxy.mode != Mode::kTunnel) return false;
  const bool gue = proxy.tunnel == net::TunnelKind::kGue;
  if (gue ? error.protocol != net::kProtocolUdp || error.udp_port != proxy.gue_port
          : error.protocol != net::kProtocolIpv4 && error.protocol != net::kProtocolIpv6) {
    return false;
  }
  return std::any_of(proxy.targets.begin(), proxy.targets.end(),
                     [&](const SocketAddress& target) { return target.ip == error.remote; });
}

}  // namespace

bool Forwarder::note_path_mtu(const Arrival& packet, const Verdict& verdict, std::uint64_t now_ms) {
  const auto& ours = options_.tunnel_addresses;
  net::TunnelTooBig error;
  if (ours.empty() || !net::parse_tunnel_too_big(packet.bytes, verdict.parsed, error) ||
      std::find(ours.begin(), ours.end(), error.local) == ours.end()) {
    return false;
  }
  bool found = false;
  const bool v6 = error.remote.family == Family::kIpv6;
  for (Proxy& proxy : proxies_) {
    if (!proxy.in_use || !is_tunnel_of(proxy.config, error)) continue;
    found = true;
    Proxy::PathMtu& path = proxy.path_mtus[v6];
    const std::uint32_t mtu = std::max(error.mtu_bytes, v6 ? kPathMtuMin6 : kPathMtuMin4);
    if (now_ms < path.until_ms && path.mtu_bytes < mtu) continue;
    path = {mtu, now_ms + kPathMtuMs};
  }
  return found;
}

}  // namespace sanproxy::steer
