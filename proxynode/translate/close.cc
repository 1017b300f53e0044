// Every way a stream ends (docs/life_of_a_connection.md has the table).

#include "lwproto/base/check.h"
#include "lwproto/daemon/log.h"
#include "proxynode/translate/translator.h"

namespace sanproxy::translate {
namespace {

wire::CloseCode code_of(stack::EndReason reason) {
  switch (reason) {
    case stack::EndReason::kFinished:
      return wire::CloseCode::kFinBoth;
    case stack::EndReason::kResetByPeer:
      return wire::CloseCode::kReset;
    case stack::EndReason::kAborted:
      return wire::CloseCode::kReset;
    case stack::EndReason::kTimedOut:
      return wire::CloseCode::kTimedOut;
    case stack::EndReason::kRefused:
      return wire::CloseCode::kRefused;
    case stack::EndReason::kNoMemory:
      return wire::CloseCode::kLimitReached;
    case stack::EndReason::kUnreachable:
      return wire::CloseCode::kUnreachable;
  }
  return wire::CloseCode::kReset;
}

}  // namespace

void Translator::on_message(channel::Channel& channel, const wire::Message& message) {
  AppNode& node = node_of_channel(channel);
  if (const Status status = wire::check_direction(message, wire::Receiver::kProxy); !status.ok()) {
    channel.close(wire::CloseCode::kProtocolError, status.text());
    return;
  }
  switch (message.type) {
    case wire::MessageType::kJoinService:
      return on_join(node, message);
    case wire::MessageType::kAuthenticate:
      return on_authenticate(node, message);
    case wire::MessageType::kLeaveService:
      return on_leave(node, message);
    case wire::MessageType::kShutdownService:
      return on_shutdown_service(node, message);
    case wire::MessageType::kConnectionRequest:
      return on_active_request(node, message);
    case wire::MessageType::kHeartbeat:
      return on_heartbeat(node, message);
    case wire::MessageType::kAcceptConnection:
      if (is_probe(message.accept.connection)) break;
      return on_accept(node, message);
    case wire::MessageType::kRejectConnection:
      if (is_probe(message.reject.connection)) break;
      return on_reject(node, message);
    case wire::MessageType::kCloseConnection:
      if (is_probe(message.close.connection)) break;
      return on_close_message(node, message);
    case wire::MessageType::kCredit:
      if (is_probe(message.credit.connection)) break;
      return on_credit(node, message);
    default:
      return;  // DATA has its own call; HELLO and ERROR never come here
  }
  on_probe_message(node, message);
}

void Translator::on_close_message(AppNode& node, const wire::Message& message) {
  StreamIndex index = kNone;
  Stream* s = stream_for(node, message.close.connection, index);
  if (s == nullptr) return;
  const bool orderly =
      message.code == wire::CloseCode::kFin || message.code == wire::CloseCode::kFinBoth;
  if (!orderly) {
    orphan(*s, index);
    reset_stream(*s, index);
    return;
  }
  const bool repeated = s->has(kAppFin) && message.code == wire::CloseCode::kFin;
  if (s->state != StreamState::kOpen || repeated ||
      message.close.offset != s->from_app.received()) {
    return fail_stream(*s, index, wire::CloseCode::kProtocolError);
  }
  s->set(kAppFin);
  if (message.code == wire::CloseCode::kFin) {
    s->set(kShutdownPending);
    finish_sending(*s, index);
    if (s->state == StreamState::kOpen && s->has(kClientFinSent)) orphan(*s, index);
    return;
  }
  // What was handed over counts as consumed; what was not makes the stack send RST.
  const std::uint64_t unreturned = s->to_app.in_flight();
  s->set(kClosePending);
  const bool unsent = s->pending_bytes != 0;
  orphan(*s, index);
  if (s->has(kLingering)) return end_lingering(*s, index);
  if (!unsent) stack_->consume(index, static_cast<std::uint32_t>(unreturned));
  finish_sending(*s, index);
}

// Passes the application's FIN or close on, once everything before it is with the stack.
void Translator::finish_sending(Stream& s, StreamIndex index) {
  if (s.tx_unwritten != kNone) return;
  if (s.has(kClosePending)) {
    s.clear(kClosePending);
    stack_->close(index);
  } else if (s.has(kShutdownPending)) {
    s.clear(kShutdownPending);
    if (!stack_->shutdown_send(index).ok()) stack_->abort(index);
  }
}

// The application node has nothing more to do with the stream; the stack may still be sending.
void Translator::orphan(Stream& s, StreamIndex index) {
  if (s.state == StreamState::kOrphan) return;
  if (s.node != kNone) {
    AppNode& node = *nodes_[s.node];
    release_chunks(s, node);
    unblock(s, node);
    stop_awaiting_chunk(s, *node.chunks);
    if (s.has(kRequestPending)) settle_request(s, node);
    --node.open_streams;
    if (service::Service* service = services_.find(s.service); service != nullptr) {
      service->unbind(node.index, s.membership);
    }
  }
  s.clear(kCreditPending);
  s.state = StreamState::kOrphan;
  (void)index;
}

// Our decision, or the application node's breach: RST to the client, the code to the node.
void Translator::fail_stream(Stream& s, StreamIndex index, wire::CloseCode code) {
  if (code == wire::CloseCode::kProtocolError) {
    ++counters_.closed_protocol;
    if (may_log()) spdlog::warn("node {} broke the protocol on connection {:x}", s.node, s.id);
  }
  AppNode& node = *nodes_[s.node];
  const std::uint64_t id = s.id;
  const bool announced = !s.has(kRequestPending) && !s.has(kAcceptPending);
  orphan(s, index);
  reset_stream(s, index);
  if (announced) say_farewell(node, id, 0, code);
}

void Translator::say_farewell(AppNode& node, std::uint64_t connection, std::uint32_t request,
                              wire::CloseCode code) {
  if (request != 0) {
    send_or_owe(node, wire::MessageType::kRejectConnection, 0, code,
                wire::RejectConnectionBody{0, request, 0}, false);
  } else {
    send_or_owe(node, wire::MessageType::kCloseConnection, 0, code,
                wire::CloseConnectionBody{connection, 0}, false);
  }
}

bool Translator::on_closed(stack::ConnIndex conn, stack::EndReason reason) {
  Stream& s = streams_[conn];
  if (s.state == StreamState::kFree) return true;
  const bool alive = s.state == StreamState::kRequested || s.state == StreamState::kOpen;
  if (reason == stack::EndReason::kFinished && alive && s.has(kClientFin)) {
    // The channel is short of credits: the client's last bytes and FIN have still to go.
    s.set(kLingering);
    return false;
  }
  const std::uint64_t id = s.id;
  const std::uint32_t request = s.request;
  const StreamState state = s.state;
  const bool announced = !s.has(kRequestPending) && !s.has(kAcceptPending);
  AppNode* node = s.node == kNone ? nullptr : nodes_[s.node].get();
  orphan(s, conn);
  free_stream(s, conn);
  if (node == nullptr) return true;
  if (state == StreamState::kConnecting || (request != 0 && !announced)) {
    say_farewell(*node, 0, request, code_of(reason));
  } else if ((state == StreamState::kRequested || state == StreamState::kOpen) && announced) {
    say_farewell(*node, id, 0, code_of(reason));
  }
  return true;
}

// RST to the client, if there still is one.
void Translator::reset_stream(Stream& s, StreamIndex index) {
  if (s.has(kLingering)) {
    end_lingering(s, index);
  } else {
    stack_->abort(index);
  }
}

void Translator::end_lingering(Stream& s, StreamIndex index) {
  if (!s.has(kLingering)) return;
  free_stream(s, index);
  stack_->forget(index);
}

void Translator::free_stream(Stream& s, StreamIndex index) {
  if (s.node != kNone) {
    AppNode& node = *nodes_[s.node];
    if (s.state != StreamState::kOrphan) orphan(s, index);
    s.tx_unwritten = kNone;
    release_records(s, node, UINT64_MAX);
    if (s.node_prev != kNone) streams_[s.node_prev].node_next = s.node_next;
    if (s.node_next != kNone) streams_[s.node_next].node_prev = s.node_prev;
    if (node.streams_head == index) node.streams_head = s.node_next;
    SANPROXY_CHECK(node.stream_count > 0);
    --node.stream_count;
  }
  wipe(s);
  s.node = kNone;
  s.state = StreamState::kFree;
  --bound_streams_;
}

}  // namespace sanproxy::translate
