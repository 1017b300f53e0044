// ProxySet: the services and the proxies that a network node steers between, as configured.
//
// Document: docs/netnode.md, docs/configuration.md "netnode".
// Role: what apply() takes, from a file or from a cluster; no state of its own.
// Thread: values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "netnode/net/session_tag.h"
#include "netnode/net/tunnel.h"

namespace sanproxy::steer {

inline constexpr std::size_t kProxiesMax = net::kSessionTagMax;
inline constexpr std::size_t kServicesMax = 4096;
inline constexpr std::size_t kPoolsMax = 64;
inline constexpr std::uint32_t kWeightMax = 1000;

enum class Mode : std::uint8_t { kChannel, kTunnel, kNat };
const char* mode_name(Mode mode);

enum class ProbeKind : std::uint8_t { kNone, kTcp, kHttp };

struct ProbeSettings {
  ProbeKind kind = ProbeKind::kNone;
  SocketAddress address;   // of family kNone: the first of the proxy's
  std::string path = "/";  // http: 2xx and 3xx are good
  std::uint32_t interval_ms = 1'000;
  std::uint32_t timeout_ms = 1'000;
  std::uint32_t rise = 2;
  std::uint32_t fall = 3;
  bool operator==(const ProbeSettings&) const = default;
};

struct ProxyConfig {
  std::string name;
  std::string node;      // that it leads to, if that has another name; in a cluster its drain,
                         // state and weight hold here
  std::uint16_t id = 0;  // 1..1023, in the session tags of this proxy; 0: it sends none
  std::uint32_t weight = 1;
  bool weight_said =
      false;  // by the file or the cluster; else what the proxy tells stands above it
  bool draining = false;
  Mode mode = Mode::kChannel;
  std::string channel;                 // channel: the fabric address of its channel interface
  std::vector<SocketAddress> targets;  // nat, tunnel: one a family at most; nat: port 0 is the
                                       // service's own
  net::TunnelKind tunnel = net::TunnelKind::kIp;
  std::uint16_t gue_port = net::kGuePort;
  std::uint16_t clamp_mss = 0;  // 0: SYNs pass as they are
  ProbeSettings probe;

  const std::string& node_name() const { return node.empty() ? name : node; }
  bool operator==(const ProxyConfig&) const = default;
};

struct ServiceConfig {
  SocketAddress address;
  std::uint8_t protocol = net::kProtocolTcp;
  std::vector<std::string> proxies = {};  // names; empty: all
  bool names(const std::string& proxy) const;
  bool operator==(const ServiceConfig&) const = default;
};

// Whether a proxy can have sessions of a service at all, to which its list may name it: by a
// channel comes TCP alone, and NAT has no way from one family into the other.
bool serves(const ProxyConfig& proxy, const ServiceConfig& service);

struct ProxySet {
  std::vector<ProxyConfig> proxies;
  std::vector<ServiceConfig> services;
  bool operator==(const ProxySet&) const = default;
};

// Why nobody can connect to a fabric address, for people; empty when one can.
std::string check_channel(const std::string& address);
// Why nobody can have a service there, for people; empty when one can.
std::string check_service_address(const IpAddress& address);
// Why the set cannot be applied: a text for the operator, with the name or address that is wrong;
// empty when it can.
std::string check(const ProxySet& set);
// Services whose proxies cannot all serve them, for people. `none`: those that nobody can serve.
std::vector<std::string> unserved(const ProxySet& set, bool none);

}  // namespace sanproxy::steer
