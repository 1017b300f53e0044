#include "netnode/main/node.h"

#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

#include "lwproto/cluster/model.h"
#include "lwproto/daemon/log.h"
#include "netnode/main/channels.h"
#include "netnode/main/nat_state.h"
#include "netnode/main/pages.h"
#include "netnode/packet_io/device_gone.h"

namespace sanproxy::netnode {
namespace {

constexpr std::uint64_t kRoundsBetweenChores = 256;
constexpr std::uint64_t kTimePeriodNs = 50'000'000;
constexpr std::uint64_t kPublishPauseNs = 300'000'000;
constexpr std::size_t kSlotBytes = (packet_io::kReceiveBufferBytesMin + 4095) / 4096 * 4096;

template <typename T>
T take(Result<T> result, const std::string& what) {
  if (!result.ok()) throw std::runtime_error(what + ": " + result.status().to_string());
  return std::move(result).value();
}

// What interfaces of AF_XDP receive into: part of the region that channels send from.
std::size_t frame_bytes(const NetnodeConfig& config) {
  std::size_t bytes = 0;
  for (const InterfaceConfig& interface : config.interfaces) {
    if (interface.options.driver == "xdp") bytes += packet_io::kXdpMemoryBytes;
  }
  return bytes;
}

}  // namespace

Node::Node(const NetnodeConfig& config, std::string version)
    : config_(config),
      version_(std::move(version)),
      start_ns_(clock_.now_ns()),
      region_(take(
          buffer::MemoryRegion::create(
              "sanproxy-netnode", std::size_t{config.buffers} * kSlotBytes + frame_bytes(config)),
          "packet buffers")),
      pool_(region_.bytes().first(std::size_t{config.buffers} * kSlotBytes), kSlotBytes),
      packets_(pool_),
      frame_memory_(region_.bytes().subspan(std::size_t{config.buffers} * kSlotBytes)),
      path_(config_, clock_, packets_) {
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  signal_fd_ = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
  if (epoll_fd_ < 0 || signal_fd_ < 0) throw std::runtime_error("event loop: epoll or signalfd");
  watch(signal_fd_);
  watch(prober_.fd());
  channels_ = std::make_unique<Channels>(config_, clock_, packets_, region_, path_, epoll_fd_);
  path_.set_channel_way(channels_.get());
}

Node::~Node() {
  admin_.reset();
  channels_.reset();
  if (signal_fd_ >= 0) close(signal_fd_);
  if (epoll_fd_ >= 0) close(epoll_fd_);
}

double Node::uptime_s() const { return static_cast<double>(clock_.now_ns() - start_ns_) / 1e9; }

void Node::watch(int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) {
    throw std::runtime_error("event loop: epoll_ctl");
  }
}

std::span<std::byte> Node::take_frame_memory(const InterfaceConfig& config) {
  if (config.options.driver != "xdp") return {};
  const auto taken = frame_memory_.first(packet_io::kXdpMemoryBytes);
  frame_memory_ = frame_memory_.subspan(taken.size());
  return taken;
}

void Node::add_interface(std::unique_ptr<packet_io::PacketIo> io, const InterfaceConfig& config) {
  watch(io->fd());
  // Translated and tunnelled packets have these for their source: answers must find us.
  for (const IpAddress& ip : config_.forwarder.nat.addresses) io->add_local_address(ip);
  for (const IpAddress& ip : config_.tunnel_addresses) io->add_local_address(ip);
  path_.add_interface(std::move(io), config.routes);
}

void Node::set_redirect(packet_io::FlowRedirect* redirect) {
  redirect_ = redirect;
  path_.set_redirect(redirect);
}

void Node::start_admin(const SocketAddress& address) {
  admin_ = take(daemon::AdminServer::start(address, config_.admin_changes_from),
                "admin endpoint " + address.to_string());
  watch(admin_->fd());
}

void Node::join_cluster() {
  cluster_ = std::make_unique<ClusterMember>(config_, version_);
  watch(cluster_->fd());
  publish();
}

bool Node::is_up(const std::string& proxy) const {
  return netnode::is_up(path_.forwarder().proxies(), proxy);
}

void Node::follow_cluster() {
  const bool before = draining();
  take_over(cluster_->take([this](const std::string& proxy) { return is_up(proxy); }));
  if (!before && draining()) quiet_.begin(clock_.now_ns());
  publish_at_ns_ = 0;
}

// What the cluster says that cannot be is refused as a whole: the last good set stays.
void Node::take_over(const std::optional<steer::ProxySet>& set) {
  if (!set) return;
  if (const std::string wrong = apply(*set); !wrong.empty()) {
    spdlog::warn("what the cluster says is not applied: {}", wrong);
  }
}

