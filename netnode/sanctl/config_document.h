// The configuration of a cluster as one JSON document, and as the keys that hold it in etcd.
//
// Document: docs/sanctl.md "Configuration".
// Role: pure. {"services": {"IP:PORT": {...}}, "proxies": {"NAME": {...}}} <-> config/... keys;
//   validates before anything is written; tells documents apart.
// Thread: values.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace sanproxy::sanctl {

using Keys = std::map<std::string, std::string>;  // config/... behind the root -> JSON text

// Throws Failure, which says `where`: for what is no JSON, and for a name that an object has twice.
nlohmann::json parse_document(const std::string& text, const std::string& where);
// Throws Failure with every entry that is wrong, a line each.
Keys keys_of(const nlohmann::json& document);
// What cannot be read as JSON becomes a string; it is validated when it is set again.
nlohmann::json document_of(const Keys& keys);
// Whether it is the path of an entry, such as "services/IP:PORT", and no file.
bool is_entry_path(const std::string& path);
// "services/IP:PORT", "proxies/NAME" or "cluster/heartbeat" -> the key. Throws Failure.
std::string key_of(const std::string& path);

// Lines "+ path: value", "- path: value" of printable ASCII, in the order of the paths.
std::vector<std::string> differences(const Keys& from, const Keys& to);

}  // namespace sanproxy::sanctl
