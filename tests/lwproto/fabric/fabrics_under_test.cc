#include "tests/lwproto/fabric/fabrics_under_test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>

#include "lwproto/fabric/link_parameters.h"
#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "lwproto/fabric/verbs/handshake.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"
#include "tests/lwproto/fabric/sim/under_test.h"
#include "tests/lwproto/fabric/tcp/test_certificates.h"
#include "tests/lwproto/fabric/temporary_path.h"
#include "tests/lwproto/fabric/verbs/device_address.h"

namespace sanproxy::fabric::test {
namespace {

FabricUnderTest verbs_under_test(const std::string& name, unsigned queue_pairs) {
  const auto make_bounded = [queue_pairs](unsigned half_open_max) {
    VerbsOptions options;
    options.half_open_max = half_open_max;
    options.queue_pairs = queue_pairs;
    return make_verbs_fabric(options);
  };
  return {.name = name,
          .make = [=] { return make_bounded(VerbsOptions().half_open_max); },
          .unused_address = verbs::test::unused_device_address,
          .make_bounded = make_bounded,
          .blocks_on_receiver = false,
          .needs_device = true,
          .slowness = queue_pairs == 1 ? 20u : 200u,
          .stride = queue_pairs == 1 ? 1u : 5u,
          .honours = verbs::kHonoured};
}

std::string unused_tcp_address() {
  // The kernel names a port that is free, and does not name it again soon.
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(fd, generic, length) != 0 || ::getsockname(fd, generic, &length) != 0) std::abort();
  ::close(fd);
  return "tcp://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
}

std::string setting(const std::string& name) {
  std::string value;
  std::ifstream("/proc/sys/net/ipv4/" + name) >> value;
  return value;
}

// Whether this host lets a connection keep its congestion window (docs/tcp_fabric.md).
bool windows_outlive_pauses() {
  return setting("tcp_slow_start_after_idle") == "0" || setting("tcp_congestion_control") == "bbr";
}

FabricUnderTest tcp_under_test(const std::string& name,
                               const std::function<TcpOptions()>& options) {
  FabricUnderTest out;
  out.name = name;
  out.make = [options] { return make_tcp_fabric(options()); };
  out.make_bounded = [options](unsigned most) {
    TcpOptions bounded = options();
    bounded.half_open_max = most;
    return make_tcp_fabric(bounded);
  };
  out.unused_address = unused_tcp_address;
  out.honours = kLinkWindow | kLinkStreams | kLinkCongestion | kLinkQuality | kLinkRate |
                kLinkPeak | kLinkBurst | kLinkDscp | kLinkPriority;
  if (windows_outlive_pauses()) out.honours |= kLinkSkipSlowStart;
  return out;
}

// One entry a fabric.
std::vector<FabricUnderTest> all_fabrics() {
  return {
      {.name = "shm",
       .make = [] { return make_shm_fabric(); },
       .unused_address = [] { return "shm:" + unused_path(); },
       .make_bounded = [](unsigned most) { return make_shm_fabric({.half_open_max = most}); },
       .lends = true},
      verbs_under_test("verbs", 1),
      verbs_under_test("verbs_queue_pairs", 4),
      tcp_under_test("tcp", [] { return TcpOptions(); }),
      tcp_under_test("tcp_streams", [] { return TcpOptions{.parallel_streams = 3}; }),
      tcp_under_test("tcp_tls", [] { return TestCertificates::shared().options("server"); }),
      sim::under_test("sim", sim::Delivery::kLoans),
      sim::under_test("sim_buffers", sim::Delivery::kReceiveBuffers),
  };
}

}  // namespace

std::vector<FabricUnderTest> fabrics_under_test() {
  std::vector<std::string> wanted;
  const char* named_ones = std::getenv("SANPROXY_FABRICS");
  std::istringstream list(named_ones != nullptr ? named_ones : SANPROXY_FABRICS_DEFAULT);
  for (std::string name; std::getline(list, name, ',');) wanted.push_back(name);
  std::vector<FabricUnderTest> chosen;
  for (FabricUnderTest& fabric : all_fabrics()) {
    const bool named = std::find(wanted.begin(), wanted.end(), fabric.name) != wanted.end();
    if (wanted.empty() ? !fabric.needs_device : named) chosen.push_back(std::move(fabric));
  }
  return chosen;
}

std::vector<FabricUnderTest> fabrics_under_test(bool FabricUnderTest::*shape) {
  std::vector<FabricUnderTest> chosen = fabrics_under_test();
  std::erase_if(chosen, [shape](const FabricUnderTest& fabric) { return !(fabric.*shape); });
  return chosen;
}

FabricUnderTest fabric_under_test(const std::string& name) {
  for (FabricUnderTest& fabric : all_fabrics()) {
    if (fabric.name == name) return std::move(fabric);
  }
  return {};
}

}  // namespace sanproxy::fabric::test
