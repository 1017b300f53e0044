// Stack::Impl: the stack's state, shared by the files that implement it.
//
//   stack.cc          creation, queries                stack_output.cc   lwIP's packets, flush
//   stack_connect.cc  listeners, passive and active    stack_write.cc    sending and consuming
//   stack_input.cc    a packet arrives                 stack_close.cc    FIN, RST, end
//   stack_events.cc   what lwIP tells us               stack_timers.cc   ticks and deadlines
//   stack_time_wait.cc  TIME-WAIT records              stack_icmp.cc     echo, packet too big
//   stack_lent.cc     packets that stay in memory of others
//   stack_split.cc    a segment longer than what may leave
//   stack_recovery.cc   what the client lacks is sent again
//   stack_congestion.cc  how much may be under way
//   stack_fragments.cc  packets that came in pieces
//
// lwIP keeps its connections in global lists and walks them. Here they are found in flow_, and
// the lists hold exactly the one connection that lwIP is asked to work on (LwipLists).
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "lwip/netif.h"
#include "lwip/pbuf.h"
#include "lwip/priv/tcp_priv.h"
#include "lwip/tcp.h"
#include "netnode/net/packet.h"
#include "netnode/net/reassembly.h"
#include "netnode/net/session_tag.h"
#include "proxynode/stack/connection.h"
#include "proxynode/stack/flow_table.h"
#include "proxynode/stack/index_ring.h"
#include "proxynode/stack/lwip_heap.h"
#include "proxynode/stack/packet_queue.h"
#include "proxynode/stack/segment_guard.h"
#include "proxynode/stack/stack.h"
#include "proxynode/stack/timer_wheel.h"

namespace sanproxy::stack {

inline constexpr std::uint64_t kFastTickNs = std::uint64_t{TCP_FAST_INTERVAL} * 1'000'000;
inline constexpr std::uint32_t kSlowTickMs = TCP_SLOW_INTERVAL;
// Of a congestion window that has met loss this part leaves at once.
inline constexpr std::uint32_t kLossyBurstPart = 16;
inline constexpr std::uint32_t kInitialWindowSegments = 10;  // RFC 6928

// A segment's place in the sequence space.
inline std::uint32_t seq_of(const tcp_seg& segment) { return lwip_ntohl(segment.tcphdr->seqno); }

// lwIP's lists name this one control block, or none, until the end of the scope; then they are
// empty again. lwIP copes with finding its lists emptied by a nested scope.
class LwipLists {
 public:
  struct Active {
    tcp_pcb* pcb;
  };
  struct TimeWaiting {
    tcp_pcb* pcb;
  };
  struct Listening {
    tcp_pcb_listen* pcb;
  };

  LwipLists() { clear(); }
  explicit LwipLists(Active active) : LwipLists() {
    active.pcb->next = nullptr;
    tcp_active_pcbs = active.pcb;
  }
  explicit LwipLists(TimeWaiting waiting) : LwipLists() {
    waiting.pcb->next = nullptr;
    tcp_tw_pcbs = waiting.pcb;
  }
  explicit LwipLists(Listening listening) : LwipLists() {
    listening.pcb->next = nullptr;
    tcp_listen_pcbs.listen_pcbs = listening.pcb;
  }
  ~LwipLists() { clear(); }
  LwipLists(const LwipLists&) = delete;
  LwipLists& operator=(const LwipLists&) = delete;

 private:
  static void clear() {
    tcp_active_pcbs = nullptr;
    tcp_tw_pcbs = nullptr;
    tcp_bound_pcbs = nullptr;
    tcp_listen_pcbs.listen_pcbs = nullptr;
  }
};

struct Stack::Impl {
  struct Interface {
    explicit Interface(packet_io::PacketIo& device, ReservedArray<Connection>& connections)
        : io(device), queue(connections) {}
    packet_io::PacketIo& io;
    PacketQueue queue;
    netif lwip{};
    bool segmentation = false;
  };
  struct Listener {
    ListenerId id = 0;
    SocketAddress address;
    std::uint64_t cookie = 0;
    tcp_pcb_listen* pcb = nullptr;
  };
  struct RxSlot {
    pbuf_custom custom;
  };
  // Payload in memory of an interface.
  struct LentPayload {
    pbuf_custom custom;
    packet_io::PacketLoan loan;
    std::uint32_t next_free;
    InterfaceIndex interface;
  };

