#include "netnode/sanctl/config_document.h"

#include <algorithm>
#include <iterator>

#include "lwproto/cluster/bounded_json.h"
#include "lwproto/cluster/model.h"
#include "netnode/sanctl/options.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;

// Sections of the document, and where their entries are.
constexpr std::pair<const char*, const char*> kSections[] = {
    {"services", "config/service/"}, {"proxies", "config/proxy/"}, {"cluster", "config/cluster/"}};

constexpr std::size_t kEntryKeyBytesMax = cluster::kKeyBytesMax / 2;  // the root comes before it

std::string path_of(const std::string& key) {
  for (const auto& [section, prefix] : kSections) {
    if (key.starts_with(prefix)) {
      return std::string(section) + "/" + key.substr(std::string(prefix).size());
    }
  }
  return key;
}

}  // namespace

Keys keys_of(const json& document) {
  if (!document.is_object()) throw Failure("the configuration is a JSON object", kExitUsage);
  Keys out;
  std::string errors;
  for (const auto& [section, entries] : document.items()) {
    const char* prefix = nullptr;
    for (const auto& [known, at] : kSections) {
      if (section == known) prefix = at;
    }
    if (prefix == nullptr) {
      errors += "unknown section \"" + section + "\"; known: services, proxies, cluster\n";
      continue;
    }
    if (!entries.is_object()) {
      errors += section + ": expected an object of entries\n";
      continue;
    }
    for (const auto& [name, value] : entries.items()) {
      const std::string key = prefix + name;
      const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
      cluster::Parsed parsed = cluster::parse_entry(key, text);
      if (text.size() > cluster::Bounds{}.value_bytes_max || key.size() > kEntryKeyBytesMax) {
        parsed = {};
        parsed.error = "too long: members of the cluster take 64 KB of an entry";
      }
      if (!parsed.entry) {
        errors.append(section).append("/").append(name).append(": ");
        errors.append(parsed.error).append("\n");
      }
      out[key] = text;
    }
  }
  if (!errors.empty()) {
    errors.pop_back();
    throw Failure(errors, kExitUsage);
  }
  return out;
}

json document_of(const Keys& keys) {
  json out = {{"services", json::object()}, {"proxies", json::object()}};
  for (const auto& [key, text] : keys) {
    for (const auto& [section, prefix] : kSections) {
      if (!key.starts_with(prefix)) continue;
      const json value = cluster::parse_bounded(text);
      out[section][key.substr(std::string(prefix).size())] =
          value.is_discarded() ? json(text) : value;
    }
  }
  return out;
}

bool is_entry_path(const std::string& path) {
  return std::any_of(std::begin(kSections), std::end(kSections), [&](const auto& section) {
    return path.starts_with(std::string(section.first) + "/");
  });
}

std::string key_of(const std::string& path) {
  for (const auto& [section, prefix] : kSections) {
    const std::string begin = std::string(section) + "/";
    if (path.starts_with(begin) && path.size() > begin.size()) {
      return prefix + path.substr(begin.size());
    }
  }
  throw Failure("\"" + path + "\": expected services/IP:PORT, proxies/NAME or cluster/heartbeat",
                kExitUsage);
}

std::vector<std::string> differences(const Keys& from, const Keys& to) {
  std::map<std::string, std::pair<const std::string*, const std::string*>> both;
  for (const auto& [key, text] : from) both[key].first = &text;
  for (const auto& [key, text] : to) both[key].second = &text;
  std::vector<std::string> out;
  for (const auto& [key, texts] : both) {
    const auto& [before, after] = texts;
    if (before != nullptr && after != nullptr && *before == *after) continue;
    if (before != nullptr) out.push_back("- " + path_of(key) + ": " + *before);
    if (after != nullptr) out.push_back("+ " + path_of(key) + ": " + *after);
  }
  return out;
}

}  // namespace sanproxy::sanctl
