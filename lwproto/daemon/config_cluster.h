// The [cluster] section of a daemon's configuration.
//
// Document: docs/configuration.md "[cluster]".
// Thread: start-up only; throws ConfigError.
#pragma once

#include <toml++/toml.h>

#include <cstdint>
#include <string>

#include "lwproto/cluster/session.h"

namespace sanproxy::daemon {

struct ClusterConfig {
  cluster::SessionOptions session;
  std::uint32_t drain_grace_ms = 2'000;  // between being drained and closing the listeners
};

void read_cluster(const std::string& path, const toml::table& table, ClusterConfig& out);

}  // namespace sanproxy::daemon
