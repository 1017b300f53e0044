// Worker: what changes while it runs: drains, signals, what the cluster says, devices that go; and
// what operators see of it.
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>

#include "lwproto/daemon/log.h"
#include "netnode/packet_io/device_gone.h"
#include "proxynode/main/worker_interface.h"

namespace sanproxy::proxy {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr std::uint64_t kPublishPauseNs = 300 * kNsPerMs;
// Names that may be drained beside those of nodes that are here.
constexpr std::size_t kDrainedNamesMax = 4096;
constexpr std::size_t kNodeNameBytesMax = 64;

}  // namespace

void Worker::join_cluster() {
  cluster_ = std::make_unique<ClusterMember>(config_, version_, *translator_);
  watch(cluster_->fd());
}

std::string Worker::drain() {
  drained_here_ = true;
  follow_drain(loop_.rounds == 0);
  return "";
}

std::string Worker::undrain() {
  if (draining_) return "the proxy is shutting down";
  drained_here_ = false;
  follow_drain(false);
  if (cluster_ && cluster_->drained()) {
    return "drained by the cluster: sanctl undrain " + config_.name + " --etcd ...";
  }
  return "";
}

std::string Worker::drain_node(const std::string& name, bool drained) {
  if (name.empty() || name.size() > kNodeNameBytesMax) return "no name of a node";
  if (drained && translator_->drained_names().size() >= kDrainedNamesMax) {
    return "4096 names are drained already";
  }
  translator_->set_drained(name, drained, translate::DrainedBy::kOperator);
  if (drained) return "";
  if (translator_->is_drained(name, translate::DrainedBy::kCluster)) {
    return "drained by the cluster: sanctl undrain " + name + " --etcd ...";
  }
  std::string still;  // one that is meant, and is drained by its other name
  translator_->for_each_node([&](const translate::AppNode& node) {
    const std::string_view before_pid = cluster::name_before_pid(node.name);
    if (!node.dead && node.drained && (node.name == name || before_pid == name)) still = node.name;
  });
  if (still.empty()) return "";
  if (still == name) still = cluster::name_before_pid(still);
  return "drained as \"" + still + "\" as well: undrain that";
}

const char* Worker::state() const {
  if (draining_) return "stopping";
  if (!drained()) return "running";
  return translator_->paused() && translator_->idle() ? "drained" : "draining";
}

// In a cluster the network nodes are to know first: until then clients still find us listening; but
// at the start nobody has found us yet.
void Worker::follow_drain(bool at_start) {
  if (draining_) return;
  publish_at_ns_ = 0;
  for (auto* channel : channels_) channel->set_draining(drained());
  if (!drained()) {
    if (translator_->paused() || pause_at_ns_ != 0) spdlog::info("takes new connections again");
    pause_at_ns_ = 0;
    translator_->set_paused(false);
    return;
  }
  if (translator_->paused() || pause_at_ns_ != 0) return;
  const bool others_look = cluster_ != nullptr || !channels_.empty();
  std::uint32_t grace_ms = config_.drain_grace_ms;
  if (others_look) {
    const ClusterConfig cluster = config_.cluster.value_or(ClusterConfig{});
    grace_ms = std::max(grace_ms, cluster.drain_grace_ms);
  }
  if (at_start) grace_ms = 0;
  spdlog::info("drained: no new connections after {} ms; {} open ones go on", grace_ms,
               translator_->bound_streams());
  if (grace_ms == 0) return translator_->set_paused(true);
  pause_at_ns_ = clock_.now_ns() + std::uint64_t{grace_ms} * kNsPerMs;
}

// Our ends of open connections. Walks all of them: control plane only, and seldom.
std::set<SocketAddress> Worker::endpoints_in_use() {
  std::set<SocketAddress> used;
  stack_->for_each([&](stack::ConnIndex index, stack::TcpState, const stack::ConnectionInfo& info) {
    if (index != stack::kNoConn) used.insert(info.local);
  });
  return used;
}

