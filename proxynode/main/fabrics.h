// Fabrics by the scheme of their address: one of the two places where concrete ones are named.
//
// Role: makes the fabric of a [[fabric]] section, and says why it cannot be made.
// Thread: start-up only.
#pragma once

#include <memory>

#include "lwproto/fabric/fabric.h"
#include "proxynode/main/config.h"

namespace sanproxy::proxy {

// Throws std::runtime_error when the files for TLS are no good: what --check looks at besides.
void check_files(const FabricConfig& config);
// Throws std::runtime_error with a text for the operator. There is no falling back to another.
std::unique_ptr<fabric::Fabric> make_fabric(const FabricConfig& config);

}  // namespace sanproxy::proxy
