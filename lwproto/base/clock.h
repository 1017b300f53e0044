// Clock: the time source that is injected into everything that needs one.
//
// Thread: SteadyClock may be shared; ManualClock belongs to one test.
#pragma once

#include <cstdint>

namespace sanproxy {

class Clock {
 public:
  virtual ~Clock() = default;
  // Nanoseconds since an arbitrary start; never goes back.
  virtual std::uint64_t now_ns() const = 0;
};

class SteadyClock final : public Clock {
 public:
  std::uint64_t now_ns() const override;
};

// A clock that moves only when told; for tests and simulation.
class ManualClock final : public Clock {
 public:
  std::uint64_t now_ns() const override { return now_ns_; }
  void advance_ns(std::uint64_t delta_ns) { now_ns_ += delta_ns; }

 private:
  std::uint64_t now_ns_ = 0;
};

}  // namespace sanproxy
