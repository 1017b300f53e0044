#include "tests/lwproto/fabric/fabrics_under_test.h"

#include "lwproto/fabric/shm/shm_fabric.h"
#include "tests/lwproto/fabric/temporary_path.h"

namespace sanproxy::fabric::test {

std::vector<FabricUnderTest> fabrics_under_test() {
  return {
      {"shm", [] { return make_shm_fabric(); }, [] { return "shm:" + unused_path(); }},
  };
}

}  // namespace sanproxy::fabric::test
