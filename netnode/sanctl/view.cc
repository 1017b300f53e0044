#include "netnode/sanctl/view.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "netnode/sanctl/ask.h"
#include "netnode/sanctl/field.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;

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

// Whether a worker that runs has not told of its part.
bool one_is_silent(const json& status) {
  const json& workers = list_in(status, "workers");
  return std::any_of(workers.begin(), workers.end(),
                     [](const json& worker) { return !field<bool>(worker, "answered", true); });
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
  const bool silent = one_is_silent(status);
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
    row.state = drained ? (*row.connections == 0 && !silent ? "drained" : "draining")
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

std::string place_of(const std::string& kind, const std::string& name) { return kind + "/" + name; }

// Of two kinds, nodes may have one name: the later is KIND/NAME.
template <typename Map>
auto& of_node(Map& by_name, const std::string& kind, const std::string& name) {
  return by_name[by_name.contains(name) ? place_of(kind, name) : name];
}

// `answer`: to status_of(), where it was asked.
void add_record(View& view, const char* kind, const cluster::NodeRecord& record,
                const Answer<json>* answer) {
  if (record.worker != 0) {
    // Its proxy comes before it (keys are in order), and has told of all its workers.
    const std::string proxy = cluster::proxy_of_worker(record.name);
    if (view.answered.contains(place_of(kind, proxy))) return;
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
  if (answer != nullptr && answer->value) {
    view.nodes.push_back(node_row(kind, record.name, *answer->value, record.admin));
    of_node(view.status, kind, record.name) = *answer->value;
    view.answered.insert(place_of(kind, record.name));
    if (std::string_view(kind) == "proxy") add_told(view, record.name, *answer->value);
    return;
  }
  of_node(view.unreachable, kind, record.name) =
      answer != nullptr ? answer->why : "it has no admin endpoint";
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

using Entries = std::map<std::string, cluster::Entry>;

const char* kind_of_key(const std::string& key) {
  return key.starts_with("node/proxy/") ? "proxy" : "netnode";
}

// Who is asked of `only`: that node itself, or the proxies that an application node has joined.
bool concerns(const Meant& only, const std::set<std::string>& joined, const std::string& key,
              const cluster::NodeRecord& record) {
  const char* kind = kind_of_key(key);
  if (std::string_view(kind) != "proxy") return only.is(kind, record.name);  // it has no workers
  const std::string name = cluster::proxy_of_worker(record.name);
  return only.is(kind, name) || joined.contains(name);
}

// The nodes of a cluster, all of them asked at a time.
void add_records(View& view, const Entries& entries, const Meant* only) {
  // It is registered a moment after it has joined: who was seen with it is asked as well.
  std::set<std::string> joined = only != nullptr ? only->at : std::set<std::string>();
  for (const auto& [key, entry] : entries) {
    const auto* record = std::get_if<cluster::ApplicationRecord>(&entry);
    if (record != nullptr && only != nullptr && only->is("appnode", record->name)) {
      joined.insert(cluster::proxy_of_worker(record->proxy));
    }
  }
  std::vector<std::pair<std::string, const cluster::NodeRecord*>> records;
  std::vector<Endpoint> endpoints;
  std::map<std::string, std::size_t> asked;  // by key
  for (const auto& [key, entry] : entries) {
    const auto* record = std::get_if<cluster::NodeRecord>(&entry);
    if (record == nullptr || (only != nullptr && !concerns(*only, joined, key, *record))) continue;
    records.emplace_back(key, record);
    if (record->worker != 0 || record->admin.empty()) continue;
    asked[key] = endpoints.size();
    endpoints.push_back({record->name, record->admin});
  }
  std::vector<std::string> lost;  // who is registered no more may have lost etcd alone
  for (const auto& [key, address] : only != nullptr ? only->endpoints : Endpoints()) {
    if (entries.contains(key)) continue;
    lost.push_back(key);
    endpoints.push_back({key.substr(key.rfind('/') + 1), address});
  }
  const auto answers = ask_all(endpoints, status_of);
  for (std::size_t i = 0; i < lost.size(); ++i) {
    const std::size_t place = endpoints.size() - lost.size() + i;
    if (answers[place].silent) continue;  // it is gone
    cluster::NodeRecord record;
    record.name = endpoints[place].name;
    record.admin = endpoints[place].address;
    add_record(view, kind_of_key(lost[i]), record, &answers[place]);
    view.unregistered.push_back(record.name);
  }
  for (const auto& [key, record] : records) {
    const auto answer = asked.find(key);
    add_record(view, kind_of_key(key), *record,
               answer == asked.end() ? nullptr : &answers[answer->second]);
  }
}

View look_at_cluster(const Options& options, const Meant* only) {
  View view;
  const Entries entries = ClusterStore(options).entries(&view.refused);
  add_records(view, entries, only);
  for (const auto& [key, entry] : entries) {
    if (std::holds_alternative<cluster::Drain>(entry)) {
      view.drains.push_back(key.substr(std::string("drain/").size()));
    }
  }
  Applications applications(view);
  for (const auto& [key, entry] : entries) {
    const auto* record = std::get_if<cluster::ApplicationRecord>(&entry);
    if (record != nullptr &&
        !view.answered.contains(place_of("proxy", cluster::proxy_of_worker(record->proxy)))) {
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

void add_steered(View& view, const std::string& netnode, const json& status) {
  std::vector<std::string> all;
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
    all.push_back(row.name);
    view.nodes.push_back(std::move(row));
  }
  for (const json& one : list_in(status, "services")) {
    auto address = field<std::string>(one, "address", "?");
    if (field<std::string>(one, "protocol", "tcp") != "tcp") address += "/udp";
    ServiceRow& row = view.services[address];
    row.address = address;
    row.counted = false;
    row.proxies = field<std::vector<std::string>>(one, "proxies", {});
    if (row.proxies.empty()) row.proxies = all;  // the service names none of its own
  }
}

View look(const Options& options, const Meant* only) {
  if (options.whole_cluster()) return look_at_cluster(options, only);
  View view;
  const json status = status_of({"", options.admin});
  const std::string name = field<std::string>(status, "name", options.admin);
  const bool proxy = is_proxy(status);
  view.nodes.push_back(node_row(proxy ? "proxy" : "netnode", name, status, options.admin));
  view.status[name] = status;
  view.network_node = !proxy;
  if (proxy) {
    add_told(view, name, status);
  } else {
    add_steered(view, name, status);
  }
  return view;
}

std::vector<std::string> troubles(const View& view) {
  std::map<std::string, std::set<std::string>> well;  // names, by service
  for (const NodeRow& row : view.nodes) {
    if (row.kind != "appnode" || row.state == "drained") continue;
    if (row.state == "down" && row.down.empty()) continue;  // all of it
    for (const std::string& address : row.services) {
      const bool down = std::find(row.down.begin(), row.down.end(), address) != row.down.end();
      if (!down) well[address].insert(row.name);
    }
  }
  std::vector<std::string> out;
  for (const auto& [address, row] : view.services) {
    if (!row.counted || well.contains(address)) continue;
    out.push_back(address + (row.members == 0 ? ": no application node serves it"
                                              : ": no application node that serves it is well"));
  }
  for (const NodeRow& row : view.nodes) {
    if (row.kind == "proxy" && row.state == "down") {
      out.push_back("proxy " + row.name + " is down" + (row.where.empty() ? "" : ", " + row.where));
    }
  }
  for (const auto& [name, status] : view.status) {
    if (view.network_node) break;  // its proxies have rows
    for (const json& proxy : list_in(status, "proxies")) {
      if (!proxy.is_object() || field<std::string>(proxy, "state", "") != "down") continue;
      out.push_back(name + " does not reach proxy " + field<std::string>(proxy, "name", "?"));
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
  const auto count = [&row](std::uint64_t value) { return row.counted ? json(value) : json(); };
  return {{"address", row.address},
          {"balance", row.balance},
          {"binding", row.binding},
          {"members", count(row.members)},
          {"proxies", row.proxies},
          {"connections", count(row.connections)},
          {"accepted", count(row.accepted)},
          {"unserved", count(row.unserved)},
          {"in_cluster_configuration", row.configured}};
}

}  // namespace sanproxy::sanctl
