// NatState: translated sessions from one life of a network node to the next.
//
// Document: docs/netnode.md "NAT".
// Role: writes them to a file at an orderly end, and reads them back at the start.
// Owner: a Node. Thread: its, while no packets are read.
// Invariants:
//   1. The file is there whole or not at all: written beside its place and renamed. It is taken
//      once, since sessions go on after that.
//   2. Nothing of it is believed but what is whole, of this boot (its times are since then), and,
//      session by session, possible under the configuration of now. At most as many sessions as
//      there are places are read.
#pragma once

#include <cstdint>
#include <string>

#include "netnode/steer/forwarder.h"

namespace sanproxy::netnode {

// Of the running kernel; "" when it does not say.
std::string boot_id();

struct NatStateResult {
  std::string wrong;  // why nothing was written or read, for people; empty: it was
  std::uint64_t sessions = 0;
  std::uint64_t left_out = 0;  // of a proxy, an address or a timer that is no more
};

// Why save_nat() would fail as things are, for people; empty: only a full disk could stop it.
std::string why_unwritable(const std::string& path);
NatStateResult save_nat(const std::string& path, const std::string& boot,
                        const steer::Forwarder& forwarder, std::uint32_t now_s);
// No file is no mistake: there are no sessions then.
NatStateResult load_nat(const std::string& path, const std::string& boot,
                        steer::Forwarder& forwarder, std::uint32_t now_s);

}  // namespace sanproxy::netnode
