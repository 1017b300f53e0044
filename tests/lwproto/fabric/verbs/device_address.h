// Addresses of the RDMA device that tests use.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <string>

namespace sanproxy::fabric::verbs::test {

// The guest of ./run vm names its device's address; elsewhere SANPROXY_TEST_VERBS does.
inline std::string device_address() {
  for (const char* variable : {"SANPROXY_TEST_VERBS", "SANPROXY_VM_ADDRESS"}) {
    if (const char* address = std::getenv(variable)) return address;
  }
  return "10.9.0.1";
}

// With another port at each call.
inline std::string unused_device_address() {
  static unsigned next = static_cast<unsigned>(::getpid()) % 20'000;
  next = (next + 1) % 40'000;
  return "verbs://" + device_address() + ":" + std::to_string(20'000 + next);
}

}  // namespace sanproxy::fabric::verbs::test
