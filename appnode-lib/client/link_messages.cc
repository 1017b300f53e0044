// Link: messages about connections, from the proxy and back (docs/wire_format.md).
#include <algorithm>

#include "appnode-lib/client/convert.h"
#include "appnode-lib/client/link.h"
#include "appnode-lib/client/node_impl.h"
#include "lwproto/wire/codec.h"

namespace sanproxy::app::internal {

void Link::on_data(channel::Channel&, std::uint64_t id, std::uint64_t offset,
                   const channel::Payload& payload) {
  ConnectionImpl* connection = table_.find(id);
  if (connection == nullptr) return;  // ended here while this was on its way
  Received data;
  for (const fabric::Segment& piece : payload.pieces) {
    data.pieces_[data.piece_count_++] = {piece.data, piece.length};
  }
  data.size_ = payload.length;
  data.loan_ = payload.loan;
  data.connection_ = connection;
  connection->on_data(offset, data);
}

void Link::on_message(channel::Channel&, const wire::Message& message) {
  using wire::MessageType;
  const BaseStatus direction = wire::check_direction(message, wire::Receiver::kApplication);
  if (!direction.ok()) return breach(direction.text());
  const bool answer = (message.flags & wire::kFlagAnswer) != 0;
  switch (message.type) {
    case MessageType::kConnectionRequest:
      return on_request(message.request);
    case MessageType::kCredit:
      if (ConnectionImpl* c = table_.find(message.credit.connection)) {
        c->on_credit(message.credit.freed_offset, message.credit.acked_offset);
      }
      return;
    case MessageType::kCloseConnection:
      if (ConnectionImpl* c = table_.find(message.close.connection)) {
        c->on_close(message.code, message.close.offset);
      }
      return;
    case MessageType::kAcceptConnection:
      return on_accept(message.accept);
    case MessageType::kRejectConnection:
      return on_reject(message.reject, message.code);
    case MessageType::kJoinService:
      return on_join_answer(message.join, message.code);
    case MessageType::kAuthenticate:
      return on_key_answer(message.authenticate, message.code);
    case MessageType::kHeartbeat:
      return on_heartbeat(message.heartbeat);
    case MessageType::kLeaveService:
    case MessageType::kShutdownService:
      return on_service_end(message.service, answer, message.code);
    default:  // DATA has its own call; HELLO and ERROR never come here
      return;
  }
}

void Link::on_request(const wire::ConnectionRequestBody& body) {
  const std::size_t index = service_index(body.service);
  if (index == services_.size()) return reject(body.connection, wire::CloseCode::kNotFound);
  if (ConnectionImpl* stale = table_.at_index(wire::connection_index(body.connection))) {
    // The proxy has reused the index, so the older connection is no more.
    if (stale->wire_id == body.connection) return breach("connection id in use");
    stale->end(CloseCode::kReset);
  }
  ConnectionImpl* connection = node_.acquire_for_request();
  if (connection == nullptr) return reject(body.connection, wire::CloseCode::kLimitReached);
  connection->begin(*this, ConnectionImpl::State::kDeciding, node_.receive_window_bytes());
  connection->wire_id = body.connection;
  connection->remote_address = to_public(body.client);
  connection->local_address = to_public(body.local);
  connection->set_send_window(body.send_window_bytes, body.mss_bytes);
  table_.insert(*connection);

  Request request(*connection);
  request.client_ = connection->remote_address;
  request.local_ = connection->local_address;
  node_.services()[index]->on_request(request);
  if (request.accepted_) return;
  table_.erase(*connection);
  connection->state = ConnectionImpl::State::kEnded;
  connection->closed_reported = true;
  connection->maybe_free();
  reject(body.connection, to_wire_rejection(request.code_));
}

void Link::adopt(ConnectionImpl& connection) { table_.insert(connection); }

// The connection whose active request has this number, if the proxy still owes the answer.
ConnectionImpl* Link::awaiting(std::uint32_t request) {
  ConnectionImpl* connection = request == 0 ? nullptr : node_.pool().at(request - 1);
  if (connection == nullptr || connection->link != this || !connection->awaiting_answer) {
    breach("answer to no request");
    return nullptr;
  }
  return connection;
}

void Link::on_accept(const wire::AcceptConnectionBody& body) {
  ConnectionImpl* connection = awaiting(body.request);
  if (connection == nullptr) return;
  if (table_.at_index(wire::connection_index(body.connection)) != nullptr) {
    return breach("connection id in use");
  }
  connection->opened(body);
}

void Link::on_reject(const wire::RejectConnectionBody& body, wire::CloseCode code) {
  ConnectionImpl* connection = awaiting(body.request);
  if (connection == nullptr) return;
  connection->awaiting_answer = false;
  connection->pending = 0;  // a FIN that was to follow
  connection->end(to_public(code));
  connection->maybe_free();
}

// --- rejections

BaseStatus Link::send_reject(const Reject& reject) {
  return hold_->channel->send_control(wire::MessageType::kRejectConnection, 0, reject.code,
                                      reject.body);
}

void Link::reject(std::uint64_t connection, wire::CloseCode code) {
  const Reject entry{{connection, 0, 0}, code};
  if (rejects_.empty() && !send_reject(entry).is_again()) return;
  if (rejects_.size() == kUnsentRejectsMax) return breach("too many requests at once");
  rejects_.push_back(entry);
}

bool Link::flush_rejects() {
  std::size_t sent = 0;
  while (sent < rejects_.size() && !send_reject(rejects_[sent]).is_again()) ++sent;
  rejects_.erase(rejects_.begin(), rejects_.begin() + static_cast<std::ptrdiff_t>(sent));
  return rejects_.empty();
}

// --- memory and queue space coming back

void Link::on_sent(channel::Channel&, std::uint64_t cookie, bool ok) {
  const auto number = static_cast<std::uint32_t>(cookie >> 1);
  if ((cookie & 1) == kCookieChunk) return node_.send_memory().release(number);
  SendRecord& record = node_.send_records()[number];
  record.ok = record.ok && ok;
  --record.region->in_use;
  if (--record.pieces != 0) return;
  const SendDone done = record.done;
  const bool all_ok = record.ok;
  node_.send_records().release(number);
  if (done.call != nullptr) done.call(done.context, all_ok);
}

// There are credits, or places in the send queue, for CREDITs alone, and the proxy may wait for one
// before it takes our data.
void Link::send_blocked_credits() {
  for (std::size_t left = blocked_.size(); left > 0; --left) {
    ConnectionImpl* connection = blocked_.pop_front();
    if (connection->flush_pending()) blocked_.push_back(*connection);
  }
  if (!blocked_.empty() || !placeless_.empty()) channel().ask_writable();
}

void Link::on_writable(channel::Channel& channel) {
  answer_heartbeat();
  if (!flush_rejects()) return;
  if (services_blocked_) sync_services();
  if (!channel.data_writable()) return send_blocked_credits();
  // Each that waits is tried once; those that block again go to the end, so nobody starves.
  serving_blocked_ = true;
  for (std::size_t left = blocked_.size(); left > 0 && channel.data_writable(); --left) {
    ConnectionImpl* connection = blocked_.pop_front();
    if (connection == nullptr) break;
    connection->retry();
  }
  serving_blocked_ = false;
  serve_placeless();
  if (channel.references_left() == 0) return send_blocked_credits();
  if (!blocked_.empty()) channel.ask_writable();
}

// Those that have a filled chunk and found no place for it.
void Link::serve_placeless() {
  serving_placeless_ = true;
  for (std::size_t left = placeless_.size(); left > 0 && channel().data_writable() && has_place();
       --left) {
    ConnectionImpl* connection = placeless_.pop_front();
    if (connection == nullptr) break;
    connection->retry();
  }
  serving_placeless_ = false;
  if (!placeless_.empty()) channel().ask_writable();
}

}  // namespace sanproxy::app::internal
