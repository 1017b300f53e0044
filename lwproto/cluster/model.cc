#include "lwproto/cluster/model.h"

#include <algorithm>
#include <charconv>
#include <stdexcept>

#include "lwproto/cluster/bounded_json.h"

namespace sanproxy::cluster {
namespace {

using nlohmann::json;

constexpr std::uint32_t kWeightMax = 65'535;      // of application nodes, as in JOIN
constexpr std::uint32_t kProxyWeightMax = 1'000;  // what a table of network nodes can hold
constexpr std::uint32_t kTagMax = 1'023;
constexpr std::size_t kSchemaBytesMax = 1'024;

// Inside this file only: carries the text that parse_entry() hands out.
class Bad : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

std::string text_of(const json& value, const std::string& what,
                    std::size_t bytes_max = kTextBytesMax) {
  if (!value.is_string()) throw Bad(what + ": expected a string");
  const auto& text = value.get_ref<const std::string&>();
  if (text.size() > bytes_max) {
    throw Bad(what + ": longer than " + std::to_string(bytes_max) + " bytes");
  }
  return text;
}

std::uint64_t number_of(const json& value, const std::string& what, std::uint64_t min,
                        std::uint64_t max) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() < min ||
      value.get<std::uint64_t>() > max) {
    throw Bad(what + ": expected an integer from " + std::to_string(min) + " to " +
              std::to_string(max));
  }
  return value.get<std::uint64_t>();
}

std::vector<std::string> texts_of(const json& value, const std::string& what,
                                  std::size_t count_max = kListMax) {
  if (!value.is_array()) throw Bad(what + ": expected a list of strings");
  if (value.size() > count_max) {
    throw Bad(what + ": more than " + std::to_string(count_max) + " entries");
  }
  std::vector<std::string> out;
  for (const json& one : value) out.push_back(text_of(one, what));
  return out;
}

std::string one_of(const json& value, const std::string& what,
                   std::initializer_list<const char*> choices) {
  std::string text = text_of(value, what);
  std::string names;
  for (const char* choice : choices) {
    if (text == choice) return text;
    if (!names.empty()) names += ", ";
    names.append("\"").append(choice).append("\"");
  }
  throw Bad(what + ": expected one of " + names + ", not \"" + text + "\"");
}

[[noreturn]] void unknown_field(const std::string& field,
                                std::initializer_list<const char*> known) {
  std::string names;
  for (const char* one : known) names.append(names.empty() ? "" : ", ").append(one);
  throw Bad("unknown field \"" + field + "\"; known: " + names);
}

void only_fields(const json& object, std::initializer_list<const char*> known) {
  for (const auto& [field, value] : object.items()) {
    if (std::find(known.begin(), known.end(), field) == known.end()) unknown_field(field, known);
  }
}

