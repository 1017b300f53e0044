#include "netnode/packet_io/xdp_program.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <linux/if_link.h>

#include <cerrno>
#include <vector>

namespace sanproxy::packet_io {
namespace {

// r6: context.
std::vector<bpf_insn> make_program(const AddressMap& addresses, int sockets,
                                   const FlowRedirect* redirect) {
  BpfCode code;
  code.move(6, 1);
  if (redirect != nullptr) {
    redirect->match(code, FlowRedirect::Context::kFrame, net::kEthernetHeaderBytes,
                    BpfCode::kNoFlow);
    code.set(0, XDP_PASS);
    code.exit();
    code.here(BpfCode::kNoFlow);
  }
  match_destination(code, {offsetof(xdp_md, data), offsetof(xdp_md, data_end)}, addresses, true);
  code.load_map(1, sockets);
  code.load(BPF_W, 2, 6, offsetof(xdp_md, rx_queue_index));
  code.set(3, XDP_PASS);  // when there is no socket for that queue
  code.call(BPF_FUNC_redirect_map);
  code.exit();
  code.here(BpfCode::kOther);
  code.set(0, XDP_PASS);
  code.exit();
  return code.finish();
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
                                                       bool driver_mode,
                                                       const FlowRedirect* redirect) {
  auto addresses = AddressMap::create(addresses_max);
  if (!addresses.ok()) return bpf_error("create a BPF map", errno);
  std::unique_ptr<XdpProgram> out(new XdpProgram(std::move(*addresses)));
  const auto made = [](UniqueFd& into, int fd) {
    if (fd >= 0) into = UniqueFd(fd);
    return fd >= 0;
  };
  if (!made(out->sockets_,
            bpf_map_create(BPF_MAP_TYPE_XSKMAP, "san_sockets", 4, 4, queues, nullptr))) {
    return bpf_error("create a BPF map", errno);
  }
  const std::vector<bpf_insn> code = make_program(out->addresses_, out->sockets_.get(), redirect);
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

}  // namespace sanproxy::packet_io
