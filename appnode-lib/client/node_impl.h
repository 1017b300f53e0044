// NodeImpl: what is behind a Node.
//
// Document: docs/application_library.md.
// Role: owns the fabrics, one Link a proxy (a worker of one), the connections, the registered
//   memory and the lists of those that wait; makes a poll round out of them and sleeps on one
//   descriptor.
// Owner: the application. Thread: one (stop() excepted).
// Invariants:
//   1. A poll round: Links (messages, handlers) -> those that waited for memory -> on_closed()
//      calls (sooner where a new client needs the place) -> flush of every channel. So all that a
//      round caused leaves in one batch.
//   2. Handlers are called from poll() and from the destructor, never from another call.
//   3. Fabrics outlive the channels, also those that kept loans still hold (buried_).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "appnode-lib/client/cluster_address.h"
#include "appnode-lib/client/connection_table.h"
#include "appnode-lib/client/discovery.h"
#include "appnode-lib/client/kept.h"
#include "appnode-lib/client/link.h"
#include "appnode-lib/client/send_memory.h"
#include "lwproto/auth/proof.h"
#include "lwproto/base/clock.h"
#include "lwproto/fabric/fabric.h"
#include "sanproxy/node.h"

namespace sanproxy::app::internal {

// What the application wants of one service. Links compare it with what their proxy knows. Once it
// has left at every proxy its place is free for the next.
struct ServiceImpl {
  std::uint64_t serial = 0;
  Address address;
  std::string name;  // the address as text
  JoinOptions options;
  RequestHandler on_request;
  bool leaving = false;
  bool shutting_down = false;
};

// A kind of fabric, and how to make one.
struct FabricKind {
  std::function<::sanproxy::Result<std::unique_ptr<fabric::Fabric>>(const NodeOptions&)> make;
  bool receives_into_pool = false;  // receives land in memory of ours, which we have to provide
  std::uint32_t send_depth = 0;     // if not that of all
};

// What a process is assembled from; tests put their own in.
struct Assembly {
  std::map<std::string, FabricKind, std::less<>> fabrics;  // by the address's scheme
  const Clock* clock = nullptr;                            // nullptr: the system's
  fabric::EndpointOptions endpoint;
};
Assembly default_assembly();

// Where the channel of a Link that came while running receives; outlives what is kept of it.
struct LinkMemory {
  buffer::MemoryRegion region;
  std::unique_ptr<buffer::SlotPool> pool;
};

// A fabric in use, and how channels are made over it.
struct FabricInUse {
  std::unique_ptr<fabric::Fabric> fabric;
  fabric::EndpointOptions options;
  const buffer::SlotPool* pool = nullptr;  // where receives land, if in memory of ours
  bool receives_into_pool = false;         // its kind's
};

class NodeImpl final : public Node {
 public:
  static constexpr std::size_t kServicesMax = 1024;
  static constexpr std::size_t kProxiesMax = 64;  // configured addresses
  static constexpr std::size_t kLinksMax = 4096;  // those found, and workers, included
  static constexpr std::size_t kKeysMax = 8;      // rule S21 of docs/wire_format.md

  static Result<std::unique_ptr<NodeImpl>> create(NodeOptions options, Assembly assembly);
  ~NodeImpl() override;

  // --- behind the public calls
  Result<Service> join(std::string_view address, RequestHandler on_request, JoinOptions options);
  Result<Connection*> connect(std::string_view remote, ConnectionHandler& handler, void* user);
  Result<RegisteredMemory> register_memory(std::size_t bytes);
  void stop();
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }
  std::size_t wait(int timeout_ms);
  int fd() const { return epoll_fd_; }
  bool arm();
  std::size_t poll();
  bool polling() const { return polling_; }  // a handler runs
  bool drained() const;
  std::size_t proxies_up() const { return links_up_; }
  std::size_t proxies_left_out() const;
  std::size_t link_count() const { return links_.size(); }
  bool is(std::uint32_t service, std::uint64_t serial) const {
    return services_[service]->serial == serial;
  }
  void leave(std::uint32_t service, std::uint64_t serial, bool shutdown);
  std::size_t joined_count(std::uint32_t service, std::uint64_t serial) const;
  bool left(std::uint32_t service) const;

  // --- for Links
  std::uint64_t now_ns() const { return clock_->now_ns(); }
  wire::HelloBody make_hello(const fabric::EndpointOptions& endpoint) const;  // for one channel
  const std::vector<auth::Key>& keys() const { return keys_; }
  const auth::Mac& mac() const { return *mac_; }  // there when there are keys
  std::uint32_t receive_window_bytes() const { return options_.receive_window_bytes; }
  const std::vector<std::unique_ptr<ServiceImpl>>& services() const { return services_; }
  const std::vector<std::shared_ptr<Region>>& regions() const { return regions_; }
  const buffer::MemoryRegion& send_region() const { return send_region_; }
  void link_up(Link& link);
  // The proxy at the configured address of `link` has so many workers: one Link for each.
  void follow_workers(const Link& link, std::uint32_t workers);
  void link_lost();  // was up
  void link_down(Link& link, std::string_view reason);
  void links_waiting(int more) { links_waiting_ += more; }
  void joined(std::size_t service, Link& link);
  void join_refused(std::size_t service, Link& link, CloseCode code);
  void key_refused(std::size_t key, Link& link, CloseCode code);
  void end_connections(Link& link, CloseCode reason);
  void bury(std::unique_ptr<ChannelHold> hold);

