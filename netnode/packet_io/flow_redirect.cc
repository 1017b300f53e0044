#include "netnode/packet_io/flow_redirect.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "netnode/net/checksum.h"
#include "netnode/packet_io/flow_redirect_entry.h"

namespace sanproxy::packet_io {
namespace {

// The kernel puts no frame header in front of more than 16 KB that are no super-packet.
constexpr std::uint32_t kPlainBytesMax = 15'000;

Status bpf_error(const char* what, int error) {
  if (error == EPERM || error == EACCES) {
    return Status::error(Code::kPermission, "needs CAP_BPF and CAP_NET_ADMIN", error);
  }
  return Status::error(Code::kSystem, what, error);
}

}  // namespace

Result<std::unique_ptr<FlowRedirect>> FlowRedirect::create(std::uint32_t flows_max) {
  auto out = create(flows_max, Way::kTcx);
  if (out.status().code() != Code::kUnsupported) return out;
  return create(flows_max, Way::kClsact);
}

Result<std::unique_ptr<FlowRedirect>> FlowRedirect::create(std::uint32_t flows_max, Way way) {
  std::unique_ptr<FlowRedirect> out(new FlowRedirect(way));
  const auto made = [](UniqueFd& into, int fd) {
    if (fd >= 0) into = UniqueFd(fd);
    return fd >= 0;
  };
  bpf_map_create_opts on_demand{}, shared{};
  on_demand.sz = shared.sz = sizeof(bpf_map_create_opts);
  on_demand.map_flags = BPF_F_NO_PREALLOC;
  shared.map_flags = BPF_F_MMAPABLE;
  if (!made(out->flows_, bpf_map_create(BPF_MAP_TYPE_HASH, "san_flows", sizeof(net::FlowKey),
                                        sizeof(RedirectEntry), flows_max, &on_demand)) ||
      !made(out->now_map_,
            bpf_map_create(BPF_MAP_TYPE_ARRAY, "san_now", 4, sizeof(Now), 1, &shared)) ||
      !made(out->counters_map_, bpf_map_create(BPF_MAP_TYPE_PERCPU_ARRAY, "san_carried", 4,
                                               sizeof(RedirectCarried), 1, nullptr))) {
    return bpf_error("create a BPF map", errno);
  }
  void* now =
      ::mmap(nullptr, sizeof(Now), PROT_READ | PROT_WRITE, MAP_SHARED, out->now_map_.get(), 0);
  if (now == MAP_FAILED) return bpf_error("map a BPF map", errno);
  out->now_ = static_cast<Now*>(now);
  // What the kernel refuses it refuses here, and not at half of the interfaces.
  for (const Hook hook : {Hook::kIngress, Hook::kEgress}) {
    const Result<UniqueFd> program = out->load(hook);
    if (!program.ok()) return program.status();
    const Status status = InterfaceHook::try_out(program->get(), hook, way);
    if (!status.ok()) return status;
  }
  if (const auto filter = out->load_filter(); !filter.ok()) return filter.status();
  if (const Status status = out->try_frames(); !status.ok()) return status;
  return out;
}

// Its part of an XDP program, which takes a helper that came with Linux 5.18.
Status FlowRedirect::try_frames() const {
  BpfCode code;
  code.move(6, 1);
  match(code, Context::kFrame, net::kEthernetHeaderBytes, BpfCode::kNoFlow);
  code.here(BpfCode::kNoFlow);
  code.set(0, XDP_PASS);
  code.exit();
  const std::vector<bpf_insn>& made = code.finish();
  const UniqueFd program(
      bpf_prog_load(BPF_PROG_TYPE_XDP, "san_trial", "GPL", made.data(), made.size(), nullptr));
  if (program.valid()) return {};
  if (errno == EPERM || errno == EACCES) return bpf_error("", errno);
  return Status::error(Code::kUnsupported, "needs Linux 5.18", errno);
}

FlowRedirect::~FlowRedirect() {
  if (now_ != nullptr) ::munmap(now_, sizeof(Now));
}

Result<UniqueFd> FlowRedirect::load(Hook hook) const {
  const std::vector<bpf_insn> code = make_program(hook);
  UniqueFd program(bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, "san_redirect", "GPL", code.data(),
                                 code.size(), nullptr));
  if (!program.valid()) return bpf_error("load the program for flows", errno);
  return program;
}

