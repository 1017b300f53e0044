#include "netnode/packet_io/xdp_program.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <linux/if_link.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

namespace sanproxy::packet_io {
namespace {

// What the program looks up: five words on its stack.
struct Key {
  std::uint32_t family = 0;  // 4 or 6
  std::array<std::uint8_t, 16> address{};
};
static_assert(sizeof(Key) == 20);

Key key_of(const IpAddress& address) {
  return {static_cast<std::uint32_t>(address.family), address.bytes};
}

// Puts instructions together; jumps name labels and are filled in at the end.
class Assembler {
 public:
  enum Label : std::size_t { kPass, kIpv4, kIpv6, kLookUp, kLabels };

  void add(std::uint8_t code, unsigned dst, unsigned src, int offset, std::int32_t value) {
    bpf_insn out{};
    out.code = code;
    out.dst_reg = dst & 15U;
    out.src_reg = src & 15U;
    out.off = static_cast<std::int16_t>(offset);
    out.imm = value;
    code_.push_back(out);
  }
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
  void load_map(unsigned dst, int map_fd) {
    add(BPF_LD | BPF_DW | BPF_IMM, dst, BPF_PSEUDO_MAP_FD, 0, map_fd);
    add(0, 0, 0, 0, 0);
  }
  void call(std::int32_t function) { add(BPF_JMP | BPF_CALL, 0, 0, 0, function); }
  void exit() { add(BPF_JMP | BPF_EXIT, 0, 0, 0, 0); }
  void jump(std::uint8_t condition, unsigned dst, std::int32_t value, Label to) {
    jumps_.push_back({code_.size(), to});
    add(BPF_JMP | condition | BPF_K, dst, 0, 0, value);
  }
  void jump_registers(std::uint8_t condition, unsigned dst, unsigned src, Label to) {
    jumps_.push_back({code_.size(), to});
    add(BPF_JMP | condition | BPF_X, dst, src, 0, 0);
  }
  void here(Label label) { labels_[label] = code_.size(); }
  // To kPass unless the frame (r2 .. r3) has so many bytes.
  void need(std::int32_t bytes) {
    move(4, 2);
    add_to(4, bytes);
    jump_registers(BPF_JGT, 4, 3, kPass);
  }
  const std::vector<bpf_insn>& finish() {
    for (const auto& [at, label] : jumps_) {
      code_[at].off = static_cast<std::int16_t>(labels_[label] - at - 1);
    }
    return code_;
  }

