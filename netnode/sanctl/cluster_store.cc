#include "netnode/sanctl/cluster_store.h"

#include <pwd.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "lwproto/cluster/bounded_json.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;

constexpr std::size_t kChangesMax = 100;  // of a transaction; etcd's own bound is 128
constexpr std::size_t kEntriesMax = 100'000;
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

Version version_of(const std::string& text) {
  const json parsed = cluster::parse_bounded(text, kDocumentDepthMax);
  Version out;
  if (!parsed.is_object()) return out;
  out.number = number_in(parsed, "version");
  out.time_s = number_in(parsed, "time");
  out.by = text_in(parsed, "by");
  out.message = text_in(parsed, "message");
  out.config = parsed.value("config", json::object());
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
  for (const cluster::KeyValue& value : list("").values) {
    cluster::Parsed parsed = parse(value);
    if (parsed.entry) {
      out.emplace(value.key, std::move(*parsed.entry));
    } else if (!parsed.ignored && refused != nullptr) {
      (*refused)[cluster::printable(value.key)] = parsed.error;
    }
  }
  return out;
}

Configuration ClusterStore::configuration() {
  Configuration out;
  const cluster::RangeAnswer all = list("");
  out.revision = all.revision;
  for (const cluster::KeyValue& value : all.values) {
    if (value.key == "schema") {
      const auto version = cluster::parse_schema(value.value);
      if (version && *version != cluster::kSchemaVersion) {
        throw Failure("the cluster has schema version " + std::to_string(*version) +
                      ", this sanctl knows " + std::to_string(cluster::kSchemaVersion));
      }
      out.schema = version.has_value();
    } else if (value.key == "head") {
      const json head = cluster::parse_bounded(value.value);
      if (head.is_object()) out.version = number_in(head, "version");
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
  const std::int64_t number = before.version + 1;
  const json entry = {{"version", number},
                      {"time", unix_time_s()},
                      {"by", who_am_i()},
                      {"message", message},
                      {"config", document_of(after)}};
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
                cluster::unchanged_since(root_ + "head", "", before.revision)},
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
    out.push_back(version_of(value.value));
  }
  return {out.rbegin(), out.rend()};
}

Version ClusterStore::version(std::int64_t number) {
  const std::string key = history_key(number);
  for (const cluster::KeyValue& value : list(key).values) {
    if (value.key == key) return version_of(value.value);
  }
  throw Failure("version " + std::to_string(number) + " is not kept: see sanctl config history");
}

bool ClusterStore::has_schema() { return !list("schema").values.empty(); }

void ClusterStore::drain(cluster::NodeKind kind, const std::string& name) {
  json operations = json::array();
  if (!has_schema()) {
    operations.push_back(cluster::put_operation(root_ + "schema", cluster::schema_value()));
  }
  operations.push_back(
      cluster::put_operation(root_ + cluster::drain_key(kind, name),
                             json{{"since", unix_time_s()}, {"by", who_am_i()}}.dump()));
  (void)transact(json::array(), std::move(operations));
}

bool ClusterStore::undrain(cluster::NodeKind kind, const std::string& name) {
  const std::string key = cluster::drain_key(kind, name);
  if (list(key).values.empty()) return false;
  (void)transact(json::array(), {cluster::delete_operation(root_ + key)});
  return true;
}

}  // namespace sanproxy::sanctl
