#include "netnode/packet_io/tun_device.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "netnode/packet_io/drivers.h"

namespace sanproxy::packet_io {
namespace {

// The device's ring from the kernel to us, in packets. It is the only queue on that way; a full
// one drops, so it must cover what arrives while the worker is busy with one round.
constexpr std::uint32_t kQueueLengthPackets = 10'000;

// So long a device may still be held by the workers of a supervisor that was killed just now.
constexpr int kHeldTries = 100;
constexpr auto kHeldPause = std::chrono::milliseconds(20);

Status open_error(int error) {
  switch (error) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return Status::error(Code::kNotFound,
                           "/dev/net/tun is missing: load the driver (modprobe tun)", error);
    case EPERM:
    case EACCES:
      return Status::error(Code::kPermission,
                           "opening /dev/net/tun needs CAP_NET_ADMIN (run as root)", error);
    default:
      return Status::error(Code::kSystem, "open /dev/net/tun", error);
  }
}

Status attach_error(int error) {
  switch (error) {
    case EBUSY:
      return Status::error(Code::kExists,
                           "a device of this name exists and another process has it open", error);
    case EPERM:
    case EACCES:
      return Status::error(Code::kPermission,
                           "creating a TUN/TAP device needs CAP_NET_ADMIN (run as root)", error);
    case EINVAL:
      return Status::error(Code::kExists, "an interface of this name exists and is of another kind",
                           error);
    default:
      return Status::error(Code::kSystem, "create the TUN/TAP device", error);
  }
}

Status configure(const InterfaceOptions& options, TunKind kind, LinkInfo& link) {
  Result<LinkConfig> config = LinkConfig::open();
  if (!config.ok()) {
    return config.status();
  }
  Result<LinkInfo> found = config->query(options.name);
  if (!found.ok()) {
    return found.status();
  }
  link = *found;
  if (kind == TunKind::kTun) {
    // Fails where IPv6 is switched off, and then nothing needs to be kept quiet.
    (void)config->disable_ipv6_autoconf(link.index);
  }
  Status status = config->set_mtu(link.index, options.mtu_bytes);
  if (status.ok()) {
    status = config->set_queue_length(link.index, kQueueLengthPackets);
  }
  if (status.ok()) {
    // An optimisation; kernels without it work as well.
    (void)config->set_no_queue_discipline(link.index);
    status = config->set_up(link.index);
  }
  for (const IpPrefix& address : options.addresses) {
    if (status.ok()) {
      status = config->add_address(link.index, address);
    }
  }
  link.mtu_bytes = options.mtu_bytes;
  return status;
}

// One more descriptor of the device; the first makes it.
Result<UniqueFd> attach(const InterfaceOptions& options, int flags) {
  UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) {
    return open_error(errno);
  }
  ifreq request{};
  options.name.copy(request.ifr_name, IFNAMSIZ - 1);
  request.ifr_flags = static_cast<short>(flags | IFF_NO_PI | IFF_VNET_HDR);
  if (::ioctl(fd.get(), TUNSETIFF, &request) != 0) {
    return attach_error(errno);
  }
  return fd;
}

// A device that is there without a carrier was made to stay, and nobody has it open.
bool is_in_use(const std::string& name) {
  Result<LinkConfig> config = LinkConfig::open();
  if (!config.ok()) return true;
  const Result<LinkInfo> link = config->query(name);
  return !link.ok() || config->has_carrier(link->index);
}

// The first queue of a device that nobody else has: more could be attached to one that is in use,
// and its packets would then be spread over both.
Result<UniqueFd> attach_first_queue(const InterfaceOptions& options) {
  for (int tries = 1;; ++tries) {
    auto fd = attach(options, IFF_TUN | IFF_MULTI_QUEUE | IFF_TUN_EXCL);
    if (fd.ok() || fd.status().sys_errno() != EBUSY) return fd;
    if (!is_in_use(options.name)) return attach(options, IFF_TUN | IFF_MULTI_QUEUE);
    if (tries == kHeldTries) return fd;
    std::this_thread::sleep_for(kHeldPause);
  }
}

Status set_offloads(int fd, const InterfaceOptions& options) {
  const unsigned long offloads = options.segmentation_offload
                                     ? TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
                                     : TUN_F_CSUM;
  if (::ioctl(fd, TUNSETOFFLOAD, offloads) != 0) {
    return Status::error(Code::kSystem, "set the device's offloads (TUNSETOFFLOAD)", errno);
  }
  return Status();
}

Result<TunDevice> adopt_queue(const InterfaceOptions& options) {
  Result<LinkConfig> config = LinkConfig::open();
  if (!config.ok()) {
    return config.status();
  }
  Result<LinkInfo> link = config->query(options.name);
  if (!link.ok()) {
    return link.status();
  }
  TunDevice device;
  device.fd = UniqueFd(::fcntl(options.queue.fd, F_DUPFD_CLOEXEC, 0));
  if (!device.fd.valid()) {
    return Status::error(Code::kSystem, "take over a queue of the device", errno);
  }
  device.link = *link;
  return device;
}

}  // namespace

Result<TunDevice> open_tun_device(const InterfaceOptions& options, TunKind kind) {
  if (options.queue.fd >= 0) {
    return adopt_queue(options);
  }
  auto fd = attach(options, kind == TunKind::kTun ? IFF_TUN : IFF_TAP);
  if (!fd.ok()) {
    return fd.status();
  }
  TunDevice device;
  device.fd = std::move(fd).value();
  Status status = set_offloads(device.fd.get(), options);
  if (status.ok()) {
    status = configure(options, kind, device.link);
  }
  if (!status.ok()) {
    return status;
  }
  return device;
}

Result<std::vector<UniqueFd>> open_tun_queues(const InterfaceOptions& options, std::uint32_t count,
                                              int program) {
  std::vector<UniqueFd> queues;
  for (std::uint32_t i = 0; i < count; ++i) {
    auto fd = i == 0 ? attach_first_queue(options) : attach(options, IFF_TUN | IFF_MULTI_QUEUE);
    if (!fd.ok()) {
      return fd.status();
    }
    queues.push_back(std::move(fd).value());
  }
  Status status = set_offloads(queues.front().get(), options);
  if (!status.ok()) {
    return status;
  }
  if (::ioctl(queues.front().get(), TUNSETSTEERINGEBPF, &program) != 0) {
    return Status::error(Code::kSystem, "spread packets over the queues (TUNSETSTEERINGEBPF)",
                         errno);
  }
  LinkInfo link;
  status = configure(options, TunKind::kTun, link);
  if (!status.ok()) {
    return status;
  }
  return queues;
}

}  // namespace sanproxy::packet_io
