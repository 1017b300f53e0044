#include "lwproto/fabric/shm/core.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>

#include "lwproto/fabric/shm/endpoint.h"

namespace sanproxy::fabric::shm {
namespace {

constexpr std::size_t kEventsPerWait = 64;
constexpr int kWaitsPerPump = 16;  // bounds a pump while peers keep the descriptors busy
constexpr std::uint64_t kTicksPerTimeout = 4;

}  // namespace

Result<std::shared_ptr<Core>> Core::create(const ShmOptions& options) {
  auto core = std::make_shared<Core>();
  core->options_ = options;
  core->clock_ = options.clock != nullptr ? options.clock : &core->steady_;
  core->epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!core->epoll_.valid()) return Status::error(Code::kSystem, "create an epoll set", errno);
  core->timer_ = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
  if (!core->timer_.valid()) return Status::error(Code::kSystem, "create a timer", errno);
  auto sleep = OwnSleepPage::create();
  if (!sleep.ok()) return sleep.status();
  core->sleep_ = std::move(*sleep);
  Status watched = core->watch(core->timer_.get(), EPOLLIN, nullptr);
  if (!watched.ok()) return watched;
  (void)core->keep_spare();
  return core;
}

Status Core::watch(int fd, std::uint32_t events, PollTarget* target) {
  epoll_event event{};
  event.events = events;
  event.data.ptr = target;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return Status::error(Code::kSystem, "watch a descriptor", errno);
  }
  return {};
}

void Core::unwatch(int fd) { ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

void Core::wake_in(int epoll_fd) {
  // Each doorbell leaves the set that it was put in.
  if (!endpoints_.empty()) return;
  // Duplicated, so that the caller may close its descriptor before the last endpoint goes. Without
  // one the doorbells stay behind event_fd().
  outer_ = UniqueFd(::fcntl(epoll_fd, F_DUPFD_CLOEXEC, 0));
}

bool Core::keep_spare() {
  if (!spare_.valid()) spare_ = UniqueFd(::fcntl(timer_.get(), F_DUPFD_CLOEXEC, 0));
  return spare_.valid();
}

Status Core::watch_doorbell(int fd) {
  if (!outer_.valid()) return watch(fd, EPOLLIN | EPOLLET, nullptr);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  event.data.u64 = ~std::uint64_t{0};  // data.fd is -1
  if (::epoll_ctl(outer_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return Status::error(Code::kSystem, "watch a doorbell", errno);
  }
  return {};
}

void Core::unwatch_doorbell(int fd) {
  ::epoll_ctl(outer_.valid() ? outer_.get() : epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

void Core::add(ShmEndpoint* endpoint) { endpoints_.push_back(endpoint); }
void Core::remove(ShmEndpoint* endpoint) { std::erase(endpoints_, endpoint); }
void Core::add(Handshaker* handshaker) { handshakers_.push_back(handshaker); }
void Core::remove(Handshaker* handshaker) { std::erase(handshakers_, handshaker); }

void Core::start_ticking() {
  if (ticking_) return;
  ticking_ = true;
  const std::uint64_t tick_ns = std::max<std::uint64_t>(
      options_.handshake_timeout_ms * 1'000'000ull / kTicksPerTimeout, 1'000'000);
  itimerspec when{};
  when.it_value.tv_sec = static_cast<time_t>(tick_ns / 1'000'000'000);
  when.it_value.tv_nsec = static_cast<long>(tick_ns % 1'000'000'000);
  when.it_interval = when.it_value;
  ::timerfd_settime(timer_.get(), 0, &when, nullptr);
}

void Core::tick() {
  bool waiting = false;
  for (Handshaker* handshaker : handshakers_) {
    handshaker->on_tick();
    waiting |= handshaker->waiting();
  }
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

bool Core::arm() {
  epoch_ |= 1;
  sleep_.page().epoch.store(epoch_, std::memory_order_relaxed);
  // Pairs with the fence in ShmEndpoint::flush(): either the peer sees that we sleep and rings,
  // or we see below what it has published.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  bool idle = true;
  for (ShmEndpoint* endpoint : endpoints_) {
    endpoint->flush();
    idle = !endpoint->take_work() && idle;
  }
  for (const Handshaker* handshaker : handshakers_) idle = idle && !handshaker->has_work();
  if (idle) return true;
  ++epoch_;
  sleep_.page().epoch.store(epoch_, std::memory_order_relaxed);
  return false;
}

void Core::disarm() {
  // Counted in epochs, not in sleeps: a peer may ring while arm() looks, and then nobody sleeps.
  if (epoch_ - emptied_epoch_ >= kEpochsPerEmptying) {
    emptied_epoch_ = epoch_;
    for (ShmEndpoint* endpoint : endpoints_) endpoint->empty_doorbell();
  }
  if ((epoch_ & 1) == 0) {
    // We did not sleep, so no doorbell needs consuming; look for dead peers now and then.
    if (++disarms_ % kDisarmsPerPump == 0) pump();
    return;
  }
  ++epoch_;
  sleep_.page().epoch.store(epoch_, std::memory_order_relaxed);
  pump();
}

void Core::pump() {
  std::array<epoll_event, kEventsPerWait> events;
  for (int i = 0; i < kWaitsPerPump; ++i) {
    const int count = ::epoll_wait(epoll_.get(), events.data(), kEventsPerWait, 0);
    for (int k = 0; k < count; ++k) {
      auto* target = static_cast<PollTarget*>(events[static_cast<std::size_t>(k)].data.ptr);
      if (target != nullptr) target->on_events(events[static_cast<std::size_t>(k)].events);
    }
    if (count < static_cast<int>(kEventsPerWait)) break;
  }
  // Not inside the loop: time-outs destroy targets that may still be in `events`.
  if (ticking_) tick();
}

void Core::pump_if_due() {
  const std::uint64_t now = steady_.now_ns();
  if (now - pumped_ns_ < kPumpIntervalNs) return;
  pumped_ns_ = now;
  pump();
}

}  // namespace sanproxy::fabric::shm
