// The fabrics over which the conformance suite runs. A new fabric is one more element of the list
// in fabrics_under_test.cc (docs/hacking.md, "Adding a fabric").
//
// The contract holds on every one of them: what is declared here only says which shape of it a
// fabric has, never that a rule is let off.
// Environment: SANPROXY_FABRICS=verbs,tcp chooses by name (default: all that need no device).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric::test {

struct FabricUnderTest {
  std::string name;
  std::function<Result<std::unique_ptr<Fabric>>()> make;
  std::function<std::string()> unused_address;  // another one at each call

  // References arrive as loans of the sender's memory: a completion waits for release(), attach()
  // for what the peer is willing to map, and receive_memory is not used.
  bool lends = false;
  // A sender is held up by a receiver that does not poll before it has spent a few thousand
  // posted receives.
  bool blocks_on_receiver = true;
  // Two fabrics may be in two threads; in two processes.
  bool threads = true;
  bool processes = true;
  bool needs_device = false;  // runs only when SANPROXY_FABRICS names it
  unsigned slowness = 1;      // the counts of the long tests are divided by this
  // Requests that a listener holds unanswered at most.
  unsigned half_open_max = 128;
  std::uint32_t honours = 0;  // link parameters (LinkField); the others are refused by name
  // Before each test, and what to do to see its failure again.
  std::function<void()> start = [] {};
  std::function<std::string()> replay = [] { return std::string(); };

  unsigned scaled(unsigned count) const { return count / slowness + 1; }
};

// Those that the environment asks for.
std::vector<FabricUnderTest> fabrics_under_test();
// The one of that name, whatever the environment says; an element without a name if there is none.
FabricUnderTest fabric_under_test(const std::string& name);

}  // namespace sanproxy::fabric::test
