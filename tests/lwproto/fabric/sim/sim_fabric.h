// The simulated fabric: endpoints of one process and one thread in a World of their own.
//
// Role: implements fabric.h for addresses "sim:NAME". Everything that a real fabric leaves to
//   chance is decided by the World's seed, so that what a run has shown once it shows again.
// Owner: a test. Thread: one, for all fabrics of a World.
// Time: arm() lets one event happen and then says so through event_fd() if there is more to come,
//   so whoever sleeps as fabric.h says drives the World; one that has nothing left to happen does
//   sleep, as with any fabric.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "lwproto/base/status.h"
#include "lwproto/fabric/fabric.h"
#include "tests/lwproto/fabric/sim/link.h"
#include "tests/lwproto/fabric/sim/world.h"

namespace sanproxy::fabric::sim {

struct SimOptions {
  LinkOptions link = {};  // `parameters` aside: they are the connecting side's
  unsigned half_open_max = 128;
  bool misuse_is_failure = true;
};

class Network;  // the addresses of one World
std::shared_ptr<Network> make_network(std::shared_ptr<World> world);

Result<std::unique_ptr<Fabric>> make_sim_fabric(std::shared_ptr<Network> network,
                                                const SimOptions& options = {});

}  // namespace sanproxy::fabric::sim