Status FlowRedirect::attach(int interface_index, Hook hook) {
  const Result<UniqueFd> program = load(hook);
  if (!program.ok()) return program.status();
  auto attached = InterfaceHook::attach(program->get(), interface_index, hook, way_);
  if (!attached.ok()) return attached.status();
  hooks_.push_back(std::move(*attached));
  return {};
}

bool FlowRedirect::put(const net::FlowKey& from, const FlowTranslation& what,
                       const KernelWay& way) {
  if (now_->s < next_try_s_) {
    ++refused_;
    return false;
  }
  // One hop less is one less in the word that it begins.
  constexpr std::uint64_t kHop = 0xfffe;
  RedirectEntry entry;
  entry.generation = now_->generation;
  entry.since_s = now_->s;
  entry.source = what.to.src;
  entry.destination = what.to.dst;
  entry.ports = std::uint32_t{__builtin_bswap16(what.to.src_port)} |
                std::uint32_t{__builtin_bswap16(what.to.dst_port)} << 16;
  entry.mtu_bytes = std::min(way.mtu_bytes, kPlainBytesMax);
  entry.addresses_delta = what.addresses_delta;
  entry.ports_delta = what.ports_delta;
  entry.ipv4_delta = net::fold(std::uint64_t{what.addresses_delta} + kHop);
  entry.interface_index = way.interface_index;
  entry.redirect_flags = way.into_host ? std::uint32_t{BPF_F_INGRESS} : 0;
  entry.ethernet = way.ethernet ? 1 : 0;
  entry.to_client = what.to_client ? 1 : 0;
  std::memcpy(entry.frame.data(), way.frame.data(), way.frame.size());
  const bool taken = bpf_map_update_elem(flows_.get(), &from, &entry, BPF_ANY) == 0;
  ++(taken ? put_ : refused_);
  if (!taken) next_try_s_ = now_->s + 1;
  return taken;
}

void FlowRedirect::erase(const net::FlowKey& from) {
  (void)bpf_map_delete_elem(flows_.get(), &from);
}

void FlowRedirect::invalidate() {
  std::atomic_ref(now_->generation).fetch_add(1, std::memory_order_relaxed);
}

void FlowRedirect::set_time(std::uint32_t s) {
  std::atomic_ref(now_->s).store(s, std::memory_order_relaxed);
  std::atomic_ref(now_->lease_s).store(s + kLeaseS, std::memory_order_relaxed);
}

FlowRedirectCounters FlowRedirect::counters() const {
  FlowRedirectCounters out;
  out.put = put_;
  out.refused = refused_;
  const int processors = libbpf_num_possible_cpus();
  if (processors <= 0) return out;
  std::vector<RedirectCarried> each(static_cast<std::size_t>(processors));
  const std::uint32_t first = 0;
  if (bpf_map_lookup_elem(counters_map_.get(), &first, each.data()) != 0) return out;
  for (const RedirectCarried& one : each) {
    out.to_proxy += one.to_proxy;
    out.to_client += one.to_client;
    out.dropped += one.dropped;
  }
  return out;
}

Result<UniqueFd> FlowRedirect::load_filter() const {
  const std::vector<bpf_insn> code = make_filter();
  UniqueFd filter(bpf_prog_load(BPF_PROG_TYPE_SOCKET_FILTER, "san_filter", "GPL", code.data(),
                                code.size(), nullptr));
  if (!filter.valid()) return bpf_error("load the filter of a packet socket", errno);
  return filter;
}

}  // namespace sanproxy::packet_io
