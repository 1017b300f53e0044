// The programs of a FlowRedirect, put together.
#include <linux/bpf.h>
#include <linux/if_packet.h>

#include "netnode/packet_io/flow_redirect.h"
#include "netnode/packet_io/flow_redirect_entry.h"

namespace sanproxy::packet_io {

namespace {

using A = BpfCode;
constexpr int kKeyAt = -static_cast<int>(sizeof(net::FlowKey));  // from the stack's top, r10
constexpr int kScratchAt = kKeyAt - 8;
constexpr int kIpv4Bytes = 20, kIpv6Bytes = 40, kTcpBytesMin = 20, kTcpSumAt = 16;
constexpr int kFrameHeaderBytes = net::kEthernetHeaderBytes;
constexpr std::int32_t kTcp = 6;
constexpr std::int32_t kIpv6Flag = 1 << 7;  // BPF_F_IPV6, since Linux 6.16

// Reads a packet's headers in the way that a kind of program may: in place with r2 .. r3 the frame,
// or, in a socket's filter, by instructions that clobber r0 to r5.
class Reader {
 public:
  Reader(BpfCode& code, FlowRedirect::Context context)
      : code_(code), in_place_(context != FlowRedirect::Context::kSocketFilter) {}

  void begin(const FrameBounds& bounds) {
    if (!in_place_) return;
    code_.load(BPF_W, 2, 6, bounds.data);
    code_.load(BPF_W, 3, 6, bounds.data_end);
  }
  void need(std::int32_t bytes, A::Label none) {
    if (in_place_) {
      code_.need(bytes, none);
      return;
    }
    code_.load(BPF_W, 5, 6, offsetof(__sk_buff, len));
    code_.jump(BPF_JLT, 5, bytes, none);
  }
  // In host order.
  void byte(unsigned dst, int at) { read(BPF_B, dst, at); }
  void half(unsigned dst, int at) {
    read(BPF_H, dst, at);
    if (in_place_) code_.swap(dst, 16);
  }
  // As it lies there.
  void raw_word(unsigned dst, int at) {
    read(BPF_W, dst, at);
    if (!in_place_) code_.swap(dst, 32);
  }

 private:
  void read(std::uint8_t size, unsigned dst, int at) {
    if (in_place_) {
      code_.load(size, dst, 2, at);
      return;
    }
    code_.add(static_cast<std::uint8_t>(BPF_LD | BPF_ABS | size), 0, 0, 0, at);
    code_.move(dst, 0);
  }

