// AddressMatch: programs for the kernel that tell frames to our addresses from all others.
//
// Documents: docs/packet_io.md; Linux Documentation/bpf (instruction set), bpf(2).
// Role: BpfCode puts instructions together, so that no compiler for BPF is needed; AddressMap is
// the set of
//   addresses that such a program looks into; match_destination() is the part that programs share.
// Owner: the driver that attaches the program. Thread: construction anywhere, then the worker's.
#pragma once

#include <linux/bpf.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"

namespace sanproxy::packet_io {

class BpfCode {
 public:
  enum Label : std::size_t { kOther, kIpv4, kIpv6, kLookUp, kLabels };

  void add(std::uint8_t code, unsigned dst, unsigned src, int offset, std::int32_t value);
  void move(unsigned dst, unsigned src) { add(BPF_ALU64 | BPF_MOV | BPF_X, dst, src, 0, 0); }
  void set(unsigned dst, std::int32_t value) { add(BPF_ALU64 | BPF_MOV | BPF_K, dst, 0, 0, value); }
  void add_to(unsigned dst, std::int32_t value) {
    add(BPF_ALU64 | BPF_ADD | BPF_K, dst, 0, 0, value);
  }
  void load(std::uint8_t size, unsigned dst, unsigned from, int offset) {
    add(BPF_LDX | BPF_MEM | size, dst, from, offset, 0);
  }
  void store(unsigned to, int offset, unsigned src) {
    add(BPF_STX | BPF_MEM | BPF_W, to, src, offset, 0);
  }
  void store_value(unsigned to, int offset, std::int32_t value) {
    add(BPF_ST | BPF_MEM | BPF_W, to, 0, offset, value);
  }
  void load_map(unsigned dst, int map_fd);
  void call(std::int32_t function) { add(BPF_JMP | BPF_CALL, 0, 0, 0, function); }
  void exit() { add(BPF_JMP | BPF_EXIT, 0, 0, 0, 0); }
  void jump(std::uint8_t condition, unsigned dst, std::int32_t value, Label to);
  void jump_registers(std::uint8_t condition, unsigned dst, unsigned src, Label to);
  void here(Label label) { labels_[label] = code_.size(); }
  // To kOther unless the frame (r2 .. r3) has so many bytes.
  void need(std::int32_t bytes);
  // All jumps filled in.
  const std::vector<bpf_insn>& finish();

 private:
  std::vector<bpf_insn> code_;
  std::vector<std::pair<std::size_t, Label>> jumps_;
  std::array<std::size_t, kLabels> labels_{};
};

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

// Where a program's context has the first byte of the frame and the end of what can be read.
struct FrameBounds {
  int data;
  int data_end;
};

// With r6 the context and r2, r3 from its `bounds`, leaves an untagged frame's IP destination (with
// `arp` also who is asked for) looked up: goes on behind with r0 != 0 when it is ours, to kOther
// when it is not, is tagged, too short to tell, or of another protocol. Clobbers r1 to r5 and the
// stack's top.
void match_destination(BpfCode& code, const FrameBounds& bounds, const AddressMap& map, bool arp);

}  // namespace sanproxy::packet_io
