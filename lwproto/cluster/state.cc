#include "lwproto/cluster/state.h"

#include <set>

namespace sanproxy::cluster {

ClusterState::ClusterState(std::string root, const Bounds& bounds, std::uint64_t grace_ns,
                           Report report)
    : root_(std::move(root)), bounds_(bounds), grace_ns_(grace_ns), report_(std::move(report)) {}

void ClusterState::report(const std::string& key, const std::string& what) {
  report_(printable(root_ + key) + " " + what);
}

// The same words of the same key are said once.
void ClusterState::refuse(const std::string& key, const std::string& why) {
  const auto known = refused_.find(key);
  if (known != refused_.end() && known->second == why) return;
  if (known != refused_.end() || refused_.size() < kRefusedMax) refused_[key] = why;
  report(key, "is refused" +
                  std::string(texts_.contains(key) ? " (the last good value stays)" : "") + ": " +
                  why);
}

bool ClusterState::schema_known(const std::string& key) {
  if (schema_good_) return true;
  ++counters_.refused_schema;
  refuse(key, "the cluster's schema is missing or of another version");
  return false;
}

bool ClusterState::is_faulty(const std::string& key, const KeyValue& value) {
  switch (value.fault) {
    case Fault::kNone:
      return false;
    case Fault::kKeyTooLong:  // cut: it must not be taken for the key that it begins like
      ++counters_.refused_length;
      report(key, "is refused: the key is longer than " + std::to_string(kKeyBytesMax) + " bytes");
      return true;
    case Fault::kValueTooLong:
      ++counters_.refused_length;
      refuse(key, "the value is longer than max_value_bytes");
      return true;
    case Fault::kTotalTooLong:
      ++counters_.refused_full;
      refuse(key, "max_total_bytes is reached");
      return true;
  }
  return true;
}

bool ClusterState::is_full(const std::string& key, const std::string& value) {
  const auto known = texts_.find(key);
  const char* bound = nullptr;
  if (known == texts_.end() && entries_.size() >= bounds_.entries_max) bound = "max_entries";
  const std::size_t before = known == texts_.end() ? 0 : known->second.size();
  if (texts_bytes_ - before + value.size() > bounds_.total_bytes_max) bound = "max_total_bytes";
  if (bound == nullptr) return false;
  ++counters_.refused_full;
  refuse(key, std::string(bound) + " is reached");
  return true;
}

void ClusterState::put(const std::string& key, const KeyValue& value,
                       std::vector<Change>& changes) {
  if (key == "schema") {
    const auto version = parse_schema(value.value);
    schema_good_ = version && *version == kSchemaVersion;
    if (!schema_good_) report(key, ": expected " + schema_value());
    return;
  }
  if (!is_entry_key(key)) return;
  if (value.fault != Fault::kKeyTooLong) missing_since_.erase(key);
  if (is_faulty(key, value)) return;
  if (is_operator_key(key) && !schema_known(key)) return;
  const auto known = texts_.find(key);
  if (known != texts_.end() && known->second == value.value) {
    refused_.erase(key);
    return;
  }
  Parsed parsed = parse_entry(key, value.value);
  if (parsed.ignored) return;
  if (!parsed.entry) {
    ++counters_.refused_values;
    return refuse(key, parsed.error);
  }
  if (is_full(key, value.value)) return;
  refused_.erase(key);
  std::string& text = texts_[key];
  texts_bytes_ += value.value.size() - text.size();
  text = value.value;
  entries_[key] = *parsed.entry;
  changes.push_back({key, std::move(parsed.entry)});
}

void ClusterState::remove(const std::string& key, std::vector<Change>& changes) {
  refused_.erase(key);
  missing_since_.erase(key);
  if (const auto text = texts_.find(key); text != texts_.end()) {
    texts_bytes_ -= text->second.size();
    texts_.erase(text);
  }
  if (entries_.erase(key) != 0) changes.push_back({key, std::nullopt});
}

void ClusterState::apply_snapshot(const std::vector<KeyValue>& values, std::uint64_t now_ns,
                                  std::vector<Change>& changes, bool truncated) {
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
    if (value.fault != Fault::kKeyTooLong) there.insert(key);
    if (key != "schema") put(key, value, changes);
  }
  if (truncated) {
    ++counters_.refused_unseen;
    return report("",
                  "has more keys than are looked at (twice max_entries): the others are taken when "
                  "they change");
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
  if (event.value.fault == Fault::kKeyTooLong) return;
  if (key == "schema") {
    schema_good_ = false;
    return report(key, "is gone: the configuration stays as it is");
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
