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
#include <ostream>
#include <string>
#include <vector>

#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"

namespace sanproxy::fabric::test {

struct FabricUnderTest {
  std::string name;
  std::function<Result<std::unique_ptr<Fabric>>()> make;
  std::function<std::string()> unused_address;  // another one at each call

  // A fabric whose listeners hold at most so many requests that are not answered.
  std::function<Result<std::unique_ptr<Fabric>>(unsigned half_open_max)> make_bounded;

  // References arrive as loans of the sender's memory: a completion waits for release(), attach()
  // for what the peer is willing to map, and receive_memory is not used.
  bool lends = false;
  // Slots of a pool that an endpoint holds beyond its receive_depth.
  std::uint32_t extra_slots = 0;
  // A sender is held up by a receiver that does not poll long before it has spent 2,000 posted
  // receives of 8 KB.
  bool blocks_on_receiver = true;
  // Two fabrics may be in two threads; in two processes.
  bool threads = true;
  bool processes = true;
  bool needs_device = false;  // runs only when SANPROXY_FABRICS names it
  unsigned slowness = 1;      // the counts of the long tests are divided by this
  unsigned stride = 1;        // of the many points of one exchange, each so many is tried
  std::uint32_t honours = 0;  // link parameters (LinkField); the others are refused by name
  // Before each test; for what leaves something to chance.
  std::function<void(std::uint64_t seed)> start = [](std::uint64_t) {};

  unsigned scaled(unsigned count) const { return (count - 1) / slowness + 1; }
};

inline void PrintTo(const FabricUnderTest& fabric, std::ostream* out) { *out << fabric.name; }

// Those that the environment asks for.
std::vector<FabricUnderTest> fabrics_under_test();
// Those of them that `shape` is true for: suites that need two threads or processes.
std::vector<FabricUnderTest> fabrics_under_test(bool FabricUnderTest::*shape);
// The one of that name, whatever the environment says; an element without a name if there is none.
FabricUnderTest fabric_under_test(const std::string& name);

}  // namespace sanproxy::fabric::test
