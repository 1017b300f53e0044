#include "bench/tools/raw_tcp.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "bench/tools/interval.h"
#include "bench/tools/measurement.h"
#include "lwproto/base/unique_fd.h"

namespace sanproxy::bench {
namespace {

constexpr std::size_t kReadBytes = 256 * 1024;
// So often the clock is looked at: often enough for a second of large messages, seldom enough to
// cost nothing beside a system call.
constexpr std::uint32_t kSendsPerLook = 64;

int fail(const char* what) {
  std::fprintf(stderr, "fabric_bench: %s: %s\n", what, std::strerror(errno));
  return 1;
}

sockaddr_in socket_of(const SocketAddress& address) {
  sockaddr_in out{};
  out.sin_family = AF_INET;
  out.sin_port = htons(address.port);
  std::memcpy(&out.sin_addr, address.ip.bytes.data(), 4);
  return out;
}

UniqueFd make_socket() {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (fd.valid()) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  return fd;
}

}  // namespace

int serve_raw(const SocketAddress& address) {
  const UniqueFd listener = make_socket();
  const sockaddr_in at = socket_of(address);
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at)) != 0 ||
      ::listen(listener.get(), 1) != 0) {
    return fail("listen");
  }
  std::puts("READY");
  std::fflush(stdout);
  const UniqueFd fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) return fail("accept");
  std::vector<std::byte> buffer(kReadBytes);
  for (;;) {
    const ssize_t n = ::recv(fd.get(), buffer.data(), buffer.size(), 0);
    if (n == 0) return 0;
    if (n < 0) return errno == ECONNRESET ? 0 : fail("recv");
  }
}

int run_raw(const SocketAddress& address, const RawLoad& load) {
  const UniqueFd fd = make_socket();
  const sockaddr_in to = socket_of(address);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)) != 0) {
    return fail("connect");
  }
  const int on = 1;
  ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  const std::vector<std::byte> message(load.message_bytes, std::byte{0x5a});
  Measurement measurement({});
  measurement.start();
  Interval interval(load.warmup_seconds, load.seconds);
  std::uint64_t sent = 0;
  do {
    for (std::uint32_t i = 0; i < kSendsPerLook; ++i) {
      // A blocking send() takes all of it.
      if (::send(fd.get(), message.data(), message.size(), MSG_NOSIGNAL) !=
          static_cast<ssize_t>(message.size())) {
        return fail("send");
      }
    }
    sent += kSendsPerLook;
  } while (interval.see(sent));
  measurement.stop();
  std::printf(
      "{\"fabric\": \"raw tcp\", \"message_bytes\": %u, \"messages\": %llu, "
      "\"messages_per_s\": %.1f, \"mb_per_s\": %.3f, \"cpu_s\": %s}\n",
      load.message_bytes, static_cast<unsigned long long>(interval.count()), interval.per_second(),
      interval.per_second() * load.message_bytes / 1e6, measurement.cpu_json().c_str());
  return 0;
}

}  // namespace sanproxy::bench
