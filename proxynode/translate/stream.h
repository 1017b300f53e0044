// Stream: what the translator knows of one connection.
//
// Document: docs/life_of_a_connection.md.
// Role: the state from which every message about the connection can be made again later; because
//   of it no message is ever queued (lwproto/channel/channel.h invariant 2).
// Owner: Translator's table, at the same index as the stack's connection. Thread: the worker's.
// Invariants:
//   1. to_app.sent() <= bytes received from the stack; the difference waits in chunks.
//   2. from_app.received() - from_app.freed() bytes are in the stack's send queue or in
//      TxRecords not yet written to it.
//   3. A stream is in its node's list from binding until it is free.
#pragma once

#include <cstdint>

#include "lwproto/fabric/fabric.h"
#include "lwproto/flow/stream_window.h"
#include "lwproto/wire/format.h"
#include "proxynode/translate/chunk_region.h"

namespace sanproxy::translate {

using StreamIndex = std::uint32_t;
using NodeIndex = std::uint32_t;
using RecordIndex = std::uint32_t;
inline constexpr std::uint32_t kNone = 0xffff'ffffu;

// So many chunks a stream may hold in any case; who holds as many fills them up.
inline constexpr std::uint32_t kChunksAnyway = 2;

enum class StreamState : std::uint8_t {
  kFree = 0,
  kUnbound,     // established, no application node yet (delayed binding)
  kConnecting,  // an outgoing connection, SYN sent
  kRequested,   // bound; CONNECTION_REQUEST sent or waiting for a credit
  kOpen,        // accepted by the application node
  kOrphan,      // over for the application node; the stack still finishes it
};

enum StreamFlag : std::uint16_t {
  kRequestPending = 1 << 0,   // CONNECTION_REQUEST has not left yet
  kAcceptPending = 1 << 1,    // the answer to an active request has not left yet
  kCreditPending = 1 << 2,    // a CREDIT is due
  kClientFin = 1 << 3,        // the client has sent FIN
  kClientFinSent = 1 << 4,    // and the application node knows
  kAppFin = 1 << 5,           // the application has ended its direction
  kShutdownPending = 1 << 6,  // FIN to the client once all records are written
  kClosePending = 1 << 7,     // likewise, and both directions
  kDirty = 1 << 8,            // in the dirty list
  kBlocked = 1 << 9,          // in its node's blocked list
  kStarved = 1 << 10,         // in the starved list: the stack had no memory; survives reuse
  kLingering = 1 << 11,       // TCP has ended in order, but not all of it has been handed over
  kStandsStill = 1 << 12,     // nothing was acknowledged since the last look at who fills the stack
  kAwaitsChunk = 1 << 13,     // in the list of its channel's region; the stack keeps its payload
};

struct Stream {
  std::uint64_t id;
  flow::SendWindow to_app;
  flow::ReceiveWindow from_app;
  std::uint32_t generation;  // survives reuse
  std::uint32_t service;
  std::uint32_t request;  // of an active connection
  NodeIndex node;
  StreamIndex node_prev, node_next;
  StreamIndex blocked_prev, blocked_next;
  StreamIndex waiting_prev, waiting_next;  // for a chunk
  ChunkIndex chunk_first, chunk_tail;      // payload not yet sent starts in chunk_first
  RecordIndex tx_first, tx_last, tx_unwritten;
  std::uint32_t chunks_held;    // not free: owned, or with the application node
  std::uint32_t pending_bytes;  // in chunks, not yet sent to the application node
  std::uint32_t membership;     // of its node in its service, when it was bound
  std::uint32_t egress_slots;   // of the EgressPool that its records hold
  std::uint32_t copied_bytes;   // of what is in the stack, about as many are its own copies
  std::uint16_t flags;
  StreamState state;

  bool has(StreamFlag flag) const { return (flags & flag) != 0; }
  void set(StreamFlag flag) { flags = static_cast<std::uint16_t>(flags | flag); }
  void clear(StreamFlag flag) { flags = static_cast<std::uint16_t>(flags & ~flag); }
};

// All but what survives reuse.
inline void wipe(Stream& s) {
  const std::uint32_t generation = s.generation;
  const auto listed = static_cast<std::uint16_t>(s.flags & kStarved);
  s = Stream{};
  s.generation = generation;
  s.flags = listed;
}

// A piece of application memory that the stack refers to until the client has acknowledged it.
struct TxRecord {
  // In the stream, behind the last byte of the piece. Of one that waits to be given back
  // (san_to_tcp.cc): the LentMemory::mark() that it waits for.
  std::uint64_t end_offset;
  const std::byte* data;
  std::uint32_t length;  // likewise: the index of the application node
  RecordIndex next;
  fabric::Loan loan;         // given back with this piece; kNoLoan on all but the last of a loan
  buffer::SlotIndex egress;  // a copy in the EgressPool instead, given back with this piece
};

}  // namespace sanproxy::translate
