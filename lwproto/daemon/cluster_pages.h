// What a daemon's admin endpoint shows of its cluster.
//
// Document: docs/administration.md.
// Role: a Session's status as metrics and as a part of /status. Pure. Thread: any.
#pragma once

#include <nlohmann/json.hpp>

#include "lwproto/cluster/session.h"
#include "lwproto/daemon/metrics_text.h"

namespace sanproxy::daemon {

void cluster_metrics(const cluster::SessionStatus& c, Metrics& m);
nlohmann::json cluster_json(const cluster::SessionStatus& c);

}  // namespace sanproxy::daemon
