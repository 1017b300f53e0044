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

#include <cstddef>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "lwproto/cluster/bounds.h"
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

// What of the cluster is not taken, for people: anybody's writing in any number, so the first texts
// are kept, as printable ones, and all are counted.
class LeftOut {
 public:
  static constexpr std::size_t kTextsMax = 100;

  // `text()` is made only where it is kept.
  template <typename Text>
  void add(const Text& text) {
    ++count_;
    if (texts_.size() < kTextsMax) texts_.push_back(cluster::printable(text()));
  }
  const std::vector<std::string>& texts() const { return texts_; }
  std::size_t count() const { return count_; }

 private:
  std::vector<std::string> texts_;
  std::size_t count_ = 0;
};

// This network node, as far as others' entries mean different things at different nodes.
struct ThisNode {
  std::string host;                          // as NodeRecord::host; "": it cannot be told
  std::span<const IpAddress> nat_addresses;  // where no service can be
};

// `entries`: by key behind the cluster's root.
steer::ProxySet with_cluster(const steer::ProxySet& configured, const ThisNode& here,
                             const std::map<std::string, cluster::Entry>& entries,
                             LeftOut& left_out);

}  // namespace sanproxy::netnode
