// The [[interface]] sections of the configuration.
//
// Role: reads one, fills in what depends on its driver, refuses what its driver does not have.
// Thread: start-up only; throws ConfigError.
#pragma once

#include <toml++/toml.h>

#include <string>

#include "proxynode/main/config.h"

namespace sanproxy::proxy {

void read_interface(const std::string& path, const toml::table& table, ProxyConfig& config);

}  // namespace sanproxy::proxy
