// The [[fabric]] sections of the configuration.
//
// Role: reads one, fills in what depends on the kind of fabric, refuses what its kind does not
// have. Thread: start-up only; throws ConfigError.
#pragma once

#include <toml++/toml.h>

#include <set>
#include <string>

#include "proxynode/main/config.h"
#include "proxynode/main/config_reader.h"

namespace sanproxy::proxy {

// Where somebody may connect: the keys that [[fabric]] and a channel's [[interface]] share.
void listening_keys(TableReader& reader, FabricConfig& out);
// Throws std::invalid_argument for keys that its kind of fabric does not have.
void check_listening_keys(const FabricConfig& fabric, const std::set<std::string>& given);

void read_fabric(const std::string& path, const toml::table& table, ProxyConfig& config);

}  // namespace sanproxy::proxy
