// Heartbeat: does an application node still answer.
//
// Documents: docs/operating.md "Health of application nodes", docs/wire_format.md "HEARTBEAT".
// Role: decides when a node is to be asked and what its silence means. Pure: no clock, no I/O.
// Owner: an AppNode. Thread: the worker's.
// Invariants:
//   1. One question at a time: while an answer is owed nothing more is asked, so a node that has
//      stopped holds one credit, however long it stays so.
//   2. Whatever comes from a node shows that it lives; it is asked when an interval has passed
//      in which one of the two sides has said nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "lwproto/flow/health.h"

namespace sanproxy::translate {

struct HeartbeatOptions {
  std::uint32_t interval_ms = 0;  // 0: nobody is asked, everybody counts as up
  std::uint32_t timeout_ms = 1000;
  flow::HealthOptions thresholds{.rise = 2, .fall = 3};
  bool operator==(const HeartbeatOptions&) const = default;
};

class Heartbeat {
 public:
  struct Step {
    bool ask = false;                         // send HEARTBEAT with number()
    std::optional<bool> good = std::nullopt;  // a result has come in
  };

  Heartbeat() = default;
  Heartbeat(const HeartbeatOptions& options, std::uint64_t now_ns);
  // Its state stays, unless nobody is asked any more; an answer that is owed is still one.
  void set_options(const HeartbeatOptions& options, std::uint64_t now_ns);

  // What follows at this moment, if it is due. `in` and `out` count the transfers of its channel.
  Step look(std::uint64_t now_ns, std::uint64_t in, std::uint64_t out);
  // The node's answer; false: nobody has asked for it.
  bool answered(std::uint32_t number, std::uint64_t now_ns, std::uint64_t in, std::uint64_t out);
  // True: the state changed.
  bool on_result(bool good);

  std::uint64_t due_ns() const { return due_ns_; }
  std::uint32_t number() const { return number_; }
  bool up() const { return !health_.down(); }
  std::uint64_t missed() const { return missed_; }  // in all
  // For how long nothing has come since it was asked for; 0 where nothing is owed.
  std::uint64_t silent_ns(std::uint64_t now_ns) const {
    const std::uint64_t since_ns = std::max(heard_ns_, asked_ns_);
    return owed_ && now_ns > since_ns ? now_ns - since_ns : 0;
  }

 private:
  void remember(std::uint64_t in, std::uint64_t out) { in_ = in, out_ = out; }

  std::uint64_t interval_ns_ = 0, timeout_ns_ = 0;
  flow::Health health_;
  std::uint64_t due_ns_ = UINT64_MAX;
  std::uint64_t heard_ns_ = 0;
  std::uint64_t asked_ns_ = 0;      // what is owed
  std::uint64_t in_ = 0, out_ = 0;  // transfers at the last look
  std::uint64_t missed_ = 0;
  std::uint32_t number_ = 0;
  bool owed_ = false;  // asked, not answered
};

}  // namespace sanproxy::translate
