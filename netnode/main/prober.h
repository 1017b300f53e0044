// Prober: asks proxies by TCP or HTTP whether they are well, in a thread that touches only sockets.
//
// Document: docs/netnode.md "Health".
// Role: each target is asked once an interval; a result is a bit, what follows from it is
//   flow::Health's business, on the node's own thread.
// Owner: a Node. Thread: set_targets(), take() and the destructor on the owner's; connecting in
// ours. Invariants:
//   1. One probe of a target at a time, with a deadline; a target that has gone is asked no more.
//   2. fd() is readable while there are results to take.
//   3. A target that stays as it was is asked when it would have been asked anyway.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "lwproto/base/status.h"
#include "netnode/steer/proxy_set.h"

namespace sanproxy::netnode {

class Prober {
 public:
  struct Target {
    std::uint16_t proxy = 0;
    steer::ProbeSettings settings;  // with an address
    bool operator==(const Target&) const = default;
  };
  enum class Result : std::uint8_t {
    kBad,
    kGood,
    kDraining,  // http: 503, and a body that begins so: it lives, and wants no new sessions
  };
  struct Answer {
    std::uint16_t proxy = 0;
    Result result = Result::kBad;
    std::string why = {};  // of a bad one, for people
  };

  Prober();
  ~Prober();
  Prober(const Prober&) = delete;
  Prober& operator=(const Prober&) = delete;

  int fd() const { return result_fd_; }
  void set_targets(std::vector<Target> targets);
  std::vector<Answer> take();

 private:
  struct Probe;
  void run();
  void begin(Probe& probe, std::uint64_t now_ms);
  void on_ready(Probe& probe, std::uint64_t now_ms);
  void read_answer(Probe& probe, std::uint64_t now_ms);
  void judge(Probe& probe, bool ended, std::uint64_t now_ms);
  void finish(Probe& probe, Result result, std::uint64_t now_ms, std::string why = {});
  void adopt_targets();
  bool is_wanted(const Target& target) const;

  std::mutex mutex_;
  std::vector<Target> targets_;
  bool changed_ = false;
  bool stop_ = false;
  std::vector<Answer> answers_;
  std::vector<Probe> probes_;  // the thread's own
  int wake_fd_ = -1;
  int result_fd_ = -1;
  std::thread thread_;
};

}  // namespace sanproxy::netnode
