// The proxy node's configuration file (TOML; docs/configuration.md lists every key).
//
// Role: turns a file into a checked ProxyConfig. Unknown keys, wrong types and impossible values
//   are errors that name file, line and what was expected. Start-up only: throws ConfigError.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lwproto/auth/key.h"
#include "lwproto/daemon/config_cluster.h"
#include "lwproto/daemon/config_error.h"
#include "netnode/packet_io/packet_io.h"
#include "proxynode/service/rate_limit.h"
#include "proxynode/service/service_table.h"
#include "proxynode/stack/stack.h"
#include "proxynode/translate/heartbeat.h"

namespace sanproxy::proxy {

using daemon::ClusterConfig;
using daemon::ConfigError;

// What SIGHUP is answered with.
inline constexpr const char* kNothingIsReadAgain =
    "nothing is read again while the node runs: a change of its file needs a restart";

struct FabricConfig {
  std::string listen;         // "shm:/run/sanproxy/proxy.sock", "verbs://IP:PORT", "tcp://IP:PORT"
  std::string scheme;         // of it
  std::string advertise;      // verbs, tcp: where others find it, if that is not `listen`
  bool shared_trust = false;  // shm: trust = "isolated" | "shared"
  std::uint32_t credits = 512;  // receive buffers posted a channel; verbs, tcp: 64 by default
  std::uint32_t references_max = 16'384;  // shm: pieces of memory on loan over a channel, each way
  std::uint32_t nodes_max = 0;            // verbs, tcp: channels at a time; 32 by default
  std::size_t channel_region_bytes =
      0;                            // shm: that of [proxy] by default; verbs, tcp: 64 MiB for all
  std::uint32_t dead_after_ms = 0;  // verbs, tcp: 60 s by default; shm: never
  service::AllowList allow;         // to services without a list of their own
  // tcp
  std::string certificate, key, ca;          // all or none
  std::uint32_t streams_max = 16;            // that a node may ask for
  std::uint32_t tls_handshakes_per_s = 100;  // of one peer
  std::size_t window_bytes_max = std::size_t{64} << 20;
  std::size_t window_total_max = 0;  // of all channels; 0: 256 MiB, or window_bytes_max if more
  // verbs
  std::uint32_t queue_pairs_max = 64;           // that a node may ask for
  std::uint32_t further_queue_pairs_max = 128;  // of all handshakes, beyond their first
  std::uint32_t queue_pairs_per_s = 100;        // of one host
  // Of all: handshakes that have no answer yet.
  std::uint32_t handshakes_max = 128;

  // Whether what nodes send arrives in slots of the EgressPool, and what clients send leaves from
  // slots of the IngressPool; on shm everybody shows their own memory instead.
  bool uses_pools() const { return scheme != "shm"; }
  const std::string& published() const { return advertise.empty() ? listen : advertise; }
};

// An [[interface]] with driver "channel": where network nodes connect.
struct ChannelConfig {
  packet_io::InterfaceOptions options;
  FabricConfig fabric;
  std::uint32_t joined_max = 64;
};

struct ProxyConfig {
  std::string name = "proxy";
  std::uint16_t id = 0;  // 1..1023, in the session tags of its segments; 0: none
  std::uint32_t weight = 1;
  std::uint32_t worker = 0;                  // which of them this is, from 0
  std::uint32_t workers = 0;                 // 0: as many as the host has cores, where that can be
  std::uint32_t worker_timeout_ms = 10'000;  // without a sign of life; 0: never ended for that
  std::uint32_t nodes_max = 1024;
  std::uint32_t services_max = 1024;
  std::uint32_t tx_records_max = 1 << 20;
  std::uint32_t drain_ms = 10'000;
  std::uint32_t drain_grace_ms = 0;  // from saying so to closing the listeners
  bool outgoing = true;
  bool spin = false;
  std::uint32_t spin_us = 50;  // ShortSpin's bound
  std::size_t ingress_pool_bytes = std::size_t{256} << 20;
  std::size_t egress_pool_bytes = std::size_t{16} << 20;
  std::size_t channel_region_bytes = std::size_t{256} << 20;
  std::uint32_t lent_regions_max = 256;  // passed on to network nodes; 0: payload is copied instead
  std::uint32_t lent_ms_max = 1000;      // who keeps what he was lent for so long is cut off
  stack::StackOptions stack;
  std::vector<packet_io::InterfaceOptions> interfaces;
  std::vector<ChannelConfig> channels;
  std::vector<FabricConfig> fabrics;
  std::vector<service::Policy> services;
  std::vector<auth::Key> keys;
  service::RateLimits limits;
  translate::HeartbeatOptions heartbeat{.interval_ms = 1000};
  std::uint32_t probes_max = 256;
  std::uint32_t join_grace_ms = 5000;
  std::string admin_listen = "127.0.0.1:9477";  // empty: no admin endpoint
  std::vector<IpPrefix> admin_changes_from;     // beside loopback
  std::optional<ClusterConfig> cluster;
  std::string log_level = "info";
};

ProxyConfig load_config(const std::string& path);

}  // namespace sanproxy::proxy
