#include "netnode/steer/proxy_set.h"

#include <algorithm>
#include <map>
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

std::string check_service_address(const IpAddress& address) {
  if (address.is_any()) return "\"every address\" is nobody's to answer for";
  const std::uint8_t first = address.bytes[0];
  const bool group = address.family == Family::kIpv4 ? first >= 224 : first == 0xff;
  return group ? "a group's address has no sessions" : "";
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

bool ServiceConfig::names(const std::string& proxy) const {
  return proxies.empty() || std::find(proxies.begin(), proxies.end(), proxy) != proxies.end();
}

bool serves(const ProxyConfig& proxy, const ServiceConfig& service) {
  switch (proxy.mode) {
    case Mode::kChannel:
      return service.protocol == net::kProtocolTcp;
    case Mode::kTunnel:
      return true;
    case Mode::kNat:
      break;
  }
  return std::any_of(proxy.targets.begin(), proxy.targets.end(), [&](const SocketAddress& target) {
    return target.ip.family == service.address.ip.family;
  });
}

std::vector<std::string> unserved(const ProxySet& set, bool none) {
  std::vector<std::string> out;
  for (const ServiceConfig& service : set.services) {
    std::size_t able = 0, unable = 0;
    const ProxyConfig* one = nullptr;
    for (const ProxyConfig& proxy : set.proxies) {
      if (!service.names(proxy.name)) continue;
      if (serves(proxy, service)) {
        ++able;
      } else {
        ++unable;
        one = &proxy;
      }
    }
    if (unable == 0 || none != (able == 0)) continue;
    const bool udp = one->mode == Mode::kChannel;
    out.push_back(
        "service " + service.address.to_string() + (udp ? " (udp): " : ": ") +
        std::to_string(unable) + " of its proxies cannot serve it, such as \"" + one->name +
        "\": " + (udp ? "a channel carries TCP alone" : "it has no address of that family"));
  }
  return out;
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
  std::map<IpAddress, std::string> targets;
  for (const ProxyConfig& proxy : set.proxies) {
    for (const SocketAddress& target : proxy.targets) targets.emplace(target.ip, proxy.name);
  }
  std::set<std::pair<SocketAddress, std::uint8_t>> services;
  std::set<std::set<std::string>> pools;
  for (const ServiceConfig& service : set.services) {
    const std::string who = "service " + service.address.to_string() + ": ";
    if (service.address.port == 0) return who + "needs a port";
    if (std::string wrong = check_service_address(service.address.ip); !wrong.empty()) {
      return who + wrong;
    }
    if (const auto proxy = targets.find(service.address.ip); proxy != targets.end()) {
      return who + "it is the address of proxy \"" + proxy->second +
             "\", whose packets would come back";
    }
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
