// The entries of a cluster in etcd: their keys, their values, and what makes a value good.
//
// Document: docs/cluster.md "Keys".
// Role: pure: text to checked values and back. Below /PREFIX/CLUSTER/ there are
//     schema                     the version of this format
//     config/service/IP:PORT     how connections of a service are treated   (operators)
//     config/proxy/NAME          a proxy's share                            (operators)
//     config/cluster/heartbeat   of application nodes                       (operators)
//     drain/KIND/NAME            out for new sessions                       (operators)
//     node/proxy/NAME, node/netnode/NAME, node/appnode/PROXY/NUMBER         (under leases)
//     head, history/VERSION      of the configuration                       (sanctl)
// Thread: values.
// Invariants:
//   1. What operators write (config, drain) is refused if a field is unknown or impossible; what
//      programs write (node) may have fields that we do not know yet.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lwproto/auth/admission.h"
#include "lwproto/base/socket_address.h"
#include "lwproto/cluster/bounds.h"

namespace sanproxy::cluster {

inline constexpr int kSchemaVersion = 1;

enum class NodeKind : std::uint8_t { kProxy, kNetworkNode, kApplicationNode };
const char* node_kind_name(NodeKind kind);  // "proxy", "netnode", "appnode"
std::optional<NodeKind> node_kind_of(std::string_view name);

// Where a cluster's keys are.
std::string cluster_root(std::string_view prefix, std::string_view cluster);

// Names of clusters, proxies and network nodes: 1 to 64 of letters, digits, '.', '_', '-'.
bool name_legal(std::string_view name);
// Further workers of a proxy register beside it: "p1", "p1.w1", "p1.w2".
std::string worker_name(std::string_view proxy, std::uint32_t worker);
// The proxy of such a name; the name itself if it is none.
std::string proxy_of_worker(std::string_view name);
// What operators may say instead of an application node's whole name, which ends in :PID by
// default: what stands before its last ':'. The name itself if there is none.
inline std::string_view name_before_pid(std::string_view name) {
  return name.substr(0, name.rfind(':'));
}
// Application nodes call themselves what they like: as a part of a key, other bytes are %XX.
std::string encode_name(std::string_view name);
std::optional<std::string> decode_name(std::string_view text);

// How often somebody is asked, and what follows. What is not said is left to the default.
struct Asking {
  std::optional<std::uint32_t> interval_ms = std::nullopt, timeout_ms = std::nullopt;
  std::optional<std::uint32_t> rise = std::nullopt, fall = std::nullopt;
  bool operator==(const Asking&) const = default;
};

// "health" of a service: a request to each of its members.
struct HealthPolicy {
  std::string request;  // empty: nobody is asked, whatever the proxies' files say
  std::string expect;
  Asking asking;
  bool operator==(const HealthPolicy&) const = default;
};

// config/cluster/heartbeat. What is not said is left to the proxy's own configuration.
struct HeartbeatPolicy {
  Asking asking;
};

// config/service/IP:PORT. What is not said is left to the proxy's own configuration.
struct ServicePolicy {
  SocketAddress address;
  std::string balance;  // "round-robin", "weighted", "least-connections"; ""
  std::string binding;  // "delayed", "immediate"; ""
  std::optional<auth::AllowList> allow;
  std::vector<std::string> allow_text;           // the same, as written
  std::map<std::string, std::uint32_t> weights;  // by application node, instead of JOIN's
  std::optional<HealthPolicy> health;
};

// config/proxy/NAME.
struct ProxyPolicy {
  std::optional<std::uint32_t> weight;  // share of the sessions, among proxies
};

// drain/KIND/NAME.
struct Drain {
  NodeKind kind = NodeKind::kProxy;
  std::string name;
};

// node/proxy/NAME and node/netnode/NAME.
struct NodeRecord {
  std::string name;
  std::string instance;               // of this run of the process
  std::string admin;                  // "IP:PORT" of its admin endpoint; "" if none
  std::vector<std::string> fabrics;   // where application nodes may connect
  std::vector<std::string> channels;  // where network nodes may
  std::uint16_t tag = 0;              // of its sessions, for network nodes; 0: none
  std::uint32_t weight = 1;           // its share where operators say nothing of it
  std::string host;                   // the same on all processes of one host
  std::string state = "running";      // "running", "draining", "drained"
  std::string version;
  std::uint32_t worker = 0;       // of its proxy: others than 0 are found through 0
  std::uint32_t workers = 1;      // that the proxy has
  std::uint64_t connections = 0;  // when it was written: kept fresh while draining
  // Of a proxy: services that nobody has joined any more, whose connections are open.
  std::vector<std::string> leaving;
};

// node/appnode/PROXY/NUMBER: written by the proxy that it has joined.
struct ApplicationRecord {
  std::string proxy;
  std::uint32_t number = 0;
  std::string name, fabric, peer;
  std::vector<std::string> services;
  std::string state = "running";
  std::uint64_t connections = 0;
  std::string instance;  // of the proxy's process
};

using Entry =
    std::variant<ServicePolicy, ProxyPolicy, HeartbeatPolicy, Drain, NodeRecord, ApplicationRecord>;

// --- keys, behind the cluster's root
std::string service_key(const SocketAddress& address);
std::string proxy_policy_key(std::string_view name);
inline constexpr std::string_view kHeartbeatKey = "config/cluster/heartbeat";
std::string drain_key(NodeKind kind, std::string_view name);
std::string node_key(NodeKind kind, std::string_view name);  // kProxy, kNetworkNode
std::string application_key(std::string_view proxy, std::uint32_t number);
bool is_config_key(std::string_view key);    // config/...
bool is_operator_key(std::string_view key);  // config/... or drain/...
bool is_node_key(std::string_view key);      // node/...

// --- values
struct Parsed {
  std::optional<Entry> entry;
  std::string error;     // why there is none, for people
  bool ignored = false;  // a key that is not for us (head, history, of a later version)
};
Parsed parse_entry(std::string_view key, std::string_view value);
// Whether such a key has an entry: others (history, later versions') are not looked at.
bool is_entry_key(std::string_view key);

nlohmann::json to_json(const NodeRecord& record);
nlohmann::json to_json(const ApplicationRecord& record);

// The version in `schema`; nothing for what is none.
std::optional<int> parse_schema(std::string_view value);
std::string schema_value();

}  // namespace sanproxy::cluster
