#include "lwproto/cluster/state.h"

#include <set>

namespace sanproxy::cluster {

ClusterState::ClusterState(std::string root, std::size_t entries_max, std::uint64_t grace_ns,
                           Report report)
    : root_(std::move(root)),
      entries_max_(entries_max),
      grace_ns_(grace_ns),
      report_(std::move(report)) {}

bool ClusterState::schema_known(const std::string& key) {
  if (schema_good_) return true;
  ++counters_.refused_schema;
  if (refused_.emplace(key, "the cluster's schema is missing or of another version").second) {
    report_(root_ + key + " is refused: the cluster's schema is missing or of another version");
  }
  return false;
}

void ClusterState::put(const std::string& key, const KeyValue& value,
                       std::vector<Change>& changes) {
  if (key == "schema") {
    const auto version = parse_schema(value.value);
    schema_good_ = version && *version == kSchemaVersion;
    if (!schema_good_) report_(root_ + "schema: expected " + schema_value());
    return;
  }
  missing_since_.erase(key);
  if (is_operator_key(key) && !schema_known(key)) return;
  const auto known = texts_.find(key);
  if (known != texts_.end() && known->second == value.value) {
    refused_.erase(key);
    return;
  }
  Parsed parsed = parse_entry(key, value.value);
  if (parsed.ignored) return;
  const auto refuse = [&](const std::string& why) {
    std::string& reason = refused_[key];
    if (reason != why) {
      report_(root_ + key + " is refused" +
              (known != texts_.end() ? " (the last good value stays)" : "") + ": " + why);
    }
    reason = why;
  };
  if (!parsed.entry) {
    ++counters_.refused_values;
    return refuse(parsed.error);
  }
  if (known == texts_.end() && entries_.size() >= entries_max_) {
    ++counters_.refused_full;
    // Not remembered by key: they may be any number.
    return report_(root_ + key + " is refused: max_entries is reached");
  }
  refused_.erase(key);
  texts_[key] = value.value;
  entries_[key] = *parsed.entry;
  changes.push_back({key, std::move(parsed.entry)});
}

void ClusterState::remove(const std::string& key, std::vector<Change>& changes) {
  refused_.erase(key);
  missing_since_.erase(key);
  texts_.erase(key);
  if (entries_.erase(key) != 0) changes.push_back({key, std::nullopt});
}

void ClusterState::apply_snapshot(const std::vector<KeyValue>& values, std::uint64_t now_ns,
                                  std::vector<Change>& changes) {
  ++counters_.snapshots;
  schema_good_ = false;
  std::set<std::string> there;
  // The schema first: it decides about the others.
  for (const KeyValue& value : values) {
    if (value.key == root_ + "schema") put("schema", value, changes);
  }
  for (const KeyValue& value : values) {
    if (!value.key.starts_with(root_)) continue;
    const std::string key = value.key.substr(root_.size());
    there.insert(key);
    if (key != "schema") put(key, value, changes);
  }
  std::vector<std::string> gone;
  for (const auto& [key, entry] : entries_) {
    if (there.contains(key)) continue;
    if (is_node_key(key)) {
      missing_since_.emplace(key, now_ns);
    } else if (schema_known(key)) {
      gone.push_back(key);
    }
  }
  for (const std::string& key : gone) remove(key, changes);
  std::erase_if(refused_, [&](const auto& one) {
    return !there.contains(one.first) && !entries_.contains(one.first);
  });
}

void ClusterState::apply_event(const WatchEvent& event, std::vector<Change>& changes) {
  if (!event.value.key.starts_with(root_)) return;
  ++counters_.events;
  const std::string key = event.value.key.substr(root_.size());
  if (!event.deleted) return put(key, event.value, changes);
  if (key == "schema") {
    schema_good_ = false;
    return report_(root_ + "schema is gone: the configuration stays as it is");
  }
  if (is_operator_key(key) && entries_.contains(key) && !schema_known(key)) return;
  remove(key, changes);
}

void ClusterState::expire(std::uint64_t now_ns, std::vector<Change>& changes) {
  std::vector<std::string> gone;
  for (const auto& [key, since] : missing_since_) {
    if (now_ns - since >= grace_ns_) gone.push_back(key);
  }
  for (const std::string& key : gone) remove(key, changes);
}

}  // namespace sanproxy::cluster
