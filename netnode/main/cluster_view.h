// ClusterView: what the cluster says of the services and proxies that a network node steers
// between.
//
// Document: docs/cluster.md "Network nodes".
// Role: pure. ClusterEntries: which entries of a cluster hold, also when a lease has run out.
//   with_cluster(): the set of the configuration file, and those entries, make a set to apply.
// Owner: ClusterMember. Thread: its.
// Invariants:
//   1. What the file says of a proxy or a service stays; the cluster adds weights, drains and what
//      the file does not name. A proxy that the file names is never taken away by the cluster.
//   2. A proxy whose record is gone while it is up holds its own entry and those of its application
//      nodes until it is down, or back: then what it has not registered again by then is gone,
//      since it writes its own record last. An application node that leaves a proxy which stays is
//      gone at once; a service that was its alone stays as long as a proxy says that it has
//      connections of it.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "lwproto/cluster/state.h"
#include "netnode/steer/forwarder.h"
#include "netnode/steer/proxy_set.h"

namespace sanproxy::netnode {

class ClusterEntries {
 public:
  using IsUp = std::function<bool(const std::string& proxy)>;

  void apply(const std::vector<cluster::Change>& changes, const IsUp& is_up);
  // True: proxies that were held are down now, and forgotten.
  bool forget_lost(const IsUp& is_up);
  const std::map<std::string, cluster::Entry>& all() const { return entries_; }
  const std::set<std::string>& held() const { return held_; }

 private:
  std::map<std::string, cluster::Entry> entries_;
  std::set<std::string> held_;  // proxies (and workers of such) without a record
  std::set<std::string> gone_;  // keys that are gone, of entries that a held proxy keeps
};

// Whether a proxy of that name is up or draining, by any of the ways that lead to it or to one of
// its workers, whatever those ways are called.
bool is_up(std::span<const steer::Forwarder::Proxy> ways, const std::string& proxy);

// `entries`: by key behind the cluster's root. What cannot be taken is appended to `left_out`, for
// people.
steer::ProxySet with_cluster(const steer::ProxySet& configured,
                             const std::map<std::string, cluster::Entry>& entries,
                             std::vector<std::string>& left_out);

}  // namespace sanproxy::netnode
