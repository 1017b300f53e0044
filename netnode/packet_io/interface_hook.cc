#include "netnode/packet_io/interface_hook.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <string>
#include <utility>

#include "netnode/packet_io/bpf_code.h"

namespace sanproxy::packet_io {
namespace {

constexpr int kLoopback = 1;
constexpr std::uint32_t kTrial = InterfaceHook::kPlacesMax + 1;
// Our places among the filters of a queue discipline; what the handles of filters count.
constexpr __u32 kPriority = 0x5a10;

bpf_tc_hook hook_of(int interface_index, InterfaceHook::Side side) {
  bpf_tc_hook out{};
  out.sz = sizeof(out);
  out.ifindex = interface_index;
  out.attach_point = side == InterfaceHook::Side::kIngress ? BPF_TC_INGRESS : BPF_TC_EGRESS;
  return out;
}

bpf_tc_opts options_of(std::uint32_t place) {
  bpf_tc_opts out{};
  out.sz = sizeof(out);
  out.handle = place;
  out.priority = kPriority;
  return out;
}

Status failed(const char* what, int error) {
  if (error == EPERM || error == EACCES) {
    return Status::error(Code::kPermission, "needs CAP_BPF and CAP_NET_ADMIN", error);
  }
  return Status::error(Code::kUnsupported, what, error);
}

// 0, or what is in the way; `made` says whether the queue discipline was not there before.
int attach_clsact(int program, const bpf_tc_hook& where, std::uint32_t place, bool& made) {
  libbpf_set_print(nullptr);  // says on stderr that there is one already
  bpf_tc_hook hook = where;
  const int error = -bpf_tc_hook_create(&hook);
  made = error == 0;
  if (error != 0 && error != EEXIST) return error;
  bpf_tc_opts options = options_of(place);
  options.prog_fd = program;
  options.flags = BPF_TC_F_REPLACE;
  return -bpf_tc_attach(&hook, &options);
}

}  // namespace

Result<InterfaceHook> InterfaceHook::attach(int program, int interface_index, Side side, Way way) {
  InterfaceHook out;
  if (way == Way::kTcx) {
    const auto where = side == Side::kIngress ? kTcxIngress : kTcxEgress;
    out.link_ = UniqueFd(bpf_link_create(program, interface_index, where, nullptr));
    if (!out.link_.valid()) return failed("tcx needs Linux 6.6", errno);
    return out;
  }
  // The first that nobody alive has; what a dead one left there is replaced.
  for (std::uint32_t place = 1; place <= kPlacesMax; ++place) {
    if (!out.hold_place(interface_index, side, place)) {
      if (errno == EADDRINUSE) continue;
      return failed("hold a place in clsact", errno);
    }
    bool made = false;
    const int error = attach_clsact(program, hook_of(interface_index, side), place, made);
    if (error != 0) return failed("clsact with a BPF program", error);
    out.interface_index_ = interface_index;
    out.side_ = side;
    out.place_ = place;
    return out;
  }
  return Status::error(Code::kExists, "all places in clsact at the interface are taken", EBUSY);
}

// By a name in the network namespace that goes with its process.
bool InterfaceHook::hold_place(int interface_index, Side side, std::uint32_t place) {
  held_ = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!held_.valid()) return false;
  const std::string name = "sanproxy/clsact/" + std::to_string(interface_index) +
                           (side == Side::kIngress ? "/ingress/" : "/egress/") +
                           std::to_string(place);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path + 1,
            sizeof(address.sun_path) - 1);  // behind a zero: in no file system
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return ::bind(held_.get(), reinterpret_cast<const sockaddr*>(&address), bytes) == 0;
}

Status InterfaceHook::try_out(int program, Side side, Way way) {
  if (way == Way::kTcx) return attach(program, kLoopback, side, way).status();
  bpf_tc_hook hook = hook_of(kLoopback, side);
  bool made = false;
  const int error = attach_clsact(program, hook, kTrial, made);
  if (error == 0) {
    const bpf_tc_opts options = options_of(kTrial);
    (void)bpf_tc_detach(&hook, &options);
  }
  if (made) {
    hook.attach_point = static_cast<bpf_tc_attach_point>(BPF_TC_INGRESS | BPF_TC_EGRESS);
    (void)bpf_tc_hook_destroy(&hook);
  }
  return error == 0 ? Status() : failed("clsact with a BPF program", error);
}

InterfaceHook::InterfaceHook(InterfaceHook&& other) noexcept
    : link_(std::move(other.link_)),
      held_(std::move(other.held_)),
      interface_index_(std::exchange(other.interface_index_, 0)),
      place_(other.place_),
      side_(other.side_) {}

InterfaceHook::~InterfaceHook() {
  if (interface_index_ == 0) return;
  const bpf_tc_hook hook = hook_of(interface_index_, side_);
  const bpf_tc_opts options = options_of(place_);
  (void)bpf_tc_detach(&hook, &options);
}

}  // namespace sanproxy::packet_io