 private:
  std::vector<bpf_insn> code_;
  std::vector<std::pair<std::size_t, Label>> jumps_;
  std::array<std::size_t, kLabels> labels_{};
};

// r6: context, r2: first byte, r3: end; the key at r10 - 20.
std::vector<bpf_insn> make_program(int addresses, int sockets) {
  using A = Assembler;
  constexpr int kKeyAt = -20;
  constexpr std::int32_t kArp = 0x0608, kIp4 = 0x0008, kIp6 = 0xdd86;  // as little-endian loads
  A a;
  a.move(6, 1);
  a.load(BPF_W, 2, 1, offsetof(xdp_md, data));
  a.load(BPF_W, 3, 1, offsetof(xdp_md, data_end));
  a.need(14);
  a.load(BPF_H, 5, 2, 12);
  a.jump(BPF_JEQ, 5, kIp4, A::kIpv4);
  a.jump(BPF_JEQ, 5, kIp6, A::kIpv6);
  a.jump(BPF_JNE, 5, kArp, A::kPass);
  a.need(42);  // ARP: who is asked for, or who had asked
  for (int i = 0; i < 4; ++i) a.store_value(10, kKeyAt + 4 + 4 * i, 0);
  a.store_value(10, kKeyAt, 4);
  a.load(BPF_W, 5, 2, 38);
  a.store(10, kKeyAt + 4, 5);
  a.jump(BPF_JA, 0, 0, A::kLookUp);
  a.here(A::kIpv4);
  a.need(34);
  for (int i = 1; i < 4; ++i) a.store_value(10, kKeyAt + 4 + 4 * i, 0);
  a.store_value(10, kKeyAt, 4);
  a.load(BPF_W, 5, 2, 30);
  a.store(10, kKeyAt + 4, 5);
  a.jump(BPF_JA, 0, 0, A::kLookUp);
  a.here(A::kIpv6);
  a.need(54);
  a.store_value(10, kKeyAt, 6);
  for (int i = 0; i < 4; ++i) {
    a.load(BPF_W, 5, 2, 38 + 4 * i);
    a.store(10, kKeyAt + 4 + 4 * i, 5);
  }
  a.here(A::kLookUp);
  a.load_map(1, addresses);
  a.move(2, 10);
  a.add_to(2, kKeyAt);
  a.call(BPF_FUNC_map_lookup_elem);
  a.jump(BPF_JEQ, 0, 0, A::kPass);
  a.load_map(1, sockets);
  a.load(BPF_W, 2, 6, offsetof(xdp_md, rx_queue_index));
  a.set(3, XDP_PASS);  // when there is no socket for that queue
  a.call(BPF_FUNC_redirect_map);
  a.exit();
  a.here(A::kPass);
  a.set(0, XDP_PASS);
  a.exit();
  return a.finish();
}

Status bpf_error(const char* what, int error) {
  if (error == EPERM || error == EACCES) {
    return Status::error(Code::kPermission, "driver \"xdp\" needs CAP_BPF and CAP_NET_ADMIN",
                         error);
  }
  if (error == EBUSY) {
    return Status::error(Code::kExists, "the interface has an XDP program already", error);
  }
  return Status::error(Code::kSystem, what, error);
}

}  // namespace

Result<std::unique_ptr<XdpProgram>> XdpProgram::attach(int interface_index, std::uint32_t queues,
                                                       std::uint32_t addresses_max,
                                                       bool driver_mode) {
  std::unique_ptr<XdpProgram> out(new XdpProgram);
  const auto made = [](UniqueFd& into, int fd) {
    if (fd >= 0) into = UniqueFd(fd);
    return fd >= 0;
  };
  if (!made(out->addresses_, bpf_map_create(BPF_MAP_TYPE_HASH, "san_addresses", sizeof(Key), 4,
                                            addresses_max, nullptr)) ||
      !made(out->sockets_,
            bpf_map_create(BPF_MAP_TYPE_XSKMAP, "san_sockets", 4, 4, queues, nullptr))) {
    return bpf_error("create a BPF map", errno);
  }
  const std::vector<bpf_insn> code = make_program(out->addresses_.get(), out->sockets_.get());
  if (!made(out->program_, bpf_prog_load(BPF_PROG_TYPE_XDP, "san_xdp", "GPL", code.data(),
                                         code.size(), nullptr))) {
    return bpf_error("load the XDP program", errno);
  }
  bpf_link_create_opts options{};
  options.sz = sizeof(options);
  options.flags = driver_mode ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE;
  if (!made(out->link_, bpf_link_create(out->program_.get(), interface_index, BPF_XDP, &options))) {
    return bpf_error("attach the XDP program", errno);
  }
  return out;
}

Status XdpProgram::set_socket(std::uint32_t queue, int socket_fd) {
  if (bpf_map_update_elem(sockets_.get(), &queue, &socket_fd, BPF_ANY) != 0) {
    return bpf_error("put the socket into its map", errno);
  }
  return {};
}

Status XdpProgram::add(const IpAddress& address) {
  const Key key = key_of(address);
  const std::uint32_t one = 1;
  if (bpf_map_update_elem(addresses_.get(), &key, &one, BPF_ANY) != 0) {
    return bpf_error("add an address to the XDP program", errno);
  }
  return {};
}

void XdpProgram::remove(const IpAddress& address) {
  const Key key = key_of(address);
  (void)bpf_map_delete_elem(addresses_.get(), &key);
}

}  // namespace sanproxy::packet_io
