#include "netnode/sanctl/view.h"

#include <algorithm>

#include "netnode/sanctl/admin_client.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;

template <typename T>
T field(const json& object, const char* name, T otherwise) {
  const auto it = object.find(name);
  if (it == object.end()) return otherwise;
  try {
    return it->get<T>();
  } catch (const json::exception&) {
    return otherwise;
  }
}

const json& list_in(const json& object, const char* name) {
  static const json kNone = json::array();
  const auto it = object.find(name);
  return it != object.end() && it->is_array() ? *it : kNone;
}

const json& object_in(const json& object, const char* name) {
  static const json kNone = json::object();
  const auto it = object.find(name);
  return it != object.end() && it->is_object() ? *it : kNone;
}

void add_services(View& view, const std::string& proxy, const json& status) {
  for (const json& one : list_in(status, "services")) {
    if (!one.is_object()) continue;
    ServiceRow& row = view.services[field<std::string>(one, "address", "?")];
    row.address = field<std::string>(one, "address", "?");
    row.balance = field<std::string>(one, "balance", "");
    row.binding = field<std::string>(one, "binding", "");
    row.accepted += field<std::uint64_t>(one, "accepted", 0);
    row.unserved += field<std::uint64_t>(one, "unserved", 0);
    for (const json& member : list_in(one, "members")) {
      ++row.members;
      row.connections += field<std::uint64_t>(member, "connections", 0);
    }
    row.proxies.push_back(proxy);
  }
}

// The application nodes that a proxy tells of.
void add_nodes(View& view, const std::string& proxy, const json& status) {
  std::map<std::uint64_t, std::vector<std::string>> services, down;
  for (const json& one : list_in(status, "services")) {
    for (const json& member : list_in(one, "members")) {
      const auto node = field<std::uint64_t>(member, "node", 0);
      const auto address = field<std::string>(one, "address", "?");
      services[node].push_back(address);
      if (field<std::string>(member, "health", "") == "down") down[node].push_back(address);
    }
  }
  for (const json& node : list_in(status, "nodes")) {
    if (field<bool>(node, "dead", false)) continue;
    NodeRow row;
    row.kind = "appnode";
    row.name = field<std::string>(node, "name", "?");
    row.connections = field<std::uint64_t>(node, "connections", 0);
    const bool drained = field<bool>(node, "drained", false);
    const bool up = field<std::string>(node, "health", "up") == "up";
    row.state = drained ? (*row.connections == 0 ? "drained" : "draining")
                : up    ? "running"
                        : "down";
    row.where = field<std::string>(node, "fabric", "");
    row.services = services[field<std::uint64_t>(node, "node", 0)];
    row.down = down[field<std::uint64_t>(node, "node", 0)];
    row.at = proxy;
    view.nodes.push_back(std::move(row));
  }
}

// The proxies that a network node steers to, with the sessions that it knows.
void add_steered(View& view, const std::string& netnode, const json& status) {
  for (const json& proxy : list_in(status, "proxies")) {
    if (!proxy.is_object()) continue;
    NodeRow row;
    row.kind = "proxy";
    row.name = field<std::string>(proxy, "name", "?");
    row.connections = field<std::uint64_t>(proxy, "sessions", 0);
    row.state = !field<bool>(proxy, "drain", false) ? field<std::string>(proxy, "state", "?")
                : *row.connections == 0             ? "drained"
                                                    : "draining";
    row.where = "behind " + netnode;
    view.nodes.push_back(std::move(row));
  }
}

NodeRow node_row(const char* kind, const std::string& name, const json& status,
                 const std::string& where) {
  NodeRow row;
  row.kind = kind;
  row.name = name;
  row.state = field<std::string>(status, "state", "?");
  row.where = where;
  const json& connections = object_in(status, "connections");
  if (connections.contains("open")) {
    row.connections = field<std::uint64_t>(connections, "open", 0);
  } else if (status.contains("sessions")) {  // a network node's
    row.connections = field<std::uint64_t>(status, "sessions", 0);
  }
  return row;
}