// Now and then: what is due by time, and what others should know of us.
void Worker::chores() {
  if (pause_at_ns_ == 0 && !cluster_) return;
  const std::uint64_t now = clock_.now_ns();
  if (pause_at_ns_ != 0 && now >= pause_at_ns_) {
    pause_at_ns_ = 0;
    draining_ ? translator_->start_drain() : translator_->set_paused(true);
  }
  if (!cluster_ || now < publish_at_ns_) return;
  publish_at_ns_ = now + kPublishPauseNs;
  if (leaving_.due(now)) leaving_.keep(endpoints_in_use(), now);
  const translate::TranslatorCounters& c = translator_->counters();
  // While somebody waits for connections to end their number is news, else it is not.
  const bool waiting = drained() || draining_ || !translator_->drained_names().empty();
  std::uint64_t of_drained_nodes = 0;  // others may have as many more meanwhile
  translator_->for_each_node([&](const translate::AppNode& node) {
    if (node.drained && !node.dead) of_drained_nodes += node.open_streams;
  });
  const std::array<std::uint64_t, 9> news = {c.channels_opened,
                                             c.channels_closed,
                                             c.joins,
                                             c.leaves,
                                             waiting ? 1u + translator_->paused() : 0u,
                                             waiting ? translator_->bound_streams() : 0,
                                             of_drained_nodes,
                                             translator_->drain_changes(),
                                             leaving_.changes()};
  if (news == published_) return;
  published_ = news;
  const char* known_as = draining_ ? "draining" : state();
  cluster_->publish(known_as, translator_->bound_streams(), leaving_.all());
}

void Worker::resume(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    (void)admin::render(sources(), {.path = path, .method = "POST"});
  }
}

// Whoever runs us starts us anew: a device of the same name is another one.
void Worker::look_at_devices() {
  const std::uint64_t now = clock_.now_ns();
  if (now < devices_due_ns_ || stop_now_) return;
  devices_due_ns_ = now + packet_io::kDeviceLookNs;
  stack_->take_smaller_mtus();
  for (const auto& interface : interfaces_) {
    const char* what = interface->io->lost();
    if (what == nullptr) continue;
    device_gone_ = interface->io->options().name;
    spdlog::error("interface {} {}", device_gone_, what);
    stop_now_ = true;
    return;
  }
}

void Worker::on_signal() {
  signalfd_siginfo info{};
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo == SIGHUP) {
      spdlog::warn("signal {}: {}", info.ssi_signo, kNothingIsReadAgain);
      continue;
    }
    const auto meaning = stop_signal_.on_signal(clock_.now_ns());
    stop_now_ = stop_now_ || meaning == daemon::StopSignal::Meaning::kAtOnce;
    if (meaning != daemon::StopSignal::Meaning::kOrderly) continue;
    spdlog::info("signal {}: no new connections after {} ms; {} open ones may finish within {} ms",
                 info.ssi_signo, config_.drain_grace_ms, translator_->bound_streams(),
                 config_.drain_ms);
    draining_ = true;
    manager_.stopping();
    // Whoever looks at /healthz sends nobody any more before we refuse anybody.
    pause_at_ns_ = clock_.now_ns() + std::uint64_t{config_.drain_grace_ms} * kNsPerMs;
    drain_deadline_ns_ = pause_at_ns_ + std::uint64_t{config_.drain_ms} * kNsPerMs;
    if (config_.drain_grace_ms == 0) {
      pause_at_ns_ = 0;
      translator_->start_drain();
    }
    for (auto* channel : channels_) channel->set_draining(true);
    publish_at_ns_ = 0;
  }
}

admin::Sources Worker::sources() {
  admin::Sources out;
  out.name = config_.name;
  out.version = version_;
  out.uptime_s = static_cast<double>(clock_.now_ns() - start_ns_) / 1e9;
  out.draining = draining_ || drained();
  out.state = state();
  out.operations = this;
  if (cluster_) {
    cluster_status_ = cluster_->status();
    out.cluster = &cluster_status_;
    out.leaving = {leaving_.all().size(), leaving_.forgotten()};
  }
  out.stack = stack_.get();
  out.translator = translator_.get();
  out.ingress = ingress_.get();
  out.egress = egress_.get();
  for (const auto& interface : interfaces_) out.interfaces.push_back(interface->io.get());
  out.loop = &loop_;
  return out;
}

}  // namespace sanproxy::proxy