  // --- for Links and connections
  using StarvedList = IntrusiveList<ConnectionImpl, &ConnectionImpl::starved_hook>;
  using EndedList = IntrusiveList<ConnectionImpl, &ConnectionImpl::ended_hook>;
  // A place for a client: nullptr at the limit. Inside poll(), where no connection's handler runs.
  ConnectionImpl* acquire_for_request();
  ConnectionPool& pool() { return pool_; }
  const ConnectionPool& pool() const { return pool_; }
  SendMemory& send_memory() { return *send_memory_; }
  SendRecords& send_records() { return *send_records_; }
  KeptPool& kept() { return kept_; }
  StarvedList& starved() { return starved_; }
  EndedList& ended() { return ended_; }

 private:
  NodeImpl(NodeOptions options, Assembly assembly);
  Status set_up();
  Status set_up_keys();
  Status set_up_memory();
  Status set_up_links();
  Status set_up_receive_memory();
  Result<FabricInUse*> fabric_for(std::string_view address);
  Status watch(int fd);
  Result<std::uint32_t> place_for_service();
  void disarm();
  void take_events(int timeout_ms);
  void drain_own_events();
  void set_timer(std::uint64_t deadline_ns);
  LinkPlace link_place(const FabricInUse& fabric, std::string address) const;
  Link* find_link(const std::string& address);
  Status add_link(const std::string& address, LinkOrigin origin);
  Link* spare_link(bool receives_into_pool);
  void add_link(LinkPlace place);
  bool in_use(const Link& link);
  Status set_up_cluster(const std::string& address);
  bool usable(const std::string& address);
  void follow_clusters();
  void add_proxy(const std::string& address);
  void drop_proxy(const std::string& address);
  bool time_matters() const;
  std::uint64_t next_deadline_ns() const;
  void say_goodbye();
  void leave_to_parent();
  void close_own();
  std::size_t poll_round();
  void run_starved();
  std::size_t run_ended();
  void publish_all();
  bool memory_waits_for_poll() const;

  NodeOptions options_;
  Assembly assembly_;
  SteadyClock steady_clock_;
  const Clock* clock_;
  std::uint64_t epoch_ = 0;
  fabric::LinkParameters link_parameters_;
  std::vector<auth::Key> keys_;
  std::optional<auth::Mac> mac_;

  buffer::MemoryRegion send_region_;
  std::unique_ptr<SendMemory> send_memory_;
  std::unique_ptr<SendRecords> send_records_;
  std::size_t send_slots_ = 0;
  std::vector<std::shared_ptr<Region>> regions_;  // shared with the application's handles
  buffer::MemoryRegion receive_region_;           // of the fabrics that receive into memory of ours
  std::unique_ptr<buffer::SlotPool> receive_pool_;
  std::vector<std::unique_ptr<LinkMemory>> link_memory_;
  KeptPool kept_;

  std::map<std::string, FabricInUse, std::less<>> fabrics_;
  std::vector<std::unique_ptr<ChannelHold>> buried_;
  std::vector<std::unique_ptr<ServiceImpl>> services_;  // at most kServicesMax
  std::uint64_t last_service_serial_ = 0;
  ConnectionPool pool_;
  std::vector<std::unique_ptr<Link>> links_;
  std::vector<std::unique_ptr<Discovery>> clusters_;  // at most kProxiesMax
  std::size_t links_up_ = 0;
  int links_waiting_ = 0;      // reasons of links that are up to look at the clock
  std::size_t next_link_ = 0;  // for outgoing connections
  StarvedList starved_;
  EndedList ended_;

  int pid_ = 0;  // that of the process that made us
  int epoll_fd_ = -1;
  int stop_fd_ = -1;   // eventfd
  int timer_fd_ = -1;  // wakes us to connect again
  bool armed_ = false;
  bool polling_ = false;
  bool closing_ = false;                 // the destructor runs
  std::uint64_t timer_deadline_ns_ = 0;  // that timer_fd_ is set to; 0: none
  bool timer_fired_ = false;             // and has gone off
  std::atomic<bool> stopped_{false};
};

inline NodeImpl& impl(Node& node) { return static_cast<NodeImpl&>(node); }
inline const NodeImpl& impl(const Node& node) { return static_cast<const NodeImpl&>(node); }

}  // namespace sanproxy::app::internal
