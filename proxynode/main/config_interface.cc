#include "proxynode/main/config_interface.h"

#include <unistd.h>

#include <algorithm>
#include <set>

#include "lwproto/daemon/config_sections.h"
#include "lwproto/fabric/address.h"
#include "proxynode/main/config_access.h"
#include "proxynode/main/config_fabric.h"
#include "proxynode/main/config_reader.h"

namespace sanproxy::proxy {
namespace {

constexpr std::uint32_t kChannelNodesDefault = 16;
constexpr std::size_t kChannelNameBytesMax = 15;

using AllowEntry = service::AllowEntry;

// Who sends packets in the name of clients is trusted more than an application node: without a list
// nobody but root and ourselves, and nobody at all over a network.
service::AllowList default_packet_allow(const FabricConfig& fabric) {
  if (fabric.uses_pools()) return {};
  return {AllowEntry{AllowEntry::Kind::kUid, 0, {}},
          AllowEntry{AllowEntry::Kind::kUid, ::geteuid(), {}}};
}

void check_allow(const FabricConfig& fabric) {
  for (const AllowEntry& entry : fabric.allow) {
    if (entry.kind == AllowEntry::Kind::kKey) {
      throw std::invalid_argument("allow: network nodes prove no keys; use uid:, cert: or any");
    }
  }
}

bool is_there(const ProxyConfig& config, const std::string& name) {
  const auto named = [&](const auto& interface) { return interface.name == name; };
  return std::any_of(config.interfaces.begin(), config.interfaces.end(), named) ||
         std::any_of(config.channels.begin(), config.channels.end(),
                     [&](const ChannelConfig& channel) { return named(channel.options); });
}

// What only some drivers have: said for another one it is an error, not ignored.
void check_keys(const std::string& driver, const std::set<std::string>& given) {
  const bool channel = driver == "channel";
  for (const char* key : {"listen", "advertise", "allow", "credits", "max_nodes", "certificate",
                          "key", "ca", "max_streams", "max_window_bytes", "max_total_window_bytes",
                          "max_tls_handshakes_per_s", "max_queue_pairs", "max_further_queue_pairs",
                          "max_queue_pairs_per_s", "max_handshakes", "max_joined"}) {
    if (!channel && given.count(key) != 0) {
      throw std::invalid_argument(std::string(key) + " is for driver \"channel\" alone");
    }
  }
  const auto not_for = [&](const char* name, std::initializer_list<const char*> keys) {
    for (const char* key : keys) {
      if (driver != name || given.count(key) == 0) continue;
      throw std::invalid_argument(std::string(key) + " is not for driver \"" + name + "\"");
    }
  };
  not_for("channel",
          {"addresses", "gateways", "segmentation_offload", "decapsulate_from", "gue_port"});
  not_for("xdp", {"segmentation_offload", "decapsulate_from", "gue_port"});
  not_for("tun", {"gateways"});
}

// For people: no device has it.
std::string channel_name(const std::string& text) {
  if (text.empty() || text.size() > kChannelNameBytesMax) {
    throw std::invalid_argument("expected 1 to " + std::to_string(kChannelNameBytesMax) +
                                " characters");
  }
  return text;
}

}  // namespace

void read_interface(const std::string& path, const toml::table& table, ProxyConfig& config) {
  packet_io::InterfaceOptions out;
  FabricConfig fabric;
  std::uint32_t joined_max = ChannelConfig{}.joined_max;
  std::optional<service::AllowList> allow;
  TableReader r(path, "[[interface]]", table);
  r.text("driver", [&](const std::string& v) {
    out.driver = choose<const char*>(v, {{"tun", "tun"},
                                         {"tap", "tap"},
                                         {"packet", "packet"},
                                         {"xdp", "xdp"},
                                         {"channel", "channel"}});
  });
  const bool channel = table["driver"].value_or(std::string_view()) == "channel";
  r.text("name", [&](const std::string& v) {
    out.name = channel ? channel_name(v) : daemon::interface_name(v);
  });
  r.number("mtu", out.mtu_bytes, 1280, 65'521);
  r.texts("addresses", [&](const std::string& v) {
    out.addresses.push_back(value_or_throw(IpPrefix::parse(v), v, "ADDRESS/BITS"));
  });
  r.texts("gateways", [&](const std::string& v) {
    out.gateways.push_back(value_or_throw(IpAddress::parse(v), v, "an IP address"));
  });
  r.flag("segmentation_offload", out.segmentation_offload);
  r.texts("decapsulate_from", [&](const std::string& v) {
    out.decapsulate_from.push_back(value_or_throw(IpAddress::parse(v), v, "an IP address"));
  });
  r.number("gue_port", out.gue_port, 1, 65'535);
  listening_keys(r, fabric);
  r.number("max_joined", joined_max, 1, 16'384);
  allow_list(r, allow);
  r.read();
  if (out.driver.empty()) r.missing("driver");
  std::set<std::string> given;
  for (const auto& [key, node] : table) given.emplace(key.str());
  if (channel && out.name.empty()) out.name = "channel";
  if (out.name.empty()) r.missing("name");
  if (channel && fabric.listen.empty()) r.missing("listen");
  if (is_there(config, out.name)) {
    config_fail(path, table.source(), "[[interface]].name: \"" + out.name + "\" is there twice");
  }
  try {
    check_keys(out.driver, given);
    if (channel) {
      check_listening_keys(fabric, given);
      fabric.allow = allow ? *allow : default_packet_allow(fabric);
      check_allow(fabric);
    }
  } catch (const std::invalid_argument& e) {
    config_fail(path, table.source(), std::string("[[interface]]: ") + e.what());
  }
  if (!channel) {
    config.interfaces.push_back(std::move(out));
    return;
  }
  if (fabric.uses_pools() && given.count("credits") == 0) fabric.credits = 64;
  if (given.count("max_nodes") == 0) fabric.nodes_max = kChannelNodesDefault;
  config.channels.push_back({std::move(out), std::move(fabric), joined_max});
}

}  // namespace sanproxy::proxy
