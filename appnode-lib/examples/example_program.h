// What the example programs share: their flags, and how a service runs and stops gracefully.
//
// Role: add_common_options() -> the flags; ExampleProgram -> a Node that runs until SIGTERM, then
//   leaves its services and lets open connections finish.
// Thread: the main one.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sanproxy/appnode.h"

namespace examples {

namespace app = sanproxy::app;

struct CommonOptions {
  std::vector<std::string> proxies;   // --proxy, or SANPROXY_PROXY
  std::size_t proxies_max = 0;        // --proxies-max
  std::string name;                   // --name, or SANPROXY_NAME
  std::vector<std::string> services;  // --service, or SANPROXY_SERVICE
  std::vector<std::string> keys;      // --key NAME:FILE, or SANPROXY_KEY
  app::LinkOptions link;              // --link, or SANPROXY_LINK
  app::TlsFiles tls;                  // --tls-certificate, ...
  unsigned weight = 1;
  unsigned connections_max = 0;
  bool immediate = false;
  int drain_ms = 5000;
  std::string scheduling = "batch";
  std::string log_level = "info";
};

// Adds --proxy, --service, --key, ..., --version to `cli`.
void add_common_options(CLI::App& cli, CommonOptions& options);

class ExampleProgram {
 public:
  // The Node, not yet joined to anything; nullptr (and a line on stderr) if it cannot be.
  static std::unique_ptr<ExampleProgram> create(const CommonOptions& options);

  app::Node& node() { return *node_; }
  // Joins every service with `on_request`, serves until SIGTERM or SIGINT, calls `on_stop`, drains.
  // The exit code.
  int serve(const app::RequestHandler& on_request, const std::function<void()>& on_stop = {});

 private:
  explicit ExampleProgram(const CommonOptions& options) : options_(options) {}
  void drain();

  CommonOptions options_;
  std::unique_ptr<app::Node> node_;
  std::vector<app::Service> services_;
};

}  // namespace examples
