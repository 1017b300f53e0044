#include "tests/lwproto/fabric/fabrics_under_test.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <sstream>

#include "lwproto/fabric/shm/shm_fabric.h"
#include "tests/lwproto/fabric/temporary_path.h"

namespace sanproxy::fabric::test {
namespace {

// One entry a fabric.
std::vector<FabricUnderTest> all_fabrics() {
  return {
      {.name = "shm",
       .make = [] { return make_shm_fabric(); },
       .unused_address = [] { return "shm:" + unused_path(); },
       .lends = true},
  };
}

}  // namespace

std::vector<FabricUnderTest> fabrics_under_test() {
  std::vector<std::string> wanted;
  if (const char* names = std::getenv("SANPROXY_FABRICS")) {
    std::istringstream list(names);
    for (std::string name; std::getline(list, name, ',');) wanted.push_back(name);
  }
  std::vector<FabricUnderTest> chosen;
  for (FabricUnderTest& fabric : all_fabrics()) {
    const bool named = std::find(wanted.begin(), wanted.end(), fabric.name) != wanted.end();
    if (wanted.empty() ? !fabric.needs_device : named) chosen.push_back(std::move(fabric));
  }
  return chosen;
}

FabricUnderTest fabric_under_test(const std::string& name) {
  for (FabricUnderTest& fabric : all_fabrics()) {
    if (fabric.name == name) return std::move(fabric);
  }
  return {};
}

}  // namespace sanproxy::fabric::test
