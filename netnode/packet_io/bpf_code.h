// BpfCode: puts instructions for the kernel together, so that no compiler for BPF is needed.
//
// Document: Linux Documentation/bpf (instruction set), bpf(2).
// Role: the instructions that our programs use, with labels for jumps forward, and what programs at
//   an interface have in common.
// Owner: whoever makes a program. Thread: construction, any.
#pragma once

#include <linux/bpf.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace sanproxy::packet_io {

static_assert(std::endian::native == std::endian::little, "what programs compare and store is so");

// Since Linux 6.6; the headers of some distributions are older.
inline constexpr auto kTcxIngress = static_cast<bpf_attach_type>(46);
inline constexpr auto kTcxEgress = static_cast<bpf_attach_type>(47);
inline constexpr std::int32_t kTcxNext = -1;
inline constexpr std::int32_t kTcxDrop = 2;

class BpfCode {
 public:
  enum Label : std::size_t {
    kOther,
    // match_destination()
    kIpv4,
    kIpv6,
    kLookUp,
    // FlowRedirect
    kWhole,
    kPull,
    kPulled,
    kNoFlow,
    kFlow4,
    kFlowKey,
    kSized,
    kRewrite6,
    kSums,
    kPorts,
    kCount,
    kToClient,
    kLeave,
    kSend,
    kDrop,
    kLabels
  };

  void add(std::uint8_t code, unsigned dst, unsigned src, int offset, std::int32_t value);
  void move(unsigned dst, unsigned src) { add(BPF_ALU64 | BPF_MOV | BPF_X, dst, src, 0, 0); }
  void set(unsigned dst, std::int32_t value) { add(BPF_ALU64 | BPF_MOV | BPF_K, dst, 0, 0, value); }
  void add_to(unsigned dst, std::int32_t value) {
    add(BPF_ALU64 | BPF_ADD | BPF_K, dst, 0, 0, value);
  }
  void alu(std::uint8_t operation, unsigned dst, std::int32_t value) {
    add(BPF_ALU64 | operation | BPF_K, dst, 0, 0, value);
  }
  void alu_registers(std::uint8_t operation, unsigned dst, unsigned src) {
    add(BPF_ALU64 | operation | BPF_X, dst, src, 0, 0);
  }
  void swap(unsigned dst, int bits) { add(BPF_ALU | BPF_END | BPF_TO_BE, dst, 0, 0, bits); }
  void load(std::uint8_t size, unsigned dst, unsigned from, int offset) {
    add(BPF_LDX | BPF_MEM | size, dst, from, offset, 0);
  }
  void store(unsigned to, int offset, unsigned src) { store(BPF_W, to, offset, src); }
  void store(std::uint8_t size, unsigned to, int offset, unsigned src) {
    add(static_cast<std::uint8_t>(BPF_STX | BPF_MEM | size), to, src, offset, 0);
  }
  void store_value(unsigned to, int offset, std::int32_t value) {
    add(BPF_ST | BPF_MEM | BPF_W, to, 0, offset, value);
  }
  void load_map(unsigned dst, int map_fd);
  void load_map_value(unsigned dst, int map_fd);  // of an array: its first place
  void call(std::int32_t function) { add(BPF_JMP | BPF_CALL, 0, 0, 0, function); }
  void exit() { add(BPF_JMP | BPF_EXIT, 0, 0, 0, 0); }
  void jump(std::uint8_t condition, unsigned dst, std::int32_t value, Label to);
  void jump_registers(std::uint8_t condition, unsigned dst, unsigned src, Label to);
  void here(Label label) { labels_[label] = code_.size(); }
  // To `none` unless the frame (r2 .. r3) has so many bytes.
  void need(std::int32_t bytes, Label none = kOther);
  // All jumps filled in.
  const std::vector<bpf_insn>& finish();

 private:
  std::vector<bpf_insn> code_;
  std::vector<std::pair<std::size_t, Label>> jumps_;
  std::array<std::size_t, kLabels> labels_{};
};

// Where a program's context has the first byte of the frame and the end of what can be read.
struct FrameBounds {
  int data;
  int data_end;
};

// With r6 a socket buffer's context: to kOther what is for another station, a group, or a VLAN.
// Clobbers r5.
void only_untagged_for_host(BpfCode& code);

}  // namespace sanproxy::packet_io
