#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "bench/tools/client_options.h"

namespace sanproxy::bench {
namespace {

socklen_t to_sockaddr(const SocketAddress& address, sockaddr_storage& out) {
  out = {};
  if (address.ip.family == Family::kIpv6) {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&out);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(address.port);
    std::memcpy(&v6->sin6_addr, address.ip.bytes.data(), 16);
    return sizeof(*v6);
  }
  auto* v4 = reinterpret_cast<sockaddr_in*>(&out);
  v4->sin_family = AF_INET;
  v4->sin_port = htons(address.port);
  std::memcpy(&v4->sin_addr, address.ip.bytes.data(), 4);
  return sizeof(*v4);
}

int connect_with(const ClientOptions& options, std::uint32_t index, bool non_blocking) {
  const int fd = make_socket(options, index, non_blocking);
  sockaddr_storage address;
  const socklen_t length = to_sockaddr(options.target, address);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), length) != 0 && errno != EINPROGRESS) {
    fail("connect");
  }
  return fd;
}

}  // namespace

void fail(const char* what) {
  std::fprintf(stderr, "bench_client: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

bool announce_ready(const ClientOptions& options) {
  std::puts("READY");
  std::fflush(stdout);
  if (!options.wait_go) return true;
  char line[64];
  return std::fgets(line, sizeof(line), stdin) != nullptr;
}

int make_socket(const ClientOptions& options, std::uint32_t index, bool non_blocking) {
  const int domain = options.target.ip.family == Family::kIpv6 ? AF_INET6 : AF_INET;
  const int fd = socket(domain, SOCK_STREAM | SOCK_CLOEXEC | (non_blocking ? SOCK_NONBLOCK : 0), 0);
  if (fd < 0) fail("socket");
  const int one = 1;
  // With one small request a connection Nagle's algorithm has nothing to hold back.
  if (options.mode != "connect" &&
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) != 0) {
    fail("TCP_NODELAY");
  }
  if (!options.sources.empty()) {
    // The port is chosen at connect(), when the other end is known: 64k ports per pair.
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
    sockaddr_storage source;
    const socklen_t length =
        to_sockaddr({options.sources[index % options.sources.size()], 0}, source);
    if (bind(fd, reinterpret_cast<sockaddr*>(&source), length) != 0) fail("bind to source");
  }
  return fd;
}

int connect_blocking(const ClientOptions& options, std::uint32_t index) {
  return connect_with(options, index, false);
}

int connect_starting(const ClientOptions& options, std::uint32_t index) {
  return connect_with(options, index, true);
}

}  // namespace sanproxy::bench
