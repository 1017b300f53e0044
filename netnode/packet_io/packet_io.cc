#include "netnode/packet_io/packet_io.h"

#include <linux/if.h>

#include "netnode/packet_io/drivers.h"
#include "netnode/packet_io/tunnel_io.h"

namespace sanproxy::packet_io {
namespace {

constexpr std::uint32_t kMtuBytesMin = 1280;  // RFC 8200 5
constexpr std::uint32_t kMtuBytesMax = 65'521;

Status check(const InterfaceOptions& options) {
  if (options.name.empty() || options.name.size() >= IFNAMSIZ ||
      options.name.find_first_of("/% \t\n:") != std::string::npos) {
    return Status::error(Code::kInvalidArgument,
                         "an interface name has 1 to 15 characters and no space, '/', ':' or '%'");
  }
  if (options.mtu_bytes < kMtuBytesMin || options.mtu_bytes > kMtuBytesMax) {
    return Status::error(Code::kInvalidArgument, "the MTU must be between 1280 and 65521 bytes");
  }
  for (const IpPrefix& address : options.addresses) {
    if (address.ip.family == Family::kNone || address.length_bits > address.ip.size() * 8) {
      return Status::error(Code::kInvalidArgument, "an interface address has a bad prefix length");
    }
  }
  return Status();
}

Result<std::unique_ptr<PacketIo>> open_driver(const InterfaceOptions& options) {
  if (options.driver == "tun") {
    return open_tun(options);
  }
  if (options.driver == "tap") {
    return open_tap(options);
  }
  if (options.driver == "packet") {
    return open_packet_socket(options);
  }
  if (options.driver == "xdp") {
    return open_xdp(options);
  }
  return Status::error(Code::kInvalidArgument,
                       "unknown interface driver (known: tun, tap, packet, xdp)");
}

}  // namespace

Result<std::unique_ptr<PacketIo>> open_interface(const InterfaceOptions& options) {
  Status status = check(options);
  if (!status.ok()) {
    return status;
  }
  Result<std::unique_ptr<PacketIo>> io = open_driver(options);
  if (!io.ok() || options.decapsulate_from.empty()) {
    return io;
  }
  if ((*io)->lends()) {
    return Status::error(Code::kUnsupported,
                         "decapsulate_from needs driver \"tun\", \"tap\" or \"packet\"");
  }
  return make_tunnel_io(std::move(io).value());
}

bool has_queues(const InterfaceOptions& options) {
  // Tunnels' packets are all of one flow to who looks at their outer addresses.
  return options.decapsulate_from.empty() &&
         (options.driver == "tun" || options.driver == "packet");
}

Result<std::vector<UniqueFd>> open_queues(const InterfaceOptions& options,
                                          const QueueSteering& steering) {
  Status status = check(options);
  if (!status.ok()) {
    return status;
  }
  if (steering.queues == 0 || steering.queues > kQueuesMax) {
    return Status::error(Code::kInvalidArgument, "an interface has 1 to 64 queues");
  }
  if (!has_queues(options)) {
    return Status::error(Code::kUnsupported, "this driver has one queue");
  }
  auto program = load_steering_program(steering);
  if (!program.ok()) {
    return program.status();
  }
  return options.driver == "tun" ? open_tun_queues(options, steering.queues, program->get())
                                 : open_packet_queues(options, steering.queues, program->get());
}

bool PacketIo::kernel_way(const IpAddress&, KernelWay&) { return false; }

}  // namespace sanproxy::packet_io
