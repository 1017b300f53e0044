#include "lwproto/fabric/tcp/core.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace sanproxy::fabric::tcp {
namespace {

constexpr std::size_t kEventsPerWait = 64;
constexpr int kWaitsPerPump = 16;  // bounds a pump while peers keep the sockets busy
constexpr std::uint64_t kTicksPerTimeout = 4;
constexpr std::size_t kDiscardBytes = 1024 * 1024;  // of one connection, each time

}  // namespace

Result<std::shared_ptr<Core>> Core::create(const TcpOptions& options) {
  auto core = std::make_shared<Core>();
  core->options_ = options;
  core->counters_ = options.counters != nullptr ? options.counters : &core->own_counters_;
  core->clock_ = options.clock != nullptr ? options.clock : &core->steady_;
  if (!options.certificate_file.empty() || !options.key_file.empty() ||
      !options.authority_file.empty()) {
    auto tls =
        TlsContext::create(options.certificate_file, options.key_file, options.authority_file);
    if (!tls.ok()) return tls.status();
    core->tls_ = std::move(*tls);
  }
  core->epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!core->epoll_.valid()) return Status::error(Code::kSystem, "create an epoll set", errno);
  for (UniqueFd* timer : {&core->timer_, &core->alarm_}) {
    *timer = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
    if (!timer->valid()) return Status::error(Code::kSystem, "create a timer", errno);
    Status watched = core->watch_listener(timer->get(), nullptr);
    if (!watched.ok()) return watched;
  }
  return core;
}

Core::~Core() = default;

std::unique_ptr<Transport> Core::make_transport(UniqueFd fd, bool server) const {
  if (tls_ == nullptr) return make_plain_transport(std::move(fd));
  return tls_->make_transport(std::move(fd), server);
}

Status Core::watch(int fd, PollTarget* target) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.ptr = target;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return Status::error(Code::kSystem, "watch a socket", errno);
  }
  return {};
}

Status Core::watch_listener(int fd, PollTarget* target) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = target;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return Status::error(Code::kSystem, "watch a socket", errno);
  }
  return {};
}

void Core::rewatch(int fd, PollTarget* target) {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.ptr = target;
  // Cannot fail for a socket that is in the set. What is ready is reported anew.
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
}

void Core::unwatch(int fd) { ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

void Core::add(Participant* participant) { participants_.push_back(participant); }
void Core::remove(Participant* participant) { std::erase(participants_, participant); }

void Core::start_ticking() {
  if (ticking_) return;
  ticking_ = true;
  const std::uint64_t shortest_ms =
      std::min(options_.handshake_timeout_ms, options_.close_timeout_ms);
  const std::uint64_t tick_ns =
      std::max<std::uint64_t>(shortest_ms * 1'000'000ull / kTicksPerTimeout, 1'000'000);
  itimerspec when{};
  when.it_value.tv_sec = static_cast<time_t>(tick_ns / 1'000'000'000);
  when.it_value.tv_nsec = static_cast<long>(tick_ns % 1'000'000'000);
  when.it_interval = when.it_value;
  ::timerfd_settime(timer_.get(), 0, &when, nullptr);
}

void Core::tick() {
  bool waiting = !lingering_.empty();
  for (Participant* participant : participants_) {
    if (!participant->waiting()) continue;
    participant->on_tick();
    waiting |= participant->waiting();
  }
  const std::uint64_t now = now_ns();
  for (Lingering& last : lingering_) last.done = last.done || now >= last.deadline_ns;
  if (waiting) {
    // A periodic timer goes on only when it has been read.
    std::uint64_t expirations = 0;
    [[maybe_unused]] const ssize_t n = ::read(timer_.get(), &expirations, sizeof(expirations));
    return;
  }
  ticking_ = false;
  const itimerspec never{};
  ::timerfd_settime(timer_.get(), 0, &never, nullptr);  // also forgets an expiry
}

void Core::part(std::unique_ptr<Transport> transport) {
  // Not only close(): a forked child may hold the socket too.
  if (::shutdown(transport->fd(), SHUT_WR) != 0) return unwatch(transport->fd());
  if (lingering_.size() >= options_.lingering_max) {
    ++counters_->lingering_dropped;
    // Closed by the next sweep: we may be inside a pump().
    const auto oldest = std::find_if(lingering_.begin(), lingering_.end(),
                                     [](const Lingering& last) { return !last.done; });
    if (oldest != lingering_.end()) oldest->done = true;
  }
  Lingering& last = lingering_.emplace_back();
  last.transport = std::move(transport);
  last.deadline_ns = now_ns() + options_.close_timeout_ms * 1'000'000ull;
  // As long as there is something to read: a peer that has much to say is read in turn with others.
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = static_cast<PollTarget*>(&last);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, last.transport->fd(), &event);
  start_ticking();
}

void Core::Lingering::on_events(std::uint32_t /*events*/) {
  // Below TLS, and not even copied: nobody wants to know what it says.
  const ssize_t n = ::recv(transport->fd(), nullptr, kDiscardBytes, MSG_DONTWAIT | MSG_TRUNC);
  if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))) return;
  done = true;
}

void Core::sweep() {
  sweep_due_ = false;
  for (Participant* participant : participants_) participant->sweep();
}

void Core::sweep_lingering() {
  std::erase_if(lingering_, [this](Lingering& last) {
    if (last.done) unwatch(last.transport->fd());
    return last.done;
  });
}

void Core::wake_at(std::uint64_t when_ns) {
  if (alarm_ns_ != 0 && alarm_ns_ <= when_ns) return;
  alarm_ns_ = when_ns;
  itimerspec when{};
  when.it_value.tv_sec = static_cast<time_t>(when_ns / 1'000'000'000);
  when.it_value.tv_nsec = static_cast<long>(when_ns % 1'000'000'000);
  ::timerfd_settime(alarm_.get(), TFD_TIMER_ABSTIME, &when, nullptr);
}

bool Core::arm() {
  bool idle = true;
  for (Participant* participant : participants_) idle = !participant->take_work() && idle;
  // What became ready since the last pump makes event_fd() readable.
  return idle;
}

void Core::disarm() { pump(); }

void Core::pump() {
  pumped_ns_ = steady_.now_ns();
  std::array<epoll_event, kEventsPerWait> events;
  bool timer_expired = false;
  for (int i = 0; i < kWaitsPerPump; ++i) {
    const int count = ::epoll_wait(epoll_.get(), events.data(), kEventsPerWait, 0);
    for (int k = 0; k < count; ++k) {
      const epoll_event& event = events[static_cast<std::size_t>(k)];
      auto* target = static_cast<PollTarget*>(event.data.ptr);
      if (target != nullptr) {
        target->on_events(event.events);
      } else {
        timer_expired = true;
      }
    }
    if (sweep_due_) sweep();
    if (count < static_cast<int>(kEventsPerWait)) break;
  }
  // Not inside the loop: time-outs destroy targets that may still be in `events`.
  if (timer_expired && alarm_ns_ != 0 && pumped_ns_ >= alarm_ns_) {
    alarm_ns_ = 0;
    const itimerspec never{};
    ::timerfd_settime(alarm_.get(), 0, &never, nullptr);
  }
  if (ticking_ && (timer_expired || options_.clock != nullptr)) tick();
  if (!lingering_.empty()) sweep_lingering();
}

void Core::pump_if_due() {
  const std::uint64_t now = steady_.now_ns();
  if (now - pumped_ns_ < kPumpIntervalNs) return;
  pump();
}

}  // namespace sanproxy::fabric::tcp
