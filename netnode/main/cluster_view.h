// ClusterView: what the cluster says of the services and proxies that a network node steers
// between.
//
// Document: docs/cluster.md "Network nodes".
// Role: pure: the set of the configuration file, and the entries of a cluster, make a set to apply.
// Owner: ClusterMember. Thread: its.
// Invariants:
//   1. What the file says of a proxy or a service stays; the cluster adds weights, drains and what
//      the file does not name. A proxy that the file names is never taken away by the cluster.
#pragma once

#include <map>
#include <string>

#include "lwproto/cluster/model.h"
#include "netnode/steer/proxy_set.h"

namespace sanproxy::netnode {

// `entries`: by key behind the cluster's root.
steer::ProxySet with_cluster(const steer::ProxySet& configured,
                             const std::map<std::string, cluster::Entry>& entries);

}  // namespace sanproxy::netnode
