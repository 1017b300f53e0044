#include "proxynode/main/config.h"

#include <set>

#include "lwproto/daemon/config_sections.h"
#include "lwproto/fabric/address.h"
#include "lwproto/wire/codec.h"
#include "proxynode/main/config_access.h"
#include "proxynode/main/config_fabric.h"
#include "proxynode/main/config_interface.h"
#include "proxynode/main/config_reader.h"

namespace sanproxy::proxy {
namespace {

// Connections and probes share the 2^24 indexes of ids.
constexpr std::uint32_t kProbesMax = 4096;
// What a table of network nodes can hold.
constexpr std::uint32_t kProxyWeightMax = 1000;

void read_proxy(const std::string& path, const toml::table& table, ProxyConfig& config) {
  TableReader r(path, "[proxy]", table);
  auto& s = config.stack;
  r.text("name", [&](const std::string& v) {
    if (v.empty() || wire::node_name_prefix(v) != v) {
      throw std::invalid_argument("expected 1 to 64 bytes of printable UTF-8");
    }
    config.name = v;
  });
  r.number("id", config.id, 1, 1023);
  r.number("weight", config.weight, 1, kProxyWeightMax);
  r.text("log_level", [&](const std::string& v) {
    config.log_level = choose<const char*>(
        v, {{"debug", "debug"}, {"info", "info"}, {"warning", "warning"}, {"error", "error"}});
  });
  r.number("workers", config.workers, 1, packet_io::kQueuesMax);
  r.number("worker_timeout_ms", config.worker_timeout_ms, 0, 3'600'000);
  r.number("max_connections", s.connections_max, 1, (1u << 24) - kProbesMax);
  r.text("at_max_connections", [&](const std::string& v) {
    s.refuse_with_reset = choose<bool>(v, {{"reset", true}, {"drop", false}});
  });
  r.number("max_half_open", s.half_open_max, 1, 1u << 24);
  r.number("max_time_wait", s.time_wait_max, 0, 1u << 24);
  r.number("max_fragmented_datagrams", s.fragments.datagrams_max, 0, 65'536);
  r.number("fragment_timeout_ms", s.fragments.timeout_ms, 1000, 120'000);
  r.number("max_nodes", config.nodes_max, 1, 65'536);
  r.number("max_services", config.services_max, 1, 1'000'000);
  r.number("max_health_probes", config.probes_max, 1, kProbesMax);
  r.number("max_tx_records", config.tx_records_max, 1024, 1u << 28);
  r.number("receive_window_bytes", s.receive_window_bytes, 65'536, 4u << 20);
  r.number("send_window_bytes", s.send_buffer_bytes, 65'536, 4u << 20);
  r.number("tcp_memory_bytes", s.heap_bytes_max, 1u << 20, 1024 * kGiB);
  r.number("ingress_pool_bytes", config.ingress_pool_bytes, 8u << 20, 1024 * kGiB);
  r.number("egress_pool_bytes", config.egress_pool_bytes, 65'536, 1024 * kGiB);
  r.number("channel_region_bytes", config.channel_region_bytes, 1u << 20, 1024 * kGiB);
  r.number("max_lent_regions", config.lent_regions_max, 0, 16'384);
  r.number("max_lent_ms", config.lent_ms_max, 500, 60'000);
  r.number("time_wait_ms", s.time_wait_ms, 0, 600'000);
  r.number("keepalive_idle_ms", s.keepalive_idle_ms, 0, kU32);
  r.number("keepalive_interval_ms", s.keepalive_interval_ms, 1000, kU32);
  r.number("keepalive_probes", s.keepalive_probes, 1, 100);
  r.number("fin_wait_2_ms", s.fin_wait_2_ms, 1000, kU32);
  r.number("orphan_ms", s.orphan_ms, 1000, kU32);
  r.number("initial_rto_ms", s.initial_rto_ms, 100, 60'000);
  r.number("min_rto_ms", s.min_rto_ms, 40, 10'000);
  r.number("drain_ms", config.drain_ms, 0, 86'400'000);
  r.number("drain_grace_ms", config.drain_grace_ms, 0, 600'000);
  r.flag("outgoing", config.outgoing);
  r.flag("spin", config.spin);
  r.number("spin_us", config.spin_us, 0, 1000);
  r.read();
}

// [[service]] health = { ... }
void read_health(const std::string& path, const toml::table& table, service::HealthCheck& out) {
  TableReader r(path, "[[service]].health", table);
  r.text("request", [&](const std::string& v) {
    if (v.empty() || v.size() > service::HealthCheck::kRequestBytesMax) {
      throw std::invalid_argument(
          "expected 1 to 1024 bytes, such as \"GET / HTTP/1.0\\r\\n\\r\\n\"");
    }
    out.request = v;
  });
  r.text("expect", [&](const std::string& v) {
    if (v.size() > service::HealthCheck::kExpectBytesMax || v.find('\n') != std::string::npos) {
      throw std::invalid_argument("expected at most 256 bytes of one line");
    }
    out.expect = v;
  });
  r.number("interval_ms", out.interval_ms, 100, 3'600'000);
  r.number("timeout_ms", out.timeout_ms, 10, 600'000);
  r.number("rise", out.thresholds.rise, 1, 100);
  r.number("fall", out.thresholds.fall, 1, 100);
  r.read();
  if (out.request.empty()) r.missing("request");
}

// [heartbeat], of all application nodes.
void read_heartbeat(const std::string& path, const toml::table& table, ProxyConfig& config) {
  translate::HeartbeatOptions& out = config.heartbeat;
  TableReader r(path, "[heartbeat]", table);
  r.number("interval_ms", out.interval_ms, 0, 3'600'000);
  r.number("timeout_ms", out.timeout_ms, 10, 600'000);
  r.number("rise", out.thresholds.rise, 1, 100);
  r.number("fall", out.thresholds.fall, 1, 100);
  r.read();
}

void read_service(const std::string& path, const toml::table& table, ProxyConfig& config) {
  service::Policy out;
  TableReader r(path, "[[service]]", table);
  r.text("address", [&](const std::string& v) {
    out.address = value_or_throw(SocketAddress::parse(v), v, "IP:PORT");
    if (out.address.port == 0) throw std::invalid_argument("\"" + v + "\" needs a port from 1 on");
    if (!out.address.ip.is_any() && !out.address.ip.is_unicast()) {
      throw std::invalid_argument("\"" + v + "\" is the address of no host: nobody may join it");
    }
    for (const auto& other : config.services) {
      if (other.address == out.address) throw std::invalid_argument("\"" + v + "\" is there twice");
    }
  });
  r.text("balance", [&](const std::string& v) {
    out.balance =
        choose<service::Balance>(v, {{"round-robin", service::Balance::kRoundRobin},
                                     {"weighted", service::Balance::kWeighted},
                                     {"least-connections", service::Balance::kLeastConnections}});
  });
  r.text("binding", [&](const std::string& v) {
    out.binding = choose<service::Binding>(
        v, {{"immediate", service::Binding::kImmediate}, {"delayed", service::Binding::kDelayed}});
  });
  allow_list(r, out.allow);
  r.numbers("weights", out.weights, 1, 65'535);
  r.table("health",
          [&](const toml::table& inside) { read_health(path, inside, out.health.emplace()); });
  r.read();
  if (out.address.port == 0) r.missing("address");
  config.services.push_back(std::move(out));
}

void read_admin(const std::string& path, const toml::table& table, ProxyConfig& config) {
  daemon::read_admin(path, table, config.admin_listen, config.admin_changes_from);
}

void read_cluster(const std::string& path, const toml::table& table, ProxyConfig& config) {
  daemon::read_cluster(path, table, config.cluster.emplace());
}

constexpr daemon::Section<ProxyConfig> kSections[] = {{"admin", read_admin},
                                                      {"cluster", read_cluster},
                                                      {"fabric", read_fabric, true},
                                                      {"heartbeat", read_heartbeat},
                                                      {"interface", read_interface, true},
                                                      {"key", read_key, true},
                                                      {"limits", read_limits},
                                                      {"proxy", read_proxy},
                                                      {"service", read_service, true}};

// In a cluster others are told where to connect, and "every address" is nowhere.
void check_published(const std::string& path, const ProxyConfig& config) {
  if (!config.cluster) return;
  const auto check = [&](const FabricConfig& fabric, const char* section) {
    const auto address = fabric::FabricAddress::parse(fabric.published());
    if (!fabric.uses_pools() || !address.ok() || !address->socket.ip.is_any()) return;
    config_fail(path, {},
                std::string(section) + ".listen \"" + fabric.listen +
                    "\": in a cluster it needs advertise, the address at which others find it");
  };
  for (const FabricConfig& fabric : config.fabrics) check(fabric, "[[fabric]]");
  for (const ChannelConfig& channel : config.channels) check(channel.fabric, "[[interface]]");
}

// One place to listen at is taken once.
void check_listeners(const std::string& path, const ProxyConfig& config) {
  std::set<std::string> taken;
  const auto check = [&](const FabricConfig& fabric, const char* section) {
    if (taken.insert(fabric::FabricAddress::parse(fabric.listen)->to_string()).second) return;
    config_fail(path, {},
                std::string(section) + ".listen: \"" + fabric.listen + "\" is there twice");
  };
  for (const FabricConfig& fabric : config.fabrics) check(fabric, "[[fabric]]");
  for (const ChannelConfig& channel : config.channels) check(channel.fabric, "[[interface]]");
}

}  // namespace

ProxyConfig load_config(const std::string& path) {
  ProxyConfig config;
  daemon::read_config_file(path, std::span<const daemon::Section<ProxyConfig>>(kSections), config);
  if (config.interfaces.empty() && config.channels.empty()) {
    config_fail(path, {}, "needs at least one [[interface]]");
  }
  if (config.fabrics.empty()) config_fail(path, {}, "needs at least one [[fabric]]");
  check_allow_lists(path, config);
  check_listeners(path, config);
  check_published(path, config);
  // Further workers are known by names that follow from it, and those have to be legal too.
  if (config.cluster &&
      (!cluster::name_legal(cluster::worker_name(config.name, packet_io::kQueuesMax)) ||
       !cluster::name_legal(config.name) || cluster::proxy_of_worker(config.name) != config.name)) {
    config_fail(
        path, {},
        "[proxy].name: in a cluster, 1 to 60 letters, digits, '.', '_' or '-' (not ending in "
        "\".wNUMBER\"), not \"" +
            config.name + "\"");
  }
  return config;
}

}  // namespace sanproxy::proxy