// The same bounds as in the proxies' files.
Asking asking_of(const json& value, const std::string& what, std::uint64_t interval_min) {
  const auto number = [&](const char* field, std::uint64_t min, std::uint64_t max) {
    std::optional<std::uint32_t> out;
    if (value.contains(field)) {
      out = static_cast<std::uint32_t>(number_of(value[field], what + field, min, max));
    }
    return out;
  };
  Asking out;
  out.interval_ms = number("interval_ms", interval_min, 3'600'000);
  out.timeout_ms = number("timeout_ms", 10, 600'000);
  out.rise = number("rise", 1, 100);
  out.fall = number("fall", 1, 100);
  return out;
}

HealthPolicy health_of(const json& value) {
  if (value.is_boolean() && !value.get<bool>()) return {};
  if (!value.is_object()) throw Bad("health: expected {\"request\": TEXT, ...}, or false for none");
  only_fields(value, {"request", "expect", "interval_ms", "timeout_ms", "rise", "fall"});
  HealthPolicy out;
  if (!value.contains("request")) throw Bad("health.request: expected 1 to 1024 bytes");
  out.request = text_of(value["request"], "health.request", kProbeRequestBytesMax);
  if (out.request.empty()) throw Bad("health.request: expected 1 to 1024 bytes");
  if (value.contains("expect")) out.expect = text_of(value["expect"], "health.expect");
  if (out.expect.find('\n') != std::string::npos) throw Bad("health.expect: expected one line");
  out.asking = asking_of(value, "health.", 100);
  return out;
}

ServicePolicy service_of(std::string_view address, const json& value) {
  ServicePolicy out;
  const auto parsed = SocketAddress::parse(address);
  if (!parsed.ok() || parsed->port == 0 || parsed->to_string() != address) {
    throw Bad("expected IP:PORT or [IPv6]:PORT in the key, in its shortest form");
  }
  out.address = *parsed;
  only_fields(value, {"balance", "binding", "allow", "weights", "health"});
  if (value.contains("balance")) {
    out.balance =
        one_of(value["balance"], "balance", {"round-robin", "weighted", "least-connections"});
  }
  if (value.contains("binding")) {
    out.binding = one_of(value["binding"], "binding", {"delayed", "immediate"});
  }
  if (value.contains("allow")) {
    out.allow_text = texts_of(value["allow"], "allow");
    out.allow.emplace();
    for (const std::string& text : out.allow_text) {
      auto entry = auth::AllowEntry::parse(text);
      if (!entry.ok()) {
        throw Bad(std::string("allow: ") + entry.status().text() + ", not \"" + text + "\"");
      }
      out.allow->push_back(std::move(*entry));
    }
  }
  if (value.contains("health")) out.health = health_of(value["health"]);
  if (value.contains("weights")) {
    if (!value["weights"].is_object()) throw Bad("weights: expected {\"NODE\": WEIGHT, ...}");
    if (value["weights"].size() > kListMax) throw Bad("weights: more than 1024 entries");
    for (const auto& [node, weight] : value["weights"].items()) {
      if (node.empty() || node.size() > kNameBytesMax) throw Bad("weights: names no node");
      out.weights[node] =
          static_cast<std::uint32_t>(number_of(weight, "weights[\"" + node + "\"]", 1, kWeightMax));
    }
  }
  return out;
}

std::string state_of(const json& value) {
  return one_of(value, "state", {"running", "draining", "drained"});
}

NodeRecord node_of(const std::string& name, const json& value) {
  NodeRecord out;
  if (!name_legal(name)) throw Bad("the key names no node");
  out.name = name;
  for (const auto& [field, text] :
       std::initializer_list<std::pair<const char*, std::string*>>{{"instance", &out.instance},
                                                                   {"admin", &out.admin},
                                                                   {"host", &out.host},
                                                                   {"version", &out.version}}) {
    if (value.contains(field)) *text = text_of(value[field], field);
  }
  if (value.contains("fabrics")) out.fabrics = texts_of(value["fabrics"], "fabrics", kAddressesMax);
  if (value.contains("channels"))
    out.channels = texts_of(value["channels"], "channels", kAddressesMax);
  if (value.contains("tag")) {
    out.tag = static_cast<std::uint16_t>(number_of(value["tag"], "tag", 0, kTagMax));
  }
  if (value.contains("weight")) {
    out.weight =
        static_cast<std::uint32_t>(number_of(value["weight"], "weight", 1, kProxyWeightMax));
  }
  if (value.contains("state")) out.state = state_of(value["state"]);
  if (value.contains("worker")) {
    out.worker = static_cast<std::uint32_t>(number_of(value["worker"], "worker", 0, 1023));
  }
  if (value.contains("workers")) {
    out.workers = static_cast<std::uint32_t>(number_of(value["workers"], "workers", 1, 1024));
  }
  if (value.contains("connections")) {
    out.connections = number_of(value["connections"], "connections", 0, UINT64_MAX);
  }
  if (value.contains("leaving")) out.leaving = texts_of(value["leaving"], "leaving");
  return out;
}

ApplicationRecord application_of(std::string_view rest, const json& value) {
  ApplicationRecord out;
  const std::size_t slash = rest.find('/');
  if (slash == std::string_view::npos) throw Bad("expected PROXY/NUMBER in the key");
  out.proxy = rest.substr(0, slash);
  const std::string_view digits = rest.substr(slash + 1);
  const auto [stop, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), out.number);
  if (!name_legal(out.proxy) || error != std::errc() || stop != digits.data() + digits.size()) {
    throw Bad("expected PROXY/NUMBER in the key");
  }
  for (const auto& [field, text] :
       std::initializer_list<std::pair<const char*, std::string*>>{{"name", &out.name},
                                                                   {"fabric", &out.fabric},
                                                                   {"peer", &out.peer},
                                                                   {"instance", &out.instance}}) {
    if (value.contains(field)) *text = text_of(value[field], field);
  }
  if (value.contains("services")) out.services = texts_of(value["services"], "services");
  if (value.contains("state")) out.state = state_of(value["state"]);
  if (value.contains("connections")) {
    out.connections = number_of(value["connections"], "connections", 0, UINT64_MAX);
  }
  return out;
}

