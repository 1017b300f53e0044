#include "netnode/main/cluster_view.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <unordered_set>

namespace sanproxy::netnode {
namespace {

using cluster::Entry;

// The first of a proxy's channels that leads there from here: shared memory does on its own host
// alone, and on another one at best to a proxy that listens at the same path. "": none.
std::string channel_to(const cluster::NodeRecord& record, const std::string& host) {
  for (const std::string& channel : record.channels) {
    const bool is_far = host.empty() || record.host != host;
    if (!is_far || !channel.starts_with("shm:")) return channel;
  }
  return "";
}

// Proxies that registered a way for network nodes, and are not in the file.
void add_found(steer::ProxySet& set, const std::string& key, const cluster::NodeRecord& record,
               const std::string& host, LeftOut& left_out) {
  if (!key.starts_with("node/proxy/") || record.channels.empty()) return;
  const std::string channel = channel_to(record, host);
  for (const steer::ProxyConfig& one : set.proxies) {
    if (one.name == record.name) return;
    const bool same_channel = one.channel == channel && !channel.empty();
    if (!same_channel && (record.tag == 0 || one.id != record.tag)) continue;
    return left_out.add([&] {
      return "proxy \"" + record.name + "\": it has the " + (same_channel ? "channel" : "id") +
             " of \"" + one.name + "\"";
    });
  }
  if (set.proxies.size() >= steer::kProxiesMax) {
    return left_out.add([&] {
      return "proxy \"" + record.name + "\": there are " + std::to_string(steer::kProxiesMax) +
             " already";
    });
  }
  if (channel.empty()) {
    return left_out.add([&] {
      return "proxy \"" + record.name + "\": its channel is shared memory of another host";
    });
  }
  if (std::string wrong = steer::check_channel(channel); !wrong.empty()) {
    return left_out.add([&] { return "proxy \"" + record.name + "\": " + wrong; });
  }
  steer::ProxyConfig found;
  found.name = record.name;
  found.id = record.tag;
  found.mode = steer::Mode::kChannel;
  found.channel = channel;
  set.proxies.push_back(std::move(found));
}

using Addresses = std::set<SocketAddress>;
// Addresses, and what is there instead of a service.
using Taken = std::map<IpAddress, std::string>;

Taken taken_addresses(const steer::ProxySet& configured, std::span<const IpAddress> nat) {
  Taken out;
  for (const steer::ProxyConfig& proxy : configured.proxies) {
    for (const SocketAddress& target : proxy.targets) {
      out.emplace(target.ip, "it is the address of \"" + proxy.name + "\"");
    }
  }
  for (const IpAddress& ip : nat) {
    out.emplace(ip, "[nat] has its address, where answers of servers arrive");
  }
  return out;
}

void add_service(steer::ProxySet& set, Addresses& known, const Taken& taken,
                 const std::string& text, LeftOut& left_out) {
  const auto address = SocketAddress::parse(text);
  if (!address.ok() || address->port == 0) {
    return left_out.add([&] { return "service \"" + text + "\": it is no IP:PORT"; });
  }
  // "Every address" is nothing that we could answer for.
  if (address->ip.is_any() || known.contains(*address)) return;
  if (set.services.size() >= steer::kServicesMax) {
    return left_out.add([&] {
      return "service " + address->to_string() + ": there are " +
             std::to_string(steer::kServicesMax) + " already";
    });
  }
  if (std::string wrong = steer::check_service_address(address->ip); !wrong.empty()) {
    return left_out.add([&] { return "service " + address->to_string() + ": " + wrong; });
  }
  if (const auto why = taken.find(address->ip); why != taken.end()) {
    return left_out.add([&] { return "service " + address->to_string() + ": " + why->second; });
  }
  known.insert(*address);
  set.services.push_back({.address = *address});
}

// The proxy whose lease holds a node's key; "" for other keys.
std::string owner_of(std::string_view key) {
  for (const std::string_view prefix : {"node/proxy/", "node/appnode/"}) {
    if (!key.starts_with(prefix)) continue;
    key.remove_prefix(prefix.size());
    return std::string(key.substr(0, key.find('/')));
  }
  return "";
}

}  // namespace

void ClusterEntries::apply(const std::vector<cluster::Change>& changes, const IsUp& is_up) {
  // Who goes first: an application node's key that goes with its proxy's says nothing of its own.
  for (const cluster::Change& change : changes) {
    if (!change.key.starts_with("node/proxy/")) continue;
    const std::string proxy = owner_of(change.key);
    if (change.entry) {
      held_.erase(proxy);
    } else if (is_up(cluster::proxy_of_worker(proxy))) {
      held_.insert(proxy);
    }
  }
  for (const cluster::Change& change : changes) {
    if (change.entry) {
      entries_.insert_or_assign(change.key, *change.entry);
      gone_.erase(change.key);
    } else if (held_.contains(owner_of(change.key))) {
      if (entries_.contains(change.key)) gone_.insert(change.key);
    } else {
      entries_.erase(change.key);
    }
  }
  // A proxy that is back has written what it still has before its own record, and nobody will say
  // again that the rest is gone.
  std::erase_if(gone_, [&](const std::string& key) {
    if (held_.contains(owner_of(key))) return false;
    entries_.erase(key);
    return true;
  });
}

bool ClusterEntries::forget_lost(const IsUp& is_up) {
  std::set<std::string> lost;
  for (const std::string& proxy : held_) {
    if (!is_up(cluster::proxy_of_worker(proxy))) lost.insert(proxy);
  }
  if (lost.empty()) return false;
  std::erase_if(entries_, [&](const auto& one) { return lost.contains(owner_of(one.first)); });
  std::erase_if(gone_, [&](const std::string& key) { return lost.contains(owner_of(key)); });
  std::erase_if(held_, [&](const std::string& proxy) { return lost.contains(proxy); });
  return true;
}

steer::ProxySet with_cluster(const steer::ProxySet& configured, const ThisNode& here,
                             const std::map<std::string, Entry>& entries, LeftOut& left_out) {
  steer::ProxySet out = configured;
  Addresses services;
  const Taken taken = taken_addresses(configured, here.nat_addresses);
  std::unordered_set<std::string_view> seen;  // of texts in `entries`: most name what others do
  const auto add = [&](const std::string& address) {
    if (seen.insert(address).second) add_service(out, services, taken, address, left_out);
  };
  // The cluster's are TCP: one of another protocol at the same address is another one.
  for (const steer::ServiceConfig& service : out.services) {
    if (service.protocol == net::kProtocolTcp) services.insert(service.address);
  }
  for (const auto& [key, entry] : entries) {
    if (const auto* record = std::get_if<cluster::NodeRecord>(&entry)) {
      add_found(out, key, *record, here.host, left_out);
      for (const std::string& address : record->leaving) add(address);
    }
    if (const auto* policy = std::get_if<cluster::ServicePolicy>(&entry)) {
      add_service(out, services, taken, policy->address.to_string(), left_out);
    }
    if (const auto* node = std::get_if<cluster::ApplicationRecord>(&entry)) {
      for (const std::string& address : node->services) add(address);
    }
  }
  for (steer::ProxyConfig& proxy : out.proxies) {
    // A weight and a drain of a proxy are those of its workers.
    const std::string& node = proxy.node_name();
    const std::string name = cluster::proxy_of_worker(node);
    if (const auto it = entries.find(cluster::proxy_policy_key(name)); it != entries.end()) {
      const auto weight = std::get<cluster::ProxyPolicy>(it->second).weight;
      proxy.weight_said = proxy.weight_said || weight.has_value();
      proxy.weight = std::min(weight.value_or(proxy.weight), steer::kWeightMax);
    }
    for (const std::string& drained : {name, proxy.name}) {
      if (entries.contains(cluster::drain_key(cluster::NodeKind::kProxy, drained)))
        proxy.draining = true;
    }
    const auto record = entries.find(cluster::node_key(cluster::NodeKind::kProxy, node));
    if (record != entries.end()) {
      const auto& told = std::get<cluster::NodeRecord>(record->second);
      proxy.draining = proxy.draining || told.state != "running";
      // The same at all network nodes, whether or not they have its channel.
      if (!proxy.weight_said) proxy.weight = std::min(told.weight, steer::kWeightMax);
      proxy.weight_said = true;
    }
  }
  return out;
}

bool is_up(std::span<const steer::Forwarder::Proxy> ways, const std::string& proxy) {
  return std::any_of(ways.begin(), ways.end(), [&](const steer::Forwarder::Proxy& way) {
    return way.in_use && way.state != steer::ProxyState::kDown &&
           cluster::proxy_of_worker(way.config.node_name()) == proxy;
  });
}

}  // namespace sanproxy::netnode
