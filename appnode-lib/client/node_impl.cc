#include "appnode-lib/client/node_impl.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/link_options.h"
#include "lwproto/base/check.h"
#include "lwproto/buffer/pool_sizes.h"
#include "lwproto/fabric/address.h"
#include "lwproto/wire/codec.h"

namespace sanproxy::app::internal {
namespace {

constexpr std::uint64_t kNsPerSecond = 1'000'000'000;
constexpr std::uint32_t kReceiveWindowBytesMin = 4096;
constexpr std::uint32_t kReceiveWindowBytesMax = 1u << 30;
constexpr std::uint32_t kReceiveBuffersMin = 16;
constexpr std::uint32_t kReceiveBuffersMax = 65'536;

std::vector<std::string> proxies_from_environment() {
  std::vector<std::string> out;
  const char* text = std::getenv("SANPROXY_PROXY");
  std::string_view rest = text == nullptr ? "" : text;
  while (!rest.empty()) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    if (comma != 0) out.emplace_back(rest.substr(0, comma));
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return out;
}

std::string_view scheme_of(std::string_view address) {
  return address.substr(0, address.find(':'));
}

std::string default_name() {
  const std::string pid = ":" + std::to_string(getpid());
  const std::string program(wire::node_name_prefix(program_invocation_short_name));
  return program.substr(0, wire::kNodeNameBytesMax - pid.size()) + pid;
}

// Printable UTF-8 but for what is too long, which is cut off.
bool name_is_legal(std::string_view name) {
  while (!name.empty()) {
    const std::size_t length = wire::node_name_prefix(name).size();
    if (length == 0) return false;
    name.remove_prefix(length);
  }
  return true;
}

}  // namespace

// --- life

NodeImpl::NodeImpl(NodeOptions options, Assembly assembly)
    : options_(std::move(options)),
      assembly_(std::move(assembly)),
      clock_(assembly_.clock != nullptr ? assembly_.clock : &steady_clock_),
      kept_(options_.kept_bytes_max),
      pool_(options_.connections_max) {}

Result<std::unique_ptr<NodeImpl>> NodeImpl::create(NodeOptions options, Assembly assembly) {
  if (options.proxies.empty()) options.proxies = proxies_from_environment();
  options.proxies = rejoin_cluster_addresses(options.proxies);
  if (options.name.empty()) options.name = default_name();
  if (!name_is_legal(options.name)) {
    return Status(Code::kInvalidArgument, "the node's name must be printable UTF-8");
  }
  if (options.proxies.empty() || options.proxies.size() > kProxiesMax) {
    return Status(Code::kInvalidArgument, "1 to 64 proxies are needed (or SANPROXY_PROXY)");
  }
  if (options.receive_window_bytes < kReceiveWindowBytesMin ||
      options.receive_window_bytes > kReceiveWindowBytesMax) {
    return Status(Code::kInvalidArgument, "receive_window_bytes must be 4 KB to 1 GB");
  }
  if (options.connections_max == 0 || options.connections_max > std::size_t{1}
                                                                    << wire::kConnectionIndexBits) {
    return Status(Code::kInvalidArgument, "connections_max must be 1 to 2^24");
  }
  if (options.receive_buffers < kReceiveBuffersMin ||
      options.receive_buffers > kReceiveBuffersMax) {
    return Status(Code::kInvalidArgument, "receive_buffers must be 16 to 65536");
  }
  if (const Status status = take_link_environment(options); !status.ok()) return status;
  if (const Status status = take_cluster_environment(options.cluster); !status.ok()) return status;
  std::unique_ptr<NodeImpl> node(new NodeImpl(std::move(options), std::move(assembly)));
  if (const Status status = node->set_up(); !status.ok()) return status;
  return node;
}

Status NodeImpl::set_up() {
  pid_ = getpid();
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  stop_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  timer_fd_ = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  if (epoll_fd_ < 0 || stop_fd_ < 0 || timer_fd_ < 0) {
    return {Code::kSystem, "event descriptors", errno};
  }
  for (const int own : {stop_fd_, timer_fd_}) {
    if (const Status status = watch(own); !status.ok()) return status;
  }
  std::random_device random;
  epoch_ = (std::uint64_t{random()} << 32) | random();
  auto link = link_parameters(options_.link);
  if (!link.ok()) return link.status();
  link_parameters_ = *link;
  if (const Status status = set_up_keys(); !status.ok()) return status;
  if (const Status status = set_up_memory(); !status.ok()) return status;
  if (const Status status = set_up_receive_memory(); !status.ok()) return status;
  return set_up_links();
}

Status NodeImpl::set_up_memory() {
  auto region = buffer::MemoryRegion::create(
      "appnode-send", std::max(options_.send_memory_bytes, kSendMemoryBytesMin));
  if (!region.ok()) return to_public(region.status());
  send_region_ = std::move(*region);
  send_memory_ = std::make_unique<SendMemory>(send_region_);
  send_slots_ = send_memory_->free_count();
  send_records_ = std::make_unique<SendRecords>(1);  // the one being made
  return {};
}

wire::HelloBody NodeImpl::make_hello(const fabric::EndpointOptions& endpoint) const {
  return channel::make_hello(epoch_, endpoint, options_.receive_window_bytes,
                             static_cast<std::uint32_t>(options_.connections_max), options_.name);
}

// For every proxy that sends into memory of ours: what is posted, and as much again that may be
// kept meanwhile.
Status NodeImpl::set_up_receive_memory() {
  std::size_t links = 0;
  for (const std::string& address : options_.proxies) {
    const auto kind = assembly_.fabrics.find(scheme_of(address));
    if (kind != assembly_.fabrics.end() && kind->second.receives_into_pool) ++links;
  }
  if (links == 0) return {};
  auto region = buffer::MemoryRegion::create(
      "appnode-receive", links * 2 * options_.receive_buffers * buffer::kEgressSlotBytes);
  if (!region.ok()) return to_public(region.status());
  receive_region_ = std::move(*region);
  receive_pool_ =
      std::make_unique<buffer::SlotPool>(receive_region_.bytes(), buffer::kEgressSlotBytes);
  return {};
}

Status NodeImpl::set_up_links() {
  for (const std::string& address : options_.proxies) {
    if (is_cluster_address(address)) {
      if (const Status status = set_up_cluster(address); !status.ok()) return status;
      continue;
    }
    auto fabric = fabric_for(address);
    if (!fabric.ok()) return fabric.status();
    add_link(link_place(**fabric, address));
  }
  return {};
}

void NodeImpl::add_link(LinkPlace place) {
  send_records_->add(place.endpoint.send_depth);
  links_.push_back(std::make_unique<Link>(*this, std::move(place)));
}

LinkPlace NodeImpl::link_place(const FabricInUse& fabric, std::string address) const {
  LinkPlace out;
  out.address = std::move(address);
  out.fabric = fabric.fabric.get();
  out.endpoint = fabric.options;
  out.pool = fabric.pool;
  out.receives_into_pool = fabric.receives_into_pool;
  return out;
}

Result<FabricInUse*> NodeImpl::fabric_for(std::string_view address) {
  if (address.find(':') == std::string_view::npos) {
    return Status(Code::kInvalidArgument, "a proxy's address is SCHEME:..., such as shm:/path");
  }
  const std::string_view scheme = scheme_of(address);
  if (const auto known = fabrics_.find(scheme); known != fabrics_.end()) return &known->second;
  const auto kind = assembly_.fabrics.find(scheme);
  if (kind == assembly_.fabrics.end()) {
    return Status(Code::kUnsupported, "this library has no fabric for that address");
  }
  if (const auto parsed = fabric::FabricAddress::parse(address); !parsed.ok()) {
    return to_public(parsed.status());
  }
  auto fabric = kind->second.make(options_);
  if (!fabric.ok()) return to_public(fabric.status());
  (*fabric)->wake_in(epoll_fd_);
  if (const Status status = watch((*fabric)->event_fd()); !status.ok()) return status;
  FabricInUse out;
  out.fabric = std::move(*fabric);
  out.options = assembly_.endpoint;
  out.options.link = link_parameters_;
  if (kind->second.send_depth != 0) out.options.send_depth = kind->second.send_depth;
  out.receives_into_pool = kind->second.receives_into_pool;
  if (out.receives_into_pool) {
    out.options.receive_depth = options_.receive_buffers;
    out.options.receive_memory = {receive_pool_.get(), &receive_region_, 0};
    out.pool = receive_pool_.get();
  }
  return &fabrics_.emplace(scheme, std::move(out)).first->second;
}

Status NodeImpl::watch(int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) == 0) return {};
  return {Code::kSystem, "epoll_ctl", errno};
}

