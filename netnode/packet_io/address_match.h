// AddressMatch: programs for the kernel that tell frames to our addresses from all others.
//
// Documents: docs/packet_io.md; Linux Documentation/bpf (instruction set), bpf(2).
// Role: AddressMap is the set of addresses that such a program looks into; match_destination() is
// the
//   part that programs share.
// Owner: the driver that attaches the program. Thread: construction anywhere, then the worker's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"
#include "netnode/packet_io/bpf_code.h"

namespace sanproxy::packet_io {

class AddressMap {
 public:
  // Bounded by `addresses_max`. errno tells why it cannot be.
  static Result<AddressMap> create(std::uint32_t addresses_max);
  Status add(const IpAddress& address);
  void remove(const IpAddress& address);
  int fd() const { return fd_.get(); }

 private:
  explicit AddressMap(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

// With r6 the context and r2, r3 from its `bounds`, leaves an untagged frame's IP destination (with
// `arp` also who is asked for) looked up: goes on behind with r0 != 0 when it is ours, to kOther
// when it is not, is tagged, too short to tell, or of another protocol. Clobbers r1 to r5 and the
// stack's top.
void match_destination(BpfCode& code, const FrameBounds& bounds, const AddressMap& map, bool arp);

}  // namespace sanproxy::packet_io