Drain drain_of(NodeKind kind, std::string_view encoded, const json& value) {
  only_fields(value, {"since", "by"});
  const auto name = decode_name(encoded);
  if (!name) throw Bad("the key names no node");
  return {kind, *name};
}

bool take_prefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

std::optional<Entry> entry_of(std::string_view rest, const json& value) {
  if (take_prefix(rest, "config/service/")) return service_of(rest, value);
  if (take_prefix(rest, "config/proxy/")) {
    if (!name_legal(rest)) throw Bad("the key names no proxy");
    only_fields(value, {"weight"});
    ProxyPolicy out;
    if (value.contains("weight")) {
      out.weight =
          static_cast<std::uint32_t>(number_of(value["weight"], "weight", 1, kProxyWeightMax));
    }
    return out;
  }
  if (take_prefix(rest, kHeartbeatKey)) {
    if (!rest.empty()) throw Bad("there is no such kind of configuration");
    only_fields(value, {"interval_ms", "timeout_ms", "rise", "fall"});
    return HeartbeatPolicy{asking_of(value, "", 0)};
  }
  if (take_prefix(rest, "config/")) throw Bad("there is no such kind of configuration");
  for (const NodeKind kind :
       {NodeKind::kProxy, NodeKind::kNetworkNode, NodeKind::kApplicationNode}) {
    const std::string name = node_kind_name(kind);
    if (take_prefix(rest, "drain/" + name + "/")) return drain_of(kind, rest, value);
    if (!take_prefix(rest, "node/" + name + "/")) continue;
    if (kind == NodeKind::kApplicationNode) return application_of(rest, value);
    return node_of(std::string(rest), value);
  }
  if (take_prefix(rest, "drain/")) throw Bad("expected drain/proxy, netnode or appnode/NAME");
  return std::nullopt;
}

bool plain(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' ||
         c == '_' || c == '-' || c == ':';
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

}  // namespace

const char* node_kind_name(NodeKind kind) {
  switch (kind) {
    case NodeKind::kProxy:
      return "proxy";
    case NodeKind::kNetworkNode:
      return "netnode";
    case NodeKind::kApplicationNode:
      return "appnode";
  }
  return "unknown";
}

std::optional<NodeKind> node_kind_of(std::string_view name) {
  for (const NodeKind kind :
       {NodeKind::kProxy, NodeKind::kNetworkNode, NodeKind::kApplicationNode}) {
    if (name == node_kind_name(kind)) return kind;
  }
  return std::nullopt;
}

std::string cluster_root(std::string_view prefix, std::string_view cluster) {
  std::string out(prefix);
  while (!out.empty() && out.back() == '/') out.pop_back();
  return out + "/" + std::string(cluster) + "/";
}

bool name_legal(std::string_view name) {
  return !name.empty() && name.size() <= kNameBytesMax &&
         std::all_of(name.begin(), name.end(), [](char c) { return plain(c) && c != ':'; });
}

std::string worker_name(std::string_view proxy, std::uint32_t worker) {
  return std::string(proxy) + (worker == 0 ? "" : ".w" + std::to_string(worker));
}

