#include "netnode/packet_io/queue_steering.h"

#include <linux/bpf.h>
#include <linux/filter.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <initializer_list>
#include <vector>

namespace sanproxy::packet_io {
namespace {

constexpr std::uint64_t kMultiplier = 0x9e37'79b9'7f4a'7c15;
constexpr std::uint8_t kProtocolTcp = 6;

constexpr std::uint64_t mix(std::uint64_t hash, std::uint32_t word) {
  hash = (hash ^ word) * kMultiplier;
  return hash ^ (hash >> 32);
}

std::uint64_t mix_address(std::uint64_t hash, const IpAddress& ip) {
  for (std::size_t i = 0; i < ip.size(); i += 4) {
    const auto& b = ip.bytes;
    hash = mix(hash, std::uint32_t{b[i]} << 24 | std::uint32_t{b[i + 1]} << 16 |
                         std::uint32_t{b[i + 2]} << 8 | std::uint32_t{b[i + 3]});
  }
  return hash;
}

// Puts the program together. Registers that survive loads of packet bytes: 6 the packet, 7 the
// hash, 8 whether it is a fragment, 9 the multiplier. A load outside the packet ends the program
// with 0, which is queue 0.
class Assembler {
 public:
  void put(int code, int dst, int src, int offset, std::int32_t value) {
    bpf_insn instruction{};
    instruction.code = static_cast<std::uint8_t>(code);
    instruction.dst_reg = static_cast<std::uint8_t>(dst & 0xf);
    instruction.src_reg = static_cast<std::uint8_t>(src & 0xf);
    instruction.off = static_cast<std::int16_t>(offset);
    instruction.imm = value;
    program_.push_back(instruction);
  }
  void put_wide(int dst, std::uint64_t value) {
    put(BPF_LD | BPF_IMM | BPF_DW, dst, 0, 0, static_cast<std::int32_t>(value));
    put(0, 0, 0, 0, static_cast<std::int32_t>(value >> 32));
  }
  // From the start of the IP header, in host order, into register 0.
  void load(int size, int at) { put(BPF_LD | BPF_ABS | size, 0, 0, 0, SKF_NET_OFF + at); }
  void mix_in() {
    put(BPF_ALU64 | BPF_XOR | BPF_X, 7, 0, 0, 0);
    put(BPF_ALU64 | BPF_MUL | BPF_X, 7, 9, 0, 0);
    put(BPF_ALU64 | BPF_MOV | BPF_X, 0, 7, 0, 0);
    put(BPF_ALU64 | BPF_RSH | BPF_K, 0, 0, 0, 32);
    put(BPF_ALU64 | BPF_XOR | BPF_X, 7, 0, 0, 0);
  }
  void mix_words(int first, int end) {
    for (int at = first; at < end; at += 4) {
      load(BPF_W, at);
      mix_in();
    }
  }
  std::size_t jump(int code, int reg, std::int32_t value) {
    put(BPF_JMP | code, reg, 0, 0, value);
    return program_.size() - 1;
  }
  void land(std::initializer_list<std::size_t> jumps) {
    for (const std::size_t from : jumps) {
      program_[from].off = static_cast<std::int16_t>(program_.size() - from - 1);
    }
  }
  const std::vector<bpf_insn>& program() const { return program_; }

 private:
  std::vector<bpf_insn> program_;
};

std::vector<bpf_insn> assemble(std::uint64_t seed) {
  Assembler a;
  a.put(BPF_ALU64 | BPF_MOV | BPF_X, 6, 1, 0, 0);
  a.put_wide(7, seed);
  a.put_wide(9, kMultiplier);
  a.load(BPF_B, 0);
  a.put(BPF_ALU64 | BPF_RSH | BPF_K, 0, 0, 0, 4);
  const std::size_t to_v4 = a.jump(BPF_JEQ | BPF_K, 0, 4);
  const std::size_t to_v6 = a.jump(BPF_JEQ | BPF_K, 0, 6);
  a.put(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0);
  a.put(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);

  a.land({to_v4});
  a.load(BPF_H, 6);  // more fragments, or an offset
  a.put(BPF_ALU64 | BPF_MOV | BPF_X, 8, 0, 0, 0);
  a.put(BPF_ALU64 | BPF_AND | BPF_K, 8, 0, 0, 0x3fff);
  a.mix_words(12, 20);
  const std::size_t fragment = a.jump(BPF_JNE | BPF_K, 8, 0);
  a.load(BPF_B, 9);
  const std::size_t other4 = a.jump(BPF_JNE | BPF_K, 0, kProtocolTcp);
  a.load(BPF_B, 0);
  a.put(BPF_ALU64 | BPF_AND | BPF_K, 0, 0, 0, 0xf);
  a.put(BPF_ALU64 | BPF_LSH | BPF_K, 0, 0, 0, 2);
  a.put(BPF_LD | BPF_IND | BPF_W, 0, 0, 0, SKF_NET_OFF);
  a.mix_in();
  const std::size_t done4 = a.jump(BPF_JA, 0, 0);

  a.land({to_v6});
  a.mix_words(8, 40);
  a.load(BPF_B, 6);
  const std::size_t other6 = a.jump(BPF_JNE | BPF_K, 0, kProtocolTcp);
  a.load(BPF_W, 40);
  a.mix_in();

  a.land({fragment, other4, done4, other6});
  a.put(BPF_ALU64 | BPF_MOV | BPF_X, 0, 7, 0, 0);
  a.put(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
  return a.program();
}

std::uint64_t address_of(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

}  // namespace

std::uint32_t QueueSteering::queue_of(const SocketAddress& source,
                                      const SocketAddress& destination) const {
  if (queues <= 1) {
    return 0;
  }
  std::uint64_t hash = mix_address(seed, source.ip);
  hash = mix_address(hash, destination.ip);
  hash = mix(hash, std::uint32_t{source.port} << 16 | destination.port);
  return static_cast<std::uint32_t>(hash) % queues;
}

Result<UniqueFd> load_steering_program(const QueueSteering& steering) {
  const std::vector<bpf_insn> program = assemble(steering.seed);
  static constexpr char kLicence[] = "Apache-2.0";
  bpf_attr attributes{};
  attributes.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
  attributes.insns = address_of(program.data());
  attributes.insn_cnt = static_cast<std::uint32_t>(program.size());
  attributes.license = address_of(kLicence);
  const long fd = ::syscall(SYS_bpf, BPF_PROG_LOAD, &attributes, sizeof(attributes));
  if (fd >= 0) {
    return UniqueFd(static_cast<int>(fd));
  }
  if (errno == EPERM || errno == EACCES) {
    return Status::error(Code::kPermission,
                         "spreading packets over several workers needs CAP_BPF (run as root, or "
                         "with workers = 1)",
                         errno);
  }
  return Status::error(Code::kSystem, "load the program that spreads packets over workers", errno);
}

}  // namespace sanproxy::packet_io
