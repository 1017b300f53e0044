#include "lwproto/base/clock.h"

#include <ctime>

namespace sanproxy {

std::uint64_t SteadyClock::now_ns() const {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u +
         static_cast<std::uint64_t>(ts.tv_nsec);
}

}  // namespace sanproxy