std::string proxy_of_worker(std::string_view name) {
  const std::size_t dot = name.rfind(".w");
  if (dot == std::string_view::npos || dot == 0 || dot + 2 == name.size()) return std::string(name);
  const std::string_view digits = name.substr(dot + 2);
  const bool is_one =
      std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
  return std::string(is_one ? name.substr(0, dot) : name);
}

std::string encode_name(std::string_view name) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : name) {
    if (plain(c)) {
      out += c;
    } else {
      const auto byte = static_cast<std::uint8_t>(c);
      out += {'%', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out;
}

std::optional<std::string> decode_name(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (plain(text[i])) {
      out += text[i];
      continue;
    }
    if (text[i] != '%' || i + 2 >= text.size()) return std::nullopt;
    const int high = hex_digit(text[i + 1]);
    const int low = hex_digit(text[i + 2]);
    if (high < 0 || low < 0) return std::nullopt;
    out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  if (out.empty() || out.size() > kNameBytesMax || encode_name(out) != text) return std::nullopt;
  return out;
}

std::string service_key(const SocketAddress& address) {
  return "config/service/" + address.to_string();
}
std::string proxy_policy_key(std::string_view name) { return "config/proxy/" + std::string(name); }
std::string drain_key(NodeKind kind, std::string_view name) {
  return std::string("drain/") + node_kind_name(kind) + "/" + encode_name(name);
}
std::string node_key(NodeKind kind, std::string_view name) {
  return std::string("node/") + node_kind_name(kind) + "/" + std::string(name);
}
std::string application_key(std::string_view proxy, std::uint32_t number) {
  return "node/appnode/" + std::string(proxy) + "/" + std::to_string(number);
}
bool is_config_key(std::string_view key) { return key.starts_with("config/"); }
bool is_operator_key(std::string_view key) {
  return is_config_key(key) || key.starts_with("drain/");
}
bool is_node_key(std::string_view key) { return key.starts_with("node/"); }

bool is_entry_key(std::string_view key) { return is_operator_key(key) || is_node_key(key); }

Parsed parse_entry(std::string_view key, std::string_view value) {
  Parsed out;
  if (!is_entry_key(key)) {
    out.ignored = true;
    return out;
  }
  if (nested_deeper(value, kJsonDepthMax)) {
    out.error = "the value is nested deeper than " + std::to_string(kJsonDepthMax) + " levels";
    return out;
  }
  const json parsed = parse_bounded(value);
  if (parsed.is_discarded()) {
    out.error = "the value is not JSON";
    return out;
  }
  if (!parsed.is_object()) {
    out.error = "expected a JSON object";
    return out;
  }
  try {
    out.entry = entry_of(key, parsed);
    out.ignored = !out.entry;
  } catch (const Bad& bad) {
    out.error = printable(bad.what());
  }
  return out;
}

json to_json(const NodeRecord& r) {
  json out = {{"instance", r.instance}, {"admin", r.admin},     {"fabrics", r.fabrics},
              {"host", r.host},         {"state", r.state},     {"version", r.version},
              {"worker", r.worker},     {"workers", r.workers}, {"channels", r.channels},
              {"tag", r.tag},           {"weight", r.weight},   {"connections", r.connections}};
  if (!r.leaving.empty()) out["leaving"] = r.leaving;
  return out;
}

json to_json(const ApplicationRecord& r) {
  return {{"name", r.name},         {"fabric", r.fabric}, {"peer", r.peer},
          {"services", r.services}, {"state", r.state},   {"connections", r.connections},
          {"instance", r.instance}};
}

std::optional<int> parse_schema(std::string_view value) {
  if (value.size() > kSchemaBytesMax) return std::nullopt;
  const json parsed = parse_bounded(value);
  if (!parsed.is_object() || !parsed.contains("version") ||
      !parsed["version"].is_number_integer()) {
    return std::nullopt;
  }
  const auto version = parsed["version"].get<std::int64_t>();
  if (version < 1 || version > 1'000'000) return std::nullopt;
  return static_cast<int>(version);
}

std::string schema_value() { return json{{"version", kSchemaVersion}}.dump(); }

}  // namespace sanproxy::cluster
