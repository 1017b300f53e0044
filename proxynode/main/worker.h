// Worker: one data-path process: one thread, one stack, its interfaces and fabrics.
//
// Document: docs/life_of_a_connection.md "One loop round".
// Role: assembles the parts (given as interfaces) and runs the loop: receive a burst, endpoints,
//   translate, flush channels, poll channels, due timers, flush packets, sleep if idle.
// Owner: main(). Thread: the one that calls run().
// Invariants:
//   1. Channels are flushed before packets in every round: what a client's ACK promises is with
//      the application node already.
//   2. The loop sleeps only after arming every source and looking once more.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/buffer/slot_pool.h"
#include "lwproto/daemon/admin_server.h"
#include "lwproto/daemon/service_manager.h"
#include "lwproto/daemon/stop_signal.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/lent_memory.h"
#include "netnode/packet_io/channel_io.h"
#include "netnode/packet_io/packet_io.h"
#include "proxynode/admin/pages.h"
#include "proxynode/main/cluster_member.h"
#include "proxynode/main/config.h"
#include "proxynode/main/control_socket.h"
#include "proxynode/main/handover.h"
#include "proxynode/main/leaving_services.h"
#include "proxynode/main/retired_addresses.h"
#include "proxynode/main/short_spin.h"
#include "proxynode/stack/stack.h"
#include "proxynode/translate/translator.h"

namespace sanproxy::proxy {

class Worker final : public translate::Host, private admin::Operations {
 public:
  // Start-up only: throws std::runtime_error with a text for the operator.
  // `handover`: null where there is one worker.
  Worker(const ProxyConfig& config, std::string version,
         std::unique_ptr<Handover> handover = nullptr);
  ~Worker() override;

  void add_interface(std::unique_ptr<packet_io::PacketIo> io);
  // Listens on `config`'s address with a fabric made by the caller.
  void add_fabric(std::unique_ptr<fabric::Fabric> fabric, const FabricConfig& config);
  // Likewise for the channels of network nodes: one more interface.
  void add_channel(std::unique_ptr<fabric::Fabric> fabric, const ChannelConfig& config);
  void start_admin(const SocketAddress& address);
  void join_cluster();
  // As one of several workers: the supervisor asks for the pages, and ends us by going away.
  void serve_supervisor(UniqueFd control);

  // Runs until SIGTERM or SIGINT has been handled: listeners close, open connections may finish
  // for drain_ms (a second signal cuts that short), the rest is reset. Throws std::runtime_error
  // in the end when the device of an interface was removed.
  void run();
  // Before run(), of one that is started again: the pages of the drains that hold.
  void resume(const std::vector<std::string>& paths);

  void on_service_opened(const SocketAddress& address) override;
  void on_service_closed(const SocketAddress& address) override;

 private:
  struct Interface;
  std::set<IpAddress> addresses_in_use();
  std::set<SocketAddress> endpoints_in_use();
  bool post(Interface& interface, std::size_t place);
  std::size_t receive(Interface& interface);
  std::size_t receive_lent(Interface& interface);
  std::size_t round();
  bool stay_awake(std::size_t work);
  void idle();
  void wait(int timeout_ms);
  int sleep_ms() const;
  void on_event(int fd);
  void on_signal();
  void on_handover();
  void shut_down();
  void answer_stragglers();

  // worker_operations.cc: what operators change while it runs.
  std::string drain() override;
  std::string undrain() override;
  std::string drain_node(const std::string& name, bool drained) override;
  bool drained() const { return drained_here_ || (cluster_ && cluster_->drained()); }
  const char* state() const;
  void follow_drain(bool at_start);
  void chores();
  void watch(int fd);
  void look_at_listeners();
  void look_at_devices();
  admin::Sources sources();

  ProxyConfig config_;
  std::string version_;
  SteadyClock clock_;
  daemon::ServiceManager manager_;
  daemon::StopSignal stop_signal_;
  ShortSpin spin_;
  std::uint64_t start_ns_ = 0;
  std::uint16_t epoch_ = 0;
  buffer::MemoryRegion ingress_region_;
  buffer::MemoryRegion egress_region_;
  std::optional<fabric::LentMemory> lent_;  // where network nodes connect by channel
  std::unique_ptr<buffer::SlotPool> ingress_;
  std::unique_ptr<buffer::SlotPool> egress_;
  std::vector<std::unique_ptr<fabric::Fabric>> fabrics_;
  std::vector<std::unique_ptr<Interface>> interfaces_;
  std::vector<packet_io::ChannelIo*> channels_;  // of these, those of network nodes
  std::unique_ptr<translate::Translator> translator_;
  std::unique_ptr<Handover> handover_;
  std::unique_ptr<stack::Stack> stack_;
  std::unique_ptr<daemon::AdminServer> admin_;
  std::unique_ptr<ControlSocket> control_;
  std::unique_ptr<ClusterMember> cluster_;
  bool drained_here_ = false;      // by POST /drain
  bool cluster_heard_ = false;     // it has said what it says
  std::uint64_t pause_at_ns_ = 0;  // drained, but the listeners are still open; else 0
  std::uint64_t publish_at_ns_ = 0;
  std::uint64_t devices_due_ns_ = 0;
  std::string device_gone_;                                    // its name
  std::array<std::uint64_t, 9> published_{~std::uint64_t{0}};  // differs from what it will be
  cluster::SessionStatus cluster_status_;                      // of the page that is being made
  RetiredAddresses retired_;                                   // of closed services
  LeavingServices leaving_;  // in a cluster: what network nodes are told
  admin::LoopCounters loop_;
  int epoll_fd_ = -1;
  int signal_fd_ = -1;
  bool draining_ = false;
  bool stop_now_ = false;
  std::uint64_t drain_deadline_ns_ = 0;
};

}  // namespace sanproxy::proxy
