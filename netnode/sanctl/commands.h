// The commands of sanctl.
//
// Document: docs/sanctl.md.
// Role: each prints its answer, as text or JSON, and throws Failure when it cannot.
// Thread: the main one.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "netnode/sanctl/options.h"

namespace sanproxy::sanctl {

// --- show.cc
void show_status(const Options& options);
void show_services(const Options& options);
void show_nodes(const Options& options, const std::string& kind);

struct ConnectionsOptions {
  std::map<std::string, std::string> filters;  // service, state, client, node
  std::uint32_t limit = 100;
};
void show_connections(const Options& options, const ConnectionsOptions& what);

// --- top.cc
struct TopOptions {
  double interval_s = 1;
  std::uint32_t count = 0;  // 0: until Ctrl-C
};
void show_top(const Options& options, const TopOptions& how);

// --- drain.cc
struct DrainOptions {
  std::string name;
  std::string kind;  // "": found by the name
  bool wait = true;
  double timeout_s = 0;  // 0: for ever
};
void drain(const Options& options, const DrainOptions& how);
void undrain(const Options& options, const DrainOptions& how);

// --- config.cc
struct ConfigOptions {
  std::string what;   // a file, "-", services/IP:PORT, proxies/NAME, a version
  std::string value;  // of one entry
  bool remove = false, dry_run = false;
  std::string message;
  std::optional<std::int64_t> version, other;
};
void config_get(const Options& options, const ConfigOptions& how);
void config_set(const Options& options, const ConfigOptions& how);
void config_diff(const Options& options, const ConfigOptions& how);
void config_rollback(const Options& options, const ConfigOptions& how);
void config_history(const Options& options);

}  // namespace sanproxy::sanctl
