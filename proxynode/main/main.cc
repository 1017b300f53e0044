// proxynode: the proxy node. This file names the concrete fabrics and drivers.
#include <signal.h>
#include <spdlog/async.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "proxynode/main/config.h"
#include "proxynode/main/fabrics.h"
#include "proxynode/main/worker.h"

namespace {

constexpr std::size_t kLogQueueMessages = 8192;

// Logging never blocks the data path: a full queue drops the oldest line.
void start_logging(const std::string& level) {
  spdlog::init_thread_pool(kLogQueueMessages, 1);
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  auto logger = std::make_shared<spdlog::async_logger>(
      "proxynode", sink, spdlog::thread_pool(), spdlog::async_overflow_policy::overrun_oldest);
  logger->set_level(spdlog::level::from_str(level));
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
  spdlog::set_default_logger(logger);
  spdlog::flush_every(std::chrono::seconds(1));
}

void run(const sanproxy::proxy::ProxyConfig& config) {
  sanproxy::proxy::Worker worker(config, SANPROXY_VERSION);
  for (const auto& options : config.interfaces) {
    auto io = sanproxy::packet_io::open_interface(options);
    if (!io.ok()) {
      throw std::runtime_error("interface " + options.name + " (" + options.driver +
                               "): " + io.status().to_string());
    }
    worker.add_interface(std::move(io).value());
    spdlog::info("interface {} ({}) is up", options.name, options.driver);
  }
  for (const auto& channel : config.channels) {
    worker.add_channel(sanproxy::proxy::make_fabric(channel.fabric), channel);
    spdlog::info("network nodes may connect at {}", channel.fabric.listen);
  }
  for (const auto& fabric : config.fabrics) {
    worker.add_fabric(sanproxy::proxy::make_fabric(fabric), fabric);
    const char* who = !fabric.key.empty()   ? "with TLS"
                      : fabric.uses_pools() ? "in the clear"
                      : fabric.shared_trust ? "shared trust"
                                            : "isolated trust";
    spdlog::info("application nodes may join at {} ({})", fabric.listen, who);
  }
  if (!config.admin_listen.empty()) {
    worker.start_admin(*sanproxy::SocketAddress::parse(config.admin_listen));
    spdlog::info("admin endpoint at http://{}/", config.admin_listen);
  }
  if (config.cluster) worker.join_cluster();
  spdlog::info("proxy node \"{}\" {} is ready", config.name, SANPROXY_VERSION);
  worker.run();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"proxynode: terminates client TCP and serves it to application nodes"};
  std::string path;
  bool check = false;
  app.add_option("--config", path, "Configuration file (TOML)")->required();
  app.add_flag("--check", check, "Check the configuration and exit");
  app.set_version_flag("--version", "proxynode " SANPROXY_VERSION);
  CLI11_PARSE(app, argc, argv);

  sanproxy::proxy::ProxyConfig config;
  try {
    config = sanproxy::proxy::load_config(path);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "proxynode: %s\n", e.what());
    return 2;
  }
  if (check) {
    std::printf("%s: ok (%zu interfaces, %zu fabrics, %zu services)\n", path.c_str(),
                config.interfaces.size() + config.channels.size(), config.fabrics.size(),
                config.services.size());
    return 0;
  }
  // Blocked before any thread starts, so that only the worker's signalfd sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  start_logging(config.log_level);
  int exit_code = 0;
  try {
    run(config);
    spdlog::info("proxy node \"{}\" has stopped", config.name);
  } catch (const std::exception& e) {
    spdlog::error("{}", e.what());
    exit_code = 1;
  }
  spdlog::shutdown();
  return exit_code;
}
