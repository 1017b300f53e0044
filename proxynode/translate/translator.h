// Translator: joins the TCP stack and the channels. The hot path of the proxy node.
//
// Documents: docs/life_of_a_connection.md, docs/flow_control.md, docs/buffer_ownership.md.
// Role: turns what the stack reports into lightweight messages and back; owns the application
//   nodes, the streams and the decision who serves a connection.
//     nodes.cc         channels come, are polled and flushed, die
//     authenticate.cc  AUTHENTICATE, and who may try how often
//     joins.cc         JOIN, LEAVE, SHUTDOWN
//     operations.cc    policies changed and nodes drained while running
//     requests.cc      a connection is bound, requested, accepted, rejected; outgoing ones
//     tcp_to_san.cc    client bytes to the application node
//     san_to_tcp.cc    application bytes to the client
//     close.cc         every way a stream ends
//     backpressure.cc  who waits for what, and who is let on when
//     held_memory.cc   what streams hold of the EgressPool
//     health.cc        who answers, who is well
// Owner: the worker; thread: the worker's.
// Invariants:
//   1. Nothing is queued without bound: messages are made from stream state when a credit is
//      there; those that cannot be (answers, terminal CLOSE) wait in a list bounded by the streams
//      that the node may have, beyond which its channel is closed.
//   2. What an application node sends can end its own streams or its own channel, nothing else.
//   3. A node's memory (channel, loans, chunk region) lives until the last stream that refers to
//      it is free, also after the node has died.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lwproto/auth/admission.h"
#include "lwproto/auth/proof.h"
#include "lwproto/base/clock.h"
#include "lwproto/base/reserved_array.h"
#include "lwproto/buffer/slot_pool.h"
#include "lwproto/channel/channel.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/lent_memory.h"
#include "lwproto/flow/log_gate.h"
#include "proxynode/service/rate_limit.h"
#include "proxynode/service/service_table.h"
#include "proxynode/stack/stack.h"
#include "proxynode/translate/chunk_region.h"
#include "proxynode/translate/heartbeat.h"
#include "proxynode/translate/probe.h"
#include "proxynode/translate/stream.h"

