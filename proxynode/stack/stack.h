// Stack: TCP endpoints in user space. The only part of the project that includes lwIP.
//
// Documents: docs/tcp_stack.md; RFC 9293 (TCP), RFC 7323 (scaling, timestamps), RFC 6191
//   (TIME_WAIT reuse), RFC 1122 (keepalive).
// Role: takes IP packets from interfaces, runs the endpoints, yields in-order payload in the very
//   buffers it arrived in, and sends payload from the very buffers it is given.
// Owner: a worker; one Stack a process (lwIP's state is global). Thread: the worker's.
// Invariants:
//   1. A connection is found in O(1) however many are open; timers cost only for connections
//      that have one pending.
//   2. No packet leaves inside input(), write(), consume() or on_time(): packets are queued and
//      leave in flush(), so that a caller can first hand over what was received
//      (docs/flow_control.md §3).
//   3. After on_closed() for an index nothing more is reported for it and every reference given
//      to write() is released. Exactly one on_closed() for each on_accepted()/connect().
//   4. A byte from the network never trips an assertion.
//   5. Memory: lwIP's heap is bounded by heap_bytes_max; connections by connections_max; queued
//      packets by the send queue; out-of-order data by the pool; fragments by
//      fragments.datagrams_max.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/buffer/slot_pool.h"
#include "netnode/net/reassembly.h"
#include "netnode/packet_io/packet_io.h"

struct pbuf;

namespace sanproxy::stack {

using ConnIndex = std::uint32_t;  // below connections_max; reused oldest-first after on_closed()
inline constexpr ConnIndex kNoConn = 0xffff'ffffu;  // what TIME_WAIT has instead
using InterfaceIndex = std::uint8_t;
using ListenerId = std::uint32_t;

enum class TcpState : std::uint8_t {
  kClosed,
  kListen,
  kSynSent,
  kSynReceived,
  kEstablished,
  kFinWait1,
  kFinWait2,
  kCloseWait,
  kClosing,
  kLastAck,
  kTimeWait
};
inline constexpr std::size_t kTcpStates = 11;
const char* tcp_state_name(TcpState state);

enum class EndReason : std::uint8_t {
  kFinished,     // both directions ended in order
  kResetByPeer,  // RST received
  kAborted,      // abort() by us
  kTimedOut,     // retransmissions, keepalive, FIN-WAIT-2 or handshake ran out of time
  kRefused,      // connect(): RST in answer to our SYN
  kNoMemory,
  kUnreachable,  // connect(): somebody on the way says that our SYN cannot be delivered
};

struct ConnectionInfo {
  SocketAddress remote;
  SocketAddress local;
  ListenerId listener = 0;  // passive only
  std::uint64_t listener_cookie = 0;
  std::uint32_t initial_seq_local = 0;
  std::uint32_t initial_seq_remote = 0;
  std::uint16_t mss_bytes = 0;
  std::uint8_t window_scale_local = 0;
  std::uint8_t window_scale_remote = 0;
  bool timestamps = false;
  bool window_scaling = false;
  bool active = false;
};

// In-order payload of one connection: a chain of pieces inside ingress slots. Move-only; the
// slots go back to the pool when it is destroyed. A piece may lie elsewhere, if it was small and
// came from an interface that lends, is on loan from there, or was refused before, while slots were
// short: never refer to it as a slot without looking.
class RxPayload {
 public:
  RxPayload() = default;
  explicit RxPayload(pbuf* chain) : chain_(chain) { skip_empty(); }
  ~RxPayload() { reset(); }
  RxPayload(RxPayload&& other) noexcept : chain_(other.chain_) { other.chain_ = nullptr; }
  RxPayload& operator=(RxPayload&& other) noexcept;
  std::uint32_t length() const;
  bool empty() const { return chain_ == nullptr; }
  // The first piece, still owned here.
  std::span<const std::byte> front() const;
  // Detaches the first piece: its owner calls release() later, with the returned handle.
  struct Piece {
    std::span<const std::byte> bytes;
    pbuf* handle;
  };
  Piece pop_front();
  void push_front(Piece piece);  // undoes pop_front()
  std::size_t piece_count() const;
  static void release(pbuf* handle);
  void reset();
  pbuf* detach() { return std::exchange(chain_, nullptr); }  // whole, for the stack itself

 private:
  void skip_empty();  // what is left of a header in a pbuf of its own

