#include "lwproto/base/random.h"

#include <sys/random.h>

#include <cerrno>

#include "lwproto/base/check.h"

namespace sanproxy {

void fill_random(std::span<std::byte> out) {
  constexpr std::size_t kAtOnceMax = 256;  // up to here a call gives all or nothing: getrandom(2)
  SANPROXY_CHECK(out.size() <= kAtOnceMax);
  ssize_t got = 0;
  do {
    got = getrandom(out.data(), out.size(), 0);
  } while (got < 0 && errno == EINTR);
  SANPROXY_CHECK(got == static_cast<ssize_t>(out.size()));
}

}  // namespace sanproxy
