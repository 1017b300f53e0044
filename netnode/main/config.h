// The network node's configuration file (TOML; docs/configuration.md lists every key).
//
// Role: turns a file into a checked NetnodeConfig. Unknown keys, wrong types and impossible values
//   are errors that name file, line and what was expected. Start-up only: throws ConfigError.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lwproto/daemon/config_cluster.h"
#include "lwproto/daemon/config_error.h"
#include "lwproto/flow/token_bucket.h"
#include "netnode/packet_io/packet_io.h"
#include "netnode/steer/forwarder.h"

namespace sanproxy::netnode {

struct InterfaceConfig {
  packet_io::InterfaceOptions options;
  std::vector<IpPrefix> routes;  // besides the subnets of options.addresses
};

struct ChannelConfig {
  std::uint32_t credits = 128;  // receive buffers posted for each proxy over verbs and tcp; on shm
                                // places of its ring
  std::uint32_t send_depth = 512;
  std::uint32_t queued_max = 256;    // packets that wait for room in the channel of one proxy
  std::uint32_t regions_max = 272;   // of memory, that a proxy may show us over shm
  std::string certificate, key, ca;  // tcp: TLS with all three
  std::string proxy_name;            // in the certificate of each proxy; "": any
};

// Whether the kernel carries established sessions behind NAT. kAuto: where it can.
enum class InKernel : std::uint8_t { kAuto, kYes, kNo };

struct NetnodeConfig {
  std::string name = "netnode";
  std::string log_level = "info";
  std::uint32_t buffers = 1024;  // packets of up to 64 KB that we hold at a time
  flow::Rate icmp_errors{.per_s = 1'000, .burst = 1'000};  // that we send ourselves
  std::uint32_t drain_ms = 10'000;
  std::uint32_t drain_quiet_ms = 5'000;  // drained, it has steered nothing for so long: empty
  std::uint32_t no_proxy_ms = 3'000;     // without one for so long: /healthz says so; 0: never
  bool spin = false;
  std::vector<InterfaceConfig> interfaces;
  std::vector<IpAddress> tunnel_addresses;  // outer source, one a family
  ChannelConfig channel;
  steer::ForwarderOptions forwarder;
  std::string nat_state_file;  // "": sessions end with the node
  InKernel nat_in_kernel = InKernel::kAuto;
  steer::ProxySet set;
  std::string admin_listen = "127.0.0.1:9478";
  std::vector<IpPrefix> admin_changes_from;  // beside loopback
  std::optional<daemon::ClusterConfig> cluster;
};

// Why the kernel cannot carry sessions behind NAT for this node; "": nothing in the file says so.
std::string not_in_kernel(const NetnodeConfig& config);
// What works, but perhaps not as meant; for people.
std::vector<std::string> warnings(const NetnodeConfig& config);
NetnodeConfig load_config(const std::string& path);

}  // namespace sanproxy::netnode
