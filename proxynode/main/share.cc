#include "proxynode/main/share.h"

#include <algorithm>
#include <map>
#include <string>

#include "lwproto/fabric/address.h"

namespace sanproxy::proxy {
namespace {

// Beyond so many, memory and channels cost more than a core adds: more are for who asks.
constexpr std::uint32_t kWorkersByDefaultMax = 8;

struct Floor {
  const char* key;
  std::size_t value;
  std::size_t least;  // of one worker, as in config.cc
};

std::vector<Floor> floors(const ProxyConfig& config) {
  return {{"max_connections", config.stack.connections_max, 1},
          {"max_tx_records", config.tx_records_max, 1024},
          {"tcp_memory_bytes", config.stack.heap_bytes_max, 1u << 20},
          {"ingress_pool_bytes", config.ingress_pool_bytes, 8u << 20},
          {"egress_pool_bytes", config.egress_pool_bytes, 65'536},
          {"channel_region_bytes", config.channel_region_bytes, 1u << 20}};
}

// The workers of one fabric listen behind its address: another's must not be there.
void check_apart(const ProxyConfig& config, std::uint32_t workers) {
  std::map<std::string, const FabricConfig*> taken;
  for (const auto& fabric : config.fabrics) {
    for (std::uint32_t worker = 0; worker < workers; ++worker) {
      std::string address =
          fabric::FabricAddress::parse(fabric.listen)->of_worker(worker)->to_string();
      const auto [found, free] = taken.emplace(std::move(address), &fabric);
      if (free) continue;
      throw ConfigError("[[fabric]].listen: " + std::to_string(workers) + " workers of " +
                        found->second->listen + " and of " + fabric.listen + " would share " +
                        found->first +
                        ": leave as many ports between them, or set [proxy].workers to 1");
    }
  }
}

bool meet(const SocketAddress& a, const SocketAddress& b) {
  return a.port == b.port && a.ip.family == b.ip.family &&
         (a.ip == b.ip || a.ip.is_any() || b.ip.is_any());
}

// The admin endpoint is TCP too.
void check_admin_apart(const ProxyConfig& config, std::uint32_t workers) {
  if (config.admin_listen.empty()) return;
  const SocketAddress admin = *SocketAddress::parse(config.admin_listen);
  const auto check = [&](const FabricConfig& fabric) {
    for (std::uint32_t worker = 0; worker < workers; ++worker) {
      const auto address = *fabric::FabricAddress::parse(fabric.listen)->of_worker(worker);
      if (address.scheme != "tcp" || !meet(address.socket, admin)) continue;
      throw ConfigError("[admin].listen: \"" + config.admin_listen + "\" is where worker " +
                        std::to_string(worker) + " of " + fabric.listen + " listens");
    }
  };
  for (const auto& fabric : config.fabrics) check(fabric);
  for (const auto& channel : config.channels) check(channel.fabric);
}

template <typename T>
void divide(T& value, std::uint32_t workers, T least) {
  value = std::max<T>(static_cast<T>(value / workers), least);
}

}  // namespace

std::uint32_t count_workers(const ProxyConfig& config, std::uint32_t cores) {
  const bool asked = config.workers != 0;
  std::uint32_t workers = asked ? config.workers : std::min(cores, kWorkersByDefaultMax);
  workers = std::max<std::uint32_t>(workers, 1);
  for (const auto& interface : config.interfaces) {
    if (workers == 1 || packet_io::has_queues(interface)) continue;
    if (asked) {
      const std::string what = interface.decapsulate_from.empty()
                                   ? "driver \"" + interface.driver + "\""
                                   : std::string("an interface where tunnels end");
      throw ConfigError("[proxy].workers: interface " + interface.name + ": " + what +
                        " serves one worker");
    }
    workers = 1;
  }
  // A network node tells proxies apart by their addresses and ids: there each is a proxy node.
  if (workers > 1 && !config.channels.empty()) {
    if (asked) {
      throw ConfigError(
          "[proxy].workers: driver \"channel\" serves one worker: run several proxy "
          "nodes");
    }
    workers = 1;
  }
  for (const Floor& floor : floors(config)) {
    if (floor.value / workers >= floor.least) continue;
    if (asked) {
      throw ConfigError("[proxy]." + std::string(floor.key) +
                        " is for all workers together: " + std::to_string(workers) +
                        " of them need at least " + std::to_string(workers * floor.least));
    }
    workers = static_cast<std::uint32_t>(std::max<std::size_t>(floor.value / floor.least, 1));
  }
  for (const auto& fabric : config.fabrics) {
    const auto last = fabric::FabricAddress::parse(fabric.listen)->of_worker(workers - 1);
    const auto last_told = fabric::FabricAddress::parse(fabric.published())->of_worker(workers - 1);
    if (!last_told.ok()) {
      throw ConfigError("[[fabric]].advertise: " + last_told.status().to_string());
    }
    if (!last.ok()) throw ConfigError("[[fabric]].listen: " + last.status().to_string());
  }
  check_apart(config, workers);
  check_admin_apart(config, workers);
  return workers;
}

ProxyConfig share_of(const ProxyConfig& config, std::uint32_t worker, std::uint32_t workers) {
  constexpr std::uint32_t kCreditsMin = 32;
  ProxyConfig out = config;
  out.workers = workers;
  out.worker = worker;
  if (workers == 1) return out;
  divide<std::uint32_t>(out.stack.connections_max, workers, 1);
  divide<std::uint32_t>(out.stack.half_open_max, workers, 1);
  divide<std::uint32_t>(out.stack.time_wait_max, workers, 0);
  if (out.stack.fragments.datagrams_max != 0) {
    divide<std::uint32_t>(out.stack.fragments.datagrams_max, workers, 1);
  }
  divide<std::uint32_t>(out.tx_records_max, workers, 1);
  divide<std::size_t>(out.stack.heap_bytes_max, workers, 1);
  divide<std::size_t>(out.ingress_pool_bytes, workers, 1);
  divide<std::size_t>(out.egress_pool_bytes, workers, 1);
  divide<std::size_t>(out.channel_region_bytes, workers, 1);
  for (FabricConfig& fabric : out.fabrics) {
    for (std::string* address : {&fabric.listen, &fabric.advertise}) {
      if (address->empty()) continue;
      *address = fabric::FabricAddress::parse(*address)->of_worker(worker)->to_string();
    }
    if (fabric.channel_region_bytes != 0) {
      divide<std::size_t>(fabric.channel_region_bytes, workers, 1u << 20);
    }
    // On shm credits take no memory of ours.
    if (fabric.uses_pools()) divide<std::uint32_t>(fabric.credits, workers, kCreditsMin);
  }
  return out;
}

}  // namespace sanproxy::proxy
