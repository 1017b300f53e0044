#include "proxynode/main/config_access.h"

#include <algorithm>
#include <cstring>

#include "lwproto/auth/proof.h"
#include "lwproto/wire/codec.h"

namespace sanproxy::proxy {
namespace {

bool known(const ProxyConfig& config, const std::string& name) {
  return std::any_of(config.keys.begin(), config.keys.end(),
                     [&](const auth::Key& key) { return key.name() == name; });
}

// What nobody can show through a fabric lets nobody in.
void check_use(const std::string& path, const FabricConfig& fabric, const std::string& whose) {
  using Kind = service::AllowEntry::Kind;
  for (const service::AllowEntry& entry : fabric.allow) {
    if (entry.kind == Kind::kUid && fabric.uses_pools()) {
      config_fail(path, {}, whose + " allows user ids, which only shm knows");
    }
    if (entry.kind == Kind::kCertificate && fabric.certificate.empty()) {
      config_fail(path, {}, whose + " allows certificates, but has no TLS");
    }
  }
}

void check_list(const std::string& path, const ProxyConfig& config, const service::AllowList& list,
                const std::string& whose) {
  for (const service::AllowEntry& entry : list) {
    if (entry.kind == service::AllowEntry::Kind::kKey && !known(config, entry.name)) {
      config_fail(path, {},
                  whose + " allows \"key:" + entry.name + "\", but no [[key]] has that name");
    }
  }
}

}  // namespace

void allow_list(TableReader& reader, std::optional<service::AllowList>& out) {
  const auto add = [&out](const std::string& v) {
    auto entry = service::AllowEntry::parse(v);
    if (!entry.ok()) {
      throw std::invalid_argument(std::string(entry.status().text()) + ", not \"" + v + "\"");
    }
    out->push_back(*entry);
  };
  reader.texts("allow", add, [&out] { out.emplace(); });
}

service::AllowList default_allow(const std::string& listen) {
  return listen.rfind("shm:", 0) == 0 ? service::anybody() : service::AllowList{};
}

void read_key(const std::string& path, const toml::table& table, ProxyConfig& config) {
  std::string name;
  std::string file;
  TableReader r(path, "[[key]]", table);
  r.text("name", [&](const std::string& v) {
    if (!wire::key_name_legal(v)) {
      throw std::invalid_argument("expected 1 to 32 letters, digits, '.', '_' or '-', not \"" + v +
                                  "\"");
    }
    if (known(config, v)) throw std::invalid_argument("\"" + v + "\" is there twice");
    name = v;
  });
  r.text("file", [&](const std::string& v) { file = v; });
  r.read();
  if (name.empty()) r.missing("name");
  if (file.empty()) r.missing("file");
  auto key = auth::Key::from_file(name, file);
  if (!key.ok()) {
    config_fail(path, table.source(), "[[key]].file \"" + file + "\": " + key.status().to_string());
  }
  config.keys.push_back(std::move(*key));
}

void read_limits(const std::string& path, const toml::table& table, ProxyConfig& config) {
  constexpr std::uint64_t kPerSecondMax = 1'000'000;
  service::RateLimits& l = config.limits;
  TableReader r(path, "[limits]", table);
  r.number("joins_per_s", l.joins.per_s, 1, kPerSecondMax);
  r.number("joins_burst", l.joins.burst, 1, kPerSecondMax);
  r.number("failures_per_s", l.failures.per_s, 1, kPerSecondMax);
  r.number("failures_burst", l.failures.burst, 1, kPerSecondMax);
  r.number("penalty_ms", l.penalty_ms, 0, 3'600'000);
  r.number("max_peers", l.peers_max, 1, 1'000'000);
  r.number("join_grace_ms", config.join_grace_ms, 0, 3'600'000);
  r.read();
}

void check_allow_lists(const std::string& path, const ProxyConfig& config) {
  for (const FabricConfig& fabric : config.fabrics) {
    check_list(path, config, fabric.allow, "[[fabric]] \"" + fabric.listen + "\"");
    check_use(path, fabric, "[[fabric]] \"" + fabric.listen + "\"");
  }
  for (const service::Policy& policy : config.services) {
    if (policy.allow) {
      check_list(path, config, *policy.allow, "[[service]] \"" + policy.address.to_string() + "\"");
    }
  }
  if (config.keys.empty()) return;
  if (const auto mac = auth::Mac::create(); !mac.ok()) {
    config_fail(path, {}, std::string("[[key]]: ") + mac.status().text());
  }
}

}  // namespace sanproxy::proxy
