// IngressDrop: keeps the host's kernel from working on packets that a packet socket has taken.
//
// Documents: docs/packet_io.md "Beside the kernel"; bpf(2), tcx links (Linux 6.6).
// Role: a packet socket hears a frame and leaves it to the kernel as well, which walks its stack to
// find
//   that the packet is for nobody, at the sender's expense on a veth, and where forwarding is on
//   sends it out again. A program at the interface's ingress hook, behind the packet sockets, ends
//   that for packets to our addresses.
// Owner: PacketSocketIo. Thread: construction anywhere, then the worker's.
// Invariants:
//   1. Attached as long as the object lives; detached by its destruction, or by the kernel when the
//   process is
//      gone (the attachment is a link).
//   2. Drops untagged IPv4 and IPv6 frames to this host's MAC and one of our addresses, and nothing
//   else: ARP
//      and neighbour discovery, other addresses and frames that cannot be read go on.
#pragma once

#include <cstdint>
#include <memory>

#include "netnode/packet_io/address_match.h"

namespace sanproxy::packet_io {

class IngressDrop {
 public:
  // kPermission without CAP_BPF and CAP_NET_ADMIN; kUnsupported before Linux 6.6.
  static Result<std::unique_ptr<IngressDrop>> attach(int interface_index,
                                                     std::uint32_t addresses_max);

  // Of an address beyond addresses_max the kernel goes on seeing the packets.
  void add(const IpAddress& address) { (void)addresses_.add(address); }
  void remove(const IpAddress& address) { addresses_.remove(address); }

 private:
  IngressDrop(AddressMap addresses, UniqueFd program, UniqueFd link)
      : addresses_(std::move(addresses)), program_(std::move(program)), link_(std::move(link)) {}

  AddressMap addresses_;
  UniqueFd program_;
  UniqueFd link_;
};

}  // namespace sanproxy::packet_io
