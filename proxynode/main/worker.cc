#include "proxynode/main/worker.h"

#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "lwproto/auth/admission.h"
#include "lwproto/buffer/pool_sizes.h"
#include "lwproto/daemon/log.h"
#include "proxynode/main/worker_interface.h"

namespace sanproxy::proxy {
namespace {

// Bytes received in one round, as far as the one before tells: few enough that what the kernel has
// just written is still in a core's own cache when it is copied to its channel.
constexpr std::size_t kBurstBytes = 192 * 1024;
constexpr std::size_t kBurstMin = 2;
// Rounds without a sleep between two looks at listeners, signals and the admin endpoint.
constexpr std::uint64_t kRoundsBetweenChores = 256;
constexpr int kSleepMsMax = 1000;

[[noreturn]] void fail(const std::string& what, const Status& status) {
  throw std::runtime_error(what + ": " + status.to_string());
}

template <typename T>
T take(Result<T> result, const std::string& what) {
  if (!result.ok()) fail(what, result.status());
  return std::move(result).value();
}

std::uint16_t new_epoch() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  return static_cast<std::uint16_t>(ms / 50);
}

}  // namespace

Worker::Worker(const ProxyConfig& config, std::string version, std::unique_ptr<Handover> handover)
    : config_(config),
      version_(std::move(version)),
      spin_(std::uint64_t{config.spin_us} * 1000),
      start_ns_(clock_.now_ns()),
      epoch_(new_epoch()),
      handover_(std::move(handover)) {
  buffer::PoolInputs inputs;
  inputs.connections_max = config.stack.connections_max;
  inputs.receive_window_bytes = config.stack.receive_window_bytes;
  inputs.send_window_bytes = config.stack.send_buffer_bytes;
  // On shm a receive buffer is a place in the peer's own ring: it takes nothing from the pool.
  for (const FabricConfig& fabric : config.fabrics) {
    if (!fabric.uses_pools()) continue;
    inputs.receives_posted += std::uint64_t{fabric.nodes_max} * fabric.credits;
  }
  for (const ChannelConfig& channel : config.channels) {
    if (!channel.fabric.uses_pools()) continue;
    inputs.packet_receives_posted +=
        std::uint64_t{channel.fabric.nodes_max} * channel.fabric.credits;
  }
  inputs.rx_burst = kBurst;
  inputs.interfaces = static_cast<std::uint32_t>(config.interfaces.size());
  // What is posted comes on top of the operator's ceiling.
  inputs.ingress_bytes_max =
      config.ingress_pool_bytes + inputs.packet_receives_posted * buffer::kEgressSlotBytes;
  inputs.egress_bytes_max =
      config.egress_pool_bytes + inputs.receives_posted * buffer::kEgressSlotBytes;
  const buffer::PoolSizes sizes = buffer::derive_pool_sizes(inputs);
  ingress_region_ = take(buffer::MemoryRegion::create(
                             "sanproxy-ingress", sizes.ingress_slot_bytes * sizes.ingress_slots),
                         "IngressPool");
  egress_region_ = take(
      buffer::MemoryRegion::create("sanproxy-egress", sizes.egress_slot_bytes * sizes.egress_slots),
      "EgressPool");
  ingress_ = std::make_unique<buffer::SlotPool>(ingress_region_.bytes(), sizes.ingress_slot_bytes);
  egress_ = std::make_unique<buffer::SlotPool>(egress_region_.bytes(), sizes.egress_slot_bytes);

  if (config.lent_regions_max != 0 && !config.channels.empty()) {
    lent_.emplace(config.lent_regions_max);
    (void)lent_->on_region({egress_region_.data(), egress_region_.size(), egress_region_.fd()});
  }

  translate::TranslatorOptions options;
  options.lent = lent_ ? &*lent_ : nullptr;
  options.lent_ms_max = config.lent_ms_max;
  options.name = config.name;
  options.epoch = epoch_;
  options.workers = config.workers;
  options.connections_max = config.stack.connections_max;
  options.nodes_max = config.nodes_max;
  options.send_window_bytes = config.stack.send_buffer_bytes;
  options.tx_records_max = config.tx_records_max;
  options.channel_region_bytes = config.channel_region_bytes;
  options.outgoing = config.outgoing;
  options.keys = config.keys;
  options.limits = config.limits;
  options.join_grace_ms = config.join_grace_ms;
  options.heartbeat = config.heartbeat;
  options.probes_max = config.probes_max;
  translator_ = std::make_unique<translate::Translator>(
      options, *ingress_, ingress_region_, *egress_, config.services, config.services_max, *this);
  stack::StackOptions stack_options = config.stack;
  stack_options.proxy_id = config.id;
  if (handover_) {
    stack_options.hand_over = [this](stack::InterfaceIndex interface,
                                     std::span<const std::byte> packet, bool checksum_verified) {
      return handover_->pass_on(interface, packet, checksum_verified);
    };
  }
  stack_ = take(stack::Stack::create(stack_options, clock_, *ingress_, *translator_), "TCP stack");
  translator_->set_stack(*stack_);

  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  signal_fd_ = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
  if (epoll_fd_ < 0 || signal_fd_ < 0) {
    fail("event loop", Status::error(Code::kSystem, "epoll or signalfd", errno));
  }
  watch(signal_fd_);
  if (handover_) watch(handover_->fd());
}

