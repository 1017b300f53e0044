#include "netnode/steer/proxy_set.h"

#include <algorithm>
#include <set>

#include "lwproto/fabric/address.h"

namespace sanproxy::steer {
namespace {

std::string check_proxy(const ProxyConfig& proxy) {
  if (proxy.name.empty() || proxy.name.size() > 64) {
    return "a proxy's name has 1 to 64 characters, not \"" + proxy.name + "\"";
  }
  const std::string who = "proxy \"" + proxy.name + "\": ";
  if (proxy.id > net::kSessionTagMax) return who + "id is from 1 to 1023";
  if (proxy.weight > kWeightMax) return who + "weight is from 0 to 1000";
  if (proxy.mode == Mode::kChannel) {
    if (proxy.channel.empty()) return who + "mode \"channel\" needs the address of its channel";
    if (std::string wrong = check_channel(proxy.channel); !wrong.empty()) return who + wrong;
    if (!proxy.targets.empty()) return who + "mode \"channel\" has one address";
  } else if (proxy.targets.empty()) {
    return who + "mode \"" + mode_name(proxy.mode) + "\" needs an address";
  }
  for (const SocketAddress& target : proxy.targets) {
    if (target.ip.is_any()) return who + target.ip.to_string() + " is nobody's address";
    if (proxy.mode == Mode::kTunnel && target.port != 0) {
      return who + "a tunnel ends at an IP address, without a port, not at " + target.to_string();
    }
  }
  std::set<Family> families;
  for (const SocketAddress& target : proxy.targets) {
    if (!families.insert(target.ip.family).second) {
      return who + "more than one address of one family";
    }
  }
  if (proxy.probe.kind != ProbeKind::kNone && proxy.mode == Mode::kChannel) {
    return who + "a channel has its heartbeat; a probe is for \"nat\" and \"tunnel\"";
  }
  const bool address_has_port =
      !proxy.targets.empty() && proxy.targets[0].port != 0 && proxy.mode == Mode::kNat;
  if (proxy.probe.kind != ProbeKind::kNone && proxy.probe.address.port == 0 && !address_has_port) {
    return who + "the probe needs an address with a port";
  }
  return {};
}

}  // namespace

std::string check_channel(const std::string& address) {
  const auto parsed = fabric::FabricAddress::parse(address);
  const std::string who = "channel \"" + address + "\": ";
  if (!parsed.ok()) return who + parsed.status().text();
  if (parsed->scheme == "shm") return {};
  if (parsed->socket.ip.is_any()) return who + "nobody can connect to \"every address\"";
  if (parsed->socket.port == 0) return who + "needs a port";
  return {};
}

const char* mode_name(Mode mode) {
  switch (mode) {
    case Mode::kChannel:
      return "channel";
    case Mode::kTunnel:
      return "tunnel";
    case Mode::kNat:
      return "nat";
  }
  return "unknown";
}

std::string check(const ProxySet& set) {
  if (set.proxies.size() > kProxiesMax) return "more than 1023 proxies";
  if (set.services.size() > kServicesMax) return "more than 4096 services";
  std::set<std::string> names;
  std::set<std::uint16_t> ids;
  for (const ProxyConfig& proxy : set.proxies) {
    if (std::string wrong = check_proxy(proxy); !wrong.empty()) return wrong;
    if (!names.insert(proxy.name).second) return "two proxies are named \"" + proxy.name + "\"";
    if (proxy.id != 0 && !ids.insert(proxy.id).second) {
      return "proxy \"" + proxy.name + "\": id " + std::to_string(proxy.id) + " is taken";
    }
  }
  std::set<std::pair<SocketAddress, std::uint8_t>> services;
  std::set<std::set<std::string>> pools;
  for (const ServiceConfig& service : set.services) {
    const std::string who = "service " + service.address.to_string() + ": ";
    if (service.address.port == 0) return who + "needs a port";
    if (!services.emplace(service.address, service.protocol).second) return who + "is there twice";
    pools.emplace(service.proxies.begin(), service.proxies.end());
    for (const std::string& name : service.proxies) {
      if (names.count(name) == 0) {
        return std::string(who).append("there is no proxy \"").append(name).append("\"");
      }
    }
  }
  if (pools.size() > kPoolsMax) return "services with more than 64 different lists of proxies";
  return {};
}

}  // namespace sanproxy::steer
