// bench_client: the load generator of bench/bench.py. One target, one JSON object.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "bench/tools/client_options.h"

namespace sanproxy::bench {
namespace {

// Many connections need many descriptors: up to what the machine allows.
void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

bool parse_addresses(const std::string& target, const std::vector<std::string>& sources,
                     ClientOptions& options) {
  const auto address = SocketAddress::parse(target);
  if (!address.ok()) {
    std::fprintf(stderr, "bench_client: --target: %s\n", address.status().text());
    return false;
  }
  options.target = *address;
  for (const std::string& text : sources) {
    const auto source = IpAddress::parse(text);
    if (!source.ok()) {
      std::fprintf(stderr, "bench_client: --source: %s\n", source.status().text());
      return false;
    }
    options.sources.push_back(*source);
  }
  return true;
}

int run(const ClientOptions& options) {
  if (options.mode == "connect") return run_connects(options);
  if (options.mode == "download" || options.mode == "upload") return run_bulk(options);
  if (options.mode == "rtt") return run_round_trips(options);
  return run_requests(options);
}

}  // namespace
}  // namespace sanproxy::bench

int main(int argc, char** argv) {
  sanproxy::bench::ClientOptions options;
  std::string target;
  std::vector<std::string> sources;
  CLI::App app{"Load generator: prints READY, then one JSON object."};
  app.add_option("--mode", options.mode)
      ->required()
      ->check(CLI::IsMember({"http", "connect", "download", "upload", "rtt", "idle", "random"}));
  app.add_option("--target", target, "IP:PORT")->required();
  app.add_option("--source", sources, "client address; repeat to spread connections");
  app.add_option("--path", options.path, "what http, connect, idle and random ask for");
  app.add_option("--connections", options.connections)->check(CLI::Range(1, 1'000'000));
  app.add_option("--threads", options.threads, "http: threads that share the connections")
      ->check(CLI::Range(1, 64));
  app.add_option("--active", options.active, "random: requests under way at a time");
  app.add_option("--seconds", options.seconds)->check(CLI::Range(0.01, 3600.0));
  app.add_option("--warmup", options.warmup_seconds)->check(CLI::Range(0.0, 600.0));
  app.add_option("--message-bytes", options.message_bytes)->check(CLI::Range(1, 65536));
  app.add_option("--watch", options.watched, "process whose CPU seconds to report");
  app.add_flag("--wait-go", options.wait_go, "after READY wait for a line on standard input");
  CLI11_PARSE(app, argc, argv);
  sanproxy::bench::raise_descriptor_limit();
  if (!sanproxy::bench::parse_addresses(target, sources, options)) return 2;
  return sanproxy::bench::run(options);
}