Worker::~Worker() {
  admin_.reset();
  cluster_.reset();
  stack_.reset();
  translator_.reset();
  interfaces_.clear();
  fabrics_.clear();
  if (signal_fd_ >= 0) close(signal_fd_);
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

void Worker::watch(int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
    fail("event loop", Status::error(Code::kSystem, "epoll_ctl", errno));
  }
}

void Worker::add_interface(std::unique_ptr<packet_io::PacketIo> io) {
  auto interface = std::make_unique<Interface>();
  interface->io = std::move(io);
  interface->index = take(stack_->add_interface(*interface->io), interface->io->options().name);
  watch(interface->io->fd());
  if (interface->io->control_fd() >= 0) watch(interface->io->control_fd());
  interfaces_.push_back(std::move(interface));
}

void Worker::add_fabric(std::unique_ptr<fabric::Fabric> fabric, const FabricConfig& config) {
  fabric->wake_in(epoll_fd_);
  if (lent_) fabric->watch_regions(&*lent_);
  translate::FabricListener entry;
  entry.options.receive_depth = config.credits;
  if (!config.uses_pools()) entry.options.send_depth = config.references_max;
  entry.fabric = fabric->name();
  entry.made_by = fabric.get();
  entry.lend_ingress = config.shared_trust || config.uses_pools();
  entry.channel_region_bytes = config.channel_region_bytes;
  if (config.uses_pools()) {
    entry.nodes_max = config.nodes_max;
    entry.shared_chunks = std::make_unique<translate::ChunkRegion>(
        take(buffer::MemoryRegion::create("sanproxy-channels", config.channel_region_bytes),
             config.listen));
    entry.options.receive_memory = translator_->receive_memory(egress_region_);
    entry.options.send_regions = {&ingress_region_, &entry.shared_chunks->region()};
  }
  entry.dead_after_ms = config.dead_after_ms;
  entry.allow = config.allow;
  entry.listener = take(fabric->listen(config.listen, entry.options), config.listen);
  translator_->add_listener(std::move(entry));
  watch(fabric->event_fd());
  fabrics_.push_back(std::move(fabric));
}

void Worker::add_channel(std::unique_ptr<fabric::Fabric> fabric, const ChannelConfig& config) {
  fabric->wake_in(epoll_fd_);
  packet_io::ChannelIoOptions options;
  options.listen = config.fabric.listen;
  options.proxy_name = config_.name;
  options.proxy_id = config_.id;
  options.weight = config_.weight;
  options.epoch = epoch_;
  options.nodes_max = config.fabric.nodes_max;
  options.joined_max = config.joined_max;
  options.endpoint.receive_depth = config.fabric.credits;
  options.lent = lent_ ? &*lent_ : nullptr;
  options.lent_ms_max = config_.lent_ms_max;
  if (config.fabric.uses_pools()) {
    // Half of the spare slots stay for what the interfaces receive.
    options.endpoint.receive_memory = {ingress_.get(), &ingress_region_,
                                       buffer::kSpareSlotsMin / 2};
  }
  options.allow = [allow = config.fabric.allow](const fabric::PeerIdentity& peer) {
    service::Credentials who;
    who.uid = peer.uid;
    who.certificate_name = peer.certificate_name;
    return service::allows(allow, who);
  };
  auto io = take(packet_io::ChannelIo::open(config.options, std::move(options), *fabric, clock_),
                 config.fabric.listen);
  auto interface = std::make_unique<Interface>();
  channels_.push_back(io.get());
  interface->io = std::move(io);
  interface->index = take(stack_->add_interface(*interface->io), config.options.name);
  watch(fabric->event_fd());
  interfaces_.push_back(std::move(interface));
  fabrics_.push_back(std::move(fabric));
}

void Worker::start_admin(const SocketAddress& address) {
  admin_ = take(daemon::AdminServer::start(address, config_.admin_changes_from),
                "admin endpoint " + address.to_string());
  watch(admin_->fd());
}

void Worker::serve_supervisor(UniqueFd control) {
  control_ = std::make_unique<ControlSocket>(std::move(control));
  watch(control_->fd());
}

