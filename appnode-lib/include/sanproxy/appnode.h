// The sanproxy application library: serve TCP clients without doing TCP.
//
//   auto node = sanproxy::app::Node::create({.proxies = {"shm:/run/sanproxy/proxy.sock"}});
//   class Echo : public sanproxy::app::ConnectionHandler { ... on_data() ... } echo;
//   auto service = (*node)->join("10.77.0.10:7", [&](auto& request) { request.accept(echo); });
//   (*node)->run();
//
// Start with appnode-lib/examples/appnode_echo.cc, then docs/application_library.md.
#pragma once

#include "sanproxy/address.h"     // IWYU pragma: export
#include "sanproxy/blocking.h"    // IWYU pragma: export
#include "sanproxy/connection.h"  // IWYU pragma: export
#include "sanproxy/link.h"        // IWYU pragma: export
#include "sanproxy/node.h"        // IWYU pragma: export
#include "sanproxy/status.h"      // IWYU pragma: export
