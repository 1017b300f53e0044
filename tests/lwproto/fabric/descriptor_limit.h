// DescriptorLimit: what a process of few descriptors would meet, in the middle of a test.
#pragma once

#include <sys/resource.h>
#include <unistd.h>

#include "gtest/gtest.h"

namespace sanproxy::fabric::test {

// As long as it lives no descriptor can be opened whose number is not below `limit`.
class DescriptorLimit {
 public:
  explicit DescriptorLimit(rlim_t limit) {
    EXPECT_EQ(::getrlimit(RLIMIT_NOFILE, &before_), 0);
    const rlimit less{limit, before_.rlim_max};
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &less), 0);
  }
  ~DescriptorLimit() { EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before_), 0); }
  DescriptorLimit(const DescriptorLimit&) = delete;
  DescriptorLimit& operator=(const DescriptorLimit&) = delete;

 private:
  rlimit before_{};
};

// Those below it are all open: with it for a limit, none is free.
inline rlim_t lowest_free_descriptor() {
  const int lowest = ::dup(STDIN_FILENO);
  EXPECT_GE(lowest, 0);
  ::close(lowest);
  return static_cast<rlim_t>(lowest);
}

}  // namespace sanproxy::fabric::test
