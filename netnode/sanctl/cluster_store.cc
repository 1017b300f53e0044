#include "netnode/sanctl/cluster_store.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <string_view>

#include "lwproto/cluster/bounded_json.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;

constexpr std::size_t kChangesMax = 100;  // of a transaction; etcd's own bound is 128
constexpr std::size_t kEntriesMax = 100'000;
constexpr std::int64_t kVersionMax = 999'999'999'999;  // twelve digits: keys are in order
constexpr std::size_t kDocumentDepthMax = cluster::kJsonDepthMax + 4;  // entries in a version

std::int64_t unix_time_s() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(now).count();
}

std::string who_am_i() {
  const passwd* user = getpwuid(geteuid());
  char host[256] = "?";
  gethostname(host, sizeof(host) - 1);
  return std::string(user != nullptr ? user->pw_name : std::to_string(geteuid()).c_str()) + "@" +
         host;
}

std::string history_key(std::int64_t version) {
  char text[40];
  std::snprintf(text, sizeof(text), "history/%012lld", static_cast<long long>(version));
  return text;
}

// Of a key of the history; 0 for others.
std::int64_t version_of_key(std::string_view key) {
  std::int64_t out = 0;
  const std::size_t slash = key.find('/') + 1;
  (void)std::from_chars(key.data() + slash, key.data() + key.size(), out);
  return key == history_key(out) ? out : 0;
}

std::int64_t number_in(const json& object, const char* field) {
  const auto value = cluster::read_number(object, field);
  return value.ok() ? *value : 0;
}

std::string text_in(const json& object, const char* field) {
  const auto it = object.find(field);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

// As members of the cluster take it: with their default bound of a value's length.
cluster::Parsed parse(const cluster::KeyValue& value) {
  if (value.fault == cluster::Fault::kNone &&
      value.value.size() <= cluster::Bounds{}.value_bytes_max) {
    return cluster::parse_entry(value.key, value.value);
  }
  cluster::Parsed out;
  out.ignored = !cluster::is_entry_key(value.key);
  out.error = "the key or the value is too long";
  return out;
}

// Nothing if it was damaged by hand.
std::optional<Version> read_version(std::int64_t number, const std::string& text) {
  const json parsed = cluster::parse_bounded(text, kDocumentDepthMax);
  const auto config = parsed.find("config");
  if (config == parsed.end() || !config->is_object()) return std::nullopt;
  Version out;
  out.number = number;
  out.time_s = number_in(parsed, "time");
  out.by = text_in(parsed, "by");
  out.message = text_in(parsed, "message");
  out.config = *config;
  return out;
}

// False for what is none; throws if it is another version's.
bool is_our_schema(const std::string& text) {
  const auto version = cluster::parse_schema(text);
  if (version && *version != cluster::kSchemaVersion) {
    throw Failure("the cluster has schema version " + std::to_string(*version) +
                  ", this sanctl knows " + std::to_string(cluster::kSchemaVersion));
  }
  return version.has_value();
}

// Without what was written by hand and no node takes: no later sanctl could set it again.
Keys good_ones(const Keys& keys) {
  Keys out;
  for (const auto& [key, text] : keys) {
    if (parse({.key = key, .value = text}).entry) out.emplace(key, text);
  }
  return out;
}

std::string normal(const std::string& text) {
  const json parsed = cluster::parse_bounded(text);
  return parsed.is_discarded() ? text : parsed.dump(-1, ' ', false, json::error_handler_t::replace);
}

// A version of the whole configuration is one value.
cluster::EtcdOptions with_long_values(cluster::EtcdOptions options) {
  options.bounds.value_bytes_max = options.bounds.answer_bytes_max;
  options.bounds.total_bytes_max = std::size_t{16} * options.bounds.answer_bytes_max;
  return options;
}

}  // namespace

ClusterStore::ClusterStore(const Options& options)
    : root_(cluster::cluster_root(options.prefix, options.cluster)),
      client_(with_long_values(options.etcd)) {}

cluster::RangeAnswer ClusterStore::list(const std::string& below) {
  const std::string begin = root_ + below;
  auto answer = client_.list(begin, cluster::prefix_end(begin), kEntriesMax);
  if (!answer.ok()) throw Failure("etcd: " + client_.last_error());
  if (answer->truncated) {
    throw Failure("etcd: more than " + std::to_string(kEntriesMax) + " keys below " + begin);
  }
  for (cluster::KeyValue& value : answer->values) value.key.erase(0, root_.size());
  return std::move(*answer);
}

std::map<std::string, cluster::Entry> ClusterStore::entries(
    std::map<std::string, std::string>* refused) {
  std::map<std::string, cluster::Entry> out;
  bool schema = false, by_operators = false;
  for (const cluster::KeyValue& value : list("").values) {
    if (value.key == "schema") {
      schema = cluster::parse_schema(value.value) == std::optional<int>(cluster::kSchemaVersion);
    }
    by_operators = by_operators || cluster::is_operator_key(value.key);
    cluster::Parsed parsed = parse(value);
    if (parsed.entry) {
      out.emplace(value.key, std::move(*parsed.entry));
    } else if (!parsed.ignored && refused != nullptr) {
      (*refused)[cluster::printable(value.key)] = parsed.error;
    }
  }
  if (by_operators && !schema && refused != nullptr) {
    (*refused)["schema"] = "missing, or of another version: no node takes configuration or drains";
  }
  return out;
}

