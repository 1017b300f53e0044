#include "lwproto/fabric/tcp/socket.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace sanproxy::fabric::tcp {
namespace {

constexpr int kBacklog = 512;
constexpr int kProbes = 3;

union AnyAddress {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
};

socklen_t to_kernel(const SocketAddress& address, AnyAddress& out) {
  std::memset(&out, 0, sizeof(out));
  if (address.ip.family == Family::kIpv6) {
    out.v6.sin6_family = AF_INET6;
    out.v6.sin6_port = htons(address.port);
    std::memcpy(&out.v6.sin6_addr, address.ip.bytes.data(), 16);
    return sizeof(out.v6);
  }
  out.v4.sin_family = AF_INET;
  out.v4.sin_port = htons(address.port);
  std::memcpy(&out.v4.sin_addr, address.ip.bytes.data(), 4);
  return sizeof(out.v4);
}

SocketAddress from_kernel(const AnyAddress& address) {
  SocketAddress out;
  if (address.any.sa_family == AF_INET6) {
    out.ip.family = Family::kIpv6;
    std::memcpy(out.ip.bytes.data(), &address.v6.sin6_addr, 16);
    out.port = ntohs(address.v6.sin6_port);
  } else {
    out.ip.family = Family::kIpv4;
    std::memcpy(out.ip.bytes.data(), &address.v4.sin_addr, 4);
    out.port = ntohs(address.v4.sin_port);
  }
  return out;
}

bool set(int fd, int level, int option, int value) {
  return ::setsockopt(fd, level, option, &value, sizeof(value)) == 0;
}

Status dial_status(int reason) {
  switch (reason) {
    case ECONNREFUSED:
      return Status::error(Code::kNotFound, "nobody listens there", reason);
    case ETIMEDOUT:
      return Status::error(Code::kTimeout, "connect over TCP", reason);
    case ECONNRESET:
      return Status::error(Code::kDisconnected, "the server closed without an answer", reason);
    default:
      return Status::error(Code::kSystem, "connect over TCP", reason);
  }
}

}  // namespace

Result<UniqueFd> make_socket(Family family) {
  const int domain = family == Family::kIpv6 ? AF_INET6 : AF_INET;
  UniqueFd fd(::socket(domain, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return Status::error(Code::kSystem, "create a TCP socket", errno);
  return fd;
}

Result<UniqueFd> listen_at(SocketAddress& address) {
  auto fd = make_socket(address.ip.family);
  if (!fd.ok()) return fd.status();
  AnyAddress kernel;
  const socklen_t bytes = to_kernel(address, kernel);
  set(fd->get(), SOL_SOCKET, SO_REUSEADDR, 1);
  // An IPv4 listener may have the same port.
  if (address.ip.family == Family::kIpv6) set(fd->get(), IPPROTO_IPV6, IPV6_V6ONLY, 1);
  if (::bind(fd->get(), &kernel.any, bytes) != 0) {
    const int reason = errno;
    if (reason == EACCES) return Status::error(Code::kPermission, "bind the address", reason);
    return Status::error(reason == EADDRINUSE ? Code::kExists : Code::kSystem, "bind the address",
                         reason);
  }
  if (::listen(fd->get(), kBacklog) != 0) {
    const int reason = errno;
    return Status::error(reason == EADDRINUSE ? Code::kExists : Code::kSystem,
                         "listen at the address", reason);
  }
  socklen_t length = sizeof(kernel);
  if (::getsockname(fd->get(), &kernel.any, &length) != 0) {
    return Status::error(Code::kSystem, "read the address", errno);
  }
  address.port = from_kernel(kernel).port;
  return fd;
}

Status dial(int fd, const SocketAddress& address) {
  AnyAddress kernel;
  const socklen_t bytes = to_kernel(address, kernel);
  if (::connect(fd, &kernel.any, bytes) == 0 || errno == EINPROGRESS || errno == EINTR) return {};
  return dial_status(errno);
}

Status dial_error(int fd) {
  int reason = 0;
  socklen_t length = sizeof(reason);
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &reason, &length) != 0) reason = errno;
  return reason == 0 ? Status() : dial_status(reason);
}

Status prepare_socket(int fd, std::uint32_t peer_timeout_ms) {
  // The first probe after a third of the time, then three more; TCP_USER_TIMEOUT ends it, and it
  // alone counts while data is outstanding.
  const int third_s = std::max(1, static_cast<int>(peer_timeout_ms / 3000));
  const int between_s = std::max(1, static_cast<int>(peer_timeout_ms / 4500));
  if (!set(fd, IPPROTO_TCP, TCP_NODELAY, 1) || !set(fd, SOL_SOCKET, SO_KEEPALIVE, 1) ||
      !set(fd, IPPROTO_TCP, TCP_KEEPIDLE, third_s) ||
      !set(fd, IPPROTO_TCP, TCP_KEEPINTVL, between_s) ||
      !set(fd, IPPROTO_TCP, TCP_KEEPCNT, kProbes) ||
      !set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(peer_timeout_ms))) {
    return Status::error(Code::kSystem, "set up a TCP socket", errno);
  }
  return {};
}

Result<SocketAddress> peer_address(int fd) {
  AnyAddress kernel;
  socklen_t length = sizeof(kernel);
  if (::getpeername(fd, &kernel.any, &length) != 0) {
    return Status::error(Code::kDisconnected, "the peer is gone", errno);
  }
  return from_kernel(kernel);
}

std::uint64_t round_trip_ns(int fd) {
  tcp_info info{};
  socklen_t length = sizeof(info);
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return 0;
  return std::min(std::uint64_t{info.tcpi_rtt} * 1000, kRoundTripMaxNs);
}

}  // namespace sanproxy::fabric::tcp
