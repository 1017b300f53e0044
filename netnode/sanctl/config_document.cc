#include "netnode/sanctl/config_document.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <set>
#include <string_view>

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

// A value as a line of text: no byte of it, whoever wrote it, moves the cursor.
std::string shown(const std::string& text) {
  const json value = cluster::parse_bounded(text);
  constexpr bool kAsciiOnly = true;
  return cluster::printable(
      value.is_discarded() ? text : value.dump(-1, ' ', kAsciiOnly, json::error_handler_t::replace),
      std::string::npos);
}

// Refuses a second value for a name, which the parser would take instead of the first.
class NamesOnce {
 public:
  bool operator()(int, json::parse_event_t event, const json& parsed) {
    if (event == json::parse_event_t::object_start) open_.emplace_back();
    if (event == json::parse_event_t::object_end) open_.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& name = parsed.get_ref<const std::string&>();
      if (!open_.back().insert(name).second) throw Failure("\"" + name + "\" is there twice");
    }
    return true;
  }

 private:
  std::vector<std::set<std::string>> open_;  // the names of each object that has begun
};

}  // namespace

json parse_document(const std::string& text, const std::string& where) {
  constexpr std::size_t kDepthMax = cluster::kJsonDepthMax + 4;
  const auto refuse = [&](const std::string& why) {
    throw Failure(where + ": " + why, kExitUsage);
  };
  if (cluster::nested_deeper(text, kDepthMax)) {
    refuse("nested deeper than " + std::to_string(kDepthMax) + " levels");
  }
  try {
    NamesOnce names_once;
    return json::parse(text, std::ref(names_once));
  } catch (const json::exception& error) {  // a number beyond all numbers is no parse_error
    const std::string_view what = error.what();
    refuse("this is no JSON: " + std::string(what.substr(what.find(']') + 2)));
  } catch (const Failure& twice) {
    refuse(twice.what());
  }
  return {};
}

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
    const std::string path = cluster::printable(path_of(key));
    if (before != nullptr) out.push_back("- " + path + ": " + shown(*before));
    if (after != nullptr) out.push_back("+ " + path + ": " + shown(*after));
  }
  return out;
}

}  // namespace sanproxy::sanctl
