// ClusterState: what is known of a cluster, and what an answer of etcd changes of it.
//
// Document: docs/cluster.md "What happens when".
// Role: pure bookkeeping between etcd's words and those who act on changes: keeps the last good
//   entry of every key, compares snapshots, counts and reports what it refuses.
// Owner: a Session, or sanctl. Thread: its owner's.
// Invariants:
//   1. A value that does not parse changes nothing: the last good one of its key stays, and the
//      refusal is reported once for each revision of the key.
//   2. At most entries_max keys are kept; a key beyond is refused, counted and reported.
//   3. A node that is missing from a snapshot is taken for gone only after a grace time: when etcd
//      has been away, everybody's lease has run out, and everybody is about to come back.
//   4. A cluster whose `schema` is missing (a store that was wiped) or of a later version changes
//      nothing of what operators had configured.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "lwproto/cluster/etcd_messages.h"
#include "lwproto/cluster/model.h"

namespace sanproxy::cluster {

struct Change {
  std::string key;             // behind the cluster's root
  std::optional<Entry> entry;  // nothing: it is gone
};

struct StateCounters {
  std::uint64_t snapshots = 0, events = 0;
  std::uint64_t refused_values = 0;  // did not parse
  std::uint64_t refused_full = 0;    // beyond entries_max
  std::uint64_t refused_schema = 0;  // snapshots and events without a schema that we know
};

class ClusterState {
 public:
  using Report = std::function<void(const std::string& text)>;

  ClusterState(std::string root, std::size_t entries_max, std::uint64_t grace_ns, Report report);

  // All there is, at `now_ns` of a monotonic clock. What differs from what is known is appended
  // to `changes`.
  void apply_snapshot(const std::vector<KeyValue>& values, std::uint64_t now_ns,
                      std::vector<Change>& changes);
  void apply_event(const WatchEvent& event, std::vector<Change>& changes);
  // Nodes whose grace time is over; to be called now and then.
  void expire(std::uint64_t now_ns, std::vector<Change>& changes);
  bool anything_to_expire() const { return !missing_since_.empty(); }

  const std::map<std::string, Entry>& entries() const { return entries_; }
  const StateCounters& counters() const { return counters_; }
  // Keys whose present value in etcd is refused, with the reason.
  const std::map<std::string, std::string>& refused() const { return refused_; }

 private:
  void put(const std::string& key, const KeyValue& value, std::vector<Change>& changes);
  void remove(const std::string& key, std::vector<Change>& changes);
  bool schema_known(const std::string& key);

  std::string root_;
  std::size_t entries_max_;
  std::uint64_t grace_ns_;
  Report report_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> texts_;  // of the same keys: what was parsed last
  std::map<std::string, std::string> refused_;
  std::map<std::string, std::uint64_t> missing_since_;  // nodes under grace
  bool schema_good_ = false;
  StateCounters counters_;
};

}  // namespace sanproxy::cluster
