// The rules of docs/wire_format.md that one message must keep by itself.
//
// Role: internal to lwproto_wire; codec.cc calls it for every message but DATA. Pure.
// Thread: any.
// Invariants:
//   1. Works on the copy in `message`, never on the transfer's bytes.
//   2. A returned text names the rule for people; nullptr means that all rules hold.
#pragma once

#include "lwproto/wire/codec.h"

namespace sanproxy::wire {

// Bytes of the fixed body of `type`; 0 for a type that may not appear inside a transfer.
std::size_t body_bytes_of(std::uint8_t type);
const char* broken_rule(const Message& message);
// `optional`: family 0 with nothing but zeros is allowed too.
bool well_formed(const WireAddress& address, bool optional);

}  // namespace sanproxy::wire
