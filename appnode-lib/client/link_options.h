// From LinkOptions to what a fabric takes, and what the environment says in their place.
//
// Role: SANPROXY_LINK and SANPROXY_TLS_CERTIFICATE, _KEY, _CA, _PROXY_NAME stand in for options
// that a program
//   did not set.
// Thread: set-up only.
#pragma once

#include "lwproto/fabric/fabric.h"
#include "sanproxy/node.h"

namespace sanproxy::app::internal {

// kInvalidArgument, naming the parameter, when values are impossible.
Result<fabric::LinkParameters> link_parameters(const LinkOptions& options);

// Fills in `options.link` and `options.tls` where they are not set.
Status take_link_environment(NodeOptions& options);

}  // namespace sanproxy::app::internal