namespace sanproxy::translate {

struct TranslatorOptions {
  std::string name = "proxy";
  std::uint16_t epoch = 0;
  std::uint32_t workers = 1;  // of the proxy node, for HELLO
  std::uint32_t connections_max = 100'000;
  std::uint32_t nodes_max = 1024;
  std::uint32_t send_window_bytes = 1024 * 1024;  // of one stream, application to client
  std::uint32_t tx_records_max = 1 << 20;         // pieces of application memory in use at a time
  std::size_t channel_region_bytes = std::size_t{256} << 20;
  bool outgoing = true;  // application nodes may open connections
  // Where all places are taken, a node that has never joined anything loses its own after so long.
  std::uint32_t join_grace_ms = 5000;
  HeartbeatOptions heartbeat = {};
  std::uint32_t probes_max = 256;  // at a time; connections_max + probes_max <= 2^24
  const Clock* clock = nullptr;    // null: the system's
  // What interfaces pass on to network nodes is not given back before they have done with it; null:
  // none does. Outlives the translator.
  fabric::LentMemory* lent = nullptr;
  std::uint32_t lent_ms_max = 1'000;  // an application node's end is held back for no longer
  std::vector<auth::Key> keys = {};
  service::RateLimits limits = {};
};

struct TranslatorCounters {
  std::uint64_t bytes_to_apps = 0, bytes_from_apps = 0;
  std::uint64_t copied_inline = 0;     // payload bytes copied because they are small
  std::uint64_t copied_isolation = 0;  // copied into a channel's own region
  std::uint64_t copied_pressure = 0;   // copied because a pool ran low
  std::uint64_t returned_late = 0;     // loans that waited for a network node
  std::uint64_t requests = 0, accepts = 0, rejects = 0, active_requests = 0;
  std::uint64_t unserved = 0;  // no application node could take the connection
  std::uint64_t closed_node_died = 0, closed_protocol = 0, closed_no_memory = 0;
  std::uint64_t late_messages = 0;  // for a connection that had just ended
  std::uint64_t channels_opened = 0, channels_closed = 0, channels_breached = 0,
                channels_refused = 0, channels_evicted = 0, channels_timed_out = 0;
  std::uint64_t joins = 0, joins_refused = 0, leaves = 0;
  std::uint64_t expelled = 0;  // memberships ended because a list has changed
  std::uint64_t joins_not_permitted = 0, joins_limited = 0;  // of those refused
  std::uint64_t proofs = 0, proofs_not_permitted = 0, proofs_limited = 0;
  std::uint64_t heartbeats = 0, heartbeats_missed = 0;
  std::uint64_t nodes_went_down = 0, nodes_came_up = 0;
  std::uint64_t probes = 0, probes_good = 0, probes_bad = 0, probes_deferred = 0;
  std::uint64_t members_went_down = 0, members_came_up = 0;
  std::uint64_t refused_payloads = 0;  // back-pressure onto one connection
  std::uint64_t waiting_rounds = 0;    // rounds without polling: the EgressPool was low as well
  std::uint64_t held_writes = 0;       // application bytes that wait because TCP memory is low
};

// Where application nodes connect: a listener and what is promised to those who come through it.
struct FabricListener {
  std::string fabric = "shm";               // its name, for people
  const fabric::Fabric* made_by = nullptr;  // for its counts; outlives the translator
  std::unique_ptr<fabric::Listener> listener;
  fabric::EndpointOptions options;
  bool lend_ingress =
      false;  // shared trust, or a fabric that sends from the pool without showing it
  std::uint32_t nodes_max = 1u << 24;    // that come through it, beside nodes_max of all
  std::size_t channel_region_bytes = 0;  // 0: TranslatorOptions'
  // A channel whose node has not answered a heartbeat for so long is closed; 0: never.
  std::uint32_t dead_after_ms = 0;
  // One region for all its channels, where a node sees nothing of it but what it is sent.
  std::unique_ptr<ChunkRegion> shared_chunks;
  service::AllowList allow = service::anybody();  // to services without a list of their own
};

// Slots of the EgressPool that endpoints must leave free: EndpointOptions::receive_memory.
inline std::size_t egress_reserve(const buffer::SlotPool& pool) {
  return std::min<std::size_t>(64, pool.slot_count() / 2);
}

// Who has taken a node out for new connections.
enum class DrainedBy : std::uint8_t { kOperator = 1, kCluster = 2 };

// What the translator asks of the process around it.
class Host {
 public:
  virtual ~Host() = default;
  virtual void on_service_opened(const SocketAddress& address) = 0;
  virtual void on_service_closed(const SocketAddress& address) = 0;
};

// An application node: its channel and what belongs to it.
struct AppNode {
  NodeIndex index = kNone;
  const FabricListener* from = nullptr;
  std::string name;
  fabric::PeerIdentity peer;
  std::string peer_key;  // whom its joins are counted for
  std::uint32_t proofs_seen = 0;
  service::Credentials who;
  std::unique_ptr<ChunkRegion> own_chunks;  // outlives the channel; null where the fabric's is used
  std::unique_ptr<channel::Channel> channel;
  ChunkRegion* chunks = nullptr;
  fabric::RegionKey chunk_key = 0;
  fabric::RegionKey ingress_key = 0;
  bool lend_ingress = false;
  bool receives_into_egress = false;  // what it sends arrives in slots of the EgressPool
  bool dead = false;
  std::uint64_t end_by_ns = 0;  // dead by our decision, which it is told then at the latest
  bool drained = false;         // gets no new connections
  bool has_joined = false;      // a service, at any time
  std::uint64_t connected_ns = 0;
  StreamIndex streams_head = kNone;
  std::uint32_t stream_count = 0;  // bound, orphans included
  std::uint32_t open_streams = 0;  // known to the application
  std::uint32_t open_probes = 0;   // likewise, of our own
  std::uint32_t returns_due = 0;   // of its loans, that network nodes still read from
  std::uint32_t records = 0;       // of pieces of its streams' payload
  Heartbeat heartbeat;
  StreamIndex blocked_head = kNone, blocked_tail = kNone;
  bool credits_wait = false;  // a CREDIT was refused since those of blocked streams were tried
  // Messages that cannot be made again from a stream's state (answers, terminal CLOSE and REJECT)
  // and found no credit. In order, before anything of a blocked stream; at most owed_max.
  struct Owed {
    wire::MessageType type;
    std::uint8_t flags;
    wire::CloseCode code;
    bool control;
    std::uint8_t body_bytes;
    std::array<std::byte, sizeof(wire::AuthenticateBody)> body;
  };
  std::deque<Owed> owed;
  std::size_t owed_max = 0;
  // Ends of memberships that wait for the requests that were bound in them (joins.cc).
  struct End {
    wire::MessageType type;
    std::uint8_t flags;
    wire::CloseCode code;
    wire::ServiceBody body;
    std::uint32_t membership = 0;  // 0: there was none
    std::uint32_t requests = 0;    // of it that have not left
  };
  std::vector<End> ends;               // with `owed`, at most owed_max
  std::uint32_t requests_pending = 0;  // of its streams, that have not left
};

class Translator final : public stack::Delegate, public channel::Delegate {
 public:
  Translator(const TranslatorOptions& options, buffer::SlotPool& ingress,
             const buffer::MemoryRegion& ingress_region, buffer::SlotPool& egress,
             std::vector<service::Policy> policies, std::uint32_t services_max, Host& host);
  ~Translator() override;
  void set_stack(stack::Stack& stack) { stack_ = &stack; }
  void add_listener(FabricListener listener) { listeners_.push_back(std::move(listener)); }
  // What those options need of the pool that is also ours.
  fabric::ReceiveMemory receive_memory(const buffer::MemoryRegion& egress_region) {
    return {&egress_, &egress_region, egress_reserve(egress_)};
  }

