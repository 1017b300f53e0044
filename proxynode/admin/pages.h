// The admin endpoint's pages, rendered from the worker's state (docs/administration.md).
//
// Thread: the worker's. Control plane: allocates freely.
#pragma once

#include <string>
#include <vector>

#include "lwproto/buffer/slot_pool.h"
#include "lwproto/cluster/session.h"
#include "lwproto/daemon/admin_server.h"
#include "lwproto/daemon/metrics_text.h"
#include "netnode/packet_io/packet_io.h"
#include "proxynode/stack/stack.h"
#include "proxynode/translate/translator.h"

namespace sanproxy::admin {

using daemon::Page;
using daemon::PageRequest;

struct LoopCounters {
  std::uint64_t rounds = 0, sleeps = 0;
};

// What there is to show; everything outlives the call.
// What an operator may change through the endpoint. Each answers "" or why not.
class Operations {
 public:
  virtual ~Operations() = default;
  virtual std::string drain() = 0;
  virtual std::string undrain() = 0;
  virtual std::string drain_node(const std::string& name, bool drained) = 0;
};

struct Sources {
  std::string name;
  std::string version;
  double uptime_s = 0;
  bool draining = false;          // takes no new connections, or is about to
  const char* state = "running";  // "running", "draining", "drained", "stopping"
  Operations* operations = nullptr;
  const cluster::SessionStatus* cluster = nullptr;  // null without a cluster
  struct Leaving {
    std::uint64_t services = 0;   // that nobody serves any more, with open connections
    std::uint64_t forgotten = 0;  // for want of room
  } leaving;
  const stack::Stack* stack = nullptr;
  translate::Translator* translator = nullptr;
  const buffer::SlotPool* ingress = nullptr;
  const buffer::SlotPool* egress = nullptr;
  std::vector<const packet_io::PacketIo*> interfaces;
  const LoopCounters* loop = nullptr;
};

Page render(const Sources& sources, const PageRequest& request);
// Its part for /connections (connections_page.cc).
Page connections_page(const Sources& sources, const PageRequest& request);
// Its part for /metrics (stack_metrics.cc).
void stack_metrics(const Sources& sources, daemon::Metrics& metrics);

}  // namespace sanproxy::admin
