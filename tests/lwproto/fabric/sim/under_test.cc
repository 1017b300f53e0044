#include "tests/lwproto/fabric/sim/under_test.h"

#include <algorithm>

#include "lwproto/fabric/link_parameters.h"
#include "tests/lwproto/fabric/sim/sim_fabric.h"

namespace sanproxy::fabric::sim {
namespace {

constexpr std::uint32_t kBuffersMax = 4096;
constexpr std::size_t kTransfersMax = 300;  // on their way, so that senders get ahead of it

SimOptions options_for(Delivery delivery) {
  SimOptions options;
  options.link.delivery = delivery;
  options.link.transfers_max = kTransfersMax;
  options.link.spare_buffers = kBuffersMax;
  options.misuse_is_failure = false;  // the suite misuses on purpose
  return options;
}

}  // namespace

test::FabricUnderTest under_test(const std::string& name, Delivery delivery) {
  const auto network = std::make_shared<std::shared_ptr<Network>>();
  const auto next = std::make_shared<int>(0);
  test::FabricUnderTest out;
  out.name = name;
  out.make = [network, delivery] { return make_sim_fabric(*network, options_for(delivery)); };
  out.make_bounded = [network, delivery](unsigned half_open_max) {
    SimOptions options = options_for(delivery);
    options.half_open_max = half_open_max;
    return make_sim_fabric(*network, options);
  };
  out.unused_address = [next] { return "sim:" + std::to_string(++*next); };
  out.lends = delivery == Delivery::kLoans;
  out.threads = false;
  out.processes = false;
  out.honours = ~0u;
  out.start = [network](std::uint64_t seed) {
    *network = make_network(std::make_shared<World>(seed, Weather::rough(seed)));
  };
  return out;
}

}  // namespace sanproxy::fabric::sim
