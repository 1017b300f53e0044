// ClusterMember: the proxy node's part in its cluster.
//
// Document: docs/cluster.md.
// Role: between a Session and the data path: registers the proxy and its application nodes, and
//   applies what the cluster says of services and drains.
// Owner: Worker. Thread: the worker's; the Session has its own.
// Invariants:
//   1. Nothing here waits for etcd.
//   2. What the cluster says of a service stands before what the proxy's own configuration says,
//      field by field; when it is gone, that holds again.
#pragma once

#include <memory>
#include <set>
#include <string>

#include "lwproto/cluster/session.h"
#include "proxynode/main/config.h"
#include "proxynode/translate/translator.h"

namespace sanproxy::proxy {

class ClusterMember {
 public:
  ClusterMember(const ProxyConfig& config, std::string version, translate::Translator& translator);

  int fd() const { return session_->fd(); }
  // Takes over what has changed. True if the drain of this proxy did.
  bool apply();
  bool drained() const { return drained_; }
  // Registers what has changed since the last time; cheap when nothing has.
  void publish(const std::string& state, std::uint64_t connections,
               const std::vector<SocketAddress>& leaving);
  cluster::SessionStatus status() const { return session_->status(); }

 private:
  void apply_service(const std::string& key, const std::optional<cluster::Entry>& entry);
  void apply_heartbeat(const std::optional<cluster::Entry>& entry);
  void apply_drain(const std::string& key, bool drained);
  void publish_nodes();

  const ProxyConfig& config_;
  translate::Translator& translator_;
  cluster::NodeRecord self_;
  std::unique_ptr<cluster::Session> session_;
  std::set<std::string> published_;  // keys of application nodes
  bool drained_ = false;
};

}  // namespace sanproxy::proxy