  // --- one loop round, in this order (docs/flow_control.md §3)
  void flush_channels();         // after a burst of packets: what was received is handed over
  std::size_t poll_channels();   // what the application nodes sent; number of completions
  std::size_t poll_listeners();  // application nodes that want in
  void replenish_channels();     // before sleeping: receive buffers that were held by others
  // When poll_channels() has something to do by the clock alone (Clock time).
  std::uint64_t next_timer_ns() const {
    return std::min({nodes_due_ns_, probes_due_ns_, ends_due_ns_, listeners_due_ns_});
  }

  // --- changed while running (operations.cc)
  // The policy of a service: instead of the configured one, or (nothing) that again. Members that
  // its list does not allow any more are members no more; their connections go on.
  void set_policy(const SocketAddress& address, std::optional<service::Policy> policy);
  // Of all application nodes, those that are here included.
  void set_heartbeat(const HeartbeatOptions& options);
  // Out for new connections, or in again: the whole proxy. Its services stay joined.
  void set_paused(bool paused);
  bool paused() const { return paused_; }
  // Likewise the application nodes of that name, now and when they come back.
  // Each who drains is to undrain.
  void set_drained(const std::string& node_name, bool drained, DrainedBy by);
  bool is_drained(const std::string& node_name, DrainedBy by) const;
  std::vector<std::string> drained_names() const;
  // Grows whenever a name is drained or undrained.
  std::uint64_t drain_changes() const { return drain_changes_; }

  // --- winding down
  void start_drain();  // no new connections or joins; members are told
  void close_all_channels(wire::CloseCode code, const char* text);
  bool idle() const { return bound_streams_ == 0; }

  // --- stack::Delegate
  bool on_accepted(stack::ConnIndex conn, const stack::ConnectionInfo& info) override;
  void on_connected(stack::ConnIndex conn, const stack::ConnectionInfo& info) override;
  bool on_received(stack::ConnIndex conn, stack::RxPayload& payload) override;
  void on_expected(stack::ConnIndex conn) const override;
  void on_fin(stack::ConnIndex conn) override;
  void on_acked(stack::ConnIndex conn, std::uint64_t acked_offset) override;
  bool on_closed(stack::ConnIndex conn, stack::EndReason reason) override;

