// Supervisor: runs the workers of one proxy node as processes, and speaks for all of them.
//
// Document: docs/workers.md.
// Role: opens the queues of the interfaces and keeps them, starts one process a worker, starts it
//   again when it dies (after a pause that doubles), ends one that hangs, hands SIGTERM on, and
//   serves the admin endpoint with the sum of what the workers tell. Never on the data path.
// Owner: main(). Thread: the one that calls run().
// Invariants:
//   1. Each queue has its descriptor here for as long as the supervisor lives, so the death of a
//      worker moves no flow of another one.
//   2. A worker that dies before all have been ready once ends the start, with its exit status;
//      from then on it is started again until the node stops.
//      Likewise its end of what others pass on to it (handover.h).
//   3. A drain that was asked for here holds for workers that start later as well.
//   4. Workers end when the supervisor does: their end of the control socket tells them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/daemon/admin_server.h"
#include "lwproto/daemon/service_manager.h"
#include "proxynode/admin/sum.h"
#include "proxynode/main/config.h"
#include "proxynode/main/control_socket.h"
#include "proxynode/main/handover.h"
#include "proxynode/main/worker_place.h"

namespace sanproxy::proxy {

class Supervisor {
 public:
  // Start-up only: throws std::runtime_error with a text for the operator. `config_path` is read
  // once more and kept: workers that start later get the same configuration.
  Supervisor(const ProxyConfig& config, const std::string& config_path, std::uint32_t workers);
  ~Supervisor();

  // Until SIGTERM or SIGINT has been handled. The exit status.
  int run();

 private:
  struct Child;
  void open_interfaces();
  void start(Child& child);
  void start_later(Child& child, const Status& why);
  void look_at_devices(std::uint64_t now_ns);
  void take_events();
  void on_signal();
  void reap();
  void on_news(Child& child, const ControlNews& news);
  void look_after(Child& child, std::uint64_t now_ns);
  void stop_all(int signal);
  bool all_gone() const;
  int sleep_ms(std::uint64_t now_ns) const;
  admin::Page page(const admin::PageRequest& request);
  admin::Page change(const admin::PageRequest& request);
  admin::Page metrics(const admin::PageRequest& request);
  void remember_drains(const std::string& path, const std::vector<admin::WorkerPage>& answers);
  std::vector<admin::WorkerPage> ask_all(const admin::PageRequest& request);

  ProxyConfig config_;
  SteadyClock clock_;
  daemon::ServiceManager manager_;
  UniqueFd config_fd_;
  std::uint64_t seed_ = 0;
  std::vector<std::vector<UniqueFd>> queues_;  // of each interface, by worker
  std::vector<Handover::Ends> handovers_;      // by worker
  std::vector<std::unique_ptr<Child>> children_;
  std::unique_ptr<daemon::AdminServer> admin_;
  std::set<std::string> drains_;  // pages of the POSTs that hold until they are undone
  std::uint64_t devices_due_ns_ = 0;
  UniqueFd epoll_;
  UniqueFd signals_;
  std::uint32_t next_question_ = 1;
  bool all_were_ready_ = false;
  bool stopping_ = false;
  int exit_status_ = 0;
};

}  // namespace sanproxy::proxy
