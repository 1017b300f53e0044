// Worker: what operators change while it runs: drains, signals, and what the cluster says.
#include <sys/signalfd.h>
#include <unistd.h>

#include "lwproto/daemon/log.h"
#include "proxynode/main/worker.h"

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
  follow_drain();
  return "";
}

std::string Worker::undrain() {
  if (draining_) return "the proxy is shutting down";
  drained_here_ = false;
  follow_drain();
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
  if (!drained && translator_->is_drained(name, translate::DrainedBy::kCluster)) {
    return "drained by the cluster: sanctl undrain " + name + " --etcd ...";
  }
  return "";
}

const char* Worker::state() const {
  if (draining_) return "stopping";
  if (!drained()) return "running";
  return translator_->paused() && translator_->idle() ? "drained" : "draining";
}

// In a cluster the network nodes are to know first: until then clients still find us listening.
void Worker::follow_drain() {
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
  const std::uint64_t grace_ms = !others_look      ? 0
                                 : config_.cluster ? config_.cluster->drain_grace_ms
                                                   : ClusterConfig{}.drain_grace_ms;
  spdlog::info("drained: no new connections after {} ms; {} open ones go on", grace_ms,
               translator_->bound_streams());
  pause_at_ns_ = clock_.now_ns() + grace_ms * kNsPerMs;
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
    translator_->set_paused(true);
  }
  if (!cluster_ || now < publish_at_ns_) return;
  publish_at_ns_ = now + kPublishPauseNs;
  if (leaving_.due(now)) leaving_.keep(endpoints_in_use(), now);
  const translate::TranslatorCounters& c = translator_->counters();
  // While somebody waits for connections to end their number is news, else it is not.
  const bool waiting = drained() || draining_ || !translator_->drained_names().empty();
  const std::array<std::uint64_t, 8> news = {c.channels_opened,
                                             c.channels_closed,
                                             c.joins,
                                             c.leaves,
                                             waiting ? 1u + translator_->paused() : 0u,
                                             waiting ? translator_->bound_streams() : 0,
                                             translator_->drained_names().size(),
                                             leaving_.changes()};
  if (news == published_) return;
  published_ = news;
  const char* known_as = draining_ ? "draining" : state();
  cluster_->publish(known_as, translator_->bound_streams(), leaving_.all());
}

void Worker::on_signal() {
  signalfd_siginfo info{};
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (draining_) {
      stop_now_ = true;
      continue;
    }
    spdlog::info("signal {}: no new connections; {} open ones may finish within {} ms",
                 info.ssi_signo, translator_->bound_streams(), config_.drain_ms);
    draining_ = true;
    manager_.stopping();
    drain_deadline_ns_ = clock_.now_ns() + std::uint64_t{config_.drain_ms} * 1'000'000;
    translator_->start_drain();
    for (auto* channel : channels_) channel->set_draining(true);
    publish_at_ns_ = 0;
  }
}

}  // namespace sanproxy::proxy
