// ClusterMember: the network node's part in its cluster.
//
// Document: docs/cluster.md "Network nodes".
// Role: between a Session and the Node: registers it, and makes a new set of proxies and services
//   out of what the cluster says.
// Owner: Node. Thread: its; the Session has its own.
// Invariants:
//   1. Nothing here waits for etcd.
//   2. A proxy whose record is gone, and what its application nodes serve, stay known as long as it
//      is up by its channel or its probe: that a lease has run out may be etcd's doing. Once it is
//      down they are forgotten.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lwproto/cluster/session.h"
#include "netnode/main/cluster_view.h"
#include "netnode/main/config.h"
#include "netnode/steer/proxy_set.h"

namespace sanproxy::netnode {

class ClusterMember {
 public:
  ClusterMember(const NetnodeConfig& config, const std::string& version);

  int fd() const { return session_->fd(); }
  // The set to apply, if something has changed. `is_up`: by channel or probe, a proxy of that name.
  std::optional<steer::ProxySet> take(const ClusterEntries::IsUp& is_up);
  // The same after proxies may have gone down; cheap when none is waited for.
  std::optional<steer::ProxySet> forget_lost(const ClusterEntries::IsUp& is_up);
  // The set of what the file and the cluster say.
  steer::ProxySet make_set();
  // What of the cluster is not taken, and why; for people.
  const LeftOut& left_out() const { return left_out_; }
  bool drained() const { return drained_; }  // this network node, by the cluster
  bool heard() const { return heard_; }      // etcd has answered, ever
  // `sessions` are told of while somebody waits for them to end.
  void publish(const std::string& state, std::uint64_t sessions);
  cluster::SessionStatus status() const { return session_->status(); }

 private:
  const NetnodeConfig& config_;
  cluster::NodeRecord self_;
  ClusterEntries entries_;
  LeftOut left_out_;
  bool drained_ = false;
  bool heard_ = false;
  std::unique_ptr<cluster::Session> session_;
};

}  // namespace sanproxy::netnode
