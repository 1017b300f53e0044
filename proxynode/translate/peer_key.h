// peer_key: whom attempts to join are counted for (docs/security.md "Rate limits").
//
// Thread: pure.
#pragma once

#include <string>

#include "lwproto/fabric/fabric.h"

namespace sanproxy::translate {

// Where the kernel vouches for a user id, that user; elsewhere the peer's address without its
// port, which a peer chooses anew with each connection.
std::string peer_key(const fabric::PeerIdentity& peer);

}  // namespace sanproxy::translate