Configuration ClusterStore::configuration() {
  Configuration out;
  const cluster::RangeAnswer all = list("");
  out.revision = all.revision;
  for (const cluster::KeyValue& value : all.values) {
    if (value.key == "schema") {
      out.schema = is_our_schema(value.value);
    } else if (value.key == "head") {
      const json head = cluster::parse_bounded(value.value);
      if (head.is_object()) out.version = std::max(out.version, number_in(head, "version"));
    } else if (value.key.starts_with("history/")) {
      out.version = std::max(out.version, version_of_key(value.key));
    } else if (cluster::is_config_key(value.key)) {
      out.keys[value.key] = normal(value.value);
      const cluster::Parsed parsed = parse(value);
      if (!parsed.entry) out.refused[cluster::printable(value.key)] = parsed.error;
    }
  }
  return out;
}

json ClusterStore::transact(json compare, json operations) {
  const cluster::Answer answer =
      client_.call("/v3/kv/txn", cluster::transaction(std::move(compare), std::move(operations)),
                   /*repeatable=*/false);
  if (answer.ok) return answer.body;
  if (answer.may_be_done) {
    throw Failure("etcd: " + answer.error +
                  "; the change may have been made: see sanctl config history");
  }
  if (answer.too_large) {
    throw Failure("etcd: " + answer.error +
                  "; nothing was written: a change carries the entries that differ and, for the "
                  "history, the whole configuration, and etcd takes 1.5 MB in one request by "
                  "default (etcd --max-request-bytes)");
  }
  throw Failure("etcd: " + answer.error);
}

std::int64_t ClusterStore::set(const Configuration& before, const Keys& after,
                               const std::string& message) {
  json operations = json::array();
  for (const auto& [key, text] : after) {
    const auto there = before.keys.find(key);
    if (there != before.keys.end() && there->second == text) continue;
    operations.push_back(cluster::put_operation(root_ + key, text));
  }
  for (const auto& [key, text] : before.keys) {
    if (!after.contains(key)) operations.push_back(cluster::delete_operation(root_ + key));
  }
  if (operations.size() > kChangesMax) {
    throw Failure(std::to_string(operations.size()) +
                  " entries differ, and one transaction holds 100: make the change in parts");
  }
  if (before.version >= kVersionMax) {
    throw Failure("the last version is " + std::to_string(before.version) +
                  ": head, or a key of the history, was damaged by hand: delete it from etcd");
  }
  const std::int64_t number = before.version + 1;
  const json entry = {{"version", number},
                      {"time", unix_time_s()},
                      {"by", who_am_i()},
                      {"message", message},
                      {"config", document_of(good_ones(after))}};
  const auto text = entry.dump(-1, ' ', false, json::error_handler_t::replace);
  operations.push_back(cluster::put_operation(root_ + "head", json{{"version", number}}.dump()));
  operations.push_back(cluster::put_operation(root_ + history_key(number), text));
  if (!before.schema) {
    // First: whoever watches takes the others' events only once there is one.
    operations.insert(operations.begin(),
                      cluster::put_operation(root_ + "schema", cluster::schema_value()));
  }
  if (number > kHistoryMax) {
    operations.push_back(cluster::delete_operation(root_ + history_key(number - kHistoryMax)));
  }
  const std::string config = root_ + "config/";
  const json answer =
      transact({cluster::unchanged_since(config, cluster::prefix_end(config), before.revision),
                cluster::unchanged_since(root_ + "head", "", before.revision),
                cluster::absent(root_ + history_key(number))},
               std::move(operations));
  if (!answer.value("succeeded", false)) {
    throw Failure("somebody else has changed the configuration meanwhile; nothing was written",
                  kExitConflict);
  }
  return number;
}

std::vector<Version> ClusterStore::history() {
  std::vector<Version> out;
  for (const cluster::KeyValue& value : list("history/").values) {
    const std::int64_t number = version_of_key(value.key);
    if (number == 0) continue;
    Version damaged;
    damaged.number = number;
    damaged.message = "(damaged: it cannot be read)";
    out.push_back(read_version(number, value.value).value_or(std::move(damaged)));
  }
  return {out.rbegin(), out.rend()};
}

Version ClusterStore::version(std::int64_t number) {
  const std::string name = "version " + std::to_string(number);
  const auto text = read(history_key(number));
  if (!text) throw Failure(name + " is not kept: see sanctl config history");
  auto out = read_version(number, *text);
  if (!out) throw Failure(name + " is damaged: it was written by hand, and cannot be read");
  return std::move(*out);
}

std::optional<std::string> ClusterStore::read(const std::string& key) {
  auto answer = client_.list(root_ + key, "");
  if (!answer.ok()) throw Failure("etcd: " + client_.last_error());
  if (answer->values.empty()) return std::nullopt;
  return std::move(answer->values.front().value);
}

void ClusterStore::drain(cluster::NodeKind kind, const std::string& name) {
  if (name.empty() || name.size() > cluster::kNameBytesMax) {
    throw Failure("a node's name has 1 to 64 bytes", kExitUsage);
  }
  json operations = json::array();
  const auto schema = read("schema");
  if (!schema || !is_our_schema(*schema)) {
    operations.push_back(cluster::put_operation(root_ + "schema", cluster::schema_value()));
  }
  operations.push_back(
      cluster::put_operation(root_ + cluster::drain_key(kind, name),
                             json{{"since", unix_time_s()}, {"by", who_am_i()}}.dump()));
  (void)transact(json::array(), std::move(operations));
}

bool ClusterStore::undrain(cluster::NodeKind kind, const std::string& name) {
  const std::string key = cluster::drain_key(kind, name);
  if (!read(key)) return false;
  (void)transact(json::array(), {cluster::delete_operation(root_ + key)});
  return true;
}

}  // namespace sanproxy::sanctl
