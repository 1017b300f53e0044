// ConnectionImpl: sending, from bytes, chunks and registered memory (docs/flow_control.md).
#include <algorithm>
#include <array>
#include <cstring>

#include "appnode-lib/client/connection_impl.h"
#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/link.h"
#include "appnode-lib/client/node_impl.h"
#include "lwproto/base/check.h"

namespace sanproxy::app::internal {

// Below this a sender waits for more of the window, as TCP does (RFC 9293, 3.8.6.2.1): else a
// stream in bulk would settle into ever smaller pieces. What is missing is in flight, more than a
// quarter of the window, so a CREDIT is sure to come.
std::size_t ConnectionImpl::writable_threshold() const {
  return std::max<std::size_t>(1, std::min(piece_bytes / 2, send_window_bytes / 4));
}

// Of the memory and the places that are left one connection may have such a part in flight.
constexpr std::uint32_t kReferencesShare = 8;

// What the client has not acknowledged takes memory, and a place in the send queue, from all other
// connections.
bool ConnectionImpl::may_refer() const {
  const std::uint32_t spare = std::min(link->channel().endpoint().references_spare(),
                                       link->node().send_memory().large_spare());
  return send_window.may_refer(spare / kReferencesShare);
}

// Where all places in the send queue are taken, by clients that acknowledge nothing, the bytes go
// inline: the proxy copies them.
std::size_t ConnectionImpl::admit(std::size_t bytes) const {
  const std::size_t available = send_window.available();
  if (available < bytes && available < writable_threshold()) return 0;
  std::size_t most = piece_bytes;
  if (bytes > wire::kInlinePayloadBytesMax) {
    if (!may_refer()) return 0;
    if (!link->has_place()) most = wire::kInlinePayloadBytesMax;
  }
  return std::min({bytes, available, most});
}

bool ConnectionImpl::take_turn() {
  if (!sendable()) return false;
  if (!link->others_wait()) return true;
  link->block(*this);
  return false;
}

bool ConnectionImpl::send_failed(const BaseStatus& status) {
  if (status.ok()) return false;
  if (status.is_again()) link->block(*this);
  return true;
}

BaseStatus ConnectionImpl::send_inline(Bytes bytes) {
  return link->channel().send_data_inline(wire_id, send_window.sent(), bytes);
}

std::size_t ConnectionImpl::send_copy(Bytes bytes) {
  std::size_t sent = 0;
  const bool turn = take_turn();
  while (turn && sendable() && sent < bytes.size()) {
    std::size_t n = admit(bytes.size() - sent);
    if (n == 0) break;
    SendMemory& memory = link->node().send_memory();
    SendMemory::Slot chunk;
    if (n > wire::kInlinePayloadBytesMax) chunk = memory.acquire(n);
    BaseStatus status;
    if (chunk.capacity == 0) {  // few bytes, or no memory
      n = std::min(n, wire::kInlinePayloadBytesMax);
      status = send_inline(bytes.subspan(sent, n));
    } else {
      n = std::min(n, chunk.capacity);
      std::memcpy(chunk.data, bytes.data() + sent, n);
      const std::array refs{
          fabric::GatherRef{link->send_memory_key(), static_cast<std::uint32_t>(n), chunk.offset}};
      status = link->channel().send_data_reference(wire_id, send_window.sent(), refs,
                                                   chunk_cookie(chunk.handle));
      if (!status.ok()) memory.release(chunk.handle);
    }
    if (send_failed(status)) break;
    on_sent(n);
    sent += n;
  }
  if (sent < bytes.size()) want_writable = true;
  return sent;
}

void ConnectionImpl::on_sent(std::size_t bytes) {
  send_window.on_sent(static_cast<std::uint32_t>(bytes));
  if (bytes > wire::kInlinePayloadBytesMax) send_window.on_reference();
}

BaseStatus ConnectionImpl::send_piece(Region& region, std::size_t offset, std::size_t bytes,
                                      std::uint32_t record) {
  if (bytes <= wire::kInlinePayloadBytesMax) {
    return send_inline({region.memory.data() + offset, bytes});
  }
  const std::array refs{
      fabric::GatherRef{link->region_key(region.index), static_cast<std::uint32_t>(bytes), offset}};
  const BaseStatus status =
      link->channel().send_data_reference(wire_id, send_window.sent(), refs, record_cookie(record));
  if (status.ok()) {
    ++link->node().send_records()[record].pieces;
    ++region.in_use;
  }
  return status;
}

std::size_t ConnectionImpl::send_region(Region& region, std::size_t offset, std::size_t length,
                                        SendDone done) {
  SANPROXY_CHECK(offset <= region.bytes && length <= region.bytes - offset);
  if (!take_turn()) {
    want_writable = true;
    return 0;
  }
  if (!link->region_attached(region.index)) {  // this proxy took no more regions: copy
    const std::size_t copied = send_copy({region.memory.data() + offset, length});
    if (copied != 0 && done.call != nullptr) done.call(done.context, true);
    return copied;
  }
  SendRecords& records = link->node().send_records();
  const std::uint32_t record = records.acquire(region, done);
  std::size_t sent = 0;
  while (record != SendRecords::kNone && sent < length) {
    const std::size_t n = admit(length - sent);
    if (n == 0 || send_failed(send_piece(region, offset + sent, n, record))) break;
    on_sent(n);
    sent += n;
  }
  if (sent < length) want_writable = true;
  if (record != SendRecords::kNone && records[record].pieces == 0) {
    records.release(record);  // all of it went inline, or nothing went
    if (sent != 0 && done.call != nullptr) done.call(done.context, true);
  }
  return sent;
}

SendChunk ConnectionImpl::acquire_chunk(std::size_t bytes_wanted) {
  SendChunk chunk;
  if (bytes_wanted == 0) return chunk;
  std::size_t n = take_turn() ? admit(std::min(bytes_wanted, kChunkBytesMax)) : 0;
  SendMemory::Slot slot_taken;
  if (n != 0) slot_taken = link->node().send_memory().acquire(n);
  if (n > wire::kInlinePayloadBytesMax && slot_taken.capacity == 0) {
    n = wire::kInlinePayloadBytesMax;
    slot_taken = link->node().send_memory().acquire(n);
  }
  if (slot_taken.capacity == 0) {
    want_writable = true;
    if (n != 0) link->node().starved().push_back(*this);
    return chunk;
  }
  chunk.node_ = &link->node();
  chunk.data_ = slot_taken.data;
  chunk.size_ = std::min(n, slot_taken.capacity);
  chunk.handle_ = slot_taken.handle;
  return chunk;
}

bool ConnectionImpl::send_chunk(SendChunk& chunk, std::size_t length) {
  SANPROXY_CHECK(chunk.valid() && length <= chunk.size_);
  if (length != 0 && (!sendable() || send_window.available() < length)) {
    want_writable = true;
    return false;
  }
  if (length > wire::kInlinePayloadBytesMax) {
    const std::array refs{fabric::GatherRef{link->send_memory_key(),
                                            static_cast<std::uint32_t>(length),
                                            link->node().send_memory().offset(chunk.handle_)}};
    // Others may follow before the loop's round ends.
    const BaseStatus status =
        link->has_place() ? link->channel().send_data_reference(wire_id, send_window.sent(), refs,
                                                                chunk_cookie(chunk.handle_), true)
                          : BaseStatus::again();
    if (status.is_again() && link->wait_for_place(*this)) {
      want_writable = true;
      return false;
    }
    if (send_failed(status)) {
      want_writable = true;
      return false;
    }
    chunk.node_ = nullptr;  // the fabric's now, until its cookie comes back
  } else if (length != 0) {
    if (send_failed(send_inline({chunk.data_, length}))) {
      want_writable = true;
      return false;
    }
  }
  on_sent(length);
  chunk.release();
  return true;
}

}  // namespace sanproxy::app::internal
