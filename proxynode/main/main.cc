// proxynode: the proxy node. This file names the concrete fabrics and drivers.
#include <sched.h>
#include <signal.h>
#include <spdlog/async.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <sys/prctl.h>

#include <cstdio>
#include <exception>
#include <thread>

#include "lwproto/daemon/command_line.h"
#include "lwproto/daemon/descriptor_limit.h"
#include "lwproto/daemon/log.h"
#include "proxynode/main/config.h"
#include "proxynode/main/fabrics.h"
#include "proxynode/main/share.h"
#include "proxynode/main/supervisor.h"
#include "proxynode/main/worker.h"

namespace {

constexpr std::size_t kLogQueueMessages = 8192;
// So long clients find no service that is on its way, at a worker that is started again, as its
// application nodes need to come back to it.
constexpr std::uint32_t kStartHoldMs = 2'000;

// Logging never blocks the data path: a full queue drops the oldest line.
void start_logging(const std::string& level, const std::string& who) {
  spdlog::init_thread_pool(kLogQueueMessages, 1);
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  auto logger = std::make_shared<spdlog::async_logger>(
      "proxynode", sink, spdlog::thread_pool(), spdlog::async_overflow_policy::overrun_oldest);
  logger->set_level(spdlog::level::from_str(level));
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ " + who + "%v");
  spdlog::set_default_logger(logger);
  spdlog::flush_every(std::chrono::seconds(1));
}

// Takes this thread out of the table of descriptors that it shares with the threads of the log and
// of the admin endpoint: of a table that nobody else uses the kernel takes no reference in each
// call that moves a packet (27 ns of 170 for the shortest). What is open by now is in both tables
// from here on, so devices and listeners, which end when they are closed, come afterwards.
// Where that is refused calls cost as much as before.
void own_descriptors() { (void)unshare(CLONE_FILES); }

// `place`: as one of several workers, whose supervisor has opened the interfaces.
void run_worker(const sanproxy::proxy::ProxyConfig& config,
                const sanproxy::proxy::WorkerPlace* place) {
  std::unique_ptr<sanproxy::proxy::Handover> handover;
  if (place != nullptr) handover = place->handover();
  sanproxy::proxy::Worker worker(config, SANPROXY_VERSION, std::move(handover));
  if (place != nullptr) {
    worker.serve_supervisor(sanproxy::UniqueFd(place->control_fd));
  } else if (!config.admin_listen.empty()) {
    worker.start_admin(*sanproxy::SocketAddress::parse(config.admin_listen));
    spdlog::info("admin endpoint at http://{}/", config.admin_listen);
  }
  own_descriptors();
  for (std::size_t i = 0; i < config.interfaces.size(); ++i) {
    sanproxy::packet_io::InterfaceOptions options = config.interfaces[i];
    if (place != nullptr) {
      options.queue = {
          place->queue_fds.at(i), place->index, {place->workers, place->steering_seed}};
    }
    auto io = sanproxy::packet_io::open_interface(options);
    if (!io.ok()) {
      throw std::runtime_error("interface " + options.name + " (" + options.driver +
                               "): " + io.status().to_string());
    }
    worker.add_interface(std::move(io).value());
    if (place == nullptr) spdlog::info("interface {} ({}) is up", options.name, options.driver);
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
  if (config.cluster) worker.join_cluster();
  if (place == nullptr) {
    spdlog::info("proxy node \"{}\" {} is ready", config.name, SANPROXY_VERSION);
  }
  if (place != nullptr) worker.resume(place->drains());
  worker.run();
}

// What does not go together for so many workers is as wrong in the file as all else.
std::uint32_t count_workers_of(const std::string& path,
                               const sanproxy::proxy::ProxyConfig& config) {
  try {
    return sanproxy::proxy::count_workers(config, std::thread::hardware_concurrency());
  } catch (const sanproxy::proxy::ConfigError& e) {
    throw sanproxy::proxy::ConfigError(path + ": " + e.what());
  }
}

int run(const sanproxy::proxy::ProxyConfig& config, const std::string& path,
        std::uint32_t workers) {
  using namespace sanproxy::proxy;
  if (workers == 1) {
    run_worker(share_of(config, 0, 1), nullptr);
    return 0;
  }
  return Supervisor(config, path, workers).run();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"proxynode: terminates client TCP and serves it to application nodes"};
  std::string path;
  std::string place_text;
  std::uint32_t workers = 0;
  bool check = false;
  app.add_option("--config", path, "Configuration file (TOML)")->required();
  app.add_option("--workers", workers,
                 "Processes that share the work (default: [proxy] workers, or the cores)")
      ->check(CLI::Range(1U, sanproxy::packet_io::kQueuesMax));
  app.add_option("--worker-place", place_text)->group("");  // the supervisor's, for its workers
  app.add_flag("--check", check, "Check the configuration and exit");
  app.set_version_flag("--version", "proxynode " SANPROXY_VERSION);
  if (const auto status = sanproxy::daemon::parse_command_line(app, argc, argv)) return *status;

  sanproxy::proxy::ProxyConfig config;
  sanproxy::proxy::WorkerPlace place;
  try {
    config = sanproxy::proxy::load_config(path);
    if (!place_text.empty()) {
      place = sanproxy::proxy::WorkerPlace::parse(place_text);
      config = sanproxy::proxy::share_of(config, place.index, place.workers);
      if (place.again) config.stack.start_hold_ms = kStartHoldMs;
    } else {
      if (workers != 0) config.workers = workers;
      workers = count_workers_of(path, config);
    }
    if (check) {
      for (const auto& fabric : config.fabrics) sanproxy::proxy::check_files(fabric);
      for (const auto& channel : config.channels) sanproxy::proxy::check_files(channel.fabric);
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "proxynode: %s\n", e.what());
    return 2;
  }
  if (check) {
    std::printf("%s: ok (%u workers, %zu interfaces, %zu fabrics, %zu services)\n", path.c_str(),
                workers, config.interfaces.size() + config.channels.size(), config.fabrics.size(),
                config.services.size());
    return 0;
  }
  // Blocked before any thread starts, so that only the signalfd of who runs sees them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  sigaddset(&signals, SIGCHLD);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  sanproxy::daemon::raise_descriptor_limit();
  start_logging(config.log_level,
                place_text.empty() ? "" : "[worker " + std::to_string(place.index) + "] ");
  int exit_code = 0;
  try {
    if (place_text.empty()) {
      exit_code = run(config, path, workers);
      spdlog::info("proxy node \"{}\" has stopped", config.name);
    } else {
      prctl(PR_SET_NAME, "proxynode");  // "exe" else, by what the supervisor starts it from
      run_worker(config, &place);
    }
  } catch (const std::exception& e) {
    spdlog::error("{}", e.what());
    exit_code = 1;
  }
  spdlog::shutdown();
  return exit_code;
}
