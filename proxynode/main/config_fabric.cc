#include "proxynode/main/config_fabric.h"

#include <set>

#include "lwproto/fabric/address.h"
#include "lwproto/fabric/link_parameters.h"
#include "proxynode/main/config_access.h"
#include "proxynode/main/config_reader.h"

namespace sanproxy::proxy {
namespace {

// Over verbs and tcp a node's receive buffers are ours, 72 KB each: fewer than on shm.
constexpr std::uint32_t kPoolCreditsDefault = 64;
constexpr std::uint32_t kPoolNodesDefault = 32;
// A host that has lost its power says nothing; who was only stopped has time to be continued. On
// shm the kernel tells at once when a process has gone.
constexpr std::uint32_t kPoolDeadAfterMsDefault = 60'000;
// Only what is copied because something ran short goes there.
constexpr std::size_t kPoolRegionBytesDefault = std::size_t{64} << 20;

// What only some fabrics have: said for another one it is an error, not ignored.
void only(const FabricConfig& fabric, const std::set<std::string>& given, const char* key,
          bool has_it, const char* where) {
  if (given.count(key) == 0 || has_it) return;
  throw std::invalid_argument(std::string(key) + " is for " + where + ", not for " + fabric.scheme);
}

void fill_in(FabricConfig& fabric, const std::set<std::string>& given) {
  if (!fabric.uses_pools()) return;
  if (given.count("credits") == 0) fabric.credits = kPoolCreditsDefault;
  if (given.count("max_nodes") == 0) fabric.nodes_max = kPoolNodesDefault;
  if (given.count("dead_after_ms") == 0) fabric.dead_after_ms = kPoolDeadAfterMsDefault;
  if (given.count("channel_region_bytes") == 0) {
    fabric.channel_region_bytes = kPoolRegionBytesDefault;
  }
}

}  // namespace

void check_listening_keys(const FabricConfig& fabric, const std::set<std::string>& given) {
  for (const char* key : {"certificate", "key", "ca", "max_streams", "max_window_bytes",
                          "max_total_window_bytes", "max_tls_handshakes_per_s"}) {
    only(fabric, given, key, fabric.scheme == "tcp", "tcp");
  }
  for (const char* key : {"max_queue_pairs", "max_further_queue_pairs", "max_queue_pairs_per_s"}) {
    only(fabric, given, key, fabric.scheme == "verbs", "verbs");
  }
  if (fabric.queue_pairs_max - 1 > fabric.further_queue_pairs_max) {
    throw std::invalid_argument(
        "max_further_queue_pairs is too small for the handshake of one channel of max_queue_pairs");
  }
  if (fabric.window_total_max != 0 && fabric.window_total_max < fabric.window_bytes_max) {
    throw std::invalid_argument("max_total_window_bytes is less than max_window_bytes");
  }
  if (!fabric.advertise.empty() && !fabric.advertise.starts_with(fabric.scheme + ":")) {
    throw std::invalid_argument("advertise is \"" + fabric.advertise + "\", but \"" +
                                fabric.listen +
                                "\" is where it listens: the fabric must be the same");
  }
  const int files = (fabric.certificate.empty() ? 0 : 1) + (fabric.key.empty() ? 0 : 1) +
                    (fabric.ca.empty() ? 0 : 1);
  if (files != 0 && files != 3) {
    throw std::invalid_argument("TLS needs certificate, key and ca, all three");
  }
}

void listening_keys(TableReader& r, FabricConfig& out) {
  r.text("listen", [&](const std::string& v) {
    const auto address = value_or_throw(fabric::FabricAddress::parse(v), v,
                                        "shm:/PATH, verbs://IP:PORT or tcp://IP:PORT");
    if (address.scheme != "shm" && address.socket.port == 0) {
      throw std::invalid_argument("\"" + v + "\" needs a port from 1 on");
    }
    out.scheme = address.scheme;
    out.listen = v;
  });
  r.text("advertise", [&](const std::string& v) {
    const auto address =
        value_or_throw(fabric::FabricAddress::parse(v), v, "verbs://IP:PORT or tcp://IP:PORT");
    if (address.scheme == "shm" || address.socket.ip.is_any() || address.socket.port == 0) {
      throw std::invalid_argument(
          "expected verbs://IP:PORT or tcp://IP:PORT that others can "
          "connect to, not \"" +
          v + "\"");
    }
    out.advertise = v;
  });
  r.number("credits", out.credits, 32, 65'536);
  r.number("max_nodes", out.nodes_max, 1, 65'536);
  r.text("certificate", [&](const std::string& v) { out.certificate = v; });
  r.text("key", [&](const std::string& v) { out.key = v; });
  r.text("ca", [&](const std::string& v) { out.ca = v; });
  r.number("max_streams", out.streams_max, 1, 64);
  r.number("max_window_bytes", out.window_bytes_max, 65'536, kGiB);
  r.number("max_total_window_bytes", out.window_total_max, 65'536, 1024 * kGiB);
  r.number("max_tls_handshakes_per_s", out.tls_handshakes_per_s, 1, 100'000);
  r.number("max_queue_pairs", out.queue_pairs_max, 1, fabric::kQueuePairsMax);
  r.number("max_further_queue_pairs", out.further_queue_pairs_max, 0, 65'536);
  r.number("max_queue_pairs_per_s", out.queue_pairs_per_s, 1, 100'000);
  r.number("max_handshakes", out.handshakes_max, 1, 65'536);
}

void read_fabric(const std::string& path, const toml::table& table, ProxyConfig& config) {
  FabricConfig out;
  TableReader r(path, "[[fabric]]", table);
  listening_keys(r, out);
  r.text("trust", [&](const std::string& v) {
    out.shared_trust = choose<bool>(v, {{"isolated", false}, {"shared", true}});
  });
  r.number("dead_after_ms", out.dead_after_ms, 0, 86'400'000);
  r.number("max_references", out.references_max, 1024, 16'384);
  r.number("channel_region_bytes", out.channel_region_bytes, 1u << 20, 1024 * kGiB);
  std::optional<service::AllowList> allow;
  allow_list(r, allow);
  r.read();
  if (out.listen.empty()) r.missing("listen");
  std::set<std::string> given;
  for (const auto& [key, node] : table) given.emplace(key.str());
  try {
    only(out, given, "trust", !out.uses_pools(), "shm");
    only(out, given, "max_references", !out.uses_pools(), "shm");
    only(out, given, "max_nodes", out.uses_pools(), "verbs and tcp");
    check_listening_keys(out, given);
  } catch (const std::invalid_argument& e) {
    config_fail(path, table.source(), std::string("[[fabric]]: ") + e.what());
  }
  fill_in(out, given);
  out.allow = allow ? *allow : default_allow(out.listen);
  config.fabrics.push_back(std::move(out));
}

}  // namespace sanproxy::proxy
