// FabricAddress: the textual names of fabric endpoints, taken apart.
//
// Document: docs/configuration.md "[[fabric]]".
// Role: "shm:/path/to.sock", "verbs://10.9.0.1:7471", "tcp://[fd77::1]:7471". Whoever assembles a
//   process chooses a fabric by `scheme`; each fabric reads its own part of the rest.
// Thread: values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"

namespace sanproxy::fabric {

struct FabricAddress {
  std::string scheme;    // "shm", "verbs", "tcp"
  std::string path;      // shm: absolute path of the socket
  SocketAddress socket;  // verbs, tcp

  static Result<FabricAddress> parse(std::string_view text);
  std::string to_string() const;
  // Where worker `index` of a proxy node listens whose configured address this is: worker 0 there,
  // the others at PATH.1, PATH.2 or PORT + 1, PORT + 2.
  Result<FabricAddress> of_worker(std::uint32_t index) const;
  bool operator==(const FabricAddress&) const = default;
};

}  // namespace sanproxy::fabric