  Impl(const StackOptions& stack_options, const Clock& stack_clock, buffer::SlotPool& ingress_pool,
       Delegate& stack_delegate);
  ~Impl();

  // --- stack_connect.cc
  Result<InterfaceIndex> add_interface(packet_io::PacketIo& io);
  void take_smaller_mtus();
  Result<ListenerId> listen(const SocketAddress& address, std::uint64_t cookie);
  void unlisten(ListenerId id);
  Listener* find_listener(const SocketAddress& local);
  Result<ConnIndex> connect(const SocketAddress& remote, const SocketAddress& local_or_any);
  Result<InterfaceIndex> route(const IpAddress& remote) const;
  bool choose_local(InterfaceIndex interface, const IpAddress& remote, IpAddress& local) const;
  bool answers_come_here(InterfaceIndex interface, const net::FlowKey& key) const;
  bool choose_port(InterfaceIndex interface, net::FlowKey& key);
  ConnIndex acquire();
  void release(ConnIndex index);
  void add_half_open(Connection& conn);
  void remove_half_open(Connection& conn);
  err_t passive_open(tcp_pcb* pcb);
  void attach(Connection& conn, tcp_pcb* pcb);
  void set_windows(Connection& conn);

  // --- stack_expect.cc
  void expect(std::span<const std::span<const std::byte>> packets);

  // --- stack_input.cc
  void input(InterfaceIndex interface, buffer::SlotIndex slot,
             const packet_io::ReceivedPacket& packet);
  struct Arrived {
    net::ParsedPacket parsed;
    net::TcpHeader tcp;
    std::uint8_t* l4;
    InterfaceIndex interface;
    net::FlowKey key;
    std::uint32_t hash;
    pbuf* chain;
    const packet_io::ReceivedPacket* packet;
    TcpOptions options;
  };
  // False: nothing is left to do with it. `rest`: its last bytes, where not all of it is at
  // `bytes`.
  bool check(std::uint8_t* bytes, const packet_io::ReceivedPacket& packet, Arrived& arrived,
             std::span<const std::byte> rest = {});
  void dispatch(Arrived& arrived);

  // --- stack_fragments.cc
  void add_fragment(const std::uint8_t* bytes, const Arrived& arrived);
  // True when it was another worker's: it is done with.
  bool hand_over(InterfaceIndex interface, std::span<const std::byte> packet,
                 bool checksum_verified);
  bool hand_over_options(const Arrived& arrived);

  // --- stack_icmp.cc
  // Takes over `chain`, all of a packet that is not TCP.
  void answer_other(pbuf* chain, const Arrived& arrived);
  void on_icmp_error(std::span<const std::byte> packet, const net::ParsedPacket& parsed,
                     const Arrived& arrived);
  bool lower_mss(Connection& conn, std::uint32_t mtu_bytes);

  // --- stack_lent.cc
  void input(InterfaceIndex interface, const packet_io::ReceivedPacket& packet);
  pbuf* copy_lent(const Arrived& arrived, std::size_t headers, std::uint32_t skip);
  pbuf* wrap_lent(const Arrived& arrived);
  static bool is_lent(const pbuf& piece);
  pbuf* copy_of(const pbuf& piece);
  bool give_loan_back(Arrived& arrived);
  bool send_back(const Arrived& arrived);
  void release_lent(LentPayload& payload);

