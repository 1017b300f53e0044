// WorkerPlace: what a worker is told on its command line, beside the configuration.
//
// Document: docs/workers.md.
// Role: the supervisor writes it, the process that it starts reads it.
// Thread: values.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "proxynode/main/handover.h"

namespace sanproxy::proxy {

struct WorkerPlace {
  std::uint32_t index = 0;
  std::uint32_t workers = 1;
  int control_fd = -1;
  std::uint64_t steering_seed = 0;
  int handover_in = -1;
  bool again = false;             // not the first start
  int drains_fd = -1;             // the pages of drains that hold, each ended by a zero
  std::vector<int> handover_out;  // one a worker
  std::vector<int> queue_fds;     // one an interface

  std::string to_text() const;
  static WorkerPlace parse(const std::string& text);  // throws std::invalid_argument
  std::unique_ptr<Handover> handover() const;         // takes over its descriptors
  std::vector<std::string> drains() const;            // likewise
};

}  // namespace sanproxy::proxy
