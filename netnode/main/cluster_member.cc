#include "netnode/main/cluster_member.h"

#include <set>
#include <utility>

#include "lwproto/cluster/host.h"
#include "lwproto/daemon/log.h"

namespace sanproxy::netnode {

ClusterMember::ClusterMember(const NetnodeConfig& config, const std::string& version)
    : config_(config) {
  self_.name = config.name;
  self_.instance = cluster::new_instance();
  self_.admin = config.admin_listen;
  self_.host = cluster::host_id();
  self_.version = version;
  cluster::SessionOptions options = config.cluster->session;
  options.instance = self_.instance;
  session_ = std::make_unique<cluster::Session>(
      options, [](cluster::LogLevel level, const std::string& text) {
        spdlog::log(level == cluster::LogLevel::kInfo ? spdlog::level::info : spdlog::level::warn,
                    "{}", text);
      });
}

std::optional<steer::ProxySet> ClusterMember::take(const ClusterEntries::IsUp& is_up) {
  const auto changes = session_->take();
  heard_ = heard_ || session_->status().ever_connected;
  if (changes.empty()) return std::nullopt;
  entries_.apply(changes, is_up);
  drained_ =
      entries_.all().contains(cluster::drain_key(cluster::NodeKind::kNetworkNode, config_.name));
  return make_set();
}

// What is left out is told of when it changes.
steer::ProxySet ClusterMember::make_set() {
  LeftOut left_out;
  const ThisNode here{self_.host, config_.forwarder.nat.addresses};
  steer::ProxySet set = with_cluster(config_.set, here, entries_.all(), left_out);
  const std::set<std::string> told(left_out_.texts().begin(), left_out_.texts().end());
  for (const std::string& text : left_out.texts()) {
    if (!told.contains(text)) spdlog::warn("of the cluster is not taken: {}", text);
  }
  const std::size_t untold = left_out.count() - left_out.texts().size();
  if (untold != 0 && left_out.count() != left_out_.count()) {
    spdlog::warn("of the cluster is not taken: and {} more", untold);
  }
  left_out_ = std::move(left_out);
  return set;
}

std::optional<steer::ProxySet> ClusterMember::forget_lost(const ClusterEntries::IsUp& is_up) {
  if (!entries_.forget_lost(is_up)) return std::nullopt;
  return make_set();
}

void ClusterMember::publish(const std::string& state, std::uint64_t sessions) {
  self_.state = state;
  self_.connections = state == "running" ? 0 : sessions;
  session_->announce(cluster::node_key(cluster::NodeKind::kNetworkNode, self_.name),
                     cluster::to_json(self_));
}

}  // namespace sanproxy::netnode
