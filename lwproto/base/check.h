// SANPROXY_CHECK: an invariant of our own code. It is on in every build, because a broken
// invariant in the data path is worth a core dump; it must never be reachable by bytes from a
// client, a peer, a file or an application node (those get a Status).
#pragma once

#include <cstdio>
#include <cstdlib>

#define SANPROXY_CHECK(condition)                                                            \
  do {                                                                                       \
    if (__builtin_expect(!(condition), 0)) {                                                 \
      std::fprintf(stderr, "%s:%d: invariant broken: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                          \
    }                                                                                        \
  } while (0)
