// View: what is there, the same whether one node's admin endpoint or a whole cluster tells it.
//
// Document: docs/sanctl.md.
// Role: gathers /status of the nodes that can be asked, and the records of those that cannot.
// Thread: the main one. Throws Failure when nothing can be learned at all.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "netnode/sanctl/cluster_store.h"
#include "netnode/sanctl/options.h"

namespace sanproxy::sanctl {

struct NodeRow {
  std::string kind, name, state, where;  // kind: proxy, netnode, appnode
  std::optional<std::uint64_t> connections;
  std::vector<std::string> services;  // appnode
  std::string at;                     // appnode: its proxy
  std::vector<std::string> down;      // appnode: of these, where its health check fails
};

struct ServiceRow {
  std::string address, balance, binding;
  std::uint64_t members = 0, connections = 0, accepted = 0, unserved = 0;
  std::vector<std::string> proxies;  // that listen
  bool configured = false;           // in the cluster's configuration
  bool counted = true;               // a network node counts nothing of these
};

using Endpoints = std::map<std::string, std::string>;  // by key in etcd

// A node as operators name it: an application node also by what stands before its PID, as the
// proxies take it.
struct Meant {
  std::string kind, name;         // kind "": whatever has that name
  std::set<std::string> at = {};  // an application node: proxies where it was seen
  // Admin endpoints of those that were asked once, by key. Who has lost etcd is registered no more,
  // and there all the same.
  Endpoints endpoints = {};

  bool is(std::string_view its_kind, std::string_view its_name) const {
    if (!kind.empty() && its_kind != kind) return false;
    return its_name == name ||
           (its_kind == "appnode" && cluster::name_before_pid(its_name) == name);
  }
};

struct View {
  std::vector<NodeRow> nodes;
  std::map<std::string, ServiceRow> services;
  std::map<std::string, nlohmann::json> status;    // of nodes that answered, by name
  std::set<std::string> answered;                  // they, as "KIND/NAME"
  std::map<std::string, std::string> unreachable;  // name -> why
  std::map<std::string, std::string> refused;      // keys in etcd that no node takes
  std::vector<std::string> drains;                 // "KIND/NAME" in etcd
  std::vector<std::string> unregistered;           // have answered, and etcd knows nothing of them
  bool network_node = false;                       // the one that was asked is one
};

// Of a whole cluster, `only`: nobody else is asked, and the others' rows may be missing.
View look(const Options& options, const Meant* only = nullptr);
// What a proxy's /status tells of services and application nodes, with its workers as one.
void add_told(View& view, const std::string& proxy, const nlohmann::json& status);
// What a network node's tells of proxies and services.
void add_steered(View& view, const std::string& netnode, const nlohmann::json& status);

// What clients notice, a line each: services that no application node serves, proxies that a
// network node does not reach.
std::vector<std::string> troubles(const View& view);

nlohmann::json to_json(const NodeRow& row);
nlohmann::json to_json(const ServiceRow& row);

}  // namespace sanproxy::sanctl