std::string Node::apply(const steer::ProxySet& set) {
  if (applied_ == set) return "";
  if (std::string wrong = steer::check(set); !wrong.empty()) return wrong;
  std::vector<std::uint16_t> gone;
  steer::Forwarder& forwarder = path_.forwarder();
  forwarder.apply(set, gone);
  for (const std::uint16_t place : gone) watches_.erase(place);
  path_.answer_for(set);
  std::string wrong = channels_->apply(forwarder.proxies());
  for (std::size_t i = 0; i < forwarder.proxies().size(); ++i) {
    const steer::Forwarder::Proxy& proxy = forwarder.proxies()[i];
    if (!proxy.in_use) continue;
    const auto place = static_cast<std::uint16_t>(i);
    const auto [watch, fresh] = watches_.try_emplace(place);
    const flow::HealthOptions thresholds{proxy.config.probe.rise, proxy.config.probe.fall, false};
    if (fresh) {
      watch->second.health = flow::Health(thresholds);
    } else {
      watch->second.health.set_options(thresholds);
    }
  }
  update_states();
  set_probes();
  applied_.reset();
  if (wrong.empty()) applied_ = set;
  return wrong;
}

void Node::load_sessions() {
  const std::string& path = config_.nat_state_file;
  if (path.empty()) return;
  const auto now_s = static_cast<std::uint32_t>(path_.now_ms() / 1'000);
  const NatStateResult got = load_nat(path, boot_id(), path_.forwarder(), now_s);
  if (!got.wrong.empty()) {
    spdlog::warn("{} is not taken: {}", path, got.wrong);
  } else if (got.sessions + got.left_out != 0) {
    spdlog::info("{} translated sessions go on, {} do not", got.sessions, got.left_out);
  }
  if (const std::string why = why_unwritable(path); !why.empty()) {
    spdlog::warn("{} cannot be written: {}: translated sessions will not outlive a restart", path,
                 why);
  }
}

void Node::save_sessions() const {
  const std::string& path = config_.nat_state_file;
  if (path.empty()) return;
  const auto now_s = static_cast<std::uint32_t>(path_.now_ms() / 1'000);
  const NatStateResult got = save_nat(path, boot_id(), path_.forwarder(), now_s);
  if (got.wrong.empty()) {
    spdlog::info("{} translated sessions are in {}", got.sessions, path);
  } else {
    spdlog::error("{} cannot be written: {}", path, got.wrong);
  }
}

// Once in a while a file of some kilobytes: packets wait for it no longer than for a new set.
void Node::reload() {
  try {
    NetnodeConfig read = read_();
    // Proxies were checked against these.
    if (read.forwarder.nat.addresses != config_.forwarder.nat.addresses ||
        read.tunnel_addresses != config_.tunnel_addresses) {
      throw std::runtime_error("other addresses in [nat] or [tunnel] need a restart");
    }
    const steer::ProxySet before = std::exchange(config_.set, std::move(read.set));
    const std::string wrong = apply(cluster_ ? cluster_->make_set() : config_.set);
    if (!wrong.empty()) {
      config_.set = before;
      throw std::runtime_error(wrong);
    }
    spdlog::info("configuration read again: {} services, {} proxies; other sections need a restart",
                 config_.set.services.size(), config_.set.proxies.size());
  } catch (const std::exception& e) {
    spdlog::error("configuration is not read again, all stays as it was: {}", e.what());
  }
}

bool Node::drain(const std::string& name, bool on) {
  const std::uint16_t place = path_.forwarder().find(name);
  const auto watch = watches_.find(place);
  if (watch == watches_.end()) return false;
  watch->second.drain_asked = on;
  update_state(place);
  return true;
}

void Node::drain() {
  if (!draining()) quiet_.begin(clock_.now_ns());
  drained_here_ = true;
  publish_at_ns_ = 0;
}

std::string Node::undrain() {
  if (stopping_) return "the network node is shutting down";
  drained_here_ = false;
  publish_at_ns_ = 0;
  if (!draining()) return "";
  return "drained by the cluster: sanctl undrain " + config_.name + " --etcd ...";
}

std::uint64_t Node::sessions() const { return path_.forwarder().sessions(); }

const char* Node::state() const {
  if (stopping_) return "stopping";
  if (!draining()) return "running";
  return empty() ? "drained" : "draining";
}

bool Node::empty() const {
  if (sessions() == 0) return true;
  return path_.forwarder().nat().sessions() == 0 &&
         quiet_.for_ns(clock_.now_ns()) >= std::uint64_t{config_.drain_quiet_ms} * 1'000'000;
}

// What others should know of us. Numbers are written where somebody waits for them to reach 0.
void Node::publish() {
  const std::uint64_t now = clock_.now_ns();
  if (now < publish_at_ns_) return;
  publish_at_ns_ = now + kPublishPauseNs;
  if (std::exchange(was_draining_, draining()) != draining()) {
    spdlog::info("{}; {} sessions are known here",
                 draining() ? "drained: /healthz asks for sessions to be taken elsewhere"
                            : "takes new sessions again",
                 sessions());
  }
  if (cluster_) cluster_->publish(stopping_ ? "draining" : state(), sessions());
}

void Node::on_time() {
  next_time_ns_ = clock_.now_ns() + kTimePeriodNs;
  path_.on_time();
  const steer::ForwarderCounters& c = path_.forwarder().counters();
  const std::uint64_t steered = c.by_flow + c.by_nat + c.by_tag + c.by_maglev + c.new_sessions;
  quiet_.look(steered, clock_.now_ns());
  manager_.beat(clock_.now_ns());
  look_at_devices();
  // Channels come and go without an event of their own.
  update_states();
  look_at_proxies();
  if (cluster_) {
    take_over(cluster_->forget_lost([this](const std::string& proxy) { return is_up(proxy); }));
  }
  publish();
}

// Other network nodes carry the sessions on; this one is of no use any more.
void Node::look_at_devices() {
  const std::uint64_t now = clock_.now_ns();
  if (now < devices_due_ns_) return;
  devices_due_ns_ = now + packet_io::kDeviceLookNs;
  for (const packet_io::PacketIo* io : path_.interfaces()) {
    const char* what = io->lost();
    if (what != nullptr) throw std::runtime_error("interface " + io->options().name + " " + what);
  }
}

std::size_t Node::round() {
  ++rounds_;
  std::size_t work = path_.receive();
  second_look_.on_packets(path_.received_bytes());
  path_.flush();
  work += channels_->round();
  if (clock_.now_ns() >= next_time_ns_) on_time();
  return work;
}

int Node::sleep_ms() const {
  const std::uint64_t now = clock_.now_ns();
  const std::uint64_t next = std::min(next_time_ns_, channels_->next_timer_ns());
  if (next <= now) return 0;
  if (path_.unsent()) return 1;
  return static_cast<int>((next - now + 999'999) / 1'000'000);
}

void Node::idle(bool sleep) {
  const bool may_sleep = sleep && channels_->arm() && !config_.spin;
  std::array<epoll_event, 16> events;
  const int count = epoll_wait(epoll_fd_, events.data(), events.size(), may_sleep ? sleep_ms() : 0);
  channels_->disarm();
  for (int i = 0; i < count; ++i) {
    const int fd = events[static_cast<std::size_t>(i)].data.fd;
    if (fd == signal_fd_) {
      on_signal();
    } else if (fd == prober_.fd()) {
      on_answers();
    } else if (cluster_ && fd == cluster_->fd()) {
      follow_cluster();
    } else if (admin_ && fd == admin_->fd()) {
      admin_->serve(
          [this](const daemon::PageRequest& request) { return render_page(*this, request); });
    }
  }
}

void Node::on_signal() {
  signalfd_siginfo info{};
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo == SIGHUP) {
      reload();
      continue;
    }
    const auto meaning = stop_signal_.on_signal(clock_.now_ns());
    stop_now_ = stop_now_ || meaning == daemon::StopSignal::Meaning::kAtOnce;
    if (meaning != daemon::StopSignal::Meaning::kOrderly) continue;
    if (!draining()) quiet_.begin(clock_.now_ns());
    stopping_ = true;
    manager_.stopping();
    stop_ns_ = clock_.now_ns() + std::uint64_t{config_.drain_ms} * 1'000'000;
    spdlog::info(
        "signal {}: packets are carried on for {} ms, or until no session is known or, without a "
        "translated one, none has come for {} ms",
        info.ssi_signo, config_.drain_ms, config_.drain_quiet_ms);
    publish_at_ns_ = 0;
  }
}

bool Node::look_again() {
  if (!second_look_.due()) return false;
  sched_yield();
  return true;
}

void Node::run() {
  manager_.ready();
  while (!stop_now_) {
    const std::size_t work = round();
    if (work != 0) second_look_.on_work();
    if (work == 0 && !look_again()) {
      idle(true);
    } else if (rounds_ % kRoundsBetweenChores == 0) {
      idle(false);
    }
    if (!stopping_) continue;
    if (empty() || clock_.now_ns() >= stop_ns_) break;
  }
}

}  // namespace sanproxy::netnode
