// The peer process of conformance_process_test: talks at random until it is killed.
//
// Use: PROGRAM FABRIC listen|connect ADDRESS SEED. Writes one byte to its standard output once it
// listens. Ends by itself when the channel does; a status other than 0 says that it saw a breach.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/lwproto/fabric/channel_pair.h"
#include "tests/lwproto/fabric/fabrics_under_test.h"
#include "tests/lwproto/fabric/peer_plan.h"

namespace sanproxy::fabric::test {
namespace {

Result<std::unique_ptr<Endpoint>> meet(Fabric& fabric, bool listens, const std::string& address,
                                       const EndpointOptions& options) {
  if (!listens) {
    auto connecting = fabric.connect(address, {}, options);
    if (!connecting.ok()) return connecting.status();
    return finish(**connecting, {&fabric});
  }
  auto listener = fabric.listen(address, options);
  if (!listener.ok()) return listener.status();
  if (::write(STDOUT_FILENO, "l", 1) != 1) return Status::error(Code::kSystem, "write");
  auto request = next_request(**listener, {&fabric});
  if (!request) return Status::error(Code::kTimeout, "nobody came");
  return (*listener)->accept(*request, {});
}

int run(const FabricUnderTest& under_test, bool listens, const std::string& address,
        std::uint64_t seed) {
  const auto fabric = make(under_test.make);
  const TalkerPlan plan = endless_plan(seed, true);
  Talker talker(plan);
  auto endpoint = meet(*fabric, listens, address, options_of(plan));
  if (!endpoint.ok()) {
    std::fprintf(stderr, "peer: %s\n", endpoint.status().to_string().c_str());
    return 1;
  }
  talker.start(std::move(*endpoint));
  while (!talker.disconnected() && talker.wrong().empty()) {
    while (talker.round()) {
    }
    if (!talker.disconnected()) (void)sleep_on({fabric.get()});
  }
  if (!talker.wrong().empty()) std::fprintf(stderr, "peer: %s\n", talker.wrong().c_str());
  return talker.wrong().empty() ? 0 : 1;
}

}  // namespace
}  // namespace sanproxy::fabric::test

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const auto fabric = sanproxy::fabric::test::fabric_under_test(argv[1]);
  if (fabric.name.empty()) return 2;
  return sanproxy::fabric::test::run(fabric, argv[2] == std::string("listen"), argv[3],
                                     std::strtoull(argv[4], nullptr, 10));
}
