#include "tests/lwproto/fabric/fabrics_under_test.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <sstream>

#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/verbs/handshake.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"
#include "tests/lwproto/fabric/temporary_path.h"

namespace sanproxy::fabric::test {
namespace {

// A device's own address: the guest of ./run vm names it, elsewhere the caller does.
std::string unused_verbs_address() {
  const char* address = std::getenv("SANPROXY_TEST_VERBS");
  if (address == nullptr) address = std::getenv("SANPROXY_VM_ADDRESS");
  static unsigned next = static_cast<unsigned>(::getpid()) % 20'000;
  next = (next + 1) % 40'000;
  return std::string("verbs://") + (address != nullptr ? address : "10.9.0.1") + ":" +
         std::to_string(20'000 + next);
}

Result<std::unique_ptr<Fabric>> make_verbs() {
  auto made = make_verbs_fabric();
  if (!made.ok()) return made.status();
  return std::unique_ptr<Fabric>(std::move(*made));
}

// One entry a fabric.
std::vector<FabricUnderTest> all_fabrics() {
  return {
      {.name = "shm",
       .make = [] { return make_shm_fabric(); },
       .unused_address = [] { return "shm:" + unused_path(); },
       .lends = true},
      {.name = "verbs",
       .make = make_verbs,
       .unused_address = unused_verbs_address,
       .blocks_on_receiver = false,
       .needs_device = true,
       .slowness = 20,
       .honours = verbs::kHonoured & ~std::uint32_t{kLinkQueuePairs}},
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
