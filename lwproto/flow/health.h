// Health: is somebody fit for new work, from probes that may err.
//
// Documents: docs/netnode.md "Health", docs/operating.md "Health of application nodes".
// Role: thresholds and hysteresis, nothing else: who probes tells it each result.
// Owner: whoever probes. Thread: a value.
// Invariants:
//   1. Unknown until the first result, which decides at once; a bad one only with
//      `first_bad_decides`, else it takes `fall` of them. From then on it takes `rise` good results
//      in a row to come up and `fall` bad ones in a row to go down.
#pragma once

#include <cstdint>

namespace sanproxy::flow {

struct HealthOptions {
  std::uint32_t rise = 2;
  std::uint32_t fall = 3;
  bool first_bad_decides = true;
  bool operator==(const HealthOptions&) const = default;
};

class Health {
 public:
  enum class State : std::uint8_t { kUnknown, kUp, kDown };

  Health() = default;
  explicit Health(const HealthOptions& options) : options_(options) {}

  // True: the state changed.
  bool on_result(bool good) {
    const State wanted = good ? State::kUp : State::kDown;
    if (state_ == wanted) {
      in_a_row_ = 0;
      return false;
    }
    ++in_a_row_;
    const bool at_once = state_ == State::kUnknown && (good || options_.first_bad_decides);
    if (!at_once && in_a_row_ < (good ? options_.rise : options_.fall)) return false;
    state_ = wanted;
    in_a_row_ = 0;
    return true;
  }
  // The state stays, and so do the results that contradict it.
  void set_options(const HealthOptions& options) { options_ = options; }
  State state() const { return state_; }
  bool up() const { return state_ == State::kUp; }
  bool down() const { return state_ == State::kDown; }

 private:
  HealthOptions options_;
  State state_ = State::kUnknown;
  std::uint32_t in_a_row_ = 0;  // results that contradict the state
};

}  // namespace sanproxy::flow
