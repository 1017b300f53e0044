#include "netnode/packet_io/device_gone.h"

#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>

#include "lwproto/base/unique_fd.h"

namespace sanproxy::packet_io {

bool tun_gone(int fd) {
  ifreq request{};
  return ::ioctl(fd, TUNGETIFF, &request) != 0 && errno == EBADFD;
}

// The kernel unbinds it when the device goes.
bool packet_socket_gone(int fd) {
  sockaddr_ll address{};
  socklen_t size = sizeof(address);
  return ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0 &&
         address.sll_ifindex == -1;
}

const char* mac_trouble(int index, const net::MacAddress& mac) {
  const UniqueFd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  request.ifr_ifindex = index;
  if (::ioctl(socket.get(), SIOCGIFNAME, &request) != 0) {
    return errno == ENODEV ? kRemoved : nullptr;
  }
  if (::ioctl(socket.get(), SIOCGIFHWADDR, &request) != 0) return nullptr;
  return net::MacAddress::from(request.ifr_hwaddr.sa_data) == mac ? nullptr
                                                                  : "has another MAC address now";
}

bool queue_gone(const InterfaceOptions& options, int fd) {
  return options.driver == "tun" ? tun_gone(fd) : packet_socket_gone(fd);
}

}  // namespace sanproxy::packet_io