  // --- channel::Delegate
  void on_data(channel::Channel& channel, std::uint64_t connection, std::uint64_t offset,
               const channel::Payload& payload) override;
  void on_message(channel::Channel& channel, const wire::Message& message) override;
  void on_sent(channel::Channel& channel, std::uint64_t cookie, bool ok) override;
  void on_writable(channel::Channel& channel) override;
  void on_closed(channel::Channel& channel, wire::CloseCode code, const Status& status) override;

  const TranslatorCounters& counters() const { return counters_; }
  service::ServiceTable& services() { return services_; }
  std::uint32_t bound_streams() const { return bound_streams_; }
  std::uint32_t records_used() const { return records_used_; }
  // Some application node is not told yet that its channel has ended, because network nodes read
  // from its memory: come back with poll_channels().
  bool holds_ends() const;
  const fabric::LentMemory* lent_memory() const { return options_.lent; }
  void for_each_listener(const std::function<void(const FabricListener&)>& fn) const {
    for (const FabricListener& from : listeners_) fn(from);
  }
  void for_each_node(const std::function<void(const AppNode&)>& fn) const;
  // The node that serves a connection, or nullptr; for /status.
  const AppNode* node_of(stack::ConnIndex conn) const;
  std::uint64_t id_of(stack::ConnIndex conn) const { return streams_[conn].id; }

 private:
  // nodes.cc
  void admit(FabricListener& from, const fabric::ConnectRequest& request);
  void refuse(FabricListener& from, const fabric::ConnectRequest& request, wire::CloseCode code,
              const char* why);
  std::optional<std::pair<wire::CloseCode, const char*>> objection(const FabricListener& from,
                                                                   const fabric::PeerIdentity& peer,
                                                                   const wire::HelloBody& hello);
  bool is_unproven(const AppNode& node, const std::string& peer) const;
  Status set_up(AppNode& node, FabricListener& from, const fabric::PeerIdentity& peer,
                const wire::HelloBody& hello);
  void enter(std::unique_ptr<AppNode> node);
  bool may_log_stranger();  // of channels that have joined nothing
  bool may_log_member();    // of the others
  static bool may_log_with(flow::LogGate& gate, std::uint64_t now_ns);
  void evict_idle(const std::function<bool(const AppNode*)>& may_go);
  void reap_dead_nodes();
  AppNode& node_of_channel(channel::Channel& channel) {
    return *static_cast<AppNode*>(channel.user);
  }

  // authenticate.cc
  void on_authenticate(AppNode& node, const wire::Message& message);
  bool prove(AppNode& node, const auth::Key* key, wire::AuthenticateBody& answer,
             const auth::Proof& claimed);
  bool allowed_anything(const AppNode& node) const;
  bool may_log();

  // joins.cc
  void on_join(AppNode& node, const wire::Message& message);
  void on_leave(AppNode& node, const wire::Message& message);
  void on_shutdown_service(AppNode& node, const wire::Message& message);
  Status open_listener(service::Service& service);
  void close_listener(service::Service& service);
  void open_listeners(std::uint64_t now_ns);
  void close_service(service::Service& service, wire::CloseCode announce, NodeIndex except);
  void leave_service(service::ServiceId id, AppNode& node);
  void tell_end(AppNode& node, AppNode::End end);
  void settle_request(Stream& s, AppNode& node);

  // operations.cc
  void expel(service::Service& service, AppNode& node);
  bool name_is_drained(const std::string& name) const;

  // health.cc
  void look_after_health();
  void look_after_nodes(std::uint64_t now_ns);
  void look_after_node(AppNode& node, std::uint64_t now_ns);
  void take_result(AppNode& node, bool good);
  void on_heartbeat(AppNode& node, const wire::Message& message);
  void look_after_probes(std::uint64_t now_ns);
  void begin_probe(service::Service& service, service::Member& member, std::uint64_t now_ns);
  void send_probe(Probe& probe);
  void end_probe(Probe& probe, bool good, const char* why, bool say);
  service::Member* finish_probe(Probe& probe, bool say);
  void forget_probes(service::ServiceId service);
  void judge_probe(Probe& probe, bool say);
  void take_probe_result(service::Service& service, service::Member& member, bool good,
                         const char* why);
  void drop_probes(const AppNode& node);
  void send_unsent_probes(const AppNode& node);
  void postpone_health();
  bool is_probe(std::uint64_t connection) const;
  Probe* probe_for(AppNode& node, std::uint64_t connection);
  void breach_probe(AppNode& node, Probe& probe);
  void on_probe_data(AppNode& node, std::uint64_t connection, std::uint64_t offset,
                     const channel::Payload& payload);
  void on_probe_message(AppNode& node, const wire::Message& message);

