#include "netnode/packet_io/ingress_drop.h"

#include <bpf/bpf.h>

#include <cerrno>

namespace sanproxy::packet_io {
namespace {

// r6: context.
std::vector<bpf_insn> make_program(const AddressMap& addresses) {
  BpfCode code;
  code.move(6, 1);
  only_untagged_for_host(code);
  match_destination(code, {offsetof(__sk_buff, data), offsetof(__sk_buff, data_end)}, addresses,
                    false);
  code.set(0, kTcxDrop);
  code.exit();
  code.here(BpfCode::kOther);
  code.set(0, kTcxNext);
  code.exit();
  return code.finish();
}

Status error_of(int error) {
  if (error == EPERM || error == EACCES) {
    return Status::error(Code::kPermission, "needs CAP_BPF and CAP_NET_ADMIN", error);
  }
  return Status::error(Code::kUnsupported, "needs Linux 6.6", error);
}

}  // namespace

Result<std::unique_ptr<IngressDrop>> IngressDrop::attach(int interface_index,
                                                         std::uint32_t addresses_max) {
  auto addresses = AddressMap::create(addresses_max);
  if (!addresses.ok()) return error_of(errno);
  const std::vector<bpf_insn> code = make_program(*addresses);
  UniqueFd program(bpf_prog_load(BPF_PROG_TYPE_SCHED_CLS, "san_ingress", "GPL", code.data(),
                                 code.size(), nullptr));
  if (!program.valid()) return error_of(errno);
  UniqueFd link(bpf_link_create(program.get(), interface_index, kTcxIngress, nullptr));
  if (!link.valid()) return error_of(errno);
  return std::unique_ptr<IngressDrop>(
      new IngressDrop(std::move(*addresses), std::move(program), std::move(link)));
}

}  // namespace sanproxy::packet_io
