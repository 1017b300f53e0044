// Node: one network node process: one thread, its interfaces, channels, probes and admin endpoint.
//
// Document: docs/netnode.md.
// Role: assembles the parts (given as interfaces) and runs the loop; decides which proxy is up from
//   probes, channels and operators; applies new sets of proxies while packets flow.
// Owner: main(). Thread: the one that calls run().
// Invariants:
//   1. Flows are lost neither by apply() nor by draining: a proxy that a set still names keeps its
//      sessions, its health and, if nothing of it has changed, its channel and its probe.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/buffer/slot_pool.h"
#include "lwproto/daemon/admin_server.h"
#include "lwproto/daemon/service_manager.h"
#include "lwproto/daemon/stop_signal.h"
#include "lwproto/flow/health.h"
#include "netnode/main/cluster_member.h"
#include "netnode/main/config.h"
#include "netnode/main/data_path.h"
#include "netnode/main/of_use.h"
#include "netnode/main/prober.h"
#include "netnode/main/quiet.h"
#include "netnode/main/second_look.h"
#include "netnode/main/start_hold.h"

namespace sanproxy::packet_io {
class ChannelLink;
}

namespace sanproxy::netnode {

class Channels;

class Node {
 public:
  // Start-up only: throws std::runtime_error with a text for the operator.
  Node(const NetnodeConfig& config, std::string version);
  ~Node();

  // For InterfaceOptions::frame_memory of the interface that is opened next.
  std::span<std::byte> take_frame_memory(const InterfaceConfig& config);
  void add_interface(std::unique_ptr<packet_io::PacketIo> io, const InterfaceConfig& config);
  // After the interfaces, which are attached to it; it lives longer than this.
  void set_redirect(packet_io::FlowRedirect* redirect);
  void start_admin(const SocketAddress& address);
  void join_cluster();
  // On SIGHUP proxies and services are those that `read` gives, or throws why not.
  void set_reader(std::function<NetnodeConfig()> read) { read_ = std::move(read); }
  // Changes services and proxies. Returns why not: nothing has changed then.
  std::string apply(const steer::ProxySet& set);

  // Translated sessions of the life before this one, if there is a file for them; and for the next.
  void load_sessions();
  void save_sessions() const;

  // Runs until SIGTERM or SIGINT: /healthz says so, no new sessions are promised, established ones
  // are carried on for drain_ms (a second signal cuts that short).
  void run();
  // Asks for sessions to be taken elsewhere (/healthz), or takes them again; packets are carried
  // on. Returns what is in the way of the latter, for people.
  void drain();
  std::string undrain();

  // What the pages of the admin endpoint show.
  struct ProxyView {
    const steer::Forwarder::Proxy* proxy = nullptr;
    std::uint16_t place = 0;
    std::uint32_t sessions = 0;
    bool drain_asked = false;
    const char* health = "";
    std::string detail;
    const packet_io::ChannelLink* link = nullptr;  // of one that is reached by channel
  };
  std::vector<ProxyView> proxies() const;
  const NetnodeConfig& config() const { return config_; }
  const std::string& version() const { return version_; }
  const DataPath& path() const { return path_; }
  const buffer::SlotPool& pool() const { return pool_; }
  const packet_io::FlowRedirect* redirect() const { return redirect_; }  // null: there is none
  double uptime_s() const;
  // Out for new sessions: by a signal, an operator or the cluster.
  bool draining() const { return stopping_ || drained_here_ || (cluster_ && cluster_->drained()); }
  // Whether packets have where to go: some proxy is up or drains, or was a moment ago.
  bool of_use() const { return of_use_.is() && !knows_nothing(); }
  // Its file names no service, and its cluster has not told of any yet: it drops everything.
  bool knows_nothing() const {
    return config_.no_proxy_ms != 0 && cluster_ && !cluster_->heard() &&
           path_.forwarder().services().empty();
  }
  // "running", "draining", "drained", "stopping".
  const char* state() const;
  std::uint64_t sessions() const;  // that this node knows
  // Nobody needs this node: what it knows of flows others find by themselves, so quiet is enough;
  // translated sessions are here alone.
  bool empty() const;
  const ClusterMember* cluster() const { return cluster_.get(); }
  // Takes a proxy out for new sessions, or back. False: there is none of that name.
  bool drain(const std::string& name, bool on);

 private:
  struct Watch {
    flow::Health health;
    bool drain_asked = false;
    bool tells_draining = false;  // by its last answer to a probe
    std::string why;              // the last probe failed; empty: it did not
  };

  std::size_t round();
  bool look_again();
  void idle(bool sleep);
  void on_signal();
  void reload();
  void follow_cluster();
  void take_over(const std::optional<steer::ProxySet>& set);
  bool is_up(const std::string& proxy) const;
  void publish();
  void on_answers();
  void on_time();
  void look_at_devices();
  void look_at_proxies();
  bool heard(std::uint16_t place, const Watch& watch) const;
  void update_states();
  void update_state(std::uint16_t place);
  void set_probes();
  void watch(int fd);
  int sleep_ms() const;

  NetnodeConfig config_;
  std::string version_;
  std::function<NetnodeConfig()> read_;
  daemon::ServiceManager manager_;
  daemon::StopSignal stop_signal_;
  SteadyClock clock_;
  std::uint64_t start_ns_;
  buffer::MemoryRegion region_;
  buffer::SlotPool pool_;
  packet_io::PacketPool packets_;
  std::span<std::byte> frame_memory_;  // of region_, for interfaces that are still to come
  DataPath path_;
  Prober prober_;
  std::unique_ptr<Channels> channels_;
  std::map<std::uint16_t, Watch> watches_;  // by place
  std::optional<steer::ProxySet> applied_;  // nothing: the last one did not come about whole
  std::unique_ptr<daemon::AdminServer> admin_;
  std::unique_ptr<ClusterMember> cluster_;
  packet_io::FlowRedirect* redirect_ = nullptr;
  int epoll_fd_ = -1;
  int signal_fd_ = -1;
  std::uint64_t rounds_ = 0;
  SecondLook second_look_;
  StartHold start_hold_;
  std::uint64_t next_time_ns_ = 0;
  std::uint64_t devices_due_ns_ = 0;
  std::uint64_t stop_ns_ = 0;
  Quiet quiet_;
  OfUse of_use_;
  std::uint64_t publish_at_ns_ = 0;
  bool was_draining_ = false;
  bool drained_here_ = false;  // by POST /drain
  bool stopping_ = false;
  bool stop_now_ = false;
};

}  // namespace sanproxy::netnode
