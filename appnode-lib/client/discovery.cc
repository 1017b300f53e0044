#include "appnode-lib/client/discovery.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <utility>

#include "lwproto/cluster/host.h"

namespace sanproxy::app::internal {
namespace {

constexpr std::string_view kPlain = "etcd://";
constexpr std::string_view kSecure = "etcds://";
constexpr std::size_t kHostsMax = 64;

// Where the cluster's name begins; npos while it is missing.
std::size_t name_slash(std::string_view address) {
  return address.find('/', address.find("://") + 3);
}

std::string environment(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

constexpr ::sanproxy::Status malformed() {
  return ::sanproxy::Status::error(::sanproxy::Code::kInvalidArgument,
                                   "a cluster's address is etcd://HOST:PORT[,HOST:PORT...]/NAME");
}

}  // namespace

bool is_cluster_address(std::string_view address) {
  return address.starts_with(kPlain) || address.starts_with(kSecure);
}

std::vector<std::string> rejoin_cluster_addresses(const std::vector<std::string>& addresses) {
  std::vector<std::string> out;
  for (const std::string& address : addresses) {
    const bool open = !out.empty() && is_cluster_address(out.back()) &&
                      name_slash(out.back()) == std::string::npos;
    if (open) {
      out.back() += "," + address;
    } else {
      out.push_back(address);
    }
  }
  return out;
}

::sanproxy::Result<cluster::SessionOptions> parse_cluster_address(std::string_view address) {
  cluster::SessionOptions out;
  out.registers = false;
  out.watched = "node/proxy/";
  out.etcd.endpoints.clear();
  const std::size_t slash = name_slash(address);
  if (!is_cluster_address(address) || slash == std::string_view::npos) return malformed();
  out.cluster = address.substr(slash + 1);
  if (!cluster::name_legal(out.cluster)) return malformed();
  const std::size_t begin = address.find("://") + 3;
  std::string_view hosts = address.substr(begin, slash - begin);
  const std::string scheme = address.starts_with(kSecure) ? "https://" : "http://";
  while (true) {
    const std::size_t comma = std::min(hosts.find(','), hosts.size());
    out.etcd.endpoints.push_back(scheme + std::string(hosts.substr(0, comma)));
    if (!cluster::check_endpoint(out.etcd.endpoints.back()).ok()) return malformed();
    if (comma == hosts.size()) break;
    hosts.remove_prefix(comma + 1);
    if (out.etcd.endpoints.size() == kHostsMax) return malformed();
  }
  out.etcd.user = environment("SANPROXY_ETCD_USER");
  if (!out.etcd.user.empty()) {
    std::ifstream in(environment("SANPROXY_ETCD_PASSWORD_FILE"));
    if (!std::getline(in, out.etcd.password)) {
      return ::sanproxy::Status::error(::sanproxy::Code::kInvalidArgument,
                                       "SANPROXY_ETCD_PASSWORD_FILE cannot be read");
    }
  }
  out.etcd.ca = environment("SANPROXY_ETCD_CA");
  return out;
}

std::string best_address(const cluster::NodeRecord& proxy, const std::string& host,
                         const std::function<bool(const std::string&)>& usable) {
  for (const std::string_view scheme : {"shm:", "verbs:", "tcp:"}) {
    if (scheme == "shm:" && (host.empty() || proxy.host != host)) continue;
    for (const std::string& address : proxy.fabrics) {
      if (address.starts_with(scheme) && usable(address)) return address;
    }
  }
  return "";
}

Discovery::Discovery(std::string address, const cluster::SessionOptions& options)
    : address_(std::move(address)), host_(cluster::host_id()) {
  session_ = std::make_unique<cluster::Session>(
      options, [this](cluster::LogLevel level, const std::string& text) {
        if (level == cluster::LogLevel::kInfo) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        trouble_ = text;
      });
}

Discovery::~Discovery() = default;

Discovery::News Discovery::take(const std::function<bool(const std::string&)>& usable) {
  News out;
  for (const cluster::Change& change : session_->take()) {
    std::string now;
    if (change.entry) {
      const auto* record = std::get_if<cluster::NodeRecord>(&*change.entry);
      // Further workers are found through the first one.
      if (record == nullptr || record->worker != 0) continue;
      now = best_address(*record, host_, usable);
      if (now.empty()) out.trouble = "no way from here to proxy \"" + record->name + "\"";
    }
    std::string& before = known_[change.key];
    if (before != now) {
      if (!before.empty()) out.removed.push_back(before);
      if (!now.empty()) out.added.push_back(now);
      before = now;
    }
    if (!change.entry) known_.erase(change.key);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!trouble_.empty()) out.trouble = std::exchange(trouble_, "");
  return out;
}

}  // namespace sanproxy::app::internal
