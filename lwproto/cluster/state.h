// ClusterState: what is known of a cluster, and what an answer of etcd changes of it.
//
// Document: docs/cluster.md "What happens when".
// Role: pure bookkeeping between etcd's words and those who act on changes: keeps the last good
//   entry of every key, compares snapshots, counts and reports what it refuses.
// Owner: a Session, or sanctl. Thread: its owner's.
// Invariants:
//   1. A value that does not parse changes nothing: the last good one of its key stays, and the
//      refusal is reported once for each revision of the key.
//   2. At most entries_max keys, and total_bytes_max of their values, are kept; what is beyond is
//      refused, counted and reported. So are keys and values that are too long.
//   3. A node that is missing from a snapshot is taken for gone only after a grace time: when etcd
//      has been away, everybody's lease has run out, and everybody is about to come back.
//   4. A cluster whose `schema` is missing (a store that was wiped) or of a later version changes
//      nothing of what operators had configured.
//   5. Of a snapshot that was cut short nothing that is missing is taken for gone.
//   6. What is reported, and at most kRefusedMax keys that are refused, is printable.
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
  std::uint64_t refused_full = 0;    // beyond entries_max or total_bytes_max
  std::uint64_t refused_length = 0;  // a key or a value that is too long
  std::uint64_t refused_unseen = 0;  // snapshots with more keys than were looked at
  std::uint64_t refused_schema = 0;  // snapshots and events without a schema that we know
};

class ClusterState {
 public:
  using Report = std::function<void(const std::string& text)>;

  ClusterState(std::string root, const Bounds& bounds, std::uint64_t grace_ns, Report report);

  // All there is, at `now_ns` of a monotonic clock (`truncated`: the beginning of it). What differs
  // from what is known is appended to `changes`.
  void apply_snapshot(const std::vector<KeyValue>& values, std::uint64_t now_ns,
                      std::vector<Change>& changes, bool truncated = false);
  void apply_event(const WatchEvent& event, std::vector<Change>& changes);
  // Nodes whose grace time is over; to be called now and then.
  void expire(std::uint64_t now_ns, std::vector<Change>& changes);
  // etcd is lost: nobody can register meanwhile, so the grace begins anew with the next snapshot.
  void pause() { missing_since_.clear(); }
  bool anything_to_expire() const { return !missing_since_.empty(); }

  const std::map<std::string, Entry>& entries() const { return entries_; }
  const StateCounters& counters() const { return counters_; }
  // Keys whose present value in etcd is refused, with the reason; the first kRefusedMax.
  const std::map<std::string, std::string>& refused() const { return refused_; }

 private:
  void put(const std::string& key, const KeyValue& value, std::vector<Change>& changes);
  void remove(const std::string& key, std::vector<Change>& changes);
  bool schema_known(const std::string& key);
  bool is_faulty(const std::string& key, const KeyValue& value);
  bool is_full(const std::string& key, const std::string& value);
  void refuse(const std::string& key, const std::string& why);
  void report(const std::string& key, const std::string& what);

  std::string root_;
  Bounds bounds_;
  std::uint64_t grace_ns_;
  Report report_;
  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> texts_;  // of the same keys: what was parsed last
  std::size_t texts_bytes_ = 0;               // of all of them
  std::map<std::string, std::string> refused_;
  std::map<std::string, std::uint64_t> missing_since_;  // nodes under grace
  bool schema_good_ = false;
  StateCounters counters_;
};

}  // namespace sanproxy::cluster
