#include "appnode-lib/client/connection_impl.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/link.h"
#include "appnode-lib/client/node_impl.h"
#include "lwproto/base/check.h"
#include "lwproto/wire/codec.h"

namespace sanproxy::app::internal {
namespace {

constexpr std::uint32_t kSegmentsPerPiece = 44;  // of the client's MSS, below 64 KB

std::uint32_t piece_bytes_for(std::uint32_t mss_bytes) {
  if (mss_bytes < 536 || mss_bytes * kSegmentsPerPiece > wire::kDataPayloadBytesMax) {
    return kChunkBytesMax;
  }
  return mss_bytes * kSegmentsPerPiece;
}

}  // namespace

// --- life

void ConnectionImpl::begin(Link& to, State initial, std::uint32_t receive_window_bytes) {
  link = &to;
  state = initial;
  wire_id = 0;
  handler = nullptr;
  user = nullptr;
  send_window = {};
  receive_window = flow::ReceiveWindow(receive_window_bytes);
  send_window_bytes = 0;
  piece_bytes = kChunkBytesMax;
  pending = 0;
  want_writable = fin_sent = fin_received = own_handler = false;
  awaiting_answer = closed_reported = false;
  close_code = wire::CloseCode::kNone;
  end_reason = CloseCode::kNone;
}

void ConnectionImpl::set_send_window(std::uint32_t window_bytes, std::uint32_t mss_bytes) {
  send_window = flow::SendWindow(window_bytes);
  send_window_bytes = window_bytes;
  piece_bytes = piece_bytes_for(mss_bytes);
}

void ConnectionImpl::accepted(ConnectionHandler& by, bool own, void* user_data) {
  handler = &by;
  own_handler = own;
  user = user_data;
  state = State::kOpen;
  pending |= kAccept;
  flush_pending();
}

void ConnectionImpl::opened(const wire::AcceptConnectionBody& body) {
  awaiting_answer = false;
  wire_id = body.connection;
  set_send_window(body.send_window_bytes, body.mss_bytes);
  local_address = to_public(body.local);
  if (state == State::kEnded) {  // given up meanwhile: the proxy must still hear of it
    pending |= kClose;
    close_code = wire::CloseCode::kReset;
    flush_pending();
    maybe_free();
    return;
  }
  link->adopt(*this);
  state = State::kOpen;
  handler->on_open(*this);
  flush_pending();
}

void ConnectionImpl::end(CloseCode reason) {
  if (state == State::kEnded) return;
  if (wire_id != 0) link->forget(*this);
  state = State::kEnded;
  end_reason = reason;
  want_writable = false;
  link->node().ended().push_back(*this);
}

void ConnectionImpl::close_with(wire::CloseCode code) {
  if (state == State::kConnecting) {
    pending = 0;  // if the request has left, opened() takes the connection back
    return end(code == wire::CloseCode::kFinBoth ? CloseCode::kFinBoth : CloseCode::kReset);
  }
  const bool first = state == State::kOpen;
  const bool harder = state == State::kClosing && close_code == wire::CloseCode::kFinBoth &&
                      code != wire::CloseCode::kFinBoth;
  if (!first && !harder) return;
  // CLOSE says it all: a pending CREDIT or FIN is obsolete, but the ACCEPT must come first.
  pending = static_cast<std::uint8_t>((pending & kAccept) | kClose);
  close_code = code;
  want_writable = false;
  state = State::kClosing;
  flush_pending();
}

void ConnectionImpl::report_closed() {
  closed_reported = true;
  if (handler != nullptr) {
    ConnectionHandler* told = handler;
    told->on_closed(*this, end_reason);
    handler = nullptr;
    if (own_handler) delete told;
  }
  maybe_free();
}

void ConnectionImpl::maybe_free() {
  if (state != State::kEnded || !closed_reported || pending != 0 || awaiting_answer) return;
  link->unblock(*this);
  link->node().starved().remove(*this);
  state = State::kFree;
  ++serial;
  link->node().pool().release(*this);
}

void ConnectionImpl::link_lost(CloseCode reason) {
  pending = 0;
  awaiting_answer = false;
  if (state == State::kEnded) {
    maybe_free();
  } else {
    end(reason);
  }
}

// --- from the proxy

void ConnectionImpl::on_data(std::uint64_t offset, Received& data) {
  if (state != State::kOpen) return;  // on its way when we closed: nobody wants it any more
  const auto bytes = static_cast<std::uint32_t>(data.size());
  if (fin_received) return link->breach("data behind the end of the stream");
  if (const BaseStatus status = receive_window.on_data(offset, bytes); !status.ok()) {
    return link->breach(status.text());
  }
  handler->on_data(*this, data);
  if (!data.kept_ && !data.withheld_) freed(bytes);
}

void ConnectionImpl::on_credit(std::uint64_t freed_offset, std::uint64_t acked_offset) {
  const BaseStatus status = send_window.on_credit(freed_offset, acked_offset);
  if (!status.ok()) return link->breach(status.text());
  maybe_writable();
}

void ConnectionImpl::on_close(wire::CloseCode code, std::uint64_t offset) {
  if (code != wire::CloseCode::kFin) return end(to_public(code));
  if (fin_received) return link->breach("end of stream twice");
  fin_received = true;
  if (state == State::kOpen) {
    if (offset != receive_window.received()) return link->breach("end of stream at a gap");
    handler->on_end_of_stream(*this);
  }
  if (fin_sent) end(CloseCode::kFin);
}

// --- receiving

void ConnectionImpl::freed(std::size_t bytes) {
  if (state != State::kOpen) return;
  SANPROXY_CHECK(bytes <= receive_window.held());
  receive_window.on_freed(static_cast<std::uint32_t>(bytes));
  if (fin_received || !receive_window.credit_due()) return;
  pending |= kCredit;
  flush_pending();
}

// --- what is owed

bool ConnectionImpl::flush_pending() {
  for (const Pending what : {kConnect, kAccept, kCredit, kFin, kClose}) {
    if ((pending & what) == 0) continue;
    if (what != kConnect && wire_id == 0) return true;  // waits for the answer, not for credits
    const BaseStatus status = link->up() ? send_owed(what) : BaseStatus::again();
    if (status.is_again() && link->up()) {
      link->block(*this);
      return false;
    }
    // Any other failure is the end of the channel, which will end this connection too.
    pending = static_cast<std::uint8_t>(pending & ~what);
  }
  return true;
}

BaseStatus ConnectionImpl::send_connect() {
  wire::ConnectionRequestBody body{};
  body.request = slot + 1;
  body.client = wire::to_wire(to_base(remote_address));
  body.send_window_bytes = receive_window.window_bytes();
  const BaseStatus status = link->channel().send_stream_control(
      wire::MessageType::kConnectionRequest, wire::kFlagActive, wire::CloseCode::kNone, body);
  if (status.ok()) awaiting_answer = true;
  return status;
}

BaseStatus ConnectionImpl::send_owed(Pending what) {
  channel::Channel& channel = link->channel();
  switch (what) {
    case kConnect:
      return send_connect();
    case kAccept: {
      wire::AcceptConnectionBody body{};
      body.connection = wire_id;
      body.send_window_bytes = receive_window.window_bytes();
      return channel.send_control(wire::MessageType::kAcceptConnection, 0, wire::CloseCode::kNone,
                                  body);
    }
    case kCredit: {
      const wire::CreditBody body{wire_id, receive_window.freed(), 0};
      const BaseStatus status =
          channel.send_stream_control(wire::MessageType::kCredit, 0, wire::CloseCode::kNone, body);
      if (status.ok()) receive_window.announce();
      return status;
    }
    case kFin:
    case kClose: {
      const wire::CloseConnectionBody body{wire_id, send_window.sent()};
      const wire::CloseCode code = what == kFin ? wire::CloseCode::kFin : close_code;
      return channel.send_control(wire::MessageType::kCloseConnection, 0, code, body);
    }
  }
  return {};
}

void ConnectionImpl::retry() {
  if (!flush_pending()) return;
  if (state == State::kEnded) {
    maybe_free();
  } else {
    maybe_writable();
  }
}

void ConnectionImpl::maybe_writable() {
  if (!want_writable || !sendable() || send_window.available() < writable_threshold()) return;
  want_writable = false;
  handler->on_writable(*this);
}

// --- sending

// Below this a sender waits for more of the window, as TCP does (RFC 9293, 3.8.6.2.1): else a
// stream in bulk would settle into ever smaller pieces. What is missing is in flight, more than a
// quarter of the window, so a CREDIT is sure to come.
std::size_t ConnectionImpl::writable_threshold() const {
  return std::max<std::size_t>(1, std::min(piece_bytes / 2, send_window_bytes / 4));
}

std::size_t ConnectionImpl::admit(std::size_t bytes) const {
  const std::size_t available = send_window.available();
  if (available < bytes && available < writable_threshold()) return 0;
  return std::min({bytes, available, std::size_t{piece_bytes}});
}

bool ConnectionImpl::send_failed(const BaseStatus& status) {
  if (status.ok()) return false;
  if (status.is_again()) link->block(*this);
  return true;
}

std::size_t ConnectionImpl::send_copy(Bytes bytes) {
  std::size_t sent = 0;
  while (sendable() && sent < bytes.size()) {
    std::size_t n = admit(bytes.size() - sent);
    if (n == 0) break;
    BaseStatus status;
    if (n <= wire::kInlinePayloadBytesMax) {
      status =
          link->channel().send_data_inline(wire_id, send_window.sent(), bytes.subspan(sent, n));
    } else {
      SendMemory& memory = link->node().send_memory();
      const SendMemory::Slot chunk = memory.acquire(n);
      if (chunk.capacity == 0) {
        link->node().starved().push_back(*this);
        break;
      }
      n = std::min(n, chunk.capacity);
      std::memcpy(chunk.data, bytes.data() + sent, n);
      const std::array refs{
          fabric::GatherRef{link->send_memory_key(), static_cast<std::uint32_t>(n), chunk.offset}};
      status = link->channel().send_data_reference(wire_id, send_window.sent(), refs,
                                                   chunk_cookie(chunk.handle));
      if (!status.ok()) memory.release(chunk.handle);
    }
    if (send_failed(status)) break;
    send_window.on_sent(static_cast<std::uint32_t>(n));
    sent += n;
  }
  if (sent < bytes.size()) want_writable = true;
  return sent;
}

BaseStatus ConnectionImpl::send_piece(Region& region, std::size_t offset, std::size_t bytes,
                                      std::uint32_t record) {
  if (bytes <= wire::kInlinePayloadBytesMax) {
    return link->channel().send_data_inline(wire_id, send_window.sent(),
                                            {region.memory.data() + offset, bytes});
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
  if (!sendable()) {
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
    send_window.on_sent(static_cast<std::uint32_t>(n));
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
  const std::size_t n = sendable() ? admit(std::min(bytes_wanted, kChunkBytesMax)) : 0;
  const SendMemory::Slot slot_taken =
      n == 0 ? SendMemory::Slot{} : link->node().send_memory().acquire(n);
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
    const BaseStatus status = link->channel().send_data_reference(wire_id, send_window.sent(), refs,
                                                                  chunk_cookie(chunk.handle_));
    if (send_failed(status)) {
      want_writable = true;
      return false;
    }
    chunk.node_ = nullptr;  // the fabric's now, until its cookie comes back
  } else if (length != 0) {
    const BaseStatus status =
        link->channel().send_data_inline(wire_id, send_window.sent(), {chunk.data_, length});
    if (send_failed(status)) {
      want_writable = true;
      return false;
    }
  }
  send_window.on_sent(static_cast<std::uint32_t>(length));
  chunk.release();
  return true;
}

void ConnectionImpl::finish_sending() {
  if (fin_sent || (state != State::kOpen && state != State::kConnecting)) return;
  fin_sent = true;
  want_writable = false;
  pending |= kFin;
  if (state == State::kOpen) flush_pending();
  if (fin_received) end(CloseCode::kFin);
}

}  // namespace sanproxy::app::internal
