#include "netnode/sanctl/view.h"

#include <algorithm>
#include <set>
#include <tuple>

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

// Each worker of a proxy tells of an application node by itself: the n-th of a name at one is the
// n-th of that name at another.
class Workers {
 public:
  std::uint32_t nth(const std::string& worker, const std::string& name) {
    return seen_[{worker, name}]++;
  }

 private:
  std::map<std::pair<std::string, std::string>, std::uint32_t> seen_;
};

std::string worker_of(const json& part) {
  return std::to_string(field<std::uint64_t>(part, "worker", 0));
}

void add_services(View& view, const std::string& proxy, const json& status) {
  for (const json& one : list_in(status, "services")) {
    if (!one.is_object()) continue;
    Workers workers;
    ServiceRow& row = view.services[field<std::string>(one, "address", "?")];
    row.address = field<std::string>(one, "address", "?");
    row.balance = field<std::string>(one, "balance", "");
    row.binding = field<std::string>(one, "binding", "");
    row.accepted += field<std::uint64_t>(one, "accepted", 0);
    row.unserved += field<std::uint64_t>(one, "unserved", 0);
    std::set<std::pair<std::string, std::uint32_t>> members;
    for (const json& member : list_in(one, "members")) {
      const auto name = field<std::string>(member, "name", "?");
      members.emplace(name, workers.nth(worker_of(member), name));
      row.connections += field<std::uint64_t>(member, "connections", 0);
    }
    row.members += members.size();
    row.proxies.push_back(proxy);
  }
}

void unite(std::vector<std::string>& all, const std::vector<std::string>& more) {
  for (const std::string& one : more) {
    if (std::find(all.begin(), all.end(), one) == all.end()) all.push_back(one);
  }
}

// Of an application node at several workers.
void unite(NodeRow& all, const NodeRow& more) {
  if (more.connections) all.connections = all.connections.value_or(0) + *more.connections;
  if (all.state != more.state) {
    all.state = all.state == "down" || more.state == "down" ? "down" : "draining";
  }
  unite(all.services, more.services);
  unite(all.down, more.down);
}

// The application nodes that a proxy tells of.
void add_nodes(View& view, const std::string& proxy, const json& status) {
  using Place = std::pair<std::string, std::uint64_t>;  // a worker, and its number of the node
  std::map<Place, std::vector<std::string>> services, down;
  const auto place = [](const json& part) {
    return Place(worker_of(part), field<std::uint64_t>(part, "node", 0));
  };
  for (const json& one : list_in(status, "services")) {
    for (const json& member : list_in(one, "members")) {
      const auto address = field<std::string>(one, "address", "?");
      services[place(member)].push_back(address);
      if (field<std::string>(member, "health", "") == "down")
        down[place(member)].push_back(address);
    }
  }
  Workers workers;
  std::map<std::pair<std::string, std::uint32_t>, std::size_t> rows;
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
    row.services = services[place(node)];
    row.down = down[place(node)];
    row.at = proxy;
    const auto [known, fresh] =
        rows.try_emplace({row.name, workers.nth(worker_of(node), row.name)}, view.nodes.size());
    if (fresh) {
      view.nodes.push_back(std::move(row));
    } else {
      unite(view.nodes[known->second], row);
    }
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
        if (std::string_view(kind) == "proxy") add_told(view, record.name, status);
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

// Of proxies that cannot be asked: what they have registered.
class Applications {
 public:
  explicit Applications(View& view) : view_(view) {}
  void add(const cluster::ApplicationRecord& record) {
    const std::string proxy = cluster::proxy_of_worker(record.proxy);
    NodeRow row{"appnode",    record.name,     record.state, record.fabric,
                std::nullopt, record.services, proxy,        {}};
    if (record.state != "running") row.connections = record.connections;
    const auto [known, fresh] = rows_.try_emplace(
        {proxy, record.name, workers_.nth(record.proxy, record.name)}, view_.nodes.size());
    for (const std::string& address : record.services) {
      ServiceRow& service = view_.services[address];
      service.address = address;
      if (fresh || !serves(view_.nodes[known->second], address)) ++service.members;
      unite(service.proxies, {proxy});
    }
    if (fresh) return view_.nodes.push_back(std::move(row));
    unite(view_.nodes[known->second], row);
  }

 private:
  static bool serves(const NodeRow& row, const std::string& address) {
    return std::find(row.services.begin(), row.services.end(), address) != row.services.end();
  }

  View& view_;
  Workers workers_;
  std::map<std::tuple<std::string, std::string, std::uint32_t>, std::size_t> rows_;
};

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
  Applications applications(view);
  for (const auto& [key, entry] : entries) {
    const auto* record = std::get_if<cluster::ApplicationRecord>(&entry);
    if (record != nullptr && !view.status.contains(cluster::proxy_of_worker(record->proxy))) {
      applications.add(*record);
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

void add_told(View& view, const std::string& proxy, const json& status) {
  add_services(view, proxy, status);
  add_nodes(view, proxy, status);
}

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
    add_told(view, name, status);
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
