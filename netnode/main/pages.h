// The pages of a network node's admin endpoint (docs/administration.md).
//
// Thread: the node's. Control plane: allocates freely.
#pragma once

#include "lwproto/daemon/admin_server.h"
#include "netnode/main/node.h"

namespace sanproxy::netnode {

daemon::Page render_page(Node& node, const daemon::PageRequest& request);

}  // namespace sanproxy::netnode
