#include "netnode/main/config.h"

#include <algorithm>

#include "lwproto/daemon/config_reader.h"
#include "lwproto/daemon/config_sections.h"
#include "lwproto/wire/codec.h"

namespace sanproxy::netnode {
namespace {

using daemon::choose;
using daemon::config_fail;
using daemon::TableReader;
using daemon::value_or_throw;

constexpr std::uint32_t kSecondsMax = 30U * 24 * 3600;

void read_node(const std::string& path, const toml::table& table, NetnodeConfig& config) {
  steer::ForwarderOptions& f = config.forwarder;
  TableReader r(path, "[node]", table);
  r.text("name", [&](const std::string& v) {
    if (v.empty() || wire::node_name_prefix(v) != v) {
      throw std::invalid_argument("expected 1 to 64 bytes of printable UTF-8");
    }
    config.name = v;
  });
  r.text("log_level", [&](const std::string& v) {
    config.log_level = choose<const char*>(
        v, {{"debug", "debug"}, {"info", "info"}, {"warning", "warning"}, {"error", "error"}});
  });
  r.number("max_buffers", config.buffers, 256, 65'536);
  r.number("max_icmp_errors_per_s", config.icmp_errors.per_s, 1, 1'000'000);
  r.number("drain_ms", config.drain_ms, 0, 3'600'000);
  r.number("drain_quiet_ms", config.drain_quiet_ms, 100, 600'000);
  r.number("no_proxy_ms", config.no_proxy_ms, 0, 3'600'000);
  r.flag("spin", config.spin);
  r.number("maglev_entries", f.maglev_entries, 3, steer::kMaglevEntriesMax);
  r.number("generations", f.generations, 0, 16);
  r.number("hash_seed", f.hash_seed, 0, INT64_MAX);
  r.number("max_flows", f.flows.flows_max, 1'024, 64'000'000);
  r.number("flow_half_open_s", f.flows.half_open_s, 1, kSecondsMax);
  r.number("flow_closing_s", f.flows.closing_s, 1, kSecondsMax);
  r.number("flow_established_s", f.flows.established_s, 1, kSecondsMax);
  r.number("max_fragmented_datagrams", f.fragments.datagrams_max, 16, 1'000'000);
  r.number("max_held_fragments", f.fragments.held_max, 0, 128);
  r.number("fragment_timeout_ms", f.fragments.timeout_ms, 10, 60'000);
  r.read();
  config.icmp_errors.burst = config.icmp_errors.per_s;
  if (!steer::is_prime(f.maglev_entries)) {
    config_fail(path, table.source(), "[node].maglev_entries: expected a prime, such as 65537");
  }
}

void read_interface(const std::string& path, const toml::table& table, NetnodeConfig& config) {
  InterfaceConfig out;
  TableReader r(path, "[[interface]]", table);
  r.text("driver", [&](const std::string& v) {
    out.options.driver = choose<const char*>(
        v, {{"tun", "tun"}, {"tap", "tap"}, {"packet", "packet"}, {"xdp", "xdp"}});
  });
  r.text("name", [&](const std::string& v) {
    out.options.name = daemon::interface_name(v);
    for (const auto& other : config.interfaces) {
      if (other.options.name == v) throw std::invalid_argument("\"" + v + "\" is there twice");
    }
  });
  r.number("mtu", out.options.mtu_bytes, 1280, 65'521);
  r.flag("segmentation_offload", out.options.segmentation_offload);
  r.texts("addresses", [&](const std::string& v) {
    out.options.addresses.push_back(value_or_throw(IpPrefix::parse(v), v, "ADDRESS/BITS"));
  });
  r.texts("gateways", [&](const std::string& v) {
    out.options.gateways.push_back(value_or_throw(IpAddress::parse(v), v, "an IP address"));
  });
  r.texts("routes", [&](const std::string& v) {
    out.routes.push_back(value_or_throw(IpPrefix::parse(v), v, "ADDRESS/BITS"));
  });
  r.read();
  if (out.options.driver.empty()) r.missing("driver");
  if (out.options.name.empty()) r.missing("name");
  config.interfaces.push_back(std::move(out));
}

void read_service(const std::string& path, const toml::table& table, NetnodeConfig& config) {
  steer::ServiceConfig out;
  TableReader r(path, "[[service]]", table);
  r.text("address", [&](const std::string& v) {
    out.address = value_or_throw(SocketAddress::parse(v), v, "IP:PORT");
  });
  r.text("protocol", [&](const std::string& v) {
    out.protocol =
        choose<std::uint8_t>(v, {{"tcp", net::kProtocolTcp}, {"udp", net::kProtocolUdp}});
  });
  r.texts("proxies", [&](const std::string& v) { out.proxies.push_back(v); });
  r.read();
  if (out.address.ip.family == Family::kNone) r.missing("address");
  config.set.services.push_back(std::move(out));
}

// "IP:PORT", or "IP" where the port is the service's.
SocketAddress target_of(const std::string& text) {
  if (Result<IpAddress> ip = IpAddress::parse(text); ip.ok()) return {*ip, 0};
  return value_or_throw(SocketAddress::parse(text), text, "IP or IP:PORT");
}

void declare_probe(TableReader& r, steer::ProbeSettings& probe) {
  r.text("probe", [&](const std::string& v) {
    probe.kind = choose<steer::ProbeKind>(v, {{"none", steer::ProbeKind::kNone},
                                              {"tcp", steer::ProbeKind::kTcp},
                                              {"http", steer::ProbeKind::kHttp}});
  });
  r.text("probe_address", [&](const std::string& v) {
    probe.address = value_or_throw(SocketAddress::parse(v), v, "IP:PORT");
  });
  r.text("probe_path", [&](const std::string& v) {
    const bool plain = std::all_of(v.begin(), v.end(), [](char c) { return c > ' ' && c < 127; });
    if (v.empty() || v[0] != '/' || v.size() > 255 || !plain) {
      throw std::invalid_argument("expected a path such as \"/healthz\"");
    }
    probe.path = v;
  });
  r.number("probe_interval_ms", probe.interval_ms, 20, 3'600'000);
  r.number("probe_timeout_ms", probe.timeout_ms, 10, 60'000);
  r.number("probe_rise", probe.rise, 1, 100);
  r.number("probe_fall", probe.fall, 1, 100);
}

// What only some proxies have: said for another one it is an error, not ignored.
void check_keys(const toml::table& table, const steer::ProxyConfig& proxy) {
  const auto only = [&](std::initializer_list<const char*> keys, bool has_them, const char* where) {
    for (const char* key : keys) {
      if (has_them || !table.contains(key)) continue;
      throw std::invalid_argument(std::string(key) + " is for " + where + " alone");
    }
  };
  const bool tunnel = proxy.mode == steer::Mode::kTunnel;
  only({"tunnel"}, tunnel, "mode \"tunnel\"");
  only({"gue_port"}, tunnel && proxy.tunnel == net::TunnelKind::kGue, "tunnel \"gue\"");
  only({"probe_path"}, proxy.probe.kind == steer::ProbeKind::kHttp, "probe \"http\"");
  only({"probe_address", "probe_interval_ms", "probe_timeout_ms", "probe_rise", "probe_fall"},
       proxy.probe.kind != steer::ProbeKind::kNone, "a proxy with a probe");
}

void read_proxy(const std::string& path, const toml::table& table, NetnodeConfig& config) {
  steer::ProxyConfig out;
  std::vector<std::string> addresses;
  bool has_mode = false;
  TableReader r(path, "[[proxy]]", table);
  r.text("name", [&](const std::string& v) { out.name = v; });
  r.text("node", [&](const std::string& v) {
    if (!cluster::name_legal(v)) {
      throw std::invalid_argument("expected 1 to 64 letters, digits, '.', '_' or '-', not \"" + v +
                                  "\"");
    }
    out.node = v;
  });
  r.number("id", out.id, 0, net::kSessionTagMax);
  r.number("weight", out.weight, 0, steer::kWeightMax);
  out.weight_said = table.contains("weight");
  r.flag("draining", out.draining);
  r.text("mode", [&](const std::string& v) {
    out.mode = choose<steer::Mode>(v, {{"channel", steer::Mode::kChannel},
                                       {"tunnel", steer::Mode::kTunnel},
                                       {"nat", steer::Mode::kNat}});
    has_mode = true;
  });
  r.text("address", [&](const std::string& v) { addresses.push_back(v); });
  r.texts("addresses", [&](const std::string& v) { addresses.push_back(v); });
  r.text("tunnel", [&](const std::string& v) {
    out.tunnel =
        choose<net::TunnelKind>(v, {{"ip", net::TunnelKind::kIp}, {"gue", net::TunnelKind::kGue}});
  });
  r.number("gue_port", out.gue_port, 1, 65'535);
  r.number("clamp_mss", out.clamp_mss, 0, 65'535);
  declare_probe(r, out.probe);
  r.read();
  if (out.name.empty()) r.missing("name");
  if (!has_mode) r.missing("mode");
  if (addresses.empty()) r.missing("address");
  try {
    check_keys(table, out);
  } catch (const std::invalid_argument& e) {
    config_fail(path, table.source(), std::string("[[proxy]]: ") + e.what());
  }
  try {
    for (const std::string& text : addresses) {
      if (out.mode == steer::Mode::kChannel) {
        if (!out.channel.empty()) throw std::invalid_argument("a channel has one address");
        out.channel = text;
      } else {
        out.targets.push_back(target_of(text));
      }
    }
  } catch (const std::invalid_argument& e) {
    config_fail(path, table.source(), std::string("[[proxy]].address: ") + e.what());
  }
  config.set.proxies.push_back(std::move(out));
}

void read_nat(const std::string& path, const toml::table& table, NetnodeConfig& config) {
  steer::NatOptions& nat = config.forwarder.nat;
  TableReader r(path, "[nat]", table);
  r.texts("addresses", [&](const std::string& v) {
    nat.addresses.push_back(value_or_throw(IpAddress::parse(v), v, "an IP address"));
    if (nat.addresses.back().is_any()) {
      throw std::invalid_argument("\"" + v + "\" is nobody's address");
    }
  });
  r.number("port_min", nat.port_min, 1, 65'535);
  r.number("port_max", nat.port_max, 1, 65'535);
  r.number("max_sessions", nat.sessions_max, 16, 16'000'000);
  r.number("established_s", nat.established_s, 1, kSecondsMax);
  r.number("transitory_s", nat.transitory_s, 1, kSecondsMax);
  r.number("udp_s", nat.udp_s, 1, kSecondsMax);
  r.text("in_kernel", [&](const std::string& v) {
    config.nat_in_kernel = choose<InKernel>(
        v, {{"auto", InKernel::kAuto}, {"yes", InKernel::kYes}, {"no", InKernel::kNo}});
  });
  r.text("state_file", [&](const std::string& v) {
    if (v.empty() || v[0] != '/') throw std::invalid_argument("expected an absolute path");
    config.nat_state_file = v;
  });
  r.read();
  if (nat.port_min > nat.port_max) {
    config_fail(path, table.source(), "[nat]: port_min is above port_max");
  }
}

void read_tunnel(const std::string& path, const toml::table& table, NetnodeConfig& config) {
  TableReader r(path, "[tunnel]", table);
  r.texts("addresses", [&](const std::string& v) {
    const IpAddress ip = value_or_throw(IpAddress::parse(v), v, "an IP address");
    if (ip.is_any()) throw std::invalid_argument("\"" + v + "\" is nobody's address");
    for (const IpAddress& other : config.tunnel_addresses) {
      if (other.family != ip.family) continue;
      throw std::invalid_argument("expected one address a family, not both " + other.to_string() +
                                  " and " + v);
    }
    config.tunnel_addresses.push_back(ip);
  });
  r.read();
}

void read_channel(const std::string& path, const toml::table& table, NetnodeConfig& config) {
  ChannelConfig& c = config.channel;
  TableReader r(path, "[channel]", table);
  r.number("credits", c.credits, 32, 65'536);
  r.number("send_depth", c.send_depth, 32, 65'536);
  r.number("max_queued", c.queued_max, 64, 65'536);
  r.number("max_regions", c.regions_max, 1, 16'400);
  r.text("certificate", [&](const std::string& v) { c.certificate = v; });
  r.text("key", [&](const std::string& v) { c.key = v; });
  r.text("ca", [&](const std::string& v) { c.ca = v; });
  r.text("proxy_name", [&](const std::string& v) { c.proxy_name = v; });
  r.read();
  const int files = !c.certificate.empty() + !c.key.empty() + !c.ca.empty();
  if (files != 0 && files != 3) {
    config_fail(path, table.source(), "[channel]: TLS needs certificate, key and ca, all three");
  }
  if (files == 0 && !c.proxy_name.empty()) {
    config_fail(path, table.source(), "[channel]: proxy_name is in a certificate: it needs TLS");
  }
}

void read_admin(const std::string& path, const toml::table& table, NetnodeConfig& config) {
  daemon::read_admin(path, table, config.admin_listen, config.admin_changes_from);
}

void read_cluster(const std::string& path, const toml::table& table, NetnodeConfig& config) {
  daemon::read_cluster(path, table, config.cluster.emplace());
}

constexpr daemon::Section<NetnodeConfig> kSections[] = {
    {"admin", read_admin},       {"channel", read_channel},
    {"cluster", read_cluster},   {"interface", read_interface, true},
    {"nat", read_nat},           {"node", read_node},
    {"proxy", read_proxy, true}, {"service", read_service, true},
    {"tunnel", read_tunnel}};

bool has(const std::vector<IpAddress>& addresses, Family family) {
  return std::any_of(addresses.begin(), addresses.end(),
                     [&](const IpAddress& a) { return a.family == family; });
}

bool has(const std::vector<IpAddress>& addresses, const IpAddress& address) {
  return std::find(addresses.begin(), addresses.end(), address) != addresses.end();
}

// Packets to an address that is ours in another way, too, would come back or be taken for others.
// That of a TUN or TAP device is its host's: a server there is reached through the device.
void check_own_addresses(const std::string& path, const NetnodeConfig& config) {
  std::vector<IpAddress> own = config.forwarder.nat.addresses;
  own.insert(own.end(), config.tunnel_addresses.begin(), config.tunnel_addresses.end());
  std::vector<IpAddress> of_host;
  bool beside_tuns = false;  // answers may come by another interface, which takes what is for us
  for (const InterfaceConfig& interface : config.interfaces) {
    const packet_io::InterfaceOptions& options = interface.options;
    const bool hosts = options.driver == "tun" || options.driver == "tap";
    beside_tuns = beside_tuns || !hosts;
    for (const IpPrefix& address : options.addresses) {
      (hosts ? of_host : own).push_back(address.ip);
    }
  }
  for (const IpAddress& ip : config.forwarder.nat.addresses) {
    if (!beside_tuns && has(of_host, ip)) {
      config_fail(path, {},
                  "[nat].addresses: " + ip.to_string() +
                      " is the host's own, whose kernel would keep what servers answer");
    }
  }
  for (const steer::ProxyConfig& proxy : config.set.proxies) {
    for (const SocketAddress& target : proxy.targets) {
      const bool ours =
          has(own, target.ip) || (proxy.mode != steer::Mode::kNat && has(of_host, target.ip));
      if (!ours) continue;
      config_fail(path, {},
                  "proxy \"" + proxy.name + "\": " + target.ip.to_string() + " is our own address");
    }
  }
  for (const steer::ServiceConfig& service : config.set.services) {
    if (!has(config.forwarder.nat.addresses, service.address.ip)) continue;
    config_fail(path, {},
                "service " + service.address.to_string() +
                    ": [nat] has its address, where answers of servers arrive");
  }
}

void check_in_kernel(const std::string& path, const NetnodeConfig& config) {
  const std::string why = not_in_kernel(config);
  if (config.nat_in_kernel != InKernel::kYes || why.empty()) return;
  config_fail(path, {}, "[nat].in_kernel: " + why);
}

// What only the whole file can tell.
void check_whole(const std::string& path, const NetnodeConfig& config) {
  if (config.interfaces.empty()) config_fail(path, {}, "needs at least one [[interface]]");
  if (config.cluster && !cluster::name_legal(config.name)) {
    config_fail(path, {},
                "[node].name: in a cluster, 1 to 64 letters, digits, '.', '_' or '-', not \"" +
                    config.name + "\"");
  }
  if (std::string wrong = steer::check(config.set); !wrong.empty()) config_fail(path, {}, wrong);
  check_own_addresses(path, config);
  check_in_kernel(path, config);
  if (config.set.proxies.size() > config.forwarder.maglev_entries) {
    config_fail(path, {}, "[node].maglev_entries: there are more proxies than entries for them");
  }
  // A cluster may still tell of others.
  const auto nobody = steer::unserved(config.set, true);
  if (!config.cluster && !nobody.empty()) config_fail(path, {}, nobody.front());
  for (const steer::ProxyConfig& proxy : config.set.proxies) {
    for (const SocketAddress& target : proxy.targets) {
      const bool nat = proxy.mode == steer::Mode::kNat;
      const auto& ours = nat ? config.forwarder.nat.addresses : config.tunnel_addresses;
      if (has(ours, target.ip.family)) continue;
      config_fail(path, {},
                  "proxy \"" + proxy.name + "\": [" + (nat ? "nat" : "tunnel") +
                      "] needs an address of the family of " + target.ip.to_string());
    }
  }
}

}  // namespace

std::string not_in_kernel(const NetnodeConfig& config) {
  const steer::NatOptions& nat = config.forwarder.nat;
  if (nat.addresses.empty()) return "[nat] has no addresses";
  if (nat.established_s < steer::kNatCarriedLifeMinS) {
    return "established_s is below " + std::to_string(steer::kNatCarriedLifeMinS);
  }
  for (const InterfaceConfig& interface : config.interfaces) {
    const packet_io::InterfaceOptions& options = interface.options;
    if (options.driver != "tap") continue;
    return "interface \"" + options.name + "\" has driver \"tap\", which cannot: use \"tun\"";
  }
  return "";
}

std::vector<std::string> warnings(const NetnodeConfig& config) {
  std::vector<std::string> out = steer::unserved(config.set, false);
  for (std::string& one : steer::unserved(config.set, true)) out.push_back(std::move(one));
  return out;
}

NetnodeConfig load_config(const std::string& path) {
  NetnodeConfig config;
  daemon::read_config_file(path, std::span<const daemon::Section<NetnodeConfig>>(kSections),
                           config);
  check_whole(path, config);
  return config;
}

}  // namespace sanproxy::netnode
