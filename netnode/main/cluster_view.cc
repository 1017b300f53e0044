#include "netnode/main/cluster_view.h"

#include <algorithm>
#include <set>

namespace sanproxy::netnode {
namespace {

using cluster::Entry;

// Proxies that registered a way for network nodes, and are not in the file.
void add_found(steer::ProxySet& set, const std::string& key, const cluster::NodeRecord& record) {
  if (!key.starts_with("node/proxy/") || record.channels.empty()) return;
  const auto same = [&](const steer::ProxyConfig& one) {
    return one.name == record.name || one.channel == record.channels.front() ||
           (record.tag != 0 && one.id == record.tag);
  };
  if (std::any_of(set.proxies.begin(), set.proxies.end(), same)) return;
  if (set.proxies.size() >= steer::kProxiesMax) return;
  steer::ProxyConfig found;
  found.name = record.name;
  found.id = record.tag;
  found.mode = steer::Mode::kChannel;
  found.channel = record.channels.front();
  set.proxies.push_back(std::move(found));
}

void add_service(steer::ProxySet& set, const std::string& text) {
  const auto address = SocketAddress::parse(text);
  // "Every address" is nothing that we could answer for.
  if (!address.ok() || address->ip.is_any() || set.services.size() >= steer::kServicesMax) return;
  const bool known = std::any_of(set.services.begin(), set.services.end(),
                                 [&](const auto& one) { return one.address == *address; });
  if (!known) set.services.push_back({.address = *address});
}

}  // namespace

steer::ProxySet with_cluster(const steer::ProxySet& configured,
                             const std::map<std::string, Entry>& entries) {
  steer::ProxySet out = configured;
  for (const auto& [key, entry] : entries) {
    if (const auto* record = std::get_if<cluster::NodeRecord>(&entry)) add_found(out, key, *record);
    if (const auto* policy = std::get_if<cluster::ServicePolicy>(&entry)) {
      add_service(out, policy->address.to_string());
    }
    if (const auto* node = std::get_if<cluster::ApplicationRecord>(&entry)) {
      for (const std::string& address : node->services) add_service(out, address);
    }
  }
  for (steer::ProxyConfig& proxy : out.proxies) {
    // A weight and a drain of a proxy are those of its workers.
    const std::string name = cluster::proxy_of_worker(proxy.name);
    if (const auto it = entries.find(cluster::proxy_policy_key(name)); it != entries.end()) {
      const std::uint32_t weight = std::get<cluster::ProxyPolicy>(it->second).weight;
      proxy.weight = std::min<std::uint32_t>(weight, steer::kWeightMax);
    }
    if (entries.contains(cluster::drain_key(cluster::NodeKind::kProxy, name))) {
      proxy.draining = true;
    }
    const auto record = entries.find(cluster::node_key(cluster::NodeKind::kProxy, proxy.name));
    if (record != entries.end()) {
      const auto& node = std::get<cluster::NodeRecord>(record->second);
      proxy.draining = proxy.draining || node.state != "running";
    }
  }
  return out;
}

}  // namespace sanproxy::netnode
