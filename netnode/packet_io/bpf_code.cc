#include "netnode/packet_io/bpf_code.h"

#include <linux/if_packet.h>

#include "netnode/net/ethernet.h"

namespace sanproxy::packet_io {

void BpfCode::add(std::uint8_t code, unsigned dst, unsigned src, int offset, std::int32_t value) {
  bpf_insn out{};
  out.code = code;
  out.dst_reg = dst & 15U;
  out.src_reg = src & 15U;
  out.off = static_cast<std::int16_t>(offset);
  out.imm = value;
  code_.push_back(out);
}

void BpfCode::load_map(unsigned dst, int map_fd) {
  add(BPF_LD | BPF_DW | BPF_IMM, dst, BPF_PSEUDO_MAP_FD, 0, map_fd);
  add(0, 0, 0, 0, 0);
}

void BpfCode::load_map_value(unsigned dst, int map_fd) {
  add(BPF_LD | BPF_DW | BPF_IMM, dst, BPF_PSEUDO_MAP_VALUE, 0, map_fd);
  add(0, 0, 0, 0, 0);
}

void BpfCode::jump(std::uint8_t condition, unsigned dst, std::int32_t value, Label to) {
  jumps_.push_back({code_.size(), to});
  add(BPF_JMP | condition | BPF_K, dst, 0, 0, value);
}

void BpfCode::jump_registers(std::uint8_t condition, unsigned dst, unsigned src, Label to) {
  jumps_.push_back({code_.size(), to});
  add(BPF_JMP | condition | BPF_X, dst, src, 0, 0);
}

void BpfCode::need(std::int32_t bytes, Label none) {
  move(4, 2);
  add_to(4, bytes);
  jump_registers(BPF_JGT, 4, 3, none);
}

const std::vector<bpf_insn>& BpfCode::finish() {
  for (const auto& [at, label] : jumps_) {
    code_[at].off = static_cast<std::int16_t>(labels_[label] - at - 1);
  }
  return code_;
}

void only_untagged_for_host(BpfCode& code) {
  code.load(BPF_W, 5, 6, offsetof(__sk_buff, pkt_type));
  code.jump(BPF_JNE, 5, PACKET_HOST, BpfCode::kOther);
  code.load(BPF_W, 5, 6, offsetof(__sk_buff, vlan_tci));
  code.alu(BPF_AND, 5, net::kVlanNumberMask);
  code.jump(BPF_JNE, 5, 0, BpfCode::kOther);
}

}  // namespace sanproxy::packet_io
