#include "lwproto/daemon/service_manager.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace sanproxy::daemon {

ServiceManager::ServiceManager() {
  if (const char* path = std::getenv("NOTIFY_SOCKET"); path != nullptr) {
    path_ = path;
    socket_ = UniqueFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  }
  if (const char* usec = std::getenv("WATCHDOG_USEC"); usec != nullptr) {
    beat_every_ns_ = std::strtoull(usec, nullptr, 10) * 1000 / 2;
  }
  for (const char* name : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}) ::unsetenv(name);
}

void ServiceManager::beat(std::uint64_t now_ns) {
  if (beat_every_ns_ == 0 || now_ns < next_beat_ns_) return;
  next_beat_ns_ = now_ns + beat_every_ns_;
  say("WATCHDOG=1");
}

void ServiceManager::say(const char* text) {
  sockaddr_un address{};
  if (!socket_.valid() || path_.empty() || path_.size() >= sizeof(address.sun_path)) return;
  address.sun_family = AF_UNIX;
  std::copy(path_.begin(), path_.end(), address.sun_path);
  if (path_.front() == '@') address.sun_path[0] = '\0';
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path_.size());
  (void)::sendto(socket_.get(), text, std::strlen(text), MSG_NOSIGNAL,
                 reinterpret_cast<const sockaddr*>(&address), length);
}

}  // namespace sanproxy::daemon