void Worker::on_service_opened(const SocketAddress& address) {
  if (address.ip.is_any()) return;
  leaving_.remove(address);
  for (auto& interface : interfaces_) interface->io->add_local_address(address.ip);
}

void Worker::on_service_closed(const SocketAddress& address) {
  if (address.ip.is_any()) return;
  if (cluster_) leaving_.add(address);
  retired_.add(address.ip);
  if (!retired_.due()) return;
  for (const IpAddress& ip : retired_.give_up(addresses_in_use())) {
    for (auto& interface : interfaces_) {
      const auto& own = interface->io->options().addresses;
      const bool configured = std::any_of(own.begin(), own.end(),
                                          [&](const IpPrefix& prefix) { return prefix.ip == ip; });
      if (!configured) interface->io->remove_local_address(ip);
    }
  }
}

// Of services and connections. Walks all of both: control plane only, and seldom.
std::set<IpAddress> Worker::addresses_in_use() {
  std::set<IpAddress> used;
  translator_->services().for_each(
      [&](service::Service& service) { used.insert(service.address().ip); });
  stack_->for_each([&](stack::ConnIndex, stack::TcpState, const stack::ConnectionInfo& info) {
    used.insert(info.local.ip);
  });
  return used;
}

// Lends a slot to the driver at place `i`; false when the pool is dry.
bool Worker::post(Interface& in, std::size_t i) {
  const buffer::SlotIndex slot = ingress_->acquire();
  if (slot == buffer::kNoSlot) return false;
  in.slots[i] = slot;
  in.buffers[i] = {ingress_->data(slot), static_cast<std::uint32_t>(ingress_->slot_bytes())};
  return true;
}

// Packets in memory of the interface: nothing is posted.
std::size_t Worker::receive_lent(Interface& in) {
  const std::size_t count = in.io->receive({}, in.packets);
  for (std::size_t i = 0; i < count; ++i) stack_->input(in.index, in.packets[i]);
  return count;
}

std::size_t Worker::receive(Interface& in) {
  if (in.io->lends()) return receive_lent(in);
  while (in.posted < kBurst && post(in, in.posted)) ++in.posted;
  in.offered = std::min(in.posted, in.burst);
  const std::size_t count =
      in.io->receive({in.buffers.data(), in.offered}, {in.packets.data(), in.offered});
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const packet_io::ReceivedPacket& packet = in.packets[i];
    in.bytes[i] = {in.buffers[packet.buffer].data + packet.offset, packet.length};
    bytes += packet.length;
  }
  if (bytes != 0) in.burst = std::clamp(kBurstBytes * count / bytes, kBurstMin, kBurst);
  stack_->expect({in.bytes.data(), count});
  for (std::size_t i = 0; i < count; ++i) {
    const buffer::SlotIndex slot = std::exchange(in.slots[in.packets[i].buffer], buffer::kNoSlot);
    stack_->input(in.index, slot, in.packets[i]);
  }
  // The driver fills the lowest places first: they get the slots freed last, which are still in
  // the cache. With a dry pool fewer are posted, and packets wait in the device's queue.
  const std::size_t used = count == 0 ? 0 : in.packets[count - 1].buffer + std::size_t{1};
  for (std::size_t i = used; i-- > 0;) {
    if (in.slots[i] != buffer::kNoSlot || post(in, i)) continue;
    --in.posted;
    in.slots[i] = in.slots[in.posted];
    in.buffers[i] = in.buffers[in.posted];
  }
  return count;
}

std::size_t Worker::round() {
  ++loop_.rounds;
  std::size_t work = 0;
  bool more = false;  // packets wait in an interface
  for (auto& interface : interfaces_) {
    const std::size_t count = receive(*interface);
    more = more || (count != 0 && count >= interface->offered);
    work += count;
  }
  translator_->flush_channels();
  work += translator_->poll_channels();
  if (stack_->next_timer_ns() <= clock_.now_ns()) stack_->on_time();
  stack_->flush(more);
  return work;
}