  // --- stack_input.cc
  pbuf* wrap(buffer::SlotIndex slot, void* start, std::uint32_t bytes);
  void to_connection(ConnIndex index, Arrived& arrived);
  void challenge(Connection& conn);
  bool is_overdue(ConnIndex half_open_one) const;
  void input_stripped(Connection& conn, Arrived& arrived);
  static void cut_to_window(const ReceiveState& receive, Arrived& arrived);
  bool take_payload(const Connection& conn, bool pins_slot);
  void run_input(Connection& conn, Arrived& arrived);
  void begin_estimates(Connection& conn, bool first_try);
  void to_listener(Arrived& arrived);
  void refuse(const Arrived& arrived);
  void set_lwip_packet(const Arrived& arrived, netif& interface);
  void make_bare(Arrived& arrived);
  void reclaim_out_of_order();

  // --- stack_events.cc
  err_t event(Connection* conn, tcp_pcb* pcb, lwip_event kind, pbuf* chain, std::uint32_t bytes,
              err_t error);
  err_t on_established(Connection& conn);
  err_t on_data(Connection& conn, pbuf* chain);
  err_t on_end_of_data(Connection& conn);
  void destroyed(Connection& conn);
  void deliver_acked(ConnIndex index);
  bool keep_refused(Connection& conn, pbuf* chain);
  pbuf* take_refused(Connection& conn);
  bool unpin_refused(Connection& conn);
  bool may_add_to_refused(const Connection& conn) const;
  void offer_refused();
  void offer(ConnIndex index);
  void finish(ConnIndex index, EndReason reason);
  void reap();
  // After anything that lwIP did with a connection.
  void settle(ConnIndex index);
  void follow_state(Connection& conn);
  void tune(Connection& conn);
  void update_timers(Connection& conn);
  ConnIndex index_of(const Connection& conn) const {
    return static_cast<ConnIndex>(&conn - &connections[0]);
  }
  void forget(ConnIndex index);
  bool is_lingering(ConnIndex index) const {
    return index < connections.capacity() && connections[index].lingering;
  }
  bool has_refused(ConnIndex index) const {
    return index < connections.capacity() && connections[index].refused != nullptr;
  }
  bool is_open(ConnIndex index) const {
    return index < connections.capacity() && connections[index].pcb != nullptr;
  }
  ConnectionInfo info(const Connection& conn) const;

