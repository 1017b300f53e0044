// StopSignal: what SIGTERM or SIGINT means, by when it came.
//
// Document: docs/administration.md (signals).
// Role: the first one asks for an orderly end, a second one for an end at once. Who starts a
//   program in a process group often tells both, the program and the group (timeout(1) does): what
//   follows the first one so closely is the same wish, said twice, and must not cut what the
//   first one spares.
// Thread: one. A signal handler may use it.
#pragma once

#include <cstdint>
#include <optional>

namespace sanproxy::daemon {

class StopSignal {
 public:
  enum class Meaning { kOrderly, kSaidTwice, kAtOnce };

  static constexpr std::uint64_t kSaidTwiceNs = 500'000'000;

  Meaning on_signal(std::uint64_t now_ns) {
    if (!first_ns_) {
      first_ns_ = now_ns;
      return Meaning::kOrderly;
    }
    return now_ns - *first_ns_ < kSaidTwiceNs ? Meaning::kSaidTwice : Meaning::kAtOnce;
  }

 private:
  std::optional<std::uint64_t> first_ns_;
};

}  // namespace sanproxy::daemon
