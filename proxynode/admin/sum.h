// The pages of several workers as one: the sum, and each.
//
// Document: docs/workers.md "What is shown".
// Role: takes the pages that workers rendered (pages.h) apart and puts them together. Pure.
// Owner: the supervisor's. Thread: its. Control plane: allocates freely.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proxynode/admin/pages.h"

namespace sanproxy::admin {

// One worker as its supervisor sees it.
struct WorkerState {
  std::uint32_t index = 0;
  std::int64_t pid = 0;  // 0: not running
  bool ready = false;
  std::uint64_t restarts = 0;
};

struct WorkerPage {
  WorkerState state;
  Page page;  // http_status 0: the worker did not answer
};

// Every series once without `worker` label, of the workers that answered together, and once for
// each with it. That is the sum, or of what each tells of the same thing (whether etcd answers,
// say) the least or the greatest. Series whose name ends in _info are not summed: their labels are
// of one worker.
Page sum_metrics(const std::vector<WorkerPage>& workers);
// Of the shape of one worker's /status, and `workers` with the state and the page of each. While
// one that runs has not answered ("answered": false there) the sum is not "drained". `name` is
// there also while none answers: whoever has asked must see that it is us.
Page sum_status(const std::string& name, const std::vector<WorkerPage>& workers);
// Of the shape of one worker's /connections, each row with its worker.
Page sum_connections(const std::vector<WorkerPage>& workers, std::uint32_t limit);
// 200 when every worker serves; 503 with the reason otherwise.
Page sum_health(const std::vector<WorkerPage>& workers, bool draining);

}  // namespace sanproxy::admin
