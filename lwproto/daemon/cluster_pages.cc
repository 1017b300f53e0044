#include "lwproto/daemon/cluster_pages.h"

#include <algorithm>

namespace sanproxy::daemon {

void cluster_metrics(const cluster::SessionStatus& c, Metrics& m) {
  m.gauge("cluster_connected", "1 while etcd answers", c.connected ? 1 : 0);
  m.gauge("cluster_revision", "Of etcd's store, as far as known",
          static_cast<std::uint64_t>(std::max<std::int64_t>(c.revision, 0)));
  m.gauge("cluster_entries", "Entries of the cluster that are known", c.entries);
  m.gauge("cluster_entries_refused", "Of those in etcd now, refused (shown in /status)",
          c.refused.size());
  m.counter("cluster_connects_total", "Times that etcd answered (again)", c.connects);
  m.counter("cluster_losses_total", "Times that etcd stopped answering", c.losses);
  m.counter("cluster_compactions_total", "Watches that had to list again", c.compactions);
  m.counter("cluster_leases_total", "Leases taken", c.lease_renewals);
  m.counter("cluster_writes_total", "Transactions written", c.writes);
  m.counter("cluster_duplicates_total", "Times that our own key was written by another process",
            c.duplicates);
  m.counter("cluster_announcements_refused_total", "Beyond the bound of what is registered",
            c.announcements_refused);
  m.counter("cluster_records_refused_total",
            "Of our own records: too long, or such that nobody could read them", c.records_refused);
  m.counter("cluster_snapshots_total", "Times that everything was listed", c.state.snapshots);
  m.counter("cluster_events_total", "Changes that were watched", c.state.events);
  const char* refused = "Values from etcd that were refused, by reason";
  m.counter("cluster_refused_total", refused, c.state.refused_values, "reason=\"value\"");
  m.counter("cluster_refused_total", refused, c.state.refused_full, "reason=\"max_entries\"");
  m.counter("cluster_refused_total", refused, c.state.refused_length, "reason=\"length\"");
  m.counter("cluster_refused_total", refused, c.state.refused_unseen, "reason=\"unseen\"");
  m.counter("cluster_refused_total", refused, c.state.refused_schema, "reason=\"schema\"");
}

nlohmann::json cluster_json(const cluster::SessionStatus& c) {
  return {{"connected", c.connected}, {"endpoint", c.endpoint}, {"error", c.error},
          {"revision", c.revision},   {"entries", c.entries},   {"refused", c.refused}};
}

}  // namespace sanproxy::daemon
