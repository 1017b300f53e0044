// The fabrics over which the conformance suite runs. A new fabric is one more element.
#pragma once

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
};

std::vector<FabricUnderTest> fabrics_under_test();

}  // namespace sanproxy::fabric::test
