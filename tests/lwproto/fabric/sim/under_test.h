// The simulated fabric among the fabrics under test.
#pragma once

#include <string>

#include "tests/lwproto/fabric/fabrics_under_test.h"
#include "tests/lwproto/fabric/sim/link.h"

namespace sanproxy::fabric::sim {

// A rough World for each start(seed), shared by the fabrics made after it.
test::FabricUnderTest under_test(const std::string& name, Delivery delivery);

}  // namespace sanproxy::fabric::sim