  BpfCode& code_;
  bool in_place_;
};

// Common to both families, with r8 the packet's length: checks the TCP header at `l4`; r9 = bytes
// of all headers from `l3` on; the key's ports and protocol.
void match_tcp(BpfCode& code, Reader& packet, int l3, int l4, Family family, A::Label none) {
  packet.byte(5, l4 + 13);
  code.alu(BPF_AND, 5, 0x37);  // URG, ACK, RST, SYN, FIN
  code.jump(BPF_JNE, 5, 0x10, none);
  packet.byte(9, l4 + 12);
  code.alu(BPF_RSH, 9, 4);
  code.alu(BPF_LSH, 9, 2);
  code.jump(BPF_JLT, 9, kTcpBytesMin, none);
  code.add_to(9, l4 - l3);
  code.jump_registers(BPF_JGT, 9, 8, none);
  packet.half(5, l4);
  code.store(BPF_H, 10, kKeyAt + 32, 5);
  packet.half(5, l4 + 2);
  code.store(BPF_H, 10, kKeyAt + 34, 5);
  code.store_value(10, kKeyAt + 36, kTcp | static_cast<std::int32_t>(family) << 8);
}

void match_ipv6(BpfCode& code, Reader& packet, int l3, A::Label none) {
  packet.need(l3 + kIpv6Bytes + kTcpBytesMin, none);
  packet.byte(5, l3 + 6);
  code.jump(BPF_JNE, 5, kTcp, none);  // another header in between is not plain
  packet.byte(5, l3 + 7);
  code.jump(BPF_JLT, 5, 2, none);
  packet.half(8, l3 + 4);
  code.add_to(8, kIpv6Bytes);
  match_tcp(code, packet, l3, l3 + kIpv6Bytes, Family::kIpv6, none);
  // Backwards: what begins eight bytes of the stack counts as a register put aside there by Linux
  // 6.1, which without CAP_PERFMON must not be overwritten in part.
  for (int at = 28; at >= 0; at -= 4) {
    packet.raw_word(5, l3 + 8 + at);
    code.store(10, kKeyAt + at, 5);
  }
}

void match_ipv4(BpfCode& code, Reader& packet, int l3, A::Label none) {
  packet.half(5, l3 + 6);
  code.alu(BPF_AND, 5, 0x3fff);  // more fragments, and which it is
  code.jump(BPF_JNE, 5, 0, none);
  packet.byte(5, l3 + 9);
  code.jump(BPF_JNE, 5, kTcp, none);
  packet.byte(5, l3 + 8);
  code.jump(BPF_JLT, 5, 2, none);
  packet.half(8, l3 + 2);
  match_tcp(code, packet, l3, l3 + kIpv4Bytes, Family::kIpv4, none);
  for (int at = 0; at < 32; at += 4) code.store_value(10, kKeyAt + at, 0);
  packet.raw_word(5, l3 + 12);
  code.store(10, kKeyAt, 5);
  packet.raw_word(5, l3 + 16);
  code.store(10, kKeyAt + 16, 5);
}

// The version and, of IPv4, the header's length: to kFlow4, or on for IPv6.
void match_version(BpfCode& code, Reader& packet, int l3, A::Label none) {
  packet.byte(7, l3);
  if (l3 != 0) {
    packet.half(5, l3 - 2);
    code.jump(BPF_JEQ, 5, net::kEtherTypeIpv4, A::kFlow4);
    code.jump(BPF_JNE, 5, net::kEtherTypeIpv6, none);
  } else {
    code.jump(BPF_JEQ, 7, 0x45, A::kFlow4);
  }
  code.alu(BPF_AND, 7, 0xf0);
  code.jump(BPF_JNE, 7, 0x60, none);
}

// With r6 a socket buffer's context: its headers in one piece, as programs read them. Some senders
// (packet sockets, guests' devices) leave all but the first bytes of a large packet in another one,
// which the filter of a packet socket reads all the same.
void pull_headers(BpfCode& code, int l3) {
  code.load(BPF_W, 2, 6, offsetof(__sk_buff, data));
  code.load(BPF_W, 3, 6, offsetof(__sk_buff, data_end));
  code.move(4, 2);
  code.add_to(4, l3 + kIpv6Bytes + kTcpBytesMin);
  code.jump_registers(BPF_JLE, 4, 3, A::kPulled);
  code.load(BPF_W, 5, 6, offsetof(__sk_buff, len));
  code.jump(BPF_JGE, 5, l3 + kIpv6Bytes + kTcpBytesMin, A::kWhole);
  code.move(4, 2);
  code.add_to(4, l3 + kIpv4Bytes + kTcpBytesMin);
  code.jump_registers(BPF_JLE, 4, 3, A::kPulled);
  code.move(2, 5);
  code.jump(BPF_JA, 0, 0, A::kPull);
  code.here(A::kWhole);
  code.set(2, l3 + kIpv6Bytes + kTcpBytesMin);
  code.here(A::kPull);
  code.move(1, 6);
  code.call(BPF_FUNC_skb_pull_data);
  code.here(A::kPulled);
}

}  // namespace

void FlowRedirect::match(BpfCode& code, Context context, int l3, BpfCode::Label none) const {
  Reader packet(code, context);
  const bool frame = context == Context::kFrame;
  packet.begin(frame ? FrameBounds{offsetof(xdp_md, data), offsetof(xdp_md, data_end)}
                     : FrameBounds{offsetof(__sk_buff, data), offsetof(__sk_buff, data_end)});
  packet.need(l3 + kIpv4Bytes + kTcpBytesMin, none);
  match_version(code, packet, l3, none);
  match_ipv6(code, packet, l3, none);
  code.jump(BPF_JA, 0, 0, A::kFlowKey);
  code.here(A::kFlow4);
  if (l3 != 0) code.jump(BPF_JNE, 7, 0x45, none);
  match_ipv4(code, packet, l3, none);
  code.here(A::kFlowKey);
  if (frame) {
    code.move(1, 6);
    code.call(BPF_FUNC_xdp_get_buff_len);
  } else {
    code.load(BPF_W, 0, 6, offsetof(__sk_buff, len));
  }
  code.move(5, 8);
  code.add_to(5, l3);
  code.jump_registers(BPF_JGT, 5, 0, none);
  find(code, none);
  code.move(3, 8);
  if (!frame) {
    code.load(BPF_W, 2, 6, offsetof(__sk_buff, gso_size));
    code.jump(BPF_JEQ, 2, 0, A::kSized);
    code.move(3, 2);
    code.alu_registers(BPF_ADD, 3, 9);
    code.here(A::kSized);
  }
  code.load(BPF_W, 4, 7, offsetof(RedirectEntry, mtu_bytes));
  code.jump_registers(BPF_JGT, 3, 4, none);
}

// r7: the entry of the key on the stack, which still holds.
void FlowRedirect::find(BpfCode& code, BpfCode::Label none) const {
  code.load_map(1, flows_.get());
  code.move(2, 10);
  code.add_to(2, kKeyAt);
  code.call(BPF_FUNC_map_lookup_elem);
  code.jump(BPF_JEQ, 0, 0, none);
  code.move(7, 0);
  if (way_ == Way::kClsact) code.call(BPF_FUNC_ktime_get_ns);
  code.load_map_value(1, now_map_.get());
  if (way_ == Way::kClsact) {
    constexpr std::int32_t kSecondNs = 1'000'000'000;
    code.alu(BPF_DIV, 0, kSecondNs);
    code.load(BPF_W, 2, 1, offsetof(Now, lease_s));
    code.jump_registers(BPF_JGT, 0, 2, none);
  }
  code.load(BPF_W, 2, 1, offsetof(Now, generation));
  code.load(BPF_W, 3, 7, offsetof(RedirectEntry, generation));
  code.jump_registers(BPF_JNE, 2, 3, none);
  code.load(BPF_W, 2, 1, offsetof(Now, s));
  code.load(BPF_W, 3, 7, offsetof(RedirectEntry, since_s));
  code.alu_registers(BPF_SUB, 2, 3);
  code.jump(BPF_JGE, 2, static_cast<std::int32_t>(kHoldsForS), none);
}

// Addresses, ports, a hop and the sums. The kernel knows whether a TCP checksum is still to be
// completed, so it changes that one.
void FlowRedirect::rewrite(BpfCode& code, int l3) const {
  const auto copy = [&](int at, std::size_t from) {
    code.load(BPF_W, 5, 7, static_cast<int>(from));
    code.store(2, at, 5);
  };
  code.load(BPF_W, 2, 6, offsetof(__sk_buff, data));
  code.load(BPF_W, 3, 6, offsetof(__sk_buff, data_end));
  code.need(l3 + kIpv4Bytes + kTcpBytesMin);
  code.load(BPF_B, 5, 2, l3);
  code.alu(BPF_AND, 5, 0xf0);
  code.jump(BPF_JEQ, 5, 0x60, A::kRewrite6);
  copy(l3 + 12, offsetof(RedirectEntry, source));
  copy(l3 + 16, offsetof(RedirectEntry, destination));
  copy(l3 + kIpv4Bytes, offsetof(RedirectEntry, ports));
  code.load(BPF_B, 5, 2, l3 + 8);
  code.add_to(5, -1);
  code.store(BPF_B, 2, l3 + 8, 5);
  code.load(BPF_H, 5, 2, l3 + 10);
  code.alu(BPF_XOR, 5, 0xffff);
  code.load(BPF_W, 4, 7, offsetof(RedirectEntry, ipv4_delta));
  code.alu_registers(BPF_ADD, 5, 4);
  code.move(4, 5);
  code.alu(BPF_RSH, 4, 16);
  code.alu(BPF_AND, 5, 0xffff);
  code.alu_registers(BPF_ADD, 5, 4);
  code.alu(BPF_XOR, 5, 0xffff);
  code.store(BPF_H, 2, l3 + 10, 5);
  code.set(8, BPF_F_PSEUDO_HDR);
  code.set(9, l3 + kIpv4Bytes + kTcpSumAt);
  code.jump(BPF_JA, 0, 0, A::kSums);

  code.here(A::kRewrite6);
  code.need(l3 + kIpv6Bytes + kTcpBytesMin);
  for (int i = 0; i < 4; ++i) {
    copy(l3 + 8 + 4 * i, offsetof(RedirectEntry, source) + 4 * static_cast<std::size_t>(i));
    copy(l3 + 24 + 4 * i, offsetof(RedirectEntry, destination) + 4 * static_cast<std::size_t>(i));
  }
  copy(l3 + kIpv6Bytes, offsetof(RedirectEntry, ports));
  // No sum of its own covers the hop limit: the kernel's of the whole packet, if there is one, is
  // to know.
  code.load(BPF_B, 5, 2, l3 + 7);
  code.add_to(5, -1);
  code.store(BPF_B, 10, kScratchAt + 4, 5);  // see match_ipv6()
  code.move(1, 6);
  code.set(2, l3 + 7);
  code.move(3, 10);
  code.add_to(3, kScratchAt + 4);
  code.set(4, 1);
  code.set(5, BPF_F_RECOMPUTE_CSUM);
  code.call(BPF_FUNC_skb_store_bytes);
  code.set(8, BPF_F_PSEUDO_HDR | kIpv6Flag);
  code.set(9, l3 + kIpv6Bytes + kTcpSumAt);

  const auto change_sum = [&](std::size_t delta) {
    code.move(1, 6);
    code.move(2, 9);
    code.set(3, 0);
    code.load(BPF_W, 4, 7, static_cast<int>(delta));
    code.move(5, 8);
    code.call(BPF_FUNC_l4_csum_replace);
  };
  code.here(A::kSums);
  change_sum(offsetof(RedirectEntry, addresses_delta));
  code.jump(BPF_JEQ, 0, 0, A::kPorts);
  code.set(8, BPF_F_PSEUDO_HDR);  // an older kernel does not know the flag
  change_sum(offsetof(RedirectEntry, addresses_delta));
  code.jump(BPF_JNE, 0, 0, A::kDrop);
  code.here(A::kPorts);
  code.set(8, 0);
  change_sum(offsetof(RedirectEntry, ports_delta));
  code.jump(BPF_JNE, 0, 0, A::kDrop);
}

// r8: what is counted, 0 to 2 as in RedirectCarried.
void FlowRedirect::count(BpfCode& code) const {
  code.store_value(10, kScratchAt, 0);
  code.load_map(1, counters_map_.get());
  code.move(2, 10);
  code.add_to(2, kScratchAt);
  code.call(BPF_FUNC_map_lookup_elem);
}

// The frame's header, and off by the other interface.
void FlowRedirect::leave(BpfCode& code, int l3) const {
  code.load(BPF_W, 5, 7, offsetof(RedirectEntry, ethernet));
  code.jump(BPF_JEQ, 5, 0, A::kSend);
  if (l3 == 0) {
    code.move(1, 6);
    code.set(2, kFrameHeaderBytes);
    code.set(3, 0);
    code.call(BPF_FUNC_skb_change_head);
    code.jump(BPF_JNE, 0, 0, A::kDrop);
  }
  code.load(BPF_W, 2, 6, offsetof(__sk_buff, data));
  code.load(BPF_W, 3, 6, offsetof(__sk_buff, data_end));
  code.need(kFrameHeaderBytes, A::kDrop);
  for (int at = 0; at < 12; at += 4) {
    code.load(BPF_W, 5, 7, static_cast<int>(offsetof(RedirectEntry, frame)) + at);
    code.store(2, at, 5);
  }
  code.load(BPF_H, 5, 7, static_cast<int>(offsetof(RedirectEntry, frame)) + 12);
  code.store(BPF_H, 2, 12, 5);
  code.here(A::kSend);
  // What we write has no mark: one by which the host routed this to us would bring it back.
  code.set(5, 0);
  code.store(6, offsetof(__sk_buff, mark), 5);
  code.load(BPF_W, 1, 7, offsetof(RedirectEntry, interface_index));
  code.load(BPF_W, 2, 7, offsetof(RedirectEntry, redirect_flags));
  code.call(BPF_FUNC_redirect);
  code.exit();
}

// r6: context, r7: the entry.
std::vector<bpf_insn> FlowRedirect::make_program(Hook hook) const {
  BpfCode code;
  const int l3 = hook == Hook::kIngress ? kFrameHeaderBytes : 0;
  code.move(6, 1);
  if (hook == Hook::kIngress) only_untagged_for_host(code);
  pull_headers(code, l3);
  match(code, Context::kSocketBuffer, l3, A::kOther);
  rewrite(code, l3);
  count(code);
  code.jump(BPF_JEQ, 0, 0, A::kLeave);
  code.load(BPF_W, 5, 7, offsetof(RedirectEntry, to_client));
  code.jump(BPF_JNE, 5, 0, A::kToClient);
  const auto one_more = [&](std::size_t at) {
    code.load(BPF_DW, 5, 0, static_cast<int>(at));
    code.add_to(5, 1);
    code.store(BPF_DW, 0, static_cast<int>(at), 5);
  };
  one_more(offsetof(RedirectCarried, to_proxy));
  code.jump(BPF_JA, 0, 0, A::kLeave);
  code.here(A::kToClient);
  one_more(offsetof(RedirectCarried, to_client));
  code.here(A::kLeave);
  leave(code, l3);
  code.here(A::kDrop);
  count(code);
  code.jump(BPF_JEQ, 0, 0, A::kCount);
  one_more(offsetof(RedirectCarried, dropped));
  code.here(A::kCount);
  code.set(0, kTcxDrop);
  code.exit();
  code.here(A::kOther);
  code.set(0, kTcxNext);
  code.exit();
  return code.finish();
}

std::vector<bpf_insn> FlowRedirect::make_filter() const {
  BpfCode code;
  code.move(6, 1);
  code.load(BPF_W, 5, 6, offsetof(__sk_buff, pkt_type));
  code.jump(BPF_JGT, 5, PACKET_MULTICAST, A::kOther);
  code.load(BPF_W, 4, 6, offsetof(__sk_buff, vlan_tci));
  code.alu(BPF_AND, 4, net::kVlanNumberMask);
  code.jump(BPF_JNE, 4, 0, A::kOther);
  code.jump(BPF_JNE, 5, PACKET_HOST, A::kNoFlow);
  match(code, Context::kSocketFilter, kFrameHeaderBytes, A::kNoFlow);
  code.jump(BPF_JA, 0, 0, A::kOther);
  code.here(A::kNoFlow);
  Reader packet(code, Context::kSocketFilter);
  packet.half(5, kFrameHeaderBytes - 2);
  for (const auto type : {net::kEtherTypeIpv4, net::kEtherTypeIpv6, net::kEtherTypeArp}) {
    code.jump(BPF_JEQ, 5, type, A::kSend);
  }
  code.here(A::kOther);
  code.set(0, 0);
  code.exit();
  code.here(A::kSend);
  code.set(0, -1);  // all of it
  code.exit();
  return code.finish();
}

}  // namespace sanproxy::packet_io
