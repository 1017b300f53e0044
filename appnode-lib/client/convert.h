// Between the public vocabulary (sanproxy/*.h) and the protocol's (lwproto).
//
// Role: the only place where the two meet; public headers show nothing of lwproto.
// Thread: pure functions.
#pragma once

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/wire/codec.h"
#include "lwproto/wire/format.h"
#include "sanproxy/connection.h"

namespace sanproxy::app::internal {

using BaseStatus = ::sanproxy::Status;
using BaseCode = ::sanproxy::Code;

static_assert(static_cast<int>(Code::kAgain) == static_cast<int>(BaseCode::kAgain));
static_assert(static_cast<int>(Code::kDisconnected) == static_cast<int>(BaseCode::kDisconnected));
static_assert(static_cast<int>(Code::kSystem) == static_cast<int>(BaseCode::kSystem));
static_assert(static_cast<int>(CloseCode::kAddressInUse) ==
              static_cast<int>(wire::CloseCode::kAddressInUse));

inline Status to_public(const BaseStatus& status) {
  return {static_cast<Code>(status.code()), status.text(), status.sys_errno()};
}

inline CloseCode to_public(wire::CloseCode code) { return static_cast<CloseCode>(code); }

// Those that say nothing of a refusal, and the library's own, never travel.
inline wire::CloseCode to_wire_rejection(CloseCode code) {
  const auto wanted = static_cast<wire::CloseCode>(code);
  return wire::may_reject(wanted) ? wanted : wire::CloseCode::kRefused;
}

inline Address to_public(const SocketAddress& address) {
  return {static_cast<std::uint8_t>(address.ip.family), address.ip.bytes, address.port};
}

inline SocketAddress to_base(const Address& address) {
  return {{static_cast<Family>(address.family), address.bytes}, address.port};
}

// A wire address whose form the codec has checked; an absent one becomes an empty Address.
inline Address to_public(const wire::WireAddress& address) {
  Address out;
  out.family = address.family;
  for (std::size_t i = 0; i < out.bytes.size(); ++i) out.bytes[i] = address.ip[i];
  out.port = address.port;
  return out;
}

}  // namespace sanproxy::app::internal
