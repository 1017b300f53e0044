#include "netnode/main/prober.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string_view>

#include "lwproto/base/clock.h"
#include "lwproto/base/status.h"

namespace sanproxy::netnode {
namespace {

constexpr std::size_t kStatusLineBytes = 12;                    // "HTTP/1.1 200"
constexpr std::size_t kAnswerBytesMax = 64 * 1024;              // of a 503 that may be draining
constexpr std::size_t kTextBytes = 1024;                        // of them, at a time
constexpr std::string_view kDrainingBody = "\r\n\r\ndraining";  // behind the headers

std::uint64_t now() { return SteadyClock().now_ns() / 1'000'000; }

void signal_fd(int fd) {
  const std::uint64_t one = 1;
  (void)!write(fd, &one, sizeof(one));
}

socklen_t to_kernel(const SocketAddress& address, sockaddr_storage& out) {
  std::memset(&out, 0, sizeof(out));
  if (address.ip.family == Family::kIpv4) {
    auto* in = reinterpret_cast<sockaddr_in*>(&out);
    in->sin_family = AF_INET;
    in->sin_port = htons(address.port);
    std::memcpy(&in->sin_addr, address.ip.bytes.data(), 4);
    return sizeof(sockaddr_in);
  }
  auto* in = reinterpret_cast<sockaddr_in6*>(&out);
  in->sin6_family = AF_INET6;
  in->sin6_port = htons(address.port);
  std::memcpy(&in->sin6_addr, address.ip.bytes.data(), 16);
  return sizeof(sockaddr_in6);
}

}  // namespace

struct Prober::Probe {
  Target target;
  int fd = -1;
  bool connected = false;
  std::uint64_t next_ms = 0;  // when it begins, or must have ended
  std::size_t got = 0;        // in text: the status line, and the last that came
  std::size_t total = 0;      // ever
  char text[kTextBytes] = {};
};

Prober::Prober()
    : wake_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      result_fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (wake_fd_ < 0 || result_fd_ < 0) throw std::runtime_error("prober: eventfd");
  thread_ = std::thread([this] { run(); });
}

Prober::~Prober() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  signal_fd(wake_fd_);
  thread_.join();
  for (const Probe& probe : probes_) {
    if (probe.fd >= 0) close(probe.fd);
  }
  close(wake_fd_);
  close(result_fd_);
}

void Prober::set_targets(std::vector<Target> targets) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (targets == targets_) return;
    // The place of one that has changed may belong to another proxy now.
    std::erase_if(answers_, [&](const Answer& answer) {
      const auto at = [&](const Target& one) { return one.proxy == answer.proxy; };
      const auto before = std::find_if(targets_.begin(), targets_.end(), at);
      const auto now = std::find_if(targets.begin(), targets.end(), at);
      return before == targets_.end() || now == targets.end() || *before != *now;
    });
    targets_ = std::move(targets);
    changed_ = true;
  }
  signal_fd(wake_fd_);
}

std::vector<Prober::Answer> Prober::take() {
  std::uint64_t count = 0;
  (void)!read(result_fd_, &count, sizeof(count));
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(answers_, {});
}

void Prober::adopt_targets() {
  std::uint64_t count = 0;
  (void)!read(wake_fd_, &count, sizeof(count));
  if (!std::exchange(changed_, false)) return;
  std::vector<Probe> before = std::exchange(probes_, {});
  for (const Target& target : targets_) {
    const auto known = std::find_if(before.begin(), before.end(),
                                    [&](const Probe& one) { return one.target == target; });
    if (known == before.end()) {
      probes_.push_back({.target = target});
    } else {
      probes_.push_back(std::move(*known));
      before.erase(known);
    }
  }
  for (const Probe& probe : before) {
    if (probe.fd >= 0) close(probe.fd);
  }
}

bool Prober::is_wanted(const Target& target) const {
  return std::find(targets_.begin(), targets_.end(), target) != targets_.end();
}

void Prober::finish(Probe& probe, Result result, std::uint64_t now_ms, std::string why) {
  if (probe.fd >= 0) close(probe.fd);
  probe.fd = -1;
  probe.next_ms = now_ms + probe.target.settings.interval_ms;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!is_wanted(probe.target)) return;  // an answer about a former place
  answers_.push_back({probe.target.proxy, result, std::move(why)});
  signal_fd(result_fd_);
}