  // --- stack_output.cc
  err_t output(pbuf* chain, const std::uint8_t* src, const std::uint8_t* dst, Family family,
               std::uint8_t ttl, netif* interface);
  void send_bare(InterfaceIndex interface, const net::FlowKey& key, std::uint32_t seq,
                 std::uint32_t ack, std::uint8_t flags, std::uint16_t window, bool timestamps,
                 std::uint32_t ts_echo);
  bool make_room(Interface& interface);
  // TSval: with a proxy id the session tag, whose clock is the world's, so that the value goes on
  // where another proxy (or we, before a restart) left off; else milliseconds from a random start.
  std::uint32_t timestamp_value() const {
    if (options.proxy_id == net::kSessionTagNone) {
      return timestamp_base + static_cast<std::uint32_t>(now_ns / 1'000'000);
    }
    return net::tagged_timestamp(world_seconds + now_ns / 1'000'000'000, options.proxy_id);
  }
  void mark_dirty(Connection& conn);
  void flush(bool more);
  void output_connection(Connection& conn);

  // --- stack_write.cc
  std::uint32_t send_room(ConnIndex index) const;
  Status write(ConnIndex index, std::span<const std::byte> bytes, WriteMode mode);
  err_t write_segment(Connection& conn, const std::byte* data, std::uint16_t bytes,
                      std::uint8_t flags, std::uint16_t segment_mss);
  std::uint16_t segment_mss(const Connection& conn) const;
  void consume(ConnIndex index, std::uint32_t bytes);

  // --- stack_split.cc
  bool split(tcp_pcb& pcb, tcp_seg& segment, std::uint32_t bytes);
  std::uint32_t trim_acknowledged(Connection& conn, tcp_seg*& first);
  void prepare_retransmission(Connection& conn);
  void fit_unsent(Connection& conn, bool all);
  void fit_behind(Connection& conn, std::uint32_t under_way_bytes);

  // --- stack_recovery.cc
  // What the client has of what is under way, or of a part of it.
  struct Had {
    std::uint32_t bytes = 0, segments = 0;
    void add(const tcp_seg& segment) {
      bytes += segment.len;
      ++segments;
    }
    void take(const tcp_seg& segment) {
      bytes -= segment.len;
      --segments;
    }
  };
  struct Flight {
    std::uint32_t segments = 0;
    Had all, since_resent;    // that the client has; of what was sent after holes were filled last
    bool only_first = false;  // is missing, and nothing more will tell (RFC 5827)
  };
  void mark_selected(Connection& conn, tcp_seg& segment, const SackBlock& block);
  bool survey(Connection& conn, const TcpOptions& said, Flight& found);
  void visit(Connection& conn, std::uint32_t segments);
  bool may_visit(Connection& conn);
  void recover(Connection& conn, const TcpOptions& said, std::uint32_t acked);
  void limited_transmit(Connection& conn, std::uint32_t had_bytes);
  void begin_recovery(Connection& conn);
  void fill_holes(Connection& conn, const Flight& found, bool first_lost, std::uint32_t delivered);
  static bool send_again(tcp_pcb& pcb, tcp_seg& segment);
  void probe_tail(Connection& conn);
  static void forget_selected(Connection& conn);
  static void hold_retransmission(tcp_pcb& pcb);

  // --- stack_congestion.cc
  void on_loss(Connection& conn, std::uint32_t flight_bytes);
  void restart_if_idle(Connection& conn);
  void begin_cubic(Connection& conn, std::uint32_t cwnd, std::uint32_t now_ms);
  void grow_window(Connection& conn, std::uint32_t cwnd, std::uint32_t flight, std::uint32_t acked);

  // --- stack_close.cc
  void repeat_fin(Connection& conn);
  Status shutdown_send(ConnIndex index);
  void close(ConnIndex index);
  void abort(ConnIndex index, EndReason reason, bool with_reset);

  // --- stack_time_wait.cc
  void enter_time_wait(Connection& conn);
  void remove_time_wait(std::uint32_t record);
  void link_time_wait(std::uint32_t record);
  void unlink_time_wait(std::uint32_t record);
  void expire_time_waits();
  // False: the record is gone and the SYN is for the listener.
  bool to_time_wait(std::uint32_t record, const Arrived& arrived, const TcpOptions& options);

  // --- stack_timers.cc
  void refresh_clock();
  void on_time();
  std::uint64_t next_timer_ns() const;
  void run_tick(std::uint64_t tick);
  void run_timers(ConnIndex index, bool slow);
  void fill_window(Connection& conn);
  static void sort_unsent(tcp_pcb& pcb);
  void deadline(ConnIndex index);
  void keepalive(ConnIndex index);
  void arm_closed(Connection& conn);
  void arm_keepalive(Connection& conn);
  void arm_tick();
  void link_timer(Connection& conn);
  void unlink_timer(Connection& conn);
  static bool timer_pending(const tcp_pcb& pcb);

  StackOptions options;
  const Clock& clock;
  buffer::SlotPool& ingress;
  Delegate& delegate;
  StackCounters counters;
  LwipHeap heap;

  ReservedArray<Connection> connections;
  ReservedArray<TimeWait> time_waits;
  IndexRing free_ring;
  std::uint32_t fresh = 0;  // indices from here on were never used
  std::uint32_t open = 0;
  std::uint32_t half_open = 0;
  std::uint32_t half_head = kNone, half_tail = kNone;  // the oldest, the newest
  FlowTable flows;
  std::array<std::uint32_t, kTcpStates> states{};
  std::vector<std::unique_ptr<Interface>> interfaces;
  std::map<SocketAddress, Listener> listeners;
  ListenerId next_listener = 1;
  ReservedArray<RxSlot> rx_slots;
  ReservedArray<LentPayload> lent;
  std::uint32_t lent_free = kNone, lent_fresh = 0;
  std::vector<std::byte> lent_headers;  // of the packet that input() looks at
  packet_io::PeerNumber reply_to = 0;   // where the packet that is being looked at came from
  net::Reassembly fragments;

  std::vector<ConnIndex> dirty;          // capacity connections_max
  std::vector<ConnIndex> dirty_working;  // likewise
  unsigned ack_rounds = 0;               // calls of flush() that have kept acknowledgements
  std::vector<ConnIndex> refused;        // likewise; may name records without refused payload
  std::size_t refused_slots = 0;         // of the ingress pool, held by refused payload
  std::uint32_t ended = kNone;           // freed by lwIP, to be reported
  const Listener* opening = nullptr;     // while lwIP is handed a SYN, which is in
  const Arrived* opening_packet = nullptr;
  ConnIndex opened = kNone;  // what became of it
  // Up to where the connection in TIME-WAIT had sent whose tuple the SYN takes over.
  std::optional<std::uint32_t> used_before;
  EndReason end_reason = EndReason::kFinished;  // of what lwIP frees now

  std::uint32_t timers_head = kNone, timers_tail = kNone;
  std::uint64_t next_tick_ns = UINT64_MAX;
  static inline std::uint8_t lwip_timer_counter = 0;  // mirrors tcp.c's
  std::uint64_t now_ns = 0;
  std::uint64_t hold_until_ns = 0;  // start_hold_ms
  bool clock_fresh = false;
  std::uint64_t reclaimed_tick = 0;
  TimerWheel wheel;

  std::uint32_t time_wait_head = kNone, time_wait_tail = kNone;
  std::uint32_t time_wait_free = kNone, time_wait_fresh = 0, time_wait_used = 0;

  std::uint64_t secret[2];  // of initial sequence numbers and ports
  std::uint32_t timestamp_base;
  std::uint64_t world_seconds;  // of the system's clock when ours was 0
  std::uint16_t ip_id = 0;

  static Impl* current;  // lwIP's callbacks have no context; one Stack a process
};

IpAddress to_address(const ip_addr_t& address);
ip_addr_t to_lwip(const IpAddress& address);
IpAddress key_address(const net::FlowKey& key, bool source);
std::uint64_t random64();
const tcp_ext_arg_callbacks& connection_callbacks();

inline TcpState to_state(enum tcp_state state) { return static_cast<TcpState>(state); }

// Of a segment of the wire.
inline std::uint32_t wire_bytes(const Connection& conn, const tcp_seg& segment) {
  return conn.mss_bytes - (LWIP_TCP_OPT_LENGTH(segment.flags));
}

// FIN alone is under way, to a client that has no room.
inline bool is_shut_out(const tcp_pcb& pcb) {
  return pcb.state >= FIN_WAIT_1 && pcb.snd_wnd == 0 && pcb.unacked != nullptr &&
         pcb.unacked->len == 0;
}

inline bool both_sides_ended(TcpState state) {
  return state == TcpState::kClosing || state == TcpState::kLastAck;
}

// With many connections each packet finds its record and control block out of the cache: all
// lines are asked for at once instead of one after the other.
inline void prefetch(const Connection& conn) {
  const auto* const pcb = reinterpret_cast<const char*>(conn.pcb);
  for (std::size_t at = 0; at < sizeof(tcp_pcb); at += 64) __builtin_prefetch(pcb + at, 1);
  const auto* const record = reinterpret_cast<const char*>(&conn);
  for (std::size_t at = 64; at < sizeof(Connection); at += 64) {
    __builtin_prefetch(record + at, 1);
  }
}

}  // namespace sanproxy::stack
