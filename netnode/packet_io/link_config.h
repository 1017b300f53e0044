// Link configuration over rtnetlink: MTU, queue length, addresses, link state.
//
// Documents: rtnetlink(7); Linux include/uapi/linux/{rtnetlink,if_link,if_addr}.h.
// Role: sets up the host's side of a device that we made. Start-up only; allocates.
// Owner: open_interface(). Thread: any, one call at a time.
// Invariants:
//   1. A refusal of the kernel comes back as a Status with a text that says what to do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"
#include "netnode/net/ethernet.h"

namespace sanproxy::packet_io {

struct LinkInfo {
  int index = 0;
  std::uint32_t mtu_bytes = 0;
  net::MacAddress mac;
  bool up = false;
  bool ethernet = false;
};

// Whether a driver can sit on the interface with that MTU; `no_ethernet` is the text of the refusal
// of one without frames.
Status check_ethernet_link(const LinkInfo& link, std::uint32_t mtu_bytes, const char* no_ethernet);

class LinkConfig {
 public:
  static Result<LinkConfig> open();

  Result<LinkInfo> query(const std::string& name);
  // Also of one that is down. A TUN device has one as long as somebody has a queue of it open.
  bool has_carrier(int index);
  // Before set_up(): keeps the kernel from giving the device a link-local address of its own (and
  // from soliciting routers on it), which a TUN peer has no use for.
  Status disable_ipv6_autoconf(int index);
  Status set_mtu(int index, std::uint32_t mtu_bytes);
  Status set_queue_length(int index, std::uint32_t packets);
  // Packets go straight to the driver, whose own queue is the only one.
  Status set_no_queue_discipline(int index);
  // IPv6 without duplicate address detection. The kernel takes packets to the address when this
  // returns.
  Status add_address(int index, const IpPrefix& address);
  Status set_up(int index);

 private:
  explicit LinkConfig(UniqueFd netlink, UniqueFd control)
      : netlink_(std::move(netlink)), control_(std::move(control)) {}
  Status request(void* message, const char* what);
  std::span<const std::byte> ask(void* message, std::span<std::byte> answer);
  bool is_local(const IpAddress& address);
  Status wait_until_local(const IpAddress& address);

  UniqueFd netlink_;
  UniqueFd control_;  // for the ioctls that answer questions
  std::uint32_t sequence_ = 0;
};

}  // namespace sanproxy::packet_io
