// The configuration reader of every daemon (lwproto/daemon), under the names that the sections of
// the proxy node's file use.
//
// Thread: start-up only.
#pragma once

#include "lwproto/daemon/config_reader.h"
#include "proxynode/main/config.h"

namespace sanproxy::proxy {

using daemon::choose;
using daemon::config_fail;
using daemon::kGiB;
using daemon::kU32;
using daemon::TableReader;
using daemon::value_or_throw;

}  // namespace sanproxy::proxy