void Prober::begin(Probe& probe, std::uint64_t now_ms) {
  const SocketAddress& to = probe.target.settings.address;
  sockaddr_storage address;
  const socklen_t length = to_kernel(to, address);
  probe.connected = false;
  probe.got = probe.total = 0;
  probe.fd = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (probe.fd < 0 || (connect(probe.fd, reinterpret_cast<sockaddr*>(&address), length) != 0 &&
                       errno != EINPROGRESS)) {
    finish(probe, Result::kBad, now_ms, errno_text(errno));
    return;
  }
  probe.next_ms = now_ms + probe.target.settings.timeout_ms;
}

void Prober::on_ready(Probe& probe, std::uint64_t now_ms) {
  const steer::ProbeSettings& settings = probe.target.settings;
  if (!probe.connected) {
    int error = 0;
    socklen_t length = sizeof(error);
    getsockopt(probe.fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0 || settings.kind == steer::ProbeKind::kTcp) {
      // The handshake says enough; a reset spares the proxy a TIME_WAIT.
      const linger now_reset{1, 0};
      setsockopt(probe.fd, SOL_SOCKET, SO_LINGER, &now_reset, sizeof(now_reset));
      finish(probe, error == 0 ? Result::kGood : Result::kBad, now_ms,
             error == 0 ? "" : errno_text(error));
      return;
    }
    probe.connected = true;
    const std::string request = "GET " + settings.path +
                                " HTTP/1.1\r\nHost: " + settings.address.to_string() +
                                "\r\nUser-Agent: sanproxy-netnode\r\nConnection: close\r\n\r\n";
    if (send(probe.fd, request.data(), request.size(), MSG_NOSIGNAL) !=
        static_cast<ssize_t>(request.size())) {
      finish(probe, Result::kBad, now_ms, errno_text(errno));
    }
    return;
  }
  read_answer(probe, now_ms);
}

void Prober::read_answer(Probe& probe, std::uint64_t now_ms) {
  const ssize_t got = recv(probe.fd, probe.text + probe.got, kTextBytes - probe.got, 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got < 0) return finish(probe, Result::kBad, now_ms, errno_text(errno));
  probe.got += static_cast<std::size_t>(got);
  probe.total += static_cast<std::size_t>(got);
  judge(probe, got == 0 || probe.total >= kAnswerBytesMax, now_ms);
}

// The status line says enough, but of a 503 the body tells who is draining from who is not well.
void Prober::judge(Probe& probe, bool ended, std::uint64_t now_ms) {
  const std::string_view text(probe.text, probe.got);
  if (text.size() < kStatusLineBytes) {
    if (ended) finish(probe, Result::kBad, now_ms, "closed without an answer");
    return;
  }
  const bool http = text.starts_with("HTTP/1.") && text[8] == ' ';
  const std::string status = http ? "status " + std::string(text.substr(9, 3)) : "not HTTP";
  if (http && (text[9] == '2' || text[9] == '3')) {
    finish(probe, Result::kGood, now_ms);
  } else if (!http || text.substr(9, 3) != "503") {
    finish(probe, Result::kBad, now_ms, status);
  } else if (text.find(kDrainingBody) != std::string_view::npos) {
    finish(probe, Result::kDraining, now_ms);
  } else if (ended) {
    finish(probe, Result::kBad, now_ms, status);
  } else if (probe.got == kTextBytes) {
    // The end of the headers may be in part here.
    const std::size_t kept = kDrainingBody.size() - 1;
    std::memmove(probe.text + kStatusLineBytes, probe.text + probe.got - kept, kept);
    probe.got = kStatusLineBytes + kept;
  }
}

void Prober::run() {
  std::vector<pollfd> fds;
  for (;;) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (stop_) return;
      adopt_targets();
    }
    std::uint64_t now_ms = now();
    std::uint64_t next = now_ms + 1'000;
    fds.assign(1, {wake_fd_, POLLIN, 0});
    for (Probe& probe : probes_) {
      if (probe.next_ms <= now_ms) {
        if (probe.fd >= 0) {
          finish(probe, Result::kBad, now_ms,
                 std::string(probe.connected ? "no answer" : "no connection") + " in " +
                     std::to_string(probe.target.settings.timeout_ms) + " ms");
        } else {
          begin(probe, now_ms);
        }
      }
      next = std::min(next, probe.next_ms);
      const short events = probe.connected ? POLLIN : POLLOUT;
      fds.push_back({probe.fd, events, 0});  // a negative one is passed over
    }
    const std::uint64_t wait_ms = next > now_ms ? next - now_ms : 0;
    if (poll(fds.data(), fds.size(), static_cast<int>(wait_ms)) <= 0) continue;
    now_ms = now();
    for (std::size_t i = 0; i < probes_.size(); ++i) {
      if (probes_[i].fd >= 0 && fds[i + 1].revents != 0) on_ready(probes_[i], now_ms);
    }
  }
}

}  // namespace sanproxy::netnode