  // requests.cc
  Stream& open_stream(StreamIndex index);
  bool bind(StreamIndex index);
  void attach_to_node(StreamIndex index, AppNode& node);
  Status send_request(Stream& s, StreamIndex index, AppNode& node);
  Status send_accept(Stream& s, StreamIndex index, AppNode& node);
  void on_accept(AppNode& node, const wire::Message& message);
  void on_reject(AppNode& node, const wire::Message& message);
  void on_active_request(AppNode& node, const wire::Message& message);
  SocketAddress source_for(AppNode& node, const SocketAddress& remote);

  // tcp_to_san.cc
  bool may_send_now(Stream& s, AppNode& node);
  bool take_inline(Stream& s, AppNode& node, stack::RxPayload& payload);
  bool lend(Stream& s, AppNode& node, stack::RxPayload& payload);
  bool stash(Stream& s, AppNode& node, stack::RxPayload& payload);
  Status send_pending_data(Stream& s, AppNode& node);
  void advance_chunk(Stream& s, AppNode& node);
  void leave_tail(Stream& s, AppNode& node);
  void leave_chunk(Stream& s, ChunkRegion& chunks, ChunkIndex chunk);
  void release_chunks(Stream& s, AppNode& node);
  Status emit(StreamIndex index);  // sends all that is pending, in order

  // san_to_tcp.cc
  // The stream that `node` may talk about under this id; nullptr after having dealt with it.
  Stream* stream_for(AppNode& node, std::uint64_t connection, StreamIndex& index);
  bool add_record(Stream& s, std::span<const std::byte> bytes, std::uint64_t end_offset,
                  fabric::Loan loan, buffer::SlotIndex egress);
  bool keep_small(Stream& s, std::span<const std::byte> bytes, std::uint64_t end_offset);
  bool write_small(Stream& s, StreamIndex index, const channel::Payload& payload);
  std::size_t copy_prefix(Stream& s, StreamIndex index, const channel::Payload& payload);
  bool write_referenced(Stream& s, StreamIndex index, channel::Channel& channel,
                        const channel::Payload& payload);
  void write_records(Stream& s, StreamIndex index);
  void release_records(Stream& s, AppNode& node, std::uint64_t up_to);
  void give_back(RecordIndex r, AppNode& node);
  void give_back_later(RecordIndex r, AppNode& node);
  void give_back_returns();
  void on_credit(AppNode& node, const wire::Message& message);
  Status send_credit(Stream& s, AppNode& node);

  // held_memory.cc
  bool memory_is_low() const;
  std::size_t egress_headroom() const;
  bool is_better_copied() const;
  std::uint32_t window_for(const AppNode& node) const;
  bool receives_are_short() const;
  std::uint64_t in_stack(const Stream& s) const;
  bool may_write(const Stream& s) const;
  std::uint64_t patience_ns() const;
  bool must_wait_for_memory();
  void look_after_heap();
  StreamIndex heaviest_that_stands_still();
  void end_for_memory(StreamIndex index);
  StreamIndex largest_holder() const;
  void remember_largest_holder();
  void end_largest_holder();
  bool is_better_packed(const Stream& s, const AppNode& node,
                        const channel::Payload& payload) const;
  std::size_t slot_bytes_used(const TxRecord& record) const;
  bool pack(Stream& s, const channel::Payload& payload);

  // close.cc
  void on_close_message(AppNode& node, const wire::Message& message);
  void finish_sending(Stream& s, StreamIndex index);
  void orphan(Stream& s, StreamIndex index);
  void reset_stream(Stream& s, StreamIndex index);
  void end_lingering(Stream& s, StreamIndex index);
  void fail_stream(Stream& s, StreamIndex index, wire::CloseCode code);
  void say_farewell(AppNode& node, std::uint64_t connection, std::uint32_t request,
                    wire::CloseCode code);
  void free_stream(Stream& s, StreamIndex index);

