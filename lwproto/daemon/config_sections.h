// The sections of a daemon's configuration file: tables, and lists of tables, each with its reader.
//
// Role: reads a file section by section; an unknown section, or one of the wrong kind, is an error
// that names file, line and what was expected. Also the [admin] section, which all daemons have.
// Thread: start-up only; throws ConfigError.
#pragma once

#include <toml++/toml.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/daemon/config_reader.h"

namespace sanproxy::daemon {

template <typename Config>
struct Section {
  const char* name;
  void (*read)(const std::string& path, const toml::table& table, Config& config);
  bool many = false;  // [[name]], any number of them
};

toml::table parse_config_file(const std::string& path);
// The tables of `node`, which is the section `name`.
std::vector<const toml::table*> section_tables(const std::string& path, const std::string& name,
                                               bool many, const toml::node& node);

template <typename Config>
void read_config_file(const std::string& path, std::span<const Section<Config>> sections,
                      Config& config) {
  const toml::table root = parse_config_file(path);
  for (const auto& [key, node] : root) {
    const std::string name(key.str());
    const auto section = std::find_if(sections.begin(), sections.end(),
                                      [&](const Section<Config>& one) { return name == one.name; });
    if (section == sections.end()) {
      std::string known;
      for (const auto& one : sections) known.append(known.empty() ? "" : ", ").append(one.name);
      std::string why = "unknown section \"";
      why.append(name).append("\"; known: ").append(known);
      config_fail(path, key.source(), why);
    }
    for (const toml::table* table : section_tables(path, name, section->many, node)) {
      section->read(path, *table, config);
    }
  }
}

// `text`, if Linux gives an interface such a name; else throws std::invalid_argument.
std::string interface_name(const std::string& text);

// `changes_from`: beside loopback.
void read_admin(const std::string& path, const toml::table& table, std::string& listen,
                std::vector<IpPrefix>& changes_from);

}  // namespace sanproxy::daemon
