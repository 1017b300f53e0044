// XdpProgram: the filter in front of an AF_XDP socket.
//
// Documents: docs/packet_io.md "AF_XDP"; Linux Documentation/networking/af_xdp.rst, bpf(2).
// Role: gives the socket the frames that are for our addresses (ARP for them included), and leaves
//   everything else to the kernel.
// Owner: XdpSocketIo. Thread: construction anywhere, then the worker's.
// Invariants:
//   1. Attached as long as the object lives; detached by its destruction, or by the kernel when the
//      process is gone (the attachment is a link).
//   2. A frame too short for its headers, tagged for a VLAN, or of another protocol goes to the
//      kernel.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "netnode/packet_io/address_match.h"
#include "netnode/packet_io/flow_redirect.h"

namespace sanproxy::packet_io {

class XdpProgram {
 public:
  // `addresses_max` bounds what add() takes. In `driver_mode` by the driver itself, else by the
  // kernel in its stead (generic mode). Packets of the flows of `redirect`, if there is one, are
  // the kernel's.
  static Result<std::unique_ptr<XdpProgram>> attach(int interface_index, std::uint32_t queues,
                                                    std::uint32_t addresses_max, bool driver_mode,
                                                    const FlowRedirect* redirect);

  // The socket that takes what arrives on `queue`.
  Status set_socket(std::uint32_t queue, int socket_fd);
  Status add(const IpAddress& address) { return addresses_.add(address); }
  void remove(const IpAddress& address) { addresses_.remove(address); }

 private:
  explicit XdpProgram(AddressMap addresses) : addresses_(std::move(addresses)) {}

  AddressMap addresses_;
  UniqueFd sockets_;  // XSKMAP
  UniqueFd program_;
  UniqueFd link_;
};

}  // namespace sanproxy::packet_io
