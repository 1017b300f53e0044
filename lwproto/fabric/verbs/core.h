// Core: what all parts of one verbs fabric share: devices, the epoll set, the timer.
//
// Document: docs/verbs_fabric.md "Sleeping and waking".
// Role: turns the events of the connection manager, of completion channels and of devices into
//   calls, and runs the arm/disarm protocol over all queue pairs.
// Owner: the fabric, its endpoints, listeners and connecting attempts together (shared), so that
//   they may be destroyed in any order. Thread: the fabric's.
// Invariants:
//   1. An event is acknowledged before it is handed out, so a handler may destroy what it concerns.
//      Nobody adds or removes a sleeper inside arm() or on_time().
//   2. A queue pair whose completion queue is armed is woken for at most one event until it is
//      armed again.
//   3. Completions are looked for in their queues; the event that announced them is taken later, in
//      the next arm(): nobody waits for that system call.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/base/unique_fd.h"
#include "lwproto/fabric/verbs/device.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"

namespace sanproxy::fabric::verbs {

inline constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

// A copy of an event of the connection manager.
struct CmEvent {
  rdma_cm_event_type type = RDMA_CM_EVENT_ADDR_ERROR;
  int status = 0;
  rdma_cm_id* id = nullptr;  // of a connect request: the new one, to be owned
  std::array<std::byte, 256> private_bytes{};
  std::size_t private_count = 0;

  std::span<const std::byte> private_data() const {
    return std::span(private_bytes).first(private_count);
  }
};

// Whom events concern. It is the context of a connection manager's id, and what a queue pair calls.
class Target {
 public:
  virtual void on_cm_event(const CmEvent& event) = 0;
  virtual void on_completions() {}    // there may be some; the queue is no longer armed
  virtual void on_failure(Status) {}  // of the queue pair, its port or its device

 protected:
  ~Target() = default;
};

// Something that works while its owner sleeps.
class Sleeper {
 public:
  // Gets ready for a sleep: publishes, arms. False: there is something to poll for already.
  virtual bool prepare_sleep() = 0;
  // Why its owner woke up, if completions were the reason: there are some.
  virtual bool has_completions() { return false; }
  virtual std::uint64_t deadline_ns() const = 0;   // kNever: waits for no time
  virtual void on_time(std::uint64_t now_ns) = 0;  // at a deadline of any sleeper

 protected:
  ~Sleeper() = default;
};

class QueuePair;

struct CmIdDeleter {
  void operator()(rdma_cm_id* id) const { ::rdma_destroy_id(id); }
};
using CmId = std::unique_ptr<rdma_cm_id, CmIdDeleter>;

class Core {
 public:
  static Result<std::shared_ptr<Core>> create(const VerbsOptions& options);
  Core() = default;
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  const VerbsOptions& options() const { return options_; }
  VerbsCounters& counters() { return *counters_; }
  int event_fd() const { return epoll_.get(); }
  std::uint64_t now_ns() const { return clock_->now_ns(); }

  // kUnsupported where there is no RDMA.
  Result<CmId> create_id(Target* target);
  Result<std::shared_ptr<Device>> device_of(const rdma_cm_id& id);
  Result<std::shared_ptr<Device>> open_device(ibv_device* device);  // or the open one

  void add(Sleeper* sleeper) { sleepers_.push_back(sleeper); }
  void remove(Sleeper* sleeper) { std::erase(sleepers_, sleeper); }
  void add(QueuePair* queue_pair) { queue_pairs_.push_back(queue_pair); }
  void remove(QueuePair* queue_pair);
  void wake_at(std::uint64_t deadline_ns);  // some sleeper has this deadline
  // So many queue pairs have handed out completions whose events were not taken.
  void add_rung(int change) { rung_ += change; }
  // So many queue pairs have asked for an event and not got it: without any there is none to take.
  void add_armed(int change) { armed_queues_ += change; }

  void wake_in(int epoll_fd);
  bool arm();
  void disarm();
  void pump();         // handles whatever epoll reports, without waiting
  void pump_if_due();  // the same, at most every kPumpIntervalNs

 private:
  static constexpr std::uint64_t kPumpIntervalNs = 1'000'000;
  // For a loop that is never idle: a system call each time would cost more than the rest of a
  // round.
  static constexpr std::uint32_t kDisarmsPerPump = 32;

  // What an event of the epoll set is about.
  struct Watch {
    enum class Kind { kCm, kCompletions, kDevice, kTimer } kind = Kind::kTimer;
    std::shared_ptr<Device> device;
    int fd = -1;
    int set = -1;  // the epoll set that it is in
  };

  Status open_event_channel();
  Status watch(int fd, Watch::Kind kind, std::shared_ptr<Device> device);
  bool someone_has_completions();
  void drain_cm();
  void drain_completions();
  void drain_completions(Device& device);
  void drain_device(Device& device);
  void forget_removed(const rdma_cm_id& id);
  void forget_if_unused(const Device& device);
  void fail_where(const Device& device, int port, Status reason);
  void on_timer();

  VerbsOptions options_;
  VerbsCounters own_counters_;
  VerbsCounters* counters_ = &own_counters_;
  SteadyClock steady_;
  const Clock* clock_ = nullptr;
  UniqueFd epoll_;
  UniqueFd outer_;  // wake_in()
  UniqueFd timer_;
  rdma_event_channel* events_ = nullptr;
  std::vector<std::unique_ptr<Watch>> watches_;
  std::vector<std::unique_ptr<Watch>> retired_;  // events of this pump() may still name them
  std::vector<std::shared_ptr<Device>> devices_;
  std::vector<Sleeper*> sleepers_;
  std::vector<QueuePair*> queue_pairs_;
  std::uint64_t timer_ns_ = kNever;
  std::uint64_t pumped_ns_ = 0;
  std::uint32_t disarms_ = 0;
  int rung_ = 0;
  int armed_queues_ = 0;
  bool armed_ = false;
};

}  // namespace sanproxy::fabric::verbs
