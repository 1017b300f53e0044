#include "lwproto/fabric/verbs/core.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "lwproto/fabric/verbs/queue_pair.h"

namespace sanproxy::fabric::verbs {
namespace {

// Bound a pump while peers keep the descriptors busy.
constexpr int kEventsPerWait = 16;
constexpr int kCmEventsPerPump = 256;
// Each makes a queue pair: many of them at once would hold up the channels there are.
constexpr int kConnectRequestsPerPump = 8;
constexpr int kCompletionEventsPerPump = 1024;
constexpr int kDeviceEventsPerPump = 64;

}  // namespace

Result<std::shared_ptr<Core>> Core::create(const VerbsOptions& options) {
  auto core = std::make_shared<Core>();
  core->options_ = options;
  if (options.counters != nullptr) core->counters_ = options.counters;
  core->clock_ = options.clock != nullptr ? options.clock : &core->steady_;
  core->epoll_ = UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!core->epoll_.valid()) return Status::error(Code::kSystem, "create an epoll set", errno);
  core->timer_ = UniqueFd(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
  if (!core->timer_.valid()) return Status::error(Code::kSystem, "create a timer", errno);
  if (Status status = core->watch(core->timer_.get(), Watch::Kind::kTimer, nullptr); !status.ok()) {
    return status;
  }
  return core;
}

Core::~Core() {
  if (events_ != nullptr) ::rdma_destroy_event_channel(events_);
}

Status Core::watch(int fd, Watch::Kind kind, std::shared_ptr<Device> device) {
  auto watch = std::make_unique<Watch>();
  watch->kind = kind;
  watch->device = std::move(device);
  watch->fd = fd;
  watch->set = epoll_.get();
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = watch.get();
  if (kind == Watch::Kind::kCompletions && outer_.valid()) {
    watch->set = outer_.get();
    event.events = EPOLLIN | EPOLLET;
    event.data.u64 = ~std::uint64_t{0};  // data.fd is -1
  }
  if (::epoll_ctl(watch->set, EPOLL_CTL_ADD, fd, &event) != 0) {
    return Status::error(Code::kSystem, "watch a descriptor", errno);
  }
  watches_.push_back(std::move(watch));
  return {};
}

// Late, so that a fabric can be made on a host that has no RDMA (yet).
Status Core::open_event_channel() {
  if (events_ != nullptr) return {};
  events_ = ::rdma_create_event_channel();
  if (events_ == nullptr) {
    return without_device("no RDMA device on this host, or no rdma_ucm module", errno);
  }
  const int flags = ::fcntl(events_->fd, F_GETFL);
  if (flags < 0 || ::fcntl(events_->fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    return Status::error(Code::kSystem, "make a descriptor non-blocking", errno);
  }
  return watch(events_->fd, Watch::Kind::kCm, nullptr);
}

Result<CmId> Core::create_id(Target* target) {
  if (Status status = open_event_channel(); !status.ok()) return status;
  rdma_cm_id* id = nullptr;
  if (::rdma_create_id(events_, &id, target, RDMA_PS_TCP) != 0) {
    if (errno == ENODEV) {
      return without_device("no RDMA device on this host", errno);
    }
    return Status::error(Code::kSystem, "create a connection manager's id", errno);
  }
  return CmId(id);
}

Result<std::shared_ptr<Device>> Core::device_of(const rdma_cm_id& id) {
  if (id.verbs == nullptr) {
    return Status::error(Code::kUnsupported, "no RDMA device behind this address");
  }
  return open_device(id.verbs->device);
}

Result<std::shared_ptr<Device>> Core::open_device(ibv_device* device) {
  const char* name = ::ibv_get_device_name(device);
  for (const auto& known : devices_) {
    if (known->name() == name) return known;
  }
  auto opened = Device::open(device);
  if (!opened.ok()) return opened.status();
  std::shared_ptr<Device> out = *opened;
  Status status = watch(out->channel()->fd, Watch::Kind::kCompletions, out);
  if (status.ok()) status = watch(out->context()->async_fd, Watch::Kind::kDevice, out);
  if (!status.ok()) return status;
  devices_.push_back(out);
  return out;
}

void Core::remove(QueuePair* queue_pair) {
  std::erase(queue_pairs_, queue_pair);
  forget_if_unused(queue_pair->device());
}

// Not every driver reports a removal as a failure of the device, and some wait until it is closed.
void Core::forget_removed(const rdma_cm_id& id) {
  if (id.verbs == nullptr) return;
  const char* name = ::ibv_get_device_name(id.verbs->device);
  const auto is_it = [&](const auto& device) { return device->name() == name; };
  const auto found = std::find_if(devices_.begin(), devices_.end(), is_it);
  if (found == devices_.end()) return;
  const std::shared_ptr<Device> device = *found;
  devices_.erase(found);
  forget_if_unused(*device);
}

// A device that has failed is opened anew for who comes next; the old one is closed when its last
// queue pair and its last registered region have gone.
void Core::forget_if_unused(const Device& device) {
  const auto is_it = [&](const auto& other) { return other.get() == &device; };
  if (std::any_of(devices_.begin(), devices_.end(), is_it)) return;
  if (std::any_of(queue_pairs_.begin(), queue_pairs_.end(),
                  [&](const QueuePair* other) { return &other->device() == &device; })) {
    return;
  }
  for (auto& watch : watches_) {
    if (watch->device.get() != &device) continue;
    ::epoll_ctl(watch->set, EPOLL_CTL_DEL, watch->fd, nullptr);
    retired_.push_back(std::move(watch));
  }
  std::erase(watches_, nullptr);
}

void Core::wake_at(std::uint64_t deadline_ns) {
  if (deadline_ns >= timer_ns_) return;
  timer_ns_ = deadline_ns;
  const std::uint64_t now = now_ns();
  // Never zero, which would stop the timer.
  const std::uint64_t wait_ns = deadline_ns > now ? deadline_ns - now : 1;
  itimerspec when{};
  when.it_value.tv_sec = static_cast<time_t>(wait_ns / 1'000'000'000);
  when.it_value.tv_nsec = static_cast<long>(wait_ns % 1'000'000'000);
  ::timerfd_settime(timer_.get(), 0, &when, nullptr);
}

void Core::on_timer() {
  std::uint64_t expirations = 0;
  [[maybe_unused]] const ssize_t n = ::read(timer_.get(), &expirations, sizeof(expirations));
  timer_ns_ = kNever;
  const std::uint64_t now = now_ns();
  std::uint64_t next_ns = kNever;
  for (Sleeper* sleeper : sleepers_) {
    sleeper->on_time(now);
    // A deadline in the past is its owner's to look at: arm() does not sleep over it.
    const std::uint64_t deadline = sleeper->deadline_ns();
    if (deadline > now) next_ns = std::min(next_ns, deadline);
  }
  if (next_ns != kNever) wake_at(next_ns);
}

void Core::wake_in(int epoll_fd) {
  // Each completion channel stays in the set that it was put in.
  if (!devices_.empty()) return;
  // Duplicated, so that the caller may close its descriptor before the last endpoint goes.
  outer_ = UniqueFd(::fcntl(epoll_fd, F_DUPFD_CLOEXEC, 0));
}

bool Core::arm() {
  armed_ = true;
  if (rung_ != 0) drain_completions();
  bool idle = true;
  for (Sleeper* sleeper : sleepers_) idle = sleeper->prepare_sleep() && idle;
  return idle;
}

// What made a sleeper wake up is mostly a completion, which needs no system call to be found. All
// else keeps event_fd() readable, so that the next sleep ends at once.
void Core::disarm() {
  const bool slept = std::exchange(armed_, false);
  if (++disarms_ % kDisarmsPerPump == 0 || (slept && !someone_has_completions())) pump();
}

bool Core::someone_has_completions() {
  return std::any_of(sleepers_.begin(), sleepers_.end(),
                     [](Sleeper* sleeper) { return sleeper->has_completions(); });
}

void Core::pump_if_due() {
  const std::uint64_t now = steady_.now_ns();
  if (now - pumped_ns_ < kPumpIntervalNs) return;
  pumped_ns_ = now;
  pump();
}

void Core::pump() {
  retired_.clear();
  // The set below does not tell.
  if (outer_.valid() && armed_queues_ != 0) drain_completions();
  std::array<epoll_event, kEventsPerWait> events;
  const int count = ::epoll_wait(epoll_.get(), events.data(), kEventsPerWait, 0);
  for (int i = 0; i < count; ++i) {
    const auto& watch = *static_cast<Watch*>(events[static_cast<std::size_t>(i)].data.ptr);
    switch (watch.kind) {
      case Watch::Kind::kCm:
        drain_cm();
        break;
      case Watch::Kind::kCompletions:
        drain_completions(*watch.device);
        break;
      case Watch::Kind::kDevice:
        drain_device(*watch.device);
        break;
      case Watch::Kind::kTimer:
        on_timer();
        break;
    }
  }
}

void Core::drain_cm() {
  // What is left keeps event_fd() readable.
  int requests = 0;
  for (int i = 0; i < kCmEventsPerPump && requests < kConnectRequestsPerPump; ++i) {
    rdma_cm_event* raw = nullptr;
    if (::rdma_get_cm_event(events_, &raw) != 0) return;
    CmEvent event;
    event.type = raw->event;
    event.status = raw->status;
    event.id = raw->id;
    const bool request = raw->event == RDMA_CM_EVENT_CONNECT_REQUEST;
    requests += request;
    auto* target = static_cast<Target*>(request ? raw->listen_id->context : raw->id->context);
    if (raw->param.conn.private_data != nullptr) {
      event.private_count =
          std::min<std::size_t>(raw->param.conn.private_data_len, event.private_bytes.size());
      std::memcpy(event.private_bytes.data(), raw->param.conn.private_data, event.private_count);
    }
    if (raw->event == RDMA_CM_EVENT_DEVICE_REMOVAL) forget_removed(*raw->id);
    ::rdma_ack_cm_event(raw);
    target->on_cm_event(event);
  }
}

void Core::drain_completions() {
  // By index: a handler may open a device, or be the last that used one.
  for (std::size_t i = 0; i < watches_.size(); ++i) {
    const Watch& watch = *watches_[i];
    if (watch.kind == Watch::Kind::kCompletions) drain_completions(*watch.device);
  }
}

// Until there are none, or those that are known of were taken: to ask in vain is a system call,
// too, and what is left keeps event_fd() readable or is for completions that nobody has looked for
// yet.
void Core::drain_completions(Device& device) {
  for (int i = 0; i < kCompletionEventsPerPump; ++i) {
    ibv_cq* cq = nullptr;
    void* context = nullptr;
    if (::ibv_get_cq_event(device.channel(), &cq, &context) != 0) return;
    const bool known = rung_ != 0;
    static_cast<QueuePair*>(context)->on_queue_event();
    if (known && rung_ == 0) return;
  }
}

void Core::fail_where(const Device& device, int port, Status reason) {
  // By index: a handler may add none, and removes none but its own.
  const std::vector<QueuePair*> all = queue_pairs_;
  for (QueuePair* queue_pair : all) {
    if (std::find(queue_pairs_.begin(), queue_pairs_.end(), queue_pair) == queue_pairs_.end()) {
      continue;
    }
    if (&queue_pair->device() == &device && (port == 0 || queue_pair->port() == port)) {
      queue_pair->target().on_failure(reason);
    }
  }
}

void Core::drain_device(Device& device) {
  for (int i = 0; i < kDeviceEventsPerPump; ++i) {
    ibv_async_event event{};
    if (::ibv_get_async_event(device.context(), &event) != 0) return;
    QueuePair* queue_pair = nullptr;
    switch (event.event_type) {
      case IBV_EVENT_QP_FATAL:
      case IBV_EVENT_QP_REQ_ERR:
      case IBV_EVENT_QP_ACCESS_ERR:
      case IBV_EVENT_PATH_MIG_ERR:
        queue_pair = static_cast<QueuePair*>(event.element.qp->qp_context);
        break;
      case IBV_EVENT_CQ_ERR:
        queue_pair = static_cast<QueuePair*>(event.element.cq->cq_context);
        break;
      default:
        break;
    }
    const int port = event.event_type == IBV_EVENT_PORT_ERR ? event.element.port_num : 0;
    // A queue pair is destroyed only after its events were acknowledged.
    ::ibv_ack_async_event(&event);
    if (queue_pair != nullptr) {
      queue_pair->target().on_failure(
          Status::error(Code::kDisconnected, "the device reports a broken queue pair"));
    } else if (port != 0) {
      ++counters_->port_errors;
      fail_where(device, port, Status::error(Code::kDisconnected, "the port went down"));
    } else if (event.event_type == IBV_EVENT_DEVICE_FATAL) {
      ++counters_->device_errors;
      // Connections to come open the device anew.
      std::erase_if(devices_, [&](const auto& other) { return other.get() == &device; });
      fail_where(device, 0, Status::error(Code::kDisconnected, "the device failed"));
      forget_if_unused(device);
    }
  }
}

}  // namespace sanproxy::fabric::verbs
