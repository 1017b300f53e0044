#include "appnode-lib/client/cluster_address.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>

namespace sanproxy::app::internal {
namespace {

constexpr std::string_view kPlain = "etcd://";
constexpr std::string_view kSecure = "etcds://";
constexpr std::size_t kPrefixBytesMax = 256;  // as [cluster] prefix
// Records that a proxy may have in etcd: one for each of its workers.
constexpr std::size_t kRecordsOfProxy = 64;

// Where the cluster's path begins; npos while it is missing.
std::size_t path_begin(std::string_view address) {
  return address.find('/', address.find("://") + 3);
}

constexpr ::sanproxy::Status malformed() {
  return ::sanproxy::Status::error(::sanproxy::Code::kInvalidArgument,
                                   "a cluster's address is etcd://HOST:PORT[,HOST:PORT...]/NAME");
}

bool readable(const std::string& file) { return file.empty() || std::ifstream(file).good(); }

Status wrong(const char* text) { return {Code::kInvalidArgument, text}; }

}  // namespace

bool is_cluster_address(std::string_view address) {
  return address.starts_with(kPlain) || address.starts_with(kSecure);
}

std::vector<std::string> rejoin_cluster_addresses(const std::vector<std::string>& addresses) {
  std::vector<std::string> out;
  for (const std::string& address : addresses) {
    const bool open = !out.empty() && is_cluster_address(out.back()) &&
                      path_begin(out.back()) == std::string::npos;
    if (open) {
      out.back().append(",").append(address);
    } else {
      out.push_back(address);
    }
  }
  return out;
}

::sanproxy::Result<cluster::SessionOptions> parse_cluster_address(std::string_view address,
                                                                  const ClusterOptions& options) {
  cluster::SessionOptions out;
  const std::size_t begin = path_begin(address);
  if (!is_cluster_address(address) || begin == std::string_view::npos) return malformed();
  const std::string_view path = address.substr(begin);
  const std::size_t slash = path.rfind('/');
  out.cluster = path.substr(slash + 1);
  if (!cluster::name_legal(out.cluster) || slash > kPrefixBytesMax) return malformed();
  if (slash != 0) out.prefix = path.substr(0, slash);
  if (out.prefix.ends_with('/')) return malformed();

  const std::string scheme = address.starts_with(kSecure) ? "https://" : "http://";
  const std::size_t hosts_begin = address.find("://") + 3;
  std::string_view hosts = address.substr(hosts_begin, begin - hosts_begin);
  out.etcd.endpoints.clear();
  for (bool last = false; !last;) {
    const std::size_t comma = std::min(hosts.find(','), hosts.size());
    last = comma == hosts.size();
    const std::string_view host = hosts.substr(0, comma);
    out.etcd.endpoints.push_back(std::string(scheme).append(host));
    const bool has_port = host.find(':') != std::string_view::npos;
    if (!has_port || !cluster::check_endpoint(out.etcd.endpoints.back()).ok() ||
        out.etcd.endpoints.size() > cluster::kMembersMax) {
      return malformed();
    }
    hosts.remove_prefix(last ? comma : comma + 1);
  }
  out.registers = false;
  out.watched = "node/proxy/";
  // Enough that those beyond proxies_max are known by name; what is beyond that is refused too.
  out.etcd.bounds.entries_max =
      std::max<std::size_t>(4 * options.proxies_max, 64) * kRecordsOfProxy;
  out.etcd.user = options.user;
  if (!options.password_file.empty()) {
    std::ifstream in(options.password_file);
    std::getline(in, out.etcd.password);
  }
  out.etcd.ca = options.ca;
  out.etcd.certificate = options.certificate;
  out.etcd.key = options.key;
  return out;
}

Status take_cluster_environment(ClusterOptions& options) {
  const auto take = [](const char* name, std::string& out) {
    const char* text = std::getenv(name);
    if (out.empty() && text != nullptr) out = text;
  };
  take("SANPROXY_ETCD_USER", options.user);
  take("SANPROXY_ETCD_PASSWORD_FILE", options.password_file);
  take("SANPROXY_ETCD_CA", options.ca);
  take("SANPROXY_ETCD_CERTIFICATE", options.certificate);
  take("SANPROXY_ETCD_KEY", options.key);
  std::string number;
  take("SANPROXY_CLUSTER_PROXIES_MAX", number);
  if (options.proxies_max == 0) {
    options.proxies_max = ClusterOptions::kProxiesMaxDefault;
    const char* const end = number.data() + number.size();
    const auto [stop, error] = std::from_chars(number.data(), end, options.proxies_max);
    if (!number.empty() && (error != std::errc() || stop != end)) options.proxies_max = 0;
  }
  if (options.proxies_max == 0 || options.proxies_max > ClusterOptions::kProxiesMaxMost) {
    return wrong("proxies_max of a cluster must be 1 to 1024");
  }
  if (options.user.empty() != options.password_file.empty()) {
    return wrong("etcd wants a user and a password_file, or neither");
  }
  if (options.certificate.empty() != options.key.empty()) {
    return wrong("etcd wants a certificate and its key, or neither");
  }
  for (const std::string& file :
       {options.password_file, options.ca, options.certificate, options.key}) {
    if (!readable(file)) return wrong("a file for etcd cannot be read");
  }
  return {};
}

}  // namespace sanproxy::app::internal
