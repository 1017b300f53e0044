#include "appnode-lib/examples/example_program.h"

#include <sched.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "lwproto/base/clock.h"
#include "lwproto/daemon/descriptor_limit.h"
#include "lwproto/daemon/log.h"
#include "lwproto/daemon/stop_signal.h"

namespace examples {
namespace {

// For the signal handler alone.
app::Node* g_node = nullptr;
sanproxy::daemon::StopSignal g_stop_signal;

void on_signal(int) {
  using Meaning = sanproxy::daemon::StopSignal::Meaning;
  const Meaning meaning = g_stop_signal.on_signal(sanproxy::SteadyClock().now_ns());
  if (meaning == Meaning::kAtOnce) std::_Exit(1);
  if (meaning == Meaning::kOrderly) g_node->stop();
}

// The library reads the environment itself where these are not given.
void add_link_options(CLI::App& cli, CommonOptions& options) {
  cli.add_option_function<std::string>(
         "--link",
         [&options](const std::string& text) {
           auto link = app::LinkOptions::parse(text);
           if (!link.ok()) throw CLI::ValidationError("--link", link.status().text());
           options.link = *link;
         },
         "Asked of every link, such as window=4MiB,streams=4,congestion=cubic (or SANPROXY_LINK)")
      ->type_name("TEXT");
  cli.add_option("--tls-certificate", options.tls.certificate,
                 "tcp: use TLS, with this certificate (or SANPROXY_TLS_CERTIFICATE)");
  cli.add_option("--tls-key", options.tls.key, "its key (or SANPROXY_TLS_KEY)");
  cli.add_option("--tls-ca", options.tls.ca, "who signs the proxies' (or SANPROXY_TLS_CA)");
  cli.add_option("--tls-proxy-name", options.tls.proxy_name,
                 "take only a proxy whose certificate has this name (or SANPROXY_TLS_PROXY_NAME)");
}

void warn_of_any_name(const CommonOptions& options) {
  const auto given = [](const std::string& option, const char* variable) {
    return !option.empty() || std::getenv(variable) != nullptr;
  };
  if (given(options.tls.ca, "SANPROXY_TLS_CA") &&
      !given(options.tls.proxy_name, "SANPROXY_TLS_PROXY_NAME")) {
    spdlog::warn("without --tls-proxy-name every certificate of the CA passes for a proxy's");
  }
}

// A server of many connections gains from waking seldom: woken as batch work it does not interrupt
// who woke it, finds more requests when its turn comes, and does fewer rounds for them. On an idle
// processor it runs at once all the same.
void schedule_as_batch() {
  const sched_param none{};
  if (sched_setscheduler(0, SCHED_BATCH, &none) != 0) {
    spdlog::warn("SCHED_BATCH: {}", std::strerror(errno));
  }
}

}  // namespace

void add_common_options(CLI::App& cli, CommonOptions& options) {
  cli.set_version_flag("--version", "sanproxy " SANPROXY_VERSION);
  cli.add_option("--proxy", options.proxies,
                 "A proxy node: shm:/PATH, verbs://IP:PORT or tcp://IP:PORT; or all of a cluster: "
                 "etcd://HOST:PORT[,HOST:PORT...]/CLUSTER")
      ->envname("SANPROXY_PROXY")
      ->delimiter(',');
  cli.add_option(
         "--proxies-max", options.proxies_max,
         "Of a cluster, so many proxies are followed (or SANPROXY_CLUSTER_PROXIES_MAX; 128)")
      ->check(CLI::Range(1, 1024));
  cli.add_option("--name", options.name,
                 "What proxies and sanctl call us; by default the program's name and pid")
      ->envname("SANPROXY_NAME");
  cli.add_option("--service", options.services, "An address to serve, IP:PORT or [IP]:PORT")
      ->envname("SANPROXY_SERVICE")
      ->delimiter(',');
  cli.add_option("--key", options.keys, "NAME:FILE, a key that the proxies may ask for")
      ->envname("SANPROXY_KEY")
      ->delimiter(',');
  add_link_options(cli, options);
  cli.add_option("--weight", options.weight,
                 "Our share, against other nodes of a service whose balance is weighted or "
                 "least-connections (not the default)")
      ->check(CLI::Range(1, 65535));
  cli.add_option("--max-connections", options.connections_max, "At a time; 0 is no limit");
  cli.add_flag("--immediate", options.immediate, "Bind at the handshake, not at the first data");
  cli.add_option("--drain-ms", options.drain_ms, "After SIGTERM, let connections finish so long")
      ->check(CLI::Range(0, 86'400'000));
  cli.add_option(
         "--scheduling", options.scheduling,
         "batch (SCHED_BATCH, the default): fewer, larger rounds when processors are busy; or "
         "normal")
      ->check(CLI::IsMember({"batch", "normal"}));
  cli.add_option("--log", options.log_level, "debug, info, warning, error or off")
      ->check(CLI::IsMember({"debug", "info", "warning", "error", "off"}));
}

std::unique_ptr<ExampleProgram> ExampleProgram::create(const CommonOptions& options) {
  spdlog::set_default_logger(spdlog::stderr_color_st("appnode"));
  spdlog::set_level(spdlog::level::from_str(options.log_level));
  if (options.scheduling == "batch") schedule_as_batch();
  warn_of_any_name(options);
  sanproxy::daemon::raise_descriptor_limit();
  app::NodeOptions node_options;
  node_options.proxies = options.proxies;
  node_options.name = options.name;
  node_options.link = options.link;
  node_options.tls = options.tls;
  node_options.cluster.proxies_max = options.proxies_max;
  node_options.on_proxy_up = [](auto proxy) { spdlog::info("{}: connected", proxy); };
  node_options.on_proxy_down = [](auto proxy, auto why) { spdlog::warn("{}: {}", proxy, why); };
  node_options.on_cluster_news = [](auto cluster, auto text) {
    spdlog::info("{}: {}", cluster, text);
  };
  node_options.on_joined = [](auto service, auto proxy) {
    spdlog::info("{}: joined {}", proxy, service);
  };
  node_options.on_join_refused = [](auto service, auto proxy, app::CloseCode code) {
    if (code == app::CloseCode::kNotPermitted) {
      spdlog::error("{}: not permitted to join {} (not_permitted)", proxy, service);
    } else {
      spdlog::error("{}: {} is not ours: {}", proxy, service, app::to_string(code));
    }
  };
  node_options.on_key_refused = [](auto key, auto proxy, app::CloseCode code) {
    spdlog::error("{}: the proxy refused key '{}': {}", proxy, key, app::to_string(code));
  };
  for (const std::string& text : options.keys) {
    app::KeyOptions key;
    const std::size_t colon = std::min(text.find(':'), text.size());
    key.name = text.substr(0, colon);
    key.file = text.substr(std::min(colon + 1, text.size()));
    node_options.keys.push_back(std::move(key));
  }
  auto node = app::Node::create(std::move(node_options));
  if (!node.ok()) {
    spdlog::error("no node: {}", node.status().to_string());
    return nullptr;
  }
  std::unique_ptr<ExampleProgram> program(new ExampleProgram(options));
  program->node_ = std::move(*node);
  return program;
}

int ExampleProgram::serve(const app::RequestHandler& on_request,
                          const std::function<void()>& on_stop) {
  if (options_.services.empty()) {
    spdlog::error("--service (or SANPROXY_SERVICE) is needed");
    return 2;
  }
  app::JoinOptions join;
  join.weight = static_cast<std::uint16_t>(options_.weight);
  join.connections_max = options_.connections_max;
  join.immediate = options_.immediate;
  for (const std::string& address : options_.services) {
    auto service = node_->join(address, on_request, join);
    if (!service.ok()) {
      spdlog::error("{}: {}", address, service.status().to_string());
      return 2;
    }
    services_.push_back(*service);
  }
  g_node = node_.get();
  std::signal(SIGTERM, on_signal);
  std::signal(SIGINT, on_signal);
  node_->run();
  if (on_stop) on_stop();
  drain();
  return 0;
}

// No new connections; those that are open finish, as long as --drain-ms allows.
void ExampleProgram::drain() {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::milliseconds(options_.drain_ms);
  for (app::Service& service : services_) service.leave();
  while (!node_->drained()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
    if (left.count() <= 0) break;
    node_->wait(static_cast<int>(left.count()));
  }
  spdlog::info("stopped, {} connections cut off", node_->connection_count());
}

}  // namespace examples