// After a fork() all that we have is the other process's too: nothing is given back, and nobody is
// told. It goes with the memory of this process.
void NodeImpl::leave_to_parent() {
  for (auto& link : links_) (void)link.release();
  for (auto& hold : buried_) (void)hold.release();
  for (auto& cluster : clusters_) (void)cluster.release();
  for (auto& [scheme, in_use] : fabrics_) (void)in_use.fabric.release();
  close_own();
}

void NodeImpl::close_own() {
  for (const int fd : {epoll_fd_, stop_fd_, timer_fd_}) {
    if (fd >= 0) ::close(fd);
  }
}

NodeImpl::~NodeImpl() {
  if (getpid() != pid_) {
    leave_to_parent();
    return;
  }
  closing_ = polling_ = true;
  for (const auto& link : links_) end_connections(*link, CloseCode::kNodeClosed);
  run_ended();
  // A Borrowed would point into memory that goes away with us.
  SANPROXY_CHECK(kept_.in_use() == 0);
  say_goodbye();
  links_.clear();
  buried_.clear();
  fabrics_.clear();
  if (send_records_ != nullptr) send_records_->end_all();
  close_own();
}

// In a moment; a proxy that takes nothing does not hold us up.
void NodeImpl::say_goodbye() {
  constexpr int kTries = 100;
  for (int i = 0; i < kTries; ++i) {
    disarm();
    bool done = true;
    for (const auto& link : links_) done = link->say_goodbye() && done;
    if (done) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

// --- a poll round

std::size_t NodeImpl::poll() {
  // From a handler: what is being read there would be read again, or be gone.
  if (polling_) return 0;
  polling_ = true;
  const std::size_t handled = poll_round();
  polling_ = false;
  return handled;
}

std::size_t NodeImpl::poll_round() {
  // Who sleeps on fd() leaves its wake-ups to us, and they would wake again and again.
  if (armed_) take_events(0);
  disarm();  // each time: this is also how fabrics notice dead peers
  if (std::any_of(clusters_.begin(), clusters_.end(),
                  [](const auto& cluster) { return cluster->has_news(); })) {
    follow_clusters();
  }
  const std::uint64_t now = time_matters() ? now_ns() : 0;
  std::size_t handled = 0;
  // One that comes up may add some.
  for (std::size_t i = 0; i < links_.size(); ++i) handled += links_[i]->poll(now);
  if (!starved_.empty() && send_memory_->take_released()) run_starved();
  if (!ended_.empty()) handled += run_ended();
  if (!buried_.empty()) {
    std::erase_if(buried_, [](const auto& hold) { return hold->loans == 0; });
  }
  // Also by handlers above, of another link than their own: links share the memory.
  if (kept_.take_buffers_freed()) {
    for (const auto& link : links_) link->replenish();
  }
  publish_all();
  return handled;
}

void NodeImpl::run_starved() {
  for (std::size_t left = starved_.size(); left > 0 && send_memory_->free_count() > 0; --left) {
    ConnectionImpl* connection = starved_.pop_front();
    if (connection == nullptr) return;
    connection->retry();
  }
}

std::size_t NodeImpl::run_ended() {
  const std::size_t count = ended_.size();  // those that the handlers add wait for the next round
  for (std::size_t left = count; left > 0; --left) ended_.pop_front()->report_closed();
  return count;
}

// A proxy tells of the end of one connection and asks for the next in one batch: it has counted.
ConnectionImpl* NodeImpl::acquire_for_request() {
  ConnectionImpl* connection = pool_.acquire();
  if (connection != nullptr || ended_.empty()) return connection;
  run_ended();
  return pool_.acquire();
}

void NodeImpl::publish_all() {
  for (const auto& link : links_) link->publish();
}

// --- sleeping

bool NodeImpl::time_matters() const {
  if (links_up_ == links_.size() && links_waiting_ == 0) return false;
  return links_waiting_ != 0 || std::any_of(links_.begin(), links_.end(), [](const auto& link) {
           return !link->up() && link->wanted();
         });
}

std::uint64_t NodeImpl::next_deadline_ns() const {
  if (!time_matters()) return 0;
  std::uint64_t next = 0;
  for (const auto& link : links_) {
    if (!link->up() && !link->wanted()) continue;
    const std::uint64_t deadline = link->deadline_ns();
    if (deadline == 0 && (link->up() || link->connecting())) continue;
    if (next == 0 || deadline < next) next = std::max<std::uint64_t>(deadline, 1);
  }
  return next;
}

// Given back outside poll(), for which somebody waits.
bool NodeImpl::memory_waits_for_poll() const {
  return kept_.buffers_freed() || (!starved_.empty() && send_memory_->released());
}

bool NodeImpl::arm() {
  if (polling_ || memory_waits_for_poll() || !ended_.empty()) return false;
  if (armed_) {  // and not polled since: what was sent meanwhile leaves, and wakes who sleeps
    for (const auto& link : links_) link->flush();
    return true;
  }
  publish_all();
  const std::uint64_t deadline = next_deadline_ns();
  if (deadline != 0 && deadline <= now_ns()) return false;
  armed_ = true;
  for (const auto& [scheme, in_use] : fabrics_) {
    if (!in_use.fabric->arm()) {
      disarm();
      return false;
    }
  }
  set_timer(deadline);
  return true;
}

void NodeImpl::disarm() {
  armed_ = false;
  for (const auto& [scheme, in_use] : fabrics_) in_use.fabric->disarm();
}

// The timer's clock need not be ours (tests): what counts is the distance.
void NodeImpl::set_timer(std::uint64_t deadline_ns) {
  if (deadline_ns == timer_deadline_ns_ && !timer_fired_) return;
  itimerspec spec{};
  if (deadline_ns != 0) {
    const std::uint64_t now = now_ns();
    const std::uint64_t distance = deadline_ns > now ? deadline_ns - now : 1;
    spec.it_value.tv_sec = static_cast<time_t>(distance / kNsPerSecond);
    spec.it_value.tv_nsec = static_cast<long>(distance % kNsPerSecond);
  }
  timerfd_settime(timer_fd_, 0, &spec, nullptr);  // setting it also clears its readability
  timer_deadline_ns_ = deadline_ns;
  timer_fired_ = false;
}

std::size_t NodeImpl::wait(int timeout_ms) {
  const std::size_t handled = poll();
  if (handled != 0 || timeout_ms == 0) return handled;
  if (!arm()) return poll();
  take_events(timeout_ms);
  armed_ = false;  // they are taken
  return poll();
}

void NodeImpl::take_events(int timeout_ms) {
  std::array<epoll_event, 8> events;
  const int count =
      epoll_wait(epoll_fd_, events.data(), static_cast<int>(events.size()), timeout_ms);
  for (int i = 0; i < count; ++i) {
    const int fd = events[static_cast<std::size_t>(i)].data.fd;
    if (fd == stop_fd_) drain_own_events();
    if (fd == timer_fd_) timer_fired_ = true;
  }
}

void NodeImpl::drain_own_events() {
  std::uint64_t value = 0;
  [[maybe_unused]] const ssize_t n = read(stop_fd_, &value, sizeof(value));
}

void NodeImpl::stop() {
  stopped_.store(true, std::memory_order_relaxed);
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(stop_fd_, &one, sizeof(one));
}

}  // namespace sanproxy::app::internal
