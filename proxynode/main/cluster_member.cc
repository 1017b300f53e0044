#include "proxynode/main/cluster_member.h"

#include <algorithm>

#include "lwproto/cluster/host.h"
#include "lwproto/daemon/log.h"

namespace sanproxy::proxy {
namespace {

void log(cluster::LogLevel level, const std::string& text) {
  spdlog::log(level == cluster::LogLevel::kInfo      ? spdlog::level::info
              : level == cluster::LogLevel::kWarning ? spdlog::level::warn
                                                     : spdlog::level::err,
              "{}", text);
}

service::Balance balance_of(const std::string& name, service::Balance otherwise) {
  for (const auto balance : {service::Balance::kRoundRobin, service::Balance::kWeighted,
                             service::Balance::kLeastConnections}) {
    if (name == service::balance_name(balance)) return balance;
  }
  return otherwise;  // "": the model has refused other names
}

flow::HealthOptions thresholds_of(const cluster::Asking& said, flow::HealthOptions otherwise) {
  return {.rise = said.rise.value_or(otherwise.rise), .fall = said.fall.value_or(otherwise.fall)};
}

std::optional<service::HealthCheck> health_of(const cluster::HealthPolicy& said) {
  if (said.request.empty()) return std::nullopt;
  service::HealthCheck out;
  out.request = said.request;
  out.expect = said.expect;
  out.interval_ms = said.asking.interval_ms.value_or(out.interval_ms);
  out.timeout_ms = said.asking.timeout_ms.value_or(out.timeout_ms);
  out.thresholds = thresholds_of(said.asking, out.thresholds);
  return out;
}

}  // namespace

ClusterMember::ClusterMember(const ProxyConfig& config, std::string version,
                             translate::Translator& translator)
    : config_(config), translator_(translator) {
  self_.name = cluster::worker_name(config.name, config.worker);
  self_.worker = config.worker;
  self_.workers = config.workers;
  self_.instance = cluster::new_instance();
  self_.admin = config.admin_listen;
  self_.host = cluster::host_id();
  self_.version = std::move(version);
  for (const FabricConfig& fabric : config.fabrics) self_.fabrics.push_back(fabric.published());
  for (const ChannelConfig& channel : config.channels) {
    self_.channels.push_back(channel.fabric.published());
  }
  self_.tag = config.id;
  self_.weight = config.weight;
  cluster::SessionOptions options = config.cluster->session;
  options.instance = self_.instance;
  // Its own key and one for each application node.
  options.announced_max = std::size_t{config.nodes_max} + 1;
  session_ = std::make_unique<cluster::Session>(options, log);
}

bool ClusterMember::apply() {
  const bool before = drained_;
  for (const cluster::Change& change : session_->take()) {
    if (change.key.starts_with("config/service/")) {
      apply_service(change.key, change.entry);
    } else if (change.key == cluster::kHeartbeatKey) {
      apply_heartbeat(change.entry);
    } else if (change.key.starts_with("drain/")) {
      apply_drain(change.key, change.entry.has_value());
    }
  }
  return drained_ != before;
}

void ClusterMember::apply_service(const std::string& key,
                                  const std::optional<cluster::Entry>& entry) {
  const auto address = SocketAddress::parse(key.substr(key.rfind('/') + 1));
  if (!address.ok()) return;  // the model has parsed it
  if (!entry) {
    spdlog::info("service {}: as configured here", address->to_string());
    return translator_.set_policy(*address, std::nullopt);
  }
  const auto& said = std::get<cluster::ServicePolicy>(*entry);
  service::Policy policy;
  for (const service::Policy& own : config_.services) {
    if (own.address == *address) policy = own;
  }
  policy.address = *address;
  policy.balance = balance_of(said.balance, policy.balance);
  if (said.binding == "delayed") policy.binding = service::Binding::kDelayed;
  if (said.binding == "immediate") policy.binding = service::Binding::kImmediate;
  if (said.allow) policy.allow = said.allow;
  for (const auto& [node, weight] : said.weights) policy.weights[node] = weight;
  if (said.health) policy.health = health_of(*said.health);
  for (const auth::AllowEntry& one : policy.allow.value_or(auth::AllowList{})) {
    const bool unknown =
        one.kind == auth::AllowEntry::Kind::kKey &&
        std::none_of(config_.keys.begin(), config_.keys.end(),
                     [&](const auth::Key& known) { return known.name() == one.name; });
    if (unknown) {
      spdlog::warn("service {} allows \"key:{}\", but no [[key]] has that name here",
                   address->to_string(), one.name);
    }
  }
  spdlog::info("service {}: balance {}, {}", address->to_string(),
               service::balance_name(policy.balance),
               said.allow ? "with an allow list of the cluster" : "allow list as configured here");
  translator_.set_policy(*address, std::move(policy));
}

void ClusterMember::apply_heartbeat(const std::optional<cluster::Entry>& entry) {
  translate::HeartbeatOptions options = config_.heartbeat;
  if (entry) {
    const cluster::Asking& said = std::get<cluster::HeartbeatPolicy>(*entry).asking;
    options.interval_ms = said.interval_ms.value_or(options.interval_ms);
    options.timeout_ms = said.timeout_ms.value_or(options.timeout_ms);
    options.thresholds = thresholds_of(said, options.thresholds);
  }
  spdlog::info("heartbeats of application nodes: every {} ms{}", options.interval_ms,
               entry ? ", as the cluster says" : "");
  translator_.set_heartbeat(options);
}

void ClusterMember::apply_drain(const std::string& key, bool drained) {
  constexpr std::string_view kApplication = "drain/appnode/";
  if (key == cluster::drain_key(cluster::NodeKind::kProxy, config_.name)) drained_ = drained;
  if (!key.starts_with(kApplication)) return;
  const auto name = cluster::decode_name(std::string_view(key).substr(kApplication.size()));
  if (name) translator_.set_drained(*name, drained, translate::DrainedBy::kCluster);
}

void ClusterMember::publish(const std::string& state, std::uint64_t connections,
                            const std::vector<SocketAddress>& leaving) {
  self_.state = state;
  self_.leaving.clear();
  for (const SocketAddress& address : leaving) self_.leaving.push_back(address.to_string());
  // Counts move all the time: they are written where somebody waits for them to reach 0.
  self_.connections = state == "running" ? 0 : connections;
  session_->announce(cluster::node_key(cluster::NodeKind::kProxy, self_.name),
                     cluster::to_json(self_));
  publish_nodes();
}

void ClusterMember::publish_nodes() {
  std::set<std::string> present;
  translator_.for_each_node([&](const translate::AppNode& node) {
    if (node.dead) return;
    cluster::ApplicationRecord record;
    record.instance = self_.instance;
    record.name = node.name;
    record.fabric = node.from->fabric;
    record.peer = node.peer.address;
    for (const service::ServiceId id : translator_.services().services_of(node.index)) {
      record.services.push_back(translator_.services().find(id)->address().to_string());
    }
    std::sort(record.services.begin(), record.services.end());
    if (node.drained) {
      record.state = node.open_streams == 0 ? "drained" : "draining";
      record.connections = node.open_streams;
    }
    const std::string key = cluster::application_key(self_.name, node.index);
    session_->announce(key, cluster::to_json(record));
    present.insert(key);
  });
  for (const std::string& key : published_) {
    if (!present.contains(key)) session_->withdraw(key);
  }
  published_ = std::move(present);
}

}  // namespace sanproxy::proxy
