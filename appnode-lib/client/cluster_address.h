// The address of a cluster: "etcd://HOST:PORT[,HOST:PORT...]/CLUSTER", for all proxies in it.
//
// Document: docs/application_library.md "A cluster's proxies".
// Role: from text and options to what a cluster::Session is made of. Pure, but for the files that
//   the options name.
// Thread: set-up only.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lwproto/cluster/session.h"
#include "sanproxy/node.h"

namespace sanproxy::app::internal {

bool is_cluster_address(std::string_view address);

// Lists of addresses are separated by commas, and so are the hosts inside of one: puts together
// again what was split.
std::vector<std::string> rejoin_cluster_addresses(const std::vector<std::string>& addresses);

// "etcd://..." (http) or "etcds://..." (https). Of a path with more than one part the last is the
// cluster and the others are the prefix of its keys.
::sanproxy::Result<cluster::SessionOptions> parse_cluster_address(std::string_view address,
                                                                  const ClusterOptions& options);

// Fills in from the environment what is not set in `options`, and checks it.
Status take_cluster_environment(ClusterOptions& options);

}  // namespace sanproxy::app::internal
