#include "appnode-lib/client/connection_impl.h"

#include <algorithm>

#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/link.h"
#include "appnode-lib/client/node_impl.h"
#include "lwproto/wire/codec.h"

namespace sanproxy::app::internal {
namespace {

constexpr std::uint32_t kSegmentsPerPiece = 44;  // of the client's MSS, below 64 KB
// A proxy may give its clients a window as small as 64 KB (receive_window_bytes), whatever ours
// is: freed bytes are announced by a quarter of that at the latest.
constexpr std::uint32_t kCreditDueBytesMax = 16 * 1024;

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
  receive_window = flow::ReceiveWindow(receive_window_bytes,
                                       std::min(receive_window_bytes / 4, kCreditDueBytesMax));
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
  maybe_writable();  // for a send() that came before
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

// The proxy broke a rule of this stream (docs/wire_format.md, P4 to P6): the others go on.
void ConnectionImpl::breach() { close_with(wire::CloseCode::kProtocolError); }

void ConnectionImpl::on_data(std::uint64_t offset, Received& data) {
  if (state != State::kOpen) return;  // on its way when we closed: nobody wants it any more
  const auto bytes = static_cast<std::uint32_t>(data.size());
  if (fin_received || !receive_window.on_data(offset, bytes).ok()) return breach();
  handler->on_data(*this, data);
  if (!data.kept_ && !data.withheld_) freed(bytes);
}

void ConnectionImpl::on_credit(std::uint64_t freed_offset, std::uint64_t acked_offset) {
  if (!send_window.on_credit(freed_offset, acked_offset).ok()) return breach();
  maybe_writable();
}

void ConnectionImpl::on_close(wire::CloseCode code, std::uint64_t offset) {
  if (code != wire::CloseCode::kFin) return end(to_public(code));
  if (fin_received) return breach();
  if (state == State::kOpen && offset != receive_window.received()) return breach();
  fin_received = true;
  if (state == State::kOpen) {
    handler->on_end_of_stream(*this);
  }
  if (fin_sent) end(CloseCode::kFin);
}

// --- receiving

void ConnectionImpl::freed(std::size_t bytes) {
  if (state != State::kOpen) return;
  // A program that has opened the window too far gives back less later.
  const std::uint64_t some = std::min<std::uint64_t>(bytes, receive_window.held());
  receive_window.on_freed(static_cast<std::uint32_t>(some));
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
    // Nothing answers a terminal close (docs/wire_format.md): it is over when it has left.
    if (what == kClose && state == State::kClosing) end(to_public(close_code));
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
      const BaseStatus status = channel.send_credit(body);
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
  if (!may_refer()) return;  // a CREDIT is sure to come
  want_writable = false;
  handler->on_writable(*this);
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
