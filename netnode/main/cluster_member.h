// ClusterMember: the network node's part in its cluster.
//
// Document: docs/cluster.md "Network nodes".
// Role: between a Session and the Node: registers it, and makes a new set of proxies and services
//   out of what the cluster says.
// Owner: Node. Thread: its; the Session has its own.
// Invariants:
//   1. Nothing here waits for etcd.
//   2. Proxies that leave the cluster, and services that nobody there serves any more, stay known:
//      that a lease has run out says something of etcd, not of the sessions. Whether a proxy is up
//      its channel or its probe says.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "lwproto/cluster/session.h"
#include "netnode/main/config.h"
#include "netnode/steer/proxy_set.h"

namespace sanproxy::netnode {

class ClusterMember {
 public:
  ClusterMember(const NetnodeConfig& config, const std::string& version);

  int fd() const { return session_->fd(); }
  // The set to apply, if something has changed.
  std::optional<steer::ProxySet> take();
  void publish(const std::string& state);
  cluster::SessionStatus status() const { return session_->status(); }

 private:
  const NetnodeConfig& config_;
  cluster::NodeRecord self_;
  std::map<std::string, cluster::Entry> entries_;
  std::unique_ptr<cluster::Session> session_;
};

}  // namespace sanproxy::netnode