  pbuf* chain_ = nullptr;
};

class Delegate {
 public:
  virtual ~Delegate() = default;
  // A passive handshake is complete. False: refuse (RST); nothing more is reported for it.
  virtual bool on_accepted(ConnIndex conn, const ConnectionInfo& info) = 0;
  // connect() succeeded. (When it fails: on_closed().)
  virtual void on_connected(ConnIndex conn, const ConnectionInfo& info) = 0;
  // The next bytes in order. The window stays closed by them until consume(). True: the delegate
  // has taken the payload (moved from it, or is done with it: what is left in it is freed).
  // False: back-pressure; what is left in it was not taken. The stack keeps that, and what was on
  // its way, as long as memory is plenty; it offers it again within a tick, or by offer_again(),
  // announces no window and drops further data of this connection meanwhile, so that its client
  // slows down and nobody else does. on_fin() and an on_closed() after an orderly end wait for it;
  // after a reset or time-out it is lost. When slots are short and refused payload holds too many,
  // such a connection is reset (kNoMemory).
  virtual bool on_received(ConnIndex conn, RxPayload& payload) = 0;
  virtual void on_fin(ConnIndex conn) = 0;  // the client's FIN, after all of its bytes
  // `acked_offset`: bytes since the start that the client acknowledged and that no segment in
  // the retransmission queue refers to any more (a partly acknowledged super-segment counts once
  // it is whole, or before it is sent again): references up to there are the caller's again.
  virtual void on_acked(ConnIndex conn, std::uint64_t acked_offset) = 0;
  // False (only after kFinished): the delegate still needs the index, because what the client sent
  // is not all delivered; it calls forget() when it is.
  virtual bool on_closed(ConnIndex conn, EndReason reason) = 0;
  // A packet for it is in the burst that follows: a chance to prefetch. See Stack::expect().
  virtual void on_expected(ConnIndex conn) const { (void)conn; }
};

// Who spreads packets over workers sees no ports in fragments, in ICMP errors and behind extension
// headers of IPv6: such a packet may be of a flow of another worker.
enum class HandedOver : std::uint8_t { kOurs, kPassedOn, kLost };
// `checksum_verified`: that of the transport header has been looked at, or need not be.
using HandOver = std::function<HandedOver(InterfaceIndex, std::span<const std::byte> packet,
                                          bool checksum_verified)>;

struct StackOptions {
  std::uint32_t connections_max = 100'000;  // all states but TIME_WAIT
  std::uint32_t time_wait_max = 65'536;     // beyond, the oldest is dropped
  std::uint32_t half_open_max = 8'192;      // SYN_RCVD at a time; the oldest goes
  bool refuse_with_reset = true;            // at connections_max: RST, else no answer
  // So long after create() a SYN for which there is no listener is left unanswered, not refused:
  // the client tries again, and the listener that it means may be on its way.
  std::uint32_t start_hold_ms = 0;
  std::uint32_t receive_window_bytes = 4 * 1024 * 1024;  // 64 KB .. 4 MB
  std::uint32_t send_buffer_bytes = 4 * 1024 * 1024;     // 64 KB .. 4 MB
  std::size_t heap_bytes_max = std::size_t{1} << 30;
  std::uint32_t time_wait_ms = 60'000;
  std::uint32_t keepalive_idle_ms = 7'200'000;  // 0 is off
  std::uint32_t keepalive_interval_ms = 75'000;
  std::uint32_t keepalive_probes = 9;
  std::uint32_t fin_wait_2_ms = 60'000;  // after close()
  std::uint32_t orphan_ms = 60'000;  // after close() or FIN from both, without a byte acknowledged
  std::uint32_t initial_rto_ms = 1'000;
  std::uint32_t min_rto_ms = 200;
  std::uint16_t ephemeral_port_first = 32'768;
  std::uint16_t ephemeral_port_last = 60'999;
  std::uint16_t proxy_id = 0;  // 1..1023: in the session tags (netnode/net/session_tag.h); 0: none
  std::uint32_t lent_packets_max = 16'384;  // of interfaces that lend, held by payload at a time
  net::ReassemblyOptions fragments = {};
  HandOver hand_over = {};  // null: nobody shares our interfaces
};

struct StackCounters {
  std::uint64_t accepted = 0, connected = 0, closed = 0;
  std::uint64_t refused_connections_max = 0, refused_half_open_max = 0, refused_no_memory = 0,
                refused_no_listener = 0, refused_starting = 0;
  std::uint64_t time_wait_reused = 0, time_wait_evicted = 0;
  std::uint64_t resets_in = 0, resets_out = 0;
  std::uint64_t retransmits = 0;
  std::uint64_t recoveries = 0;       // begun by selective acknowledgements
  std::uint64_t recovery_visits = 0;  // segments that these had us look at
  std::uint64_t dropped_malformed = 0, dropped_checksum = 0, dropped_not_tcp = 0,
                dropped_no_slot = 0, dropped_send_queue = 0,
                dropped_refused = 0;  // payload behind one that the delegate did not take
  std::uint64_t icmp_echo = 0;
  std::uint64_t path_mtu_lowered = 0, icmp_errors_ignored = 0;
  std::uint64_t unknown_flows = 0;  // sent back: another proxy may know them
  std::uint64_t handed_over = 0, dropped_handing_over = 0;  // of another worker's flows
  std::uint64_t bytes_copied = 0;  // payload bytes that the stack copied for reasons of its own
  std::uint64_t flow_lookups = 0, flow_probes = 0;  // of the table of connections
};

enum class WriteMode : std::uint8_t {
  kCopy,       // the bytes are copied; at most 1 KB a call in practice
  kReference,  // the bytes stay the caller's duty until on_acked() covers them or on_closed()
};

class Stack {
 public:
  // `ingress`: the pool whose slots input() takes over.
  static Result<std::unique_ptr<Stack>> create(const StackOptions& options, const Clock& clock,
                                               buffer::SlotPool& ingress, Delegate& delegate);
  ~Stack();