void add_record(View& view, const char* kind, const cluster::NodeRecord& record) {
  if (record.worker != 0) {
    // Its proxy has been asked before it (keys are in order), and has told of all its workers.
    const std::string proxy = cluster::proxy_of_worker(record.name);
    if (view.status.contains(proxy)) return;
    for (NodeRow& row : view.nodes) {
      if (row.name != proxy || row.kind != kind) continue;
      if (row.state != record.state)
        row.state = "draining";  // some of them are further than others
      if (record.state != "running") {
        row.connections = row.connections.value_or(0) + record.connections;
      }
      return;
    }
    NodeRow row{kind, proxy, record.state, record.admin, std::nullopt, {}, "", {}};
    if (record.state != "running") row.connections = record.connections;
    return view.nodes.push_back(std::move(row));
  }
  if (!record.admin.empty()) {
    try {
      const json status = AdminClient(record.admin).get_json("/status");
      // Loopback addresses of another host lead to somebody else.
      if (field<std::string>(status, "name", "") == record.name) {
        view.nodes.push_back(node_row(kind, record.name, status, record.admin));
        view.status[record.name] = status;
        if (std::string_view(kind) == "proxy") {
          add_services(view, record.name, status);
          add_nodes(view, record.name, status);
        }
        return;
      }
      view.unreachable[record.name] = record.admin + " is another node's, seen from here";
    } catch (const Failure& failure) {
      view.unreachable[record.name] = failure.what();
    }
  } else {
    view.unreachable[record.name] = "it has no admin endpoint";
  }
  NodeRow row{kind, record.name, record.state, record.admin, std::nullopt, {}, "", {}};
  if (record.state != "running") row.connections = record.connections;
  view.nodes.push_back(std::move(row));
}

// Of a proxy that cannot be asked: what it has registered.
void add_application(View& view, const cluster::ApplicationRecord& record) {
  NodeRow row{"appnode",    record.name,     record.state, record.fabric,
              std::nullopt, record.services, record.proxy, {}};
  if (record.state != "running") row.connections = record.connections;
  for (const std::string& address : record.services) {
    ServiceRow& service = view.services[address];
    service.address = address;
    ++service.members;
    if (std::find(service.proxies.begin(), service.proxies.end(), record.proxy) ==
        service.proxies.end()) {
      service.proxies.push_back(record.proxy);
    }
  }
  view.nodes.push_back(std::move(row));
}

View look_at_cluster(const Options& options) {
  View view;
  ClusterStore store(options);
  const auto entries = store.entries(&view.refused);
  for (const auto& [key, entry] : entries) {
    if (const auto* record = std::get_if<cluster::NodeRecord>(&entry)) {
      add_record(view, key.starts_with("node/proxy/") ? "proxy" : "netnode", *record);
    } else if (std::holds_alternative<cluster::Drain>(entry)) {
      view.drains.push_back(key.substr(std::string("drain/").size()));
    }
  }
  for (const auto& [key, entry] : entries) {
    const auto* record = std::get_if<cluster::ApplicationRecord>(&entry);
    if (record != nullptr && !view.status.contains(cluster::proxy_of_worker(record->proxy))) {
      add_application(view, *record);
    }
    if (const auto* policy = std::get_if<cluster::ServicePolicy>(&entry)) {
      ServiceRow& row = view.services[policy->address.to_string()];
      row.address = policy->address.to_string();
      row.configured = true;
      if (!policy->balance.empty()) row.balance = policy->balance;
      if (!policy->binding.empty()) row.binding = policy->binding;
    }
  }
  return view;
}

}  // namespace

View look(const Options& options) {
  if (options.whole_cluster()) return look_at_cluster(options);
  View view;
  const json status = AdminClient(options.admin).get_json("/status");
  const std::string name = field<std::string>(status, "name", options.admin);
  // A network node has no TCP endpoints to tell of.
  const bool is_proxy = status.contains("pools");
  view.nodes.push_back(node_row(is_proxy ? "proxy" : "netnode", name, status, options.admin));
  view.status[name] = status;
  if (is_proxy) {
    add_services(view, name, status);
    add_nodes(view, name, status);
  } else {
    view.network_node = true;
    add_steered(view, name, status);
  }
  return view;
}

std::map<std::string, std::string> admin_endpoints(const Options& options) {
  if (!options.whole_cluster()) return {{"", options.admin}};
  std::map<std::string, std::string> out;
  for (const auto& [key, entry] : ClusterStore(options).entries()) {
    const auto* record = std::get_if<cluster::NodeRecord>(&entry);
    if (record != nullptr && key.starts_with("node/proxy/") && record->worker == 0 &&
        !record->admin.empty()) {
      out[record->name] = record->admin;
    }
  }
  return out;
}

json to_json(const NodeRow& row) {
  json out = {{"kind", row.kind}, {"name", row.name}, {"state", row.state}, {"where", row.where}};
  out["connections"] = row.connections ? json(*row.connections) : json(nullptr);
  if (row.kind == "appnode") {
    out["services"] = row.services;
    out["down_at"] = row.down;
    out["proxy"] = row.at;
  }
  return out;
}

json to_json(const ServiceRow& row) {
  return {{"address", row.address},
          {"balance", row.balance},
          {"binding", row.binding},
          {"members", row.members},
          {"proxies", row.proxies},
          {"connections", row.connections},
          {"accepted", row.accepted},
          {"unserved", row.unserved},
          {"in_cluster_configuration", row.configured}};
}

}  // namespace sanproxy::sanctl
