#include "netnode/main/cluster_member.h"

#include <spdlog/spdlog.h>

#include "lwproto/cluster/host.h"
#include "netnode/main/cluster_view.h"

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

std::optional<steer::ProxySet> ClusterMember::take() {
  const auto changes = session_->take();
  if (changes.empty()) return std::nullopt;
  for (const cluster::Change& change : changes) {
    if (change.entry) {
      entries_.insert_or_assign(change.key, *change.entry);
    } else if (!cluster::is_node_key(change.key) ||
               entries_.size() >= config_.cluster->session.entries_max) {
      entries_.erase(change.key);
    }  // else it stays: invariant 2
  }
  return with_cluster(config_.set, entries_);
}

void ClusterMember::publish(const std::string& state) {
  self_.state = state;
  session_->announce(cluster::node_key(cluster::NodeKind::kNetworkNode, self_.name),
                     cluster::to_json(self_));
}

}  // namespace sanproxy::netnode
