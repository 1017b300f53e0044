// What a test and its peer process (peer_main.cc) agree on beforehand.
#pragma once

#include <cstdint>
#include <utility>

#include "lwproto/fabric/fabric.h"
#include "tests/lwproto/fabric/talker.h"

namespace sanproxy::fabric::test {

// A conversation without an end of its own.
inline TalkerPlan endless_plan(std::uint64_t seed, bool peer) {
  TalkerPlan plan;
  plan.seed = 2 * seed;
  plan.peer_seed = 2 * seed + 1;
  if (peer) std::swap(plan.seed, plan.peer_seed);
  plan.target = plan.peer_target = 0x7fff'ffff;
  return plan;
}
inline EndpointOptions options_of(const TalkerPlan& plan) {
  EndpointOptions out;
  out.receive_depth = plan.depth;
  out.send_depth = 64;
  out.inline_bytes_max = plan.inline_bytes_max;
  out.transfer_bytes_max = plan.inline_bytes_max + plan.refs_bytes_max;
  return out;
}

}  // namespace sanproxy::fabric::test
