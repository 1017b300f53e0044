// Every key lands in its field.
#include "proxynode/main/share.h"
#include "tests/proxynode/main/config_fixture.h"

namespace sanproxy::proxy::testing {
namespace {

TEST(Config, TheSmallestFileGivesTheDocumentedDefaults) {
  const ProxyConfig config = load(kInterface + kFabric);
  EXPECT_EQ(config.name, "proxy");
  EXPECT_EQ(config.log_level, "info");
  EXPECT_EQ(config.stack.connections_max, 100'000u);
  EXPECT_TRUE(config.stack.refuse_with_reset);
  EXPECT_EQ(config.stack.half_open_max, 8192u);
  EXPECT_EQ(config.stack.time_wait_max, 65536u);
  EXPECT_EQ(config.nodes_max, 1024u);
  EXPECT_EQ(config.services_max, 1024u);
  EXPECT_EQ(config.tx_records_max, 1048576u);
  EXPECT_EQ(config.stack.receive_window_bytes, 4u << 20);
  EXPECT_EQ(config.stack.send_buffer_bytes, 4194304u);
  EXPECT_EQ(config.stack.heap_bytes_max, std::size_t{1} << 30);
  EXPECT_EQ(config.ingress_pool_bytes, std::size_t{256} << 20);
  EXPECT_EQ(config.egress_pool_bytes, std::size_t{16} << 20);
  EXPECT_EQ(config.channel_region_bytes, std::size_t{256} << 20);
  EXPECT_EQ(config.stack.time_wait_ms, 60'000u);
  EXPECT_EQ(config.stack.keepalive_idle_ms, 7'200'000u);
  EXPECT_EQ(config.stack.keepalive_interval_ms, 75'000u);
  EXPECT_EQ(config.stack.keepalive_probes, 9u);
  EXPECT_EQ(config.stack.fin_wait_2_ms, 60'000u);
  EXPECT_EQ(config.stack.orphan_ms, 60'000u);
  EXPECT_EQ(config.stack.initial_rto_ms, 1000u);
  EXPECT_EQ(config.stack.min_rto_ms, 200u);
  EXPECT_EQ(config.drain_ms, 10'000u);
  EXPECT_TRUE(config.outgoing);
  EXPECT_FALSE(config.spin);
  EXPECT_EQ(config.spin_us, 50u);
  EXPECT_EQ(config.admin_listen, "127.0.0.1:9477");
  ASSERT_EQ(config.interfaces.size(), 1u);
  EXPECT_EQ(config.interfaces[0].driver, "tun");
  EXPECT_EQ(config.interfaces[0].name, "san0");
  EXPECT_EQ(config.interfaces[0].mtu_bytes, 1500u);
  EXPECT_TRUE(config.interfaces[0].addresses.empty());
  EXPECT_TRUE(config.interfaces[0].segmentation_offload);
  ASSERT_EQ(config.fabrics.size(), 1u);
  EXPECT_EQ(config.fabrics[0].listen, "shm:/tmp/x.sock");
  EXPECT_FALSE(config.fabrics[0].shared_trust);
  EXPECT_EQ(config.fabrics[0].scheme, "shm");
  EXPECT_FALSE(config.fabrics[0].uses_pools());
  EXPECT_EQ(config.fabrics[0].credits, 512u);
  EXPECT_TRUE(config.services.empty());
}

TEST(Config, HealthOfApplicationNodesHasDefaultsAndKeys) {
  const ProxyConfig plain =
      load(kInterface + kFabric + "[[fabric]]\nlisten = \"tcp://127.0.0.1:1\"\n");
  EXPECT_EQ(plain.heartbeat.interval_ms, 1000u);
  EXPECT_EQ(plain.heartbeat.timeout_ms, 1000u);
  EXPECT_EQ(plain.heartbeat.thresholds, (flow::HealthOptions{.rise = 2, .fall = 3}));
  EXPECT_EQ(plain.probes_max, 256u);
  EXPECT_EQ(plain.fabrics[0].dead_after_ms, 0u) << "on one host the kernel tells who has gone";
  EXPECT_EQ(plain.fabrics[1].dead_after_ms, 60'000u);
  const ProxyConfig config = load(kInterface + kFabric + R"(dead_after_ms = 5
[proxy]
max_health_probes = 7
[heartbeat]
interval_ms = 0
timeout_ms = 10
rise = 3
fall = 4
[[service]]
address = "10.0.0.1:80"
health = { request = "PING\r\n", expect = "+PONG", interval_ms = 100, timeout_ms = 11, rise = 5, fall = 6 }
)");
  EXPECT_EQ(config.fabrics[0].dead_after_ms, 5u);
  EXPECT_EQ(config.probes_max, 7u);
  EXPECT_EQ(config.heartbeat.interval_ms, 0u);
  EXPECT_EQ(config.heartbeat.timeout_ms, 10u);
  EXPECT_EQ(config.heartbeat.thresholds, (flow::HealthOptions{.rise = 3, .fall = 4}));
  ASSERT_TRUE(config.services.at(0).health);
  const service::HealthCheck& health = *config.services[0].health;
  EXPECT_EQ(health.request, "PING\r\n");
  EXPECT_EQ(health.expect, "+PONG");
  EXPECT_EQ(health.interval_ms, 100u);
  EXPECT_EQ(health.timeout_ms, 11u);
  EXPECT_EQ(health.thresholds, (flow::HealthOptions{.rise = 5, .fall = 6}));
}

TEST(Config, EveryKeyOfTheProxySectionLandsInItsField) {
  const ProxyConfig config = load(R"([proxy]
name = "edge-7"
log_level = "debug"
max_connections = 1001
at_max_connections = "drop"
max_half_open = 1002
max_time_wait = 1003
max_fragmented_datagrams = 1022
fragment_timeout_ms = 1024
max_nodes = 1004
max_services = 1005
max_tx_records = 1026
receive_window_bytes = 70_007
send_window_bytes = 70_008
tcp_memory_bytes = 10_000_009
ingress_pool_bytes = 10_000_010
egress_pool_bytes = 10_000_011
channel_region_bytes = 10_000_012
time_wait_ms = 1013
keepalive_idle_ms = 1014
keepalive_interval_ms = 1015
keepalive_probes = 16
fin_wait_2_ms = 1017
orphan_ms = 1021
initial_rto_ms = 1018
min_rto_ms = 1019
drain_ms = 1020
outgoing = false
spin = true
spin_us = 23
)" + kInterface + kFabric);
  EXPECT_EQ(config.name, "edge-7");
  EXPECT_EQ(config.log_level, "debug");
  EXPECT_EQ(config.stack.connections_max, 1001u);
  EXPECT_FALSE(config.stack.refuse_with_reset);
  EXPECT_EQ(config.stack.half_open_max, 1002u);
  EXPECT_EQ(config.stack.time_wait_max, 1003u);
  EXPECT_EQ(config.stack.fragments.datagrams_max, 1022u);
  EXPECT_EQ(config.stack.fragments.timeout_ms, 1024u);
  EXPECT_EQ(config.nodes_max, 1004u);
  EXPECT_EQ(config.services_max, 1005u);
  EXPECT_EQ(config.tx_records_max, 1026u);
  EXPECT_EQ(config.stack.receive_window_bytes, 70'007u);
  EXPECT_EQ(config.stack.send_buffer_bytes, 70'008u);
  EXPECT_EQ(config.stack.heap_bytes_max, 10'000'009u);
  EXPECT_EQ(config.ingress_pool_bytes, 10'000'010u);
  EXPECT_EQ(config.egress_pool_bytes, 10'000'011u);
  EXPECT_EQ(config.channel_region_bytes, 10'000'012u);
  EXPECT_EQ(config.stack.time_wait_ms, 1013u);
  EXPECT_EQ(config.stack.keepalive_idle_ms, 1014u);
  EXPECT_EQ(config.stack.keepalive_interval_ms, 1015u);
  EXPECT_EQ(config.stack.keepalive_probes, 16u);
  EXPECT_EQ(config.stack.fin_wait_2_ms, 1017u);
  EXPECT_EQ(config.stack.orphan_ms, 1021u);
  EXPECT_EQ(config.stack.initial_rto_ms, 1018u);
  EXPECT_EQ(config.stack.min_rto_ms, 1019u);
  EXPECT_EQ(config.drain_ms, 1020u);
  EXPECT_FALSE(config.outgoing);
  EXPECT_TRUE(config.spin);
  EXPECT_EQ(config.spin_us, 23u);
}

TEST(Config, EveryKeyOfTheOtherSectionsLandsInItsField) {
  const ProxyConfig config = load(R"([[interface]]
driver = "packet"
name = "eth1"
mtu = 9000
addresses = ["10.77.0.10/24", "fd77::10/64"]
gateways = ["10.77.0.1", "fd77::1"]
segmentation_offload = false
[[interface]]
driver = "tap"
name = "tap0"
[[fabric]]
listen = "shm:/run/one.sock"
trust = "shared"
credits = 64
max_references = 2048
[[fabric]]
listen = "shm:/run/two.sock"
trust = "isolated"
[[service]]
address = "10.77.0.10:80"
balance = "least-connections"
binding = "immediate"
allow = ["uid:33", "uid:0"]
[[service]]
address = "[fd77::10]:443"
balance = "weighted"
binding = "delayed"
[[service]]
address = "10.77.0.11:80"
balance = "round-robin"
allow = []
[admin]
listen = "[::1]:9000"
)");
  ASSERT_EQ(config.interfaces.size(), 2u);
  const packet_io::InterfaceOptions& interface = config.interfaces[0];
  EXPECT_EQ(interface.driver, "packet");
  EXPECT_EQ(interface.name, "eth1");
  EXPECT_EQ(interface.mtu_bytes, 9000u);
  ASSERT_EQ(interface.addresses.size(), 2u);
  EXPECT_EQ(interface.addresses[0].ip, *IpAddress::parse("10.77.0.10"));
  EXPECT_EQ(interface.addresses[0].length_bits, 24);
  EXPECT_EQ(interface.addresses[1].ip, *IpAddress::parse("fd77::10"));
  EXPECT_EQ(interface.addresses[1].length_bits, 64);
  ASSERT_EQ(interface.gateways.size(), 2u);
  EXPECT_EQ(interface.gateways[1], *IpAddress::parse("fd77::1"));
  EXPECT_FALSE(interface.segmentation_offload);
  EXPECT_EQ(config.interfaces[1].driver, "tap");

  ASSERT_EQ(config.fabrics.size(), 2u);
  EXPECT_EQ(config.fabrics[0].listen, "shm:/run/one.sock");
  EXPECT_TRUE(config.fabrics[0].shared_trust);
  EXPECT_EQ(config.fabrics[0].credits, 64u);
  EXPECT_EQ(config.fabrics[0].references_max, 2048u);
  EXPECT_FALSE(config.fabrics[1].shared_trust);
  EXPECT_EQ(config.fabrics[1].references_max, 16'384u);

  ASSERT_EQ(config.services.size(), 3u);
  EXPECT_EQ(config.services[0].address, *SocketAddress::parse("10.77.0.10:80"));
  EXPECT_EQ(config.services[0].balance, service::Balance::kLeastConnections);
  EXPECT_EQ(config.services[0].binding, service::Binding::kImmediate);
  EXPECT_EQ(config.services[0].allow, (service::AllowList{*service::AllowEntry::parse("uid:33"),
                                                          *service::AllowEntry::parse("uid:0")}));
  EXPECT_EQ(config.services[1].address, *SocketAddress::parse("[fd77::10]:443"));
  EXPECT_EQ(config.services[1].balance, service::Balance::kWeighted);
  EXPECT_EQ(config.services[1].binding, service::Binding::kDelayed);
  EXPECT_FALSE(config.services[1].allow);
  EXPECT_EQ(config.services[2].binding, service::Binding::kAsJoined);
  EXPECT_EQ(config.admin_listen, "[::1]:9000");
}

TEST(Config, EveryKeyOfANetworkFabricLandsInItsField) {
  const ProxyConfig config = load(kInterface + R"([[fabric]]
listen = "tcp://10.9.0.1:7471"
credits = 100
max_nodes = 5
channel_region_bytes = 2_000_000
certificate = "/etc/proxy.pem"
key = "/etc/proxy.key"
ca = "/etc/ca.pem"
max_streams = 3
max_window_bytes = 100_000
[[fabric]]
listen = "verbs://[fd77::1]:7471"
max_handshakes = 7
max_queue_pairs = 4
max_further_queue_pairs = 12
max_queue_pairs_per_s = 13
)");
  ASSERT_EQ(config.fabrics.size(), 2u);
  const FabricConfig& tcp = config.fabrics[0];
  EXPECT_EQ(tcp.listen, "tcp://10.9.0.1:7471");
  EXPECT_EQ(tcp.scheme, "tcp");
  EXPECT_TRUE(tcp.uses_pools());
  EXPECT_EQ(tcp.credits, 100u);
  EXPECT_EQ(tcp.nodes_max, 5u);
  EXPECT_EQ(tcp.channel_region_bytes, 2'000'000u);
  EXPECT_EQ(tcp.certificate, "/etc/proxy.pem");
  EXPECT_EQ(tcp.key, "/etc/proxy.key");
  EXPECT_EQ(tcp.ca, "/etc/ca.pem");
  EXPECT_EQ(tcp.streams_max, 3u);
  EXPECT_EQ(tcp.window_bytes_max, 100'000u);
  const FabricConfig& verbs = config.fabrics[1];
  EXPECT_EQ(verbs.scheme, "verbs");
  EXPECT_EQ(verbs.credits, 64u);
  EXPECT_EQ(verbs.nodes_max, 32u);
  EXPECT_EQ(verbs.channel_region_bytes, std::size_t{64} << 20);
  EXPECT_EQ(verbs.handshakes_max, 7u);
  EXPECT_EQ(verbs.queue_pairs_max, 4u);
  EXPECT_EQ(verbs.further_queue_pairs_max, 12u);
  EXPECT_EQ(verbs.queue_pairs_per_s, 13u);
}

TEST(Config, AnEmptyAdminAddressTurnsItOff) {
  EXPECT_EQ(load(kInterface + kFabric + "[admin]\nlisten = \"\"\n").admin_listen, "");
}

TEST(Config, TheDeployedExampleLoads) {
  const ProxyConfig config = load_config(SANPROXY_SOURCE_DIR "/deploy/proxynode.toml");
  EXPECT_FALSE(config.interfaces.empty());
  EXPECT_FALSE(config.fabrics.empty());
}

TEST(Config, NetworkNodesMayConnectWhoAreRootOrOurselvesAndNobodyOverANetwork) {
  const ProxyConfig config = load(R"([proxy]
id = 12
weight = 50
[[interface]]
driver = "channel"
listen = "shm:/tmp/net.sock"
[[interface]]
driver = "channel"
name = "far"
listen = "tcp://127.0.0.1:7470"
max_nodes = 3
[[fabric]]
listen = "shm:/tmp/proxy.sock"
)");
  EXPECT_EQ(config.id, 12);
  EXPECT_EQ(config.weight, 50u);
  EXPECT_TRUE(config.interfaces.empty());
  ASSERT_EQ(config.channels.size(), 2u);
  EXPECT_EQ(config.channels[0].options.name, "channel");
  EXPECT_EQ(config.channels[0].fabric.credits, 512u);
  EXPECT_EQ(config.channels[0].fabric.nodes_max, 16u);
  service::Credentials who;
  who.uid = 0;
  EXPECT_TRUE(service::allows(config.channels[0].fabric.allow, who));
  who.uid = 64'999;
  EXPECT_FALSE(service::allows(config.channels[0].fabric.allow, who));
  EXPECT_EQ(config.channels[1].fabric.credits, 64u);
  EXPECT_EQ(config.channels[1].fabric.nodes_max, 3u);
  EXPECT_TRUE(config.channels[1].fabric.allow.empty());
}

TEST(Config, WhereItListensOnEveryAddressAClusterIsToldAnother) {
  const std::string fabric = "[[fabric]]\nlisten = \"tcp://0.0.0.0:7471\"\nallow = [\"any\"]\n";
  const std::string cluster = "[cluster]\netcd = [\"http://127.0.0.1:2379\"]\n";
  EXPECT_EQ(load(kInterface + fabric).fabrics[0].published(), "tcp://0.0.0.0:7471");
  EXPECT_THROW(load(kInterface + fabric + cluster), ConfigError);
  const ProxyConfig config =
      load(kInterface + fabric + "advertise = \"tcp://10.9.0.1:7471\"\n" + cluster);
  EXPECT_EQ(config.fabrics[0].listen, "tcp://0.0.0.0:7471");
  EXPECT_EQ(config.fabrics[0].published(), "tcp://10.9.0.1:7471");
  const ProxyConfig second = share_of(config, 1, 2);
  EXPECT_EQ(second.fabrics[0].listen, "tcp://0.0.0.0:7472");
  EXPECT_EQ(second.fabrics[0].published(), "tcp://10.9.0.1:7472");
}

}  // namespace
}  // namespace sanproxy::proxy::testing
