// Connection and TimeWait: what the stack knows of a connection besides lwIP's control block.
//
// Role: records in tables that are reserved for the configured maximum and touched on use; they
//   are named by index, linked by index, and zero when unused.
// Owner: the Stack. Thread: the worker's.
// Invariants:
//   1. A Connection with pcb != nullptr is open; its control block points back at it
//      (callback_arg). lwIP tells us of every control block it frees, and pcb becomes nullptr.
//   2. A record is on at most one of the chains that use the same link.
//   3. generation changes whenever the index changes hands.
#pragma once

#include <cstdint>

#include "netnode/net/flow_key.h"
#include "proxynode/stack/stack.h"

struct pbuf;
struct tcp_pcb;

namespace sanproxy::stack {

inline constexpr std::uint32_t kNone = 0xffff'ffffu;

// First member of everything the flow table finds. The key's source is the remote side.
struct FlowNode {
  net::FlowKey key;
  std::uint32_t hash;
  std::uint32_t next;  // in the bucket
};

// The first cache line is what finding it touches.
struct alignas(64) Connection {
  FlowNode flow;
  tcp_pcb* pcb;
  pbuf* refused;              // payload that the delegate did not take, to be offered again
  std::uint64_t acked_bytes;  // of our stream; nothing refers to them any more
  std::uint64_t listener_cookie;
  std::uint32_t generation;
  std::uint32_t rx_unconsumed_bytes;
  std::uint32_t window_bytes;  // the receive window when all is consumed
  std::uint32_t seq_local;     // initial sequence numbers
  std::uint32_t seq_remote;
  ListenerId listener;
  std::uint32_t timer_prev, timer_next;  // connections with a TCP timer pending
  std::uint32_t wheel_prev, wheel_next;  // keepalive; at the end its bounds (arm_closed())
  std::uint32_t wheel_tick;
  std::uint32_t orphan_acked;          // what was acknowledged when arm_closed() was called
  std::uint32_t ended_next;            // freed by lwIP, on_closed() still to be called
  std::uint32_t timer_stamp;           // the tick at which its timers ran last
  std::uint32_t half_prev, half_next;  // in SYN-RECEIVED, oldest first
  std::uint32_t recover_end;           // recovering: until this is acknowledged
  std::uint32_t resent_end;            // what had been sent when a hole was filled last
  std::uint32_t selected_bytes;        // of the flight, that the client said it has
  std::uint32_t loss_window_bytes;     // CUBIC (stack_congestion.cc): W_max
  std::uint32_t reno_window_bytes;     // W_est
  std::uint32_t cubic_start_ms;        // of the present growth; 0: none
  std::uint32_t cubic_flat_ms;         // K, from then on
  std::uint32_t visits_ms, visits;     // in this millisecond so many segments were looked at
  std::uint16_t mss_bytes;             // of the wire, with TCP options, as lwIP counts it
  std::uint16_t queued_packets;        // in the packet queue
  std::uint8_t rx_segments;            // received since the last acknowledgement left
  TcpState state;
  EndReason reason;
  InterfaceIndex interface;
  packet_io::PeerNumber via;  // where its last packet came from
  bool reported : 1;          // the delegate knows it
  bool send_shut : 1;
  bool receive_shut : 1;  // close() was called
  bool in_timers : 1;
  bool in_wheel : 1;
  bool dirty : 1;          // has something for flush() to look at
  bool active : 1;         // opened by connect()
  bool acked_pending : 1;  // on_acked() is due
  bool in_refused : 1;     // listed among those with refused payload
  bool fin_pending : 1;    // on_fin() is due once that is taken
  bool lingering : 1;      // ended in order but for refused payload; pcb is gone
  bool held : 1;           // ended, but the delegate still needs the index
  bool probed : 1;         // the last of the flight went again, up to recover_end
  bool recovering : 1;     // what the client lacks is sent again (stack_recovery.cc)
  bool recover_due : 1;    // but more acknowledgements came than are looked at
  bool fin_deadline : 1;   // the wheel entry is the end of FIN-WAIT-2
};
static_assert(sizeof(Connection) == 192);  // docs/tcp_stack.md says what a connection takes

struct TimeWait {
  FlowNode flow;
  std::uint64_t expires_ns;
  std::uint32_t prev, next;  // oldest first
  std::uint32_t rcv_nxt, snd_nxt;
  std::uint32_t ts_recent;
  std::uint16_t window;  // as it stands in the header
  InterfaceIndex interface;
  bool timestamps;
};
static_assert(sizeof(TimeWait) == 80);

}  // namespace sanproxy::stack