  // Calls of flush() for which an acknowledgement may wait for more of the same burst.
  static constexpr unsigned kAckRoundsMax = 4;

  Result<InterfaceIndex> add_interface(packet_io::PacketIo& io);
  // Looks for interfaces whose mtu_bytes() has become smaller: what their connections send, and
  // have sent in vain, is cut to that. To be called about once a second.
  void take_smaller_mtus();

  // --- listeners. An any-address listens on every address of its family at that port.
  Result<ListenerId> listen(const SocketAddress& address, std::uint64_t cookie);
  void unlisten(ListenerId listener);  // established connections go on; half-open ones are reset

  // Optional, before a burst of input(): names the packets that are coming, so that what they need
  // comes into the processor's cache all at once instead of one line after the other. Worth it
  // only with many connections, and does nothing with few. Reads the packets, changes nothing.
  void expect(std::span<const std::span<const std::byte>> packets);
  // --- packets. Takes over `slot` (state posted -> received or freed). Of an interface that lends
  // its own memory: the second form, which takes over the packet's loan.
  void input(InterfaceIndex interface, buffer::SlotIndex slot,
             const packet_io::ReceivedPacket& packet);
  void input(InterfaceIndex interface, const packet_io::ReceivedPacket& packet);
  // Sends what the connections want to send and hands all queued packets to the interfaces. `more`:
  // packets are known to wait in an interface, so that another flush() follows at once. Connections
  // that have nothing but an acknowledgement to send may keep it then, for kAckRoundsMax calls: it
  // stands for a longer burst. The first call without `more` sends all.
  void flush(bool more = false);
  void on_time();  // runs what is due
  // When on_time() must run next (Clock time), or UINT64_MAX.
  std::uint64_t next_timer_ns() const;

  // --- connections. An index that is not open is ignored (counted nowhere: it is a no-op).
  Result<ConnIndex> connect(const SocketAddress& remote, const SocketAddress& local_or_any);
  // How many bytes write() takes now.
  std::uint32_t send_room(ConnIndex conn) const;
  // All or nothing: ok, kAgain (no memory or queue space now; retry after on_acked() or the next
  // on_time()), or kDisconnected (the sending side is shut). Output happens in flush().
  Status write(ConnIndex conn, std::span<const std::byte> bytes, WriteMode mode);
  // Calls on_received() with what it did not take before, if there is any. Not from a callback.
  void offer_again(ConnIndex conn);
  void consume(ConnIndex conn, std::uint32_t bytes);  // opens the receive window again
  // FIN after everything written. The other direction goes on; once that has ended too, the rest is
  // bounded as after close().
  Status shutdown_send(ConnIndex conn);
  // Orderly end of both: FIN; bytes that still arrive are answered with RST. FIN-WAIT-2 is
  // bounded by fin_wait_2_ms; before it, a client that acknowledges nothing for orphan_ms (twice
  // that at most) is reset. If received bytes are still not consumed: RST (RFC 9293 3.10.4).
  void close(ConnIndex conn);
  void abort(ConnIndex conn);   // RST; on_closed(kAborted) is called before it returns
  void forget(ConnIndex conn);  // an index for which on_closed() returned false may be reused

  ConnectionInfo info(ConnIndex conn) const;
  TcpState state(ConnIndex conn) const;
  bool is_open(ConnIndex conn) const;
  // Connections in each state now (kListen counts listeners).
  const std::array<std::uint32_t, kTcpStates>& state_counts() const;
  std::uint32_t open_connections() const;  // all but TIME_WAIT
  // Calls `fn` for each open connection, TIME_WAIT included (kNoConn there).
  void for_each(const std::function<void(ConnIndex, TcpState, const ConnectionInfo&)>& fn) const;
  std::size_t heap_bytes_used() const;
  std::size_t heap_bytes_max() const;
  const StackCounters& counters() const;
  const net::Reassembly& fragments() const;

  struct Impl;  // stack_impl.h

 private:
  explicit Stack(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sanproxy::stack