int Worker::sleep_ms() const {
  const std::uint64_t now = clock_.now_ns();
  std::uint64_t next = stack_->next_timer_ns();
  next = std::min(next, translator_->next_timer_ns());
  if (draining_) next = std::min(next, drain_deadline_ns_);
  for (const auto* channel : channels_) next = std::min(next, channel->next_timer_ns());
  if (pause_at_ns_ != 0) next = std::min(next, pause_at_ns_);
  if (next <= now) return 0;
  for (const auto& interface : interfaces_) {
    if (interface->io->unsent()) return 1;
  }
  const std::uint64_t ms = (next - now + 999'999) / 1'000'000;
  return static_cast<int>(std::min<std::uint64_t>(ms, kSleepMsMax));
}

void Worker::idle() {
  translator_->flush_channels();  // what the last poll produced
  translator_->replenish_channels();
  bool may_sleep = true;
  for (auto& fabric : fabrics_) may_sleep = fabric->arm() && may_sleep;
  wait(may_sleep && !config_.spin ? sleep_ms() : 0);
  for (auto& fabric : fabrics_) fabric->disarm();
  look_at_listeners();
}

void Worker::look_at_listeners() {
  (void)translator_->poll_listeners();
  for (auto* channel : channels_) {
    (void)channel->poll_listener();
    channel->on_time();
  }
  look_at_devices();
  chores();
  manager_.beat(clock_.now_ns());
}

void Worker::wait(int timeout_ms) {
  std::array<epoll_event, 16> events;
  if (timeout_ms != 0) ++loop_.sleeps;
  const int count = epoll_wait(epoll_fd_, events.data(), events.size(), timeout_ms);
  for (int i = 0; i < count; ++i) {
    on_event(events[static_cast<std::size_t>(i)].data.fd);
  }
}

void Worker::on_event(int fd) {
  const auto render = [this](const admin::PageRequest& request) {
    return admin::render(sources(), request);
  };
  if (fd == signal_fd_) {
    on_signal();
  } else if (handover_ && fd == handover_->fd()) {
    on_handover();
  } else if (cluster_ && fd == cluster_->fd()) {
    const bool changed = cluster_->apply();
    if (changed) follow_drain(!cluster_heard_);
    cluster_heard_ = true;
  } else if (admin_ && fd == admin_->fd()) {
    admin_->serve(render);
  } else if (control_ && fd == control_->fd()) {
    if (!control_->serve(render)) stop_now_ = true;  // the supervisor is gone
  } else if (fd >= 0) {
    for (auto& interface : interfaces_) {
      if (interface->io->control_fd() == fd) interface->io->on_control();
    }
  }
}

// What others have put together for us. A loop that is busy comes here each kRoundsBetweenChores
// rounds.
void Worker::on_handover() {
  for (std::size_t i = 0; i < kBurst; ++i) {
    const Handover::Received received = handover_->receive();
    if (received.packet.empty() || received.interface >= interfaces_.size()) return;
    packet_io::ReceivedPacket packet;
    packet.length = static_cast<std::uint32_t>(received.packet.size());
    packet.lent = received.packet.data();
    packet.offload.checksum_verified = received.checksum_verified;
    stack_->input(received.interface, packet);
  }
}

// After a round that did so much.
bool Worker::stay_awake(std::size_t work) {
  if (work != 0) {
    spin_.on_work(spin_.waiting() ? clock_.now_ns() : 0, work);
    return true;
  }
  if (!spin_.enabled() || !spin_.look_again(clock_.now_ns())) return false;
  sched_yield();  // who has something to do here answers sooner
  return true;
}

void Worker::run() {
  if (control_) control_->say_ready();
  manager_.ready();
  while (!stop_now_) {
    const std::size_t work = round();
    if (!stay_awake(work)) {
      idle();
    } else if (loop_.rounds % kRoundsBetweenChores == 0) {
      wait(0);
      for (auto& fabric : fabrics_) fabric->disarm();
      look_at_listeners();
    }
    if (draining_ && pause_at_ns_ == 0 &&
        (translator_->idle() || clock_.now_ns() >= drain_deadline_ns_)) {
      break;
    }
  }
  shut_down();
  if (!device_gone_.empty()) throw std::runtime_error("without " + device_gone_ + " it ends");
}

void Worker::shut_down() {
  const bool cut = translator_->bound_streams() != 0;
  spdlog::info("shutting down; {} connections are cut", translator_->bound_streams());
  translator_->close_all_channels(wire::CloseCode::kProxyShutdown, "the proxy is shutting down");
  // The channels report their end, their connections are reset, the packets leave.
  constexpr int kLastRounds = 4;
  for (int i = 0; i < kLastRounds; ++i) (void)round();
  const std::uint64_t end_ns = clock_.now_ns() + std::uint64_t{config_.lent_ms_max} * 1'000'000;
  while (translator_->holds_ends() && clock_.now_ns() < end_ns) {
    if (round() == 0) idle();
  }
  if (cut) answer_stragglers();
  for (auto* channel : channels_) {
    channel->close_all(wire::CloseCode::kProxyShutdown, "the proxy is shutting down");
  }
}

// A client that asks whether the reset is true (RFC 5961 3.2), or has not got it, is told again, as
// long as its packet takes on most paths: nobody else would.
void Worker::answer_stragglers() {
  constexpr std::uint64_t kFarewellNs = 200'000'000;
  draining_ = true;
  drain_deadline_ns_ = clock_.now_ns() + kFarewellNs;
  while (clock_.now_ns() < drain_deadline_ns_) {
    if (round() == 0) idle();
  }
}

}  // namespace sanproxy::proxy