  // backpressure.cc
  void serve_blocked(AppNode& node);
  void send_blocked_credits(AppNode& node);
  void mark_dirty(Stream& s, StreamIndex index);
  void emit_or_block(Stream& s, StreamIndex index);
  void block(Stream& s, StreamIndex index, AppNode& node);
  void unblock(Stream& s, AppNode& node);
  // Sends a message that is due whatever happens, now or when there is a credit.
  template <typename Body>
  void send_or_owe(AppNode& node, wire::MessageType type, std::uint8_t flags, wire::CloseCode code,
                   const Body& body, bool control) {
    send_or_owe(node, type, flags, code, std::as_bytes(std::span(&body, 1)), control);
  }
  void send_or_owe(AppNode& node, wire::MessageType type, std::uint8_t flags, wire::CloseCode code,
                   std::span<const std::byte> body, bool control);
  void pay_owed(AppNode& node);
  void starve(Stream& s, StreamIndex index);
  void feed_starved();
  bool may_take_chunk(const Stream& s, const ChunkRegion& chunks) const;
  void await_chunk(Stream& s, StreamIndex index, ChunkRegion& chunks);
  void stop_awaiting_chunk(Stream& s, ChunkRegion& chunks);
  void serve_awaiting_chunks();
  void serve_awaiting_chunks(ChunkRegion& chunks);

  TranslatorOptions options_;
  stack::Stack* stack_ = nullptr;
  buffer::SlotPool& ingress_;
  const buffer::MemoryRegion& ingress_region_;
  buffer::SlotPool& egress_;
  Host& host_;
  service::ServiceTable services_;
  std::deque<FabricListener> listeners_;         // nodes point to theirs
  std::vector<std::unique_ptr<AppNode>> nodes_;  // by NodeIndex; null where free
  std::vector<AppNode*> present_;                // those that are not null
  ReservedArray<Stream> streams_;
  ReservedArray<TxRecord> records_;
  RecordIndex records_free_ = kNone;
  std::uint32_t records_touched_ = 0;
  std::uint32_t records_used_ = 0;
  RecordIndex returns_first_ = kNone, returns_last_ = kNone;  // wait for LentMemory, oldest first
  std::vector<StreamIndex> dirty_;                            // reserved to connections_max
  std::vector<StreamIndex> starved_;                          // likewise
  bool awaited_chunks_free_ = false;                          // since these were last served
  std::uint32_t bound_streams_ = 0;
  std::vector<Probe> probes_;  // probes_max
  std::uint32_t probes_in_use_ = 0;
  std::uint64_t nodes_due_ns_ = UINT64_MAX, probes_due_ns_ = UINT64_MAX;
  std::uint64_t ends_due_ns_ = UINT64_MAX;  // the first end_by_ns of an end that is held back
  std::uint32_t node_search_ = 0;
  SteadyClock steady_clock_;
  const Clock& clock_;
  std::optional<auth::Mac> mac_;  // there when there are keys
  service::PeerLimiter limiter_;
  flow::LogGate refusals_log_, strangers_log_;
  flow::LogGate members_log_{{50, 1000}};
  std::uint64_t low_since_ns_ = 0;  // since when application nodes wait for memory
  std::uint64_t holder_id_ = 0;     // who held most of it then, and how far its client was
  std::uint64_t holder_freed_ = 0;
  std::uint64_t heap_low_since_ns_ = 0;  // since when streams wait for the stack's memory
  bool slots_released_ = false;          // of the EgressPool, since the last poll_channels()
  bool any_dead_ = false;
  bool draining_ = false;
  bool paused_ = false;
  std::uint64_t listeners_due_ns_ = UINT64_MAX;  // behind a pause there was no memory for some
  std::map<std::string, std::uint8_t, std::less<>> drained_names_;  // and by whom
  std::uint64_t drain_changes_ = 0;
  TranslatorCounters counters_;
};

}  // namespace sanproxy::translate
