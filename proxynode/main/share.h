// How the bounds of one host are divided between the workers of a proxy node.
//
// Document: docs/workers.md.
// Role: decides how many workers there are, and makes the configuration of one of them. Pure.
// Thread: start-up only; throws ConfigError.
// Invariants:
//   1. All workers together keep the configured bounds. (Application nodes come to every worker, so
//      what counts nodes is each worker's alone.)
#pragma once

#include <cstdint>

#include "proxynode/main/config.h"

namespace sanproxy::proxy {

// config.workers, or what this host offers if nothing was asked for. Throws when the workers that
// were asked for cannot be had.
std::uint32_t count_workers(const ProxyConfig& config, std::uint32_t cores);

ProxyConfig share_of(const ProxyConfig& config, std::uint32_t worker, std::uint32_t workers);

}  // namespace sanproxy::proxy
