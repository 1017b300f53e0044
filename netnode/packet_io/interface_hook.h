// InterfaceHook: a program at an interface, for what it receives or sends.
//
// Document: docs/netnode.md "In the kernel"; Linux Documentation/bpf, tc-bpf(8).
// Role: attaches by tcx (Linux 6.6), which ends with the process; else by a clsact queue
// discipline,
//   which does not: its program stays when the process is killed, until somebody attaches another
//   in its place or the interface goes. Whoever attaches so gives its programs a time to live.
// Owner: FlowRedirect. Thread: any.
// Invariants:
//   1. Attached as long as the object lives. A clsact queue discipline that was made stays: others
//      may have put something into it.
//   2. Who lives keeps its place there: kPlacesMax at each side of an interface.
#pragma once

#include <cstdint>

#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"

namespace sanproxy::packet_io {

class InterfaceHook {
 public:
  enum class Side : bool { kIngress, kEgress };
  enum class Way : bool { kTcx, kClsact };
  static constexpr std::uint32_t kPlacesMax = 16;

  // kUnsupported: not in this way. kPermission without CAP_BPF and CAP_NET_ADMIN. kExists: all
  // places are taken.
  static Result<InterfaceHook> attach(int program, int interface_index, Side side, Way way);
  // Whether attach() would do, found out at the loopback interface, where nothing remains.
  static Status try_out(int program, Side side, Way way);

  InterfaceHook(InterfaceHook&& other) noexcept;
  InterfaceHook& operator=(InterfaceHook&&) = delete;
  ~InterfaceHook();

 private:
  InterfaceHook() = default;

  // kClsact; false, with errno, if somebody has that place.
  bool hold_place(int interface_index, Side side, std::uint32_t place);

  UniqueFd link_;            // kTcx
  UniqueFd held_;            // kClsact: our place, which nobody else takes over while it is open
  int interface_index_ = 0;  // kClsact; 0: not attached
  std::uint32_t place_ = 0;
  Side side_ = Side::kIngress;
};

}  // namespace sanproxy::packet_io
