// netnode: the network node.
#include <signal.h>
#include <spdlog/async.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lwproto/base/random.h"
#include "lwproto/daemon/command_line.h"
#include "lwproto/daemon/descriptor_limit.h"
#include "lwproto/daemon/log.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "netnode/main/config.h"
#include "netnode/main/node.h"
#include "netnode/packet_io/flow_redirect.h"

namespace {

constexpr std::size_t kLogQueueMessages = 8192;

// Logging never blocks the data path: a full queue drops the oldest line.
void start_logging(const std::string& level) {
  spdlog::init_thread_pool(kLogQueueMessages, 1);
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  auto logger = std::make_shared<spdlog::async_logger>(
      "netnode", sink, spdlog::thread_pool(), spdlog::async_overflow_policy::overrun_oldest);
  logger->set_level(spdlog::level::from_str(level));
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
  spdlog::set_default_logger(logger);
  spdlog::flush_every(std::chrono::seconds(1));
}

// Null: the node carries all packets itself.
std::unique_ptr<sanproxy::packet_io::FlowRedirect> make_redirect(
    const sanproxy::netnode::NetnodeConfig& config) {
  using sanproxy::netnode::InKernel;
  const auto& nat = config.forwarder.nat;
  if (nat.addresses.empty() || config.nat_in_kernel == InKernel::kNo) return nullptr;
  std::string why = sanproxy::netnode::not_in_kernel(config);
  if (why.empty()) {
    auto redirect = sanproxy::packet_io::FlowRedirect::create(nat.sessions_max * 2);
    if (redirect.ok()) {
      const bool tcx = (*redirect)->way() == sanproxy::packet_io::FlowRedirect::Way::kTcx;
      spdlog::info("established sessions behind NAT are carried in the kernel, by {}",
                   tcx ? "tcx" : "clsact");
      return std::move(redirect).value();
    }
    why = redirect.status().to_string();
  }
  if (config.nat_in_kernel == InKernel::kYes) {
    throw std::runtime_error("[nat].in_kernel: " + why);
  }
  spdlog::info("sessions behind NAT are carried by this process, not in the kernel: {}", why);
  return nullptr;
}

void run(const sanproxy::netnode::NetnodeConfig& config, const std::string& path) {
  const auto redirect = make_redirect(config);
  sanproxy::netnode::Node node(config, SANPROXY_VERSION);
  node.set_reader([path] { return sanproxy::netnode::load_config(path); });
  for (auto interface : config.interfaces) {
    interface.options.redirect = redirect.get();
    interface.options.frame_memory = node.take_frame_memory(interface);
    auto io = sanproxy::packet_io::open_interface(interface.options);
    if (!io.ok()) {
      throw std::runtime_error("interface " + interface.options.name + " (" +
                               interface.options.driver + "): " + io.status().to_string());
    }
    node.add_interface(std::move(io).value(), interface);
    spdlog::info("interface {} ({}) is up", interface.options.name, interface.options.driver);
  }
  if (redirect) node.set_redirect(redirect.get());
  if (std::string wrong = node.apply(config.set); !wrong.empty()) throw std::runtime_error(wrong);
  node.load_sessions();
  if (!config.admin_listen.empty()) {
    node.start_admin(*sanproxy::SocketAddress::parse(config.admin_listen));
    spdlog::info("admin endpoint at http://{}/", config.admin_listen);
  }
  if (config.cluster) node.join_cluster();
  spdlog::info("network node \"{}\" {} is ready", config.name, SANPROXY_VERSION);
  node.run();
  node.save_sessions();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "netnode: spreads the sessions of clients over proxies\n"
      "SIGHUP: reads [[proxy]] and [[service]] again. SIGTERM: goes on for drain_ms, and ends."};
  std::string path;
  bool check = false;
  app.add_option("--config", path, "Configuration file (TOML)")->required();
  app.add_flag("--check", check, "Check the configuration and exit");
  app.set_version_flag("--version", "netnode " SANPROXY_VERSION);
  if (const auto status = sanproxy::daemon::parse_command_line(app, argc, argv)) return *status;

  sanproxy::netnode::NetnodeConfig config;
  try {
    config = sanproxy::netnode::load_config(path);
    sanproxy::fabric::TcpOptions tls;
    tls.certificate_file = config.channel.certificate;
    tls.key_file = config.channel.key;
    tls.authority_file = config.channel.ca;
    const std::string problem = sanproxy::fabric::tls_files_problem(tls);
    if (!problem.empty()) throw std::runtime_error(path + ": [channel]: " + problem);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "netnode: %s\n", e.what());
    return 2;
  }
  const std::vector<std::string> warnings = sanproxy::netnode::warnings(config);
  if (check) {
    for (const std::string& text : warnings) {
      std::fprintf(stderr, "netnode: warning: %s\n", text.c_str());
    }
    std::printf("%s: ok (%zu interfaces, %zu services, %zu proxies)\n", path.c_str(),
                config.interfaces.size(), config.set.services.size(), config.set.proxies.size());
    return 0;
  }
  // Blocked before any thread starts, so that only the node's signalfd sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  sanproxy::fill_random(std::as_writable_bytes(std::span(&config.forwarder.nat.table_seed, 1)));
  sanproxy::daemon::raise_descriptor_limit();
  start_logging(config.log_level);
  for (const std::string& text : warnings) spdlog::warn("{}", text);
  int exit_code = 0;
  try {
    run(config, path);
    spdlog::info("network node \"{}\" has stopped", config.name);
  } catch (const std::exception& e) {
    spdlog::error("{}", e.what());
    exit_code = 1;
  }
  spdlog::shutdown();
  return exit_code;
}
