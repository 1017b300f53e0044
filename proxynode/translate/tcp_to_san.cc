// Client bytes on their way to the application node.
#include <algorithm>
#include <cstring>

#include "proxynode/translate/translator.h"

namespace sanproxy::translate {
namespace {

// Cookies of referenced payload: a chunk index (odd), or the handle of a lent ingress buffer.
constexpr std::uint64_t chunk_cookie(ChunkIndex chunk) { return (std::uint64_t{chunk} << 1) | 1; }

// Lending stops when this share of the ingress pool is left: a copy frees a whole slot at once.
constexpr std::size_t kLendReserveShare = 4;

// Of the references that are left one stream of many may have such a part in flight. Who never lets
// go keeps its part, so the n-th of them must be left something: 16 / 17 to the power of n.
constexpr std::uint32_t kReferencesShare = 16;

// What an application holds on to takes a place in the send queue, or a receive buffer, from all
// other streams of its node. Where it is a receive buffer the library copies before the last ones
// are taken, far above what one stream's window can ask for: who is alone has the window for a
// limit.
bool may_refer(const Stream& s, const AppNode& node) {
  const bool alone = node.stream_count == 1;
  if (alone && node.receives_into_egress) return true;
  return s.to_app.may_refer(node.channel->references_spare() / (alone ? 2 : kReferencesShare));
}

// All places in the send queue are taken, by what the application holds on to.
bool no_place(const AppNode& node) { return node.channel->places_left() == 0; }

}  // namespace

void Translator::on_expected(stack::ConnIndex conn) const {
  const auto* const record = reinterpret_cast<const char*>(&streams_[conn]);
  for (std::size_t at = 0; at < sizeof(Stream); at += 64) __builtin_prefetch(record + at, 1);
}

bool Translator::on_received(stack::ConnIndex conn, stack::RxPayload& payload) {
  Stream& s = streams_[conn];
  if (s.state == StreamState::kUnbound && !bind(conn)) {
    stack_->abort(conn);
    return true;
  }
  if (s.state != StreamState::kRequested && s.state != StreamState::kOpen) return true;
  AppNode& node = *nodes_[s.node];
  const std::uint32_t bytes = payload.length();
  const bool taken =
      take_inline(s, node, payload) || lend(s, node, payload) || stash(s, node, payload);
  // Who takes a payload whole need not have taken it out of `payload`.
  counters_.bytes_to_apps += taken ? bytes : bytes - payload.length();
  if (s.pending_bytes != 0) mark_dirty(s, conn);
  if (!taken) {
    ++counters_.refused_payloads;
    await_chunk(s, conn, *node.chunks);
  }
  return taken;
}

// Nothing of this stream waits, and nobody of this node waits for a credit: who comes now would
// take it away from them.
bool Translator::may_send_now(Stream& s, AppNode& node) {
  if (s.pending_bytes != 0 || node.blocked_head != kNone || !node.owed.empty()) return false;
  if (s.has(kRequestPending)) {
    if (!send_request(s, wire::connection_index(s.id), node).ok()) return false;
    settle_request(s, node);
  }
  return !s.has(kAcceptPending);
}

// A small payload goes straight into the channel's open transfer.
bool Translator::take_inline(Stream& s, AppNode& node, stack::RxPayload& payload) {
  const std::span<const std::byte> bytes = payload.front();
  if (bytes.size() > wire::kInlinePayloadBytesMax || bytes.size() != payload.length()) return false;
  if (s.to_app.available() < bytes.size() || !may_send_now(s, node)) return false;
  if (!node.channel->send_data_inline(s.id, s.to_app.sent(), bytes).ok()) return false;
  s.to_app.on_sent(static_cast<std::uint32_t>(bytes.size()));
  counters_.copied_inline += bytes.size();
  return true;
}

// Shared trust (or a fabric that needs no copy): the receive buffers themselves travel.
bool Translator::lend(Stream& s, AppNode& node, stack::RxPayload& payload) {
  if (!node.lend_ingress) return false;
  if (ingress_.free_count() < ingress_.slot_count() / kLendReserveShare) return false;
  if (s.to_app.available() < payload.length() || !may_send_now(s, node)) return false;
  if (!may_refer(s, node) || no_place(node)) return false;
  for (std::size_t referred = 0; !payload.empty();) {
    const std::span<const std::byte> bytes = payload.front();
    if (bytes.size() <= wire::kInlinePayloadBytesMax) {
      if (!node.channel->send_data_inline(s.id, s.to_app.sent(), bytes).ok()) break;
      s.to_app.on_sent(static_cast<std::uint32_t>(bytes.size()));
      counters_.copied_inline += bytes.size();
      stack::RxPayload::release(payload.pop_front().handle);
      continue;
    }
    if (!ingress_region_.contains(bytes.data())) break;  // the stack has moved it, short of slots
    stack::RxPayload::Piece piece = payload.pop_front();
    const fabric::GatherRef ref{
        node.ingress_key, static_cast<std::uint32_t>(piece.bytes.size()),
        static_cast<std::uint64_t>(piece.bytes.data() - ingress_region_.data())};
    const Status sent = node.channel->send_data_reference(
        s.id, s.to_app.sent(), {&ref, 1}, reinterpret_cast<std::uintptr_t>(piece.handle),
        !payload.empty());
    if (!sent.ok()) {
      payload.push_front(piece);
      break;
    }
    s.to_app.on_sent(static_cast<std::uint32_t>(piece.bytes.size()));
    if (referred++ % fabric::kGatherRefsMax == 0) s.to_app.on_reference();  // the others join it
  }
  // What found no credit is stashed.
  return payload.empty();
}

// Copies the payload into the channel's own region, packed behind what waits there already.
bool Translator::stash(Stream& s, AppNode& node, stack::RxPayload& payload) {
  ChunkRegion& chunks = *node.chunks;
  while (!payload.empty()) {
    const std::span<const std::byte> bytes = payload.front();
    ChunkIndex tail = s.chunk_tail;
    if (tail == kNoChunk || ChunkRegion::kChunkBytes - chunks[tail].written < bytes.size()) {
      if (!may_take_chunk(s, chunks)) return false;
      const ChunkIndex fresh = chunks.acquire();
      chunks[fresh].stream = s.id;
      ++s.chunks_held;
      if (tail == kNoChunk) {
        s.chunk_first = fresh;
      } else {
        chunks[tail].next = fresh;
      }
      s.chunk_tail = fresh;
      tail = fresh;
      if (s.chunk_first != fresh) advance_chunk(s, node);
    }
    ChunkRegion::Chunk& chunk = chunks[tail];
    std::memcpy(chunks.data(tail) + chunk.written, bytes.data(), bytes.size());
    chunk.written += static_cast<std::uint32_t>(bytes.size());
    s.pending_bytes += static_cast<std::uint32_t>(bytes.size());
    (node.lend_ingress ? counters_.copied_pressure : counters_.copied_isolation) += bytes.size();
    stack::RxPayload::release(payload.pop_front().handle);
  }
  return true;
}

// Leaves a first chunk from which everything has been sent, if another one follows.
void Translator::advance_chunk(Stream& s, AppNode& node) {
  ChunkRegion& chunks = *node.chunks;
  while (s.chunk_first != s.chunk_tail &&
         chunks[s.chunk_first].sent == chunks[s.chunk_first].written) {
    const ChunkIndex done = s.chunk_first;
    s.chunk_first = chunks[done].next;
    leave_chunk(s, chunks, done);
  }
}

Status Translator::send_pending_data(Stream& s, AppNode& node) {
  ChunkRegion& chunks = *node.chunks;
  while (s.pending_bytes != 0) {
    const std::uint32_t window = s.to_app.available();
    // The application's CREDIT will bring us back.
    if (window == 0 || !may_refer(s, node)) return {};
    const ChunkIndex first = s.chunk_first;
    ChunkRegion::Chunk& chunk = chunks[first];
    const auto most = static_cast<std::uint32_t>(no_place(node) ? wire::kInlinePayloadBytesMax
                                                                : wire::kDataPayloadBytesMax);
    const std::uint32_t bytes = std::min({chunk.written - chunk.sent, window, most});
    Status status;
    if (bytes <= wire::kInlinePayloadBytesMax) {
      status = node.channel->send_data_inline(s.id, s.to_app.sent(),
                                              {chunks.data(first) + chunk.sent, bytes});
    } else {
      const fabric::GatherRef ref{node.chunk_key, bytes, chunks.offset(first) + chunk.sent};
      status =
          node.channel->send_data_reference(s.id, s.to_app.sent(), {&ref, 1}, chunk_cookie(first));
      if (status.ok()) chunks.on_referenced(first);
    }
    if (!status.ok()) return status;
    chunk.sent += bytes;
    s.pending_bytes -= bytes;
    s.to_app.on_sent(bytes);
    if (bytes > wire::kInlinePayloadBytesMax) s.to_app.on_reference();
    if (s.pending_bytes == 0) {
      leave_tail(s, node);
    } else {
      advance_chunk(s, node);
    }
  }
  return {};
}

// Nothing waits: the tail goes too, so that chunks go round among the streams. But what comes next
// of a stream that has two with its application node joins what is there: else each piece of a
// little more than 1 KB would keep a chunk of its own.
void Translator::leave_tail(Stream& s, AppNode& node) {
  const bool packs = s.chunks_held >= kChunksAnyway && (*node.chunks)[s.chunk_tail].outstanding > 0;
  if (!packs) release_chunks(s, node);
}

void Translator::leave_chunk(Stream& s, ChunkRegion& chunks, ChunkIndex chunk) {
  if (!chunks.disown(chunk)) return;
  --s.chunks_held;
  awaited_chunks_free_ |= !chunks.waiting().empty();
}

void Translator::release_chunks(Stream& s, AppNode& node) {
  for (ChunkIndex c = s.chunk_first; c != kNoChunk;) {
    const ChunkIndex next = (*node.chunks)[c].next;
    leave_chunk(s, *node.chunks, c);
    c = next;
  }
  s.chunk_first = s.chunk_tail = kNoChunk;
  s.pending_bytes = 0;
}

void Translator::on_sent(channel::Channel& channel, std::uint64_t cookie, bool) {
  if ((cookie & 1) != 0) {
    AppNode& node = node_of_channel(channel);
    const auto chunk = static_cast<ChunkIndex>(cookie >> 1);
    Stream& s = streams_[wire::connection_index((*node.chunks)[chunk].stream)];
    const bool gone = s.id != (*node.chunks)[chunk].stream;  // then nothing of it is owned
    if (node.chunks->on_returned(chunk)) {
      if (!gone) --s.chunks_held;
      awaited_chunks_free_ |= !node.chunks->waiting().empty();
    } else if (node.chunks->idle(chunk)) {
      release_chunks(s, node);
    }
  } else {
    stack::RxPayload::release(reinterpret_cast<pbuf*>(static_cast<std::uintptr_t>(cookie)));
  }
}

void Translator::on_fin(stack::ConnIndex conn) {
  Stream& s = streams_[conn];
  if (s.state == StreamState::kUnbound) {
    // It came and went without a word: no application node needs to know.
    orphan(s, conn);
    stack_->close(conn);
    return;
  }
  if (s.state != StreamState::kRequested && s.state != StreamState::kOpen) return;
  s.set(kClientFin);
  mark_dirty(s, conn);
}

// Sends everything that the stream has to say to its application node, in order.
Status Translator::emit(StreamIndex index) {
  Stream& s = streams_[index];
  AppNode& node = *nodes_[s.node];
  if (s.has(kRequestPending)) {
    if (const Status status = send_request(s, index, node); !status.ok()) return status;
    settle_request(s, node);
  }
  if (s.has(kAcceptPending)) {
    if (const Status status = send_accept(s, index, node); !status.ok()) return status;
    s.clear(kAcceptPending);
  }
  if (s.has(kCreditPending)) {
    if (const Status status = send_credit(s, node); !status.ok()) return status;
  }
  if (s.pending_bytes != 0) {
    if (const Status status = send_pending_data(s, node); !status.ok()) return status;
  }
  if (s.has(kClientFin) && !s.has(kClientFinSent) && s.pending_bytes == 0) {
    const wire::CloseConnectionBody body{s.id, s.to_app.sent()};
    const Status status = node.channel->send_stream_control(wire::MessageType::kCloseConnection, 0,
                                                            wire::CloseCode::kFin, body);
    if (!status.ok()) return status;
    s.set(kClientFinSent);
    if (s.has(kAppFin)) orphan(s, index);
    end_lingering(s, index);
  }
  return {};
}

}  // namespace sanproxy::translate
