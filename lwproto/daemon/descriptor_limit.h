// raise_descriptor_limit(): the soft limit of open descriptors to the hard one.
//
// Document: docs/sizing.md.
// Role: a shell's soft limit of 1024 is for programs that use select(); a daemon of ours would meet
//   it at some hundred application nodes. Whoever wants less sets the hard limit.
// Thread: call before any other starts.
#pragma once

#include <sys/resource.h>

namespace sanproxy::daemon {

inline void raise_descriptor_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace sanproxy::daemon
