#include "lwproto/daemon/config_cluster.h"

#include <fstream>

#include "lwproto/daemon/config_reader.h"

namespace sanproxy::daemon {
namespace {

// The first line of a file.
std::string secret_of(const std::string& file) {
  std::ifstream in(file);
  std::string out;
  if (!in || !std::getline(in, out) || out.empty()) {
    throw std::invalid_argument("\"" + file + "\" cannot be read, or is empty");
  }
  return out;
}

std::string readable(const std::string& file) {
  if (!std::ifstream(file)) throw std::invalid_argument("\"" + file + "\" cannot be read");
  return file;
}

}  // namespace

void read_cluster(const std::string& path, const toml::table& table, ClusterConfig& out) {
  cluster::SessionOptions& s = out.session;
  TableReader r(path, "[cluster]", table);
  s.etcd.endpoints.clear();
  r.texts("etcd", [&](const std::string& v) {
    if (const Status status = cluster::check_endpoint(v); !status.ok()) {
      throw std::invalid_argument(std::string(status.text()) + ", not \"" + v + "\"");
    }
    if (s.etcd.endpoints.size() == cluster::kMembersMax) {
      throw std::invalid_argument("more than 16 members");
    }
    s.etcd.endpoints.push_back(v);
  });
  r.text("name", [&](const std::string& v) {
    if (!cluster::name_legal(v)) {
      throw std::invalid_argument("expected 1 to 64 letters, digits, '.', '_' or '-', not \"" + v +
                                  "\"");
    }
    s.cluster = v;
  });
  r.text("prefix", [&](const std::string& v) {
    if (v.empty() || v.front() != '/' || v.size() > 256) {
      throw std::invalid_argument("expected /PATH, not \"" + v + "\"");
    }
    s.prefix = v;
  });
  r.number("ttl_s", s.ttl_s, 2, 3600);
  r.number("timeout_ms", s.etcd.timeout_ms, 100, 60'000);
  cluster::Bounds& bounds = s.etcd.bounds;
  r.number("max_entries", bounds.entries_max, 16, 1'000'000);
  r.number("max_value_bytes", bounds.value_bytes_max, 1'024, 1u << 20);
  r.number("max_total_bytes", bounds.total_bytes_max, 1u << 16, std::size_t{4} << 30);
  r.number("max_answer_bytes", bounds.answer_bytes_max, 1u << 16, std::size_t{1} << 30);
  r.number("drain_grace_ms", out.drain_grace_ms, 0, 600'000);
  r.text("user", [&](const std::string& v) { s.etcd.user = v; });
  r.text("password_file", [&](const std::string& v) { s.etcd.password = secret_of(v); });
  r.text("ca", [&](const std::string& v) { s.etcd.ca = readable(v); });
  r.text("certificate", [&](const std::string& v) { s.etcd.certificate = readable(v); });
  r.text("key", [&](const std::string& v) { s.etcd.key = readable(v); });
  r.read();
  if (s.etcd.endpoints.empty()) r.missing("etcd");
  if (s.etcd.user.empty() != s.etcd.password.empty()) r.missing("user and password_file (both)");
  if (s.etcd.certificate.empty() != s.etcd.key.empty()) r.missing("certificate and key (both)");
}

}  // namespace sanproxy::daemon
