// Connections are bound to application nodes, requested, accepted and rejected; and those that
// an application node wants to open itself.

#include "lwproto/daemon/log.h"
#include "proxynode/translate/translator.h"

namespace sanproxy::translate {
namespace {

std::uint32_t tcp_options(const stack::ConnectionInfo& info) {
  return (info.timestamps ? 1u : 0u) | (info.window_scaling ? 4u : 0u);
}

bool takes_more(const AppNode* node) {
  return node != nullptr && !node->dead &&
         node->open_streams + node->open_probes < node->channel->peer_hello().streams_max;
}

bool may_be_given(const AppNode* node) {
  return takes_more(node) && !node->drained && node->heartbeat.up();
}

// An application node opens every stream with the one window of its HELLO (rules S5, S17).
bool window_is_its_own(const AppNode& node, std::uint32_t window_bytes) {
  return window_bytes == node.channel->peer_hello().stream_window_bytes;
}

}  // namespace

Stream& Translator::open_stream(StreamIndex index) {
  Stream& s = streams_[index];
  std::uint32_t generation = s.generation + 1;
  if ((generation & 0xff'ffffu) == 0) ++generation;  // no id has generation 0
  wipe(s);
  s.generation = generation;
  s.id = wire::make_connection_id(options_.epoch, generation, index);
  s.from_app = flow::ReceiveWindow(options_.send_window_bytes);
  s.node = kNone;
  s.node_prev = s.node_next = s.blocked_prev = s.blocked_next = kNone;
  s.waiting_prev = s.waiting_next = kNone;
  s.chunk_first = s.chunk_tail = kNoChunk;
  s.tx_first = s.tx_last = s.tx_unwritten = kNone;
  ++bound_streams_;
  return s;
}

bool Translator::on_accepted(stack::ConnIndex conn, const stack::ConnectionInfo& info) {
  service::Service* service = services_.find(static_cast<service::ServiceId>(info.listener_cookie));
  if (service == nullptr) return false;
  ++service->accepted;
  Stream& s = open_stream(conn);
  s.service = service->id();
  s.state = StreamState::kUnbound;
  if (service->immediate() && !bind(conn)) {
    free_stream(s, conn);
    return false;
  }
  return true;
}

// Chooses the application node; false when none can take the connection.
bool Translator::bind(StreamIndex index) {
  Stream& s = streams_[index];
  service::Service* service = services_.find(s.service);
  service::Member* member = nullptr;
  if (service != nullptr) {
    member = service->pick([this](service::NodeId id) {
      return may_be_given(nodes_[id].get()) && nodes_[id]->channel->data_writable();
    });
    // A node that is short of credits now is better than none.
    if (member == nullptr) {
      member = service->pick([this](service::NodeId id) { return may_be_given(nodes_[id].get()); });
    }
    if (member == nullptr) ++service->unserved;
  }
  if (member == nullptr) {
    ++counters_.unserved;
    return false;
  }
  AppNode& node = *nodes_[member->node];
  attach_to_node(index, node);
  s.membership = member->membership;
  s.state = StreamState::kRequested;
  s.set(kRequestPending);
  ++node.requests_pending;
  ++counters_.requests;
  mark_dirty(s, index);
  return true;
}

void Translator::attach_to_node(StreamIndex index, AppNode& node) {
  Stream& s = streams_[index];
  s.node = node.index;
  s.to_app = flow::SendWindow(node.channel->peer_hello().stream_window_bytes);
  s.node_prev = kNone;
  s.node_next = node.streams_head;
  if (node.streams_head != kNone) streams_[node.streams_head].node_prev = index;
  node.streams_head = index;
  ++node.stream_count;
  ++node.open_streams;
}

Status Translator::send_request(Stream& s, StreamIndex index, AppNode& node) {
  const stack::ConnectionInfo info = stack_->info(index);
  const std::uint32_t window_bytes = window_for(node);
  s.from_app = flow::ReceiveWindow(window_bytes);
  wire::ConnectionRequestBody body{};
  body.connection = s.id;
  body.service = s.service;
  body.client = wire::to_wire(info.remote);
  body.local = wire::to_wire(info.local);
  body.initial_seq_local = info.initial_seq_local;
  body.initial_seq_remote = info.initial_seq_remote;
  body.mss_bytes = info.mss_bytes;
  body.window_scale_local = info.window_scale_local;
  body.window_scale_remote = info.window_scale_remote;
  body.tcp_options = tcp_options(info);
  body.send_window_bytes = window_bytes;
  return node.channel->send_stream_control(wire::MessageType::kConnectionRequest, 0,
                                           wire::CloseCode::kNone, body);
}

void Translator::on_accept(AppNode& node, const wire::Message& message) {
  StreamIndex index = kNone;
  Stream* s = stream_for(node, message.accept.connection, index);
  if (s == nullptr) return;
  if (s->state != StreamState::kRequested || s->has(kRequestPending) ||
      !window_is_its_own(node, message.accept.send_window_bytes)) {
    return fail_stream(*s, index, wire::CloseCode::kProtocolError);
  }
  ++counters_.accepts;
  s->state = StreamState::kOpen;
}

void Translator::on_reject(AppNode& node, const wire::Message& message) {
  StreamIndex index = kNone;
  Stream* s = stream_for(node, message.reject.connection, index);
  if (s == nullptr) return;
  if (s->state != StreamState::kRequested || s->has(kRequestPending)) {
    return fail_stream(*s, index, wire::CloseCode::kProtocolError);
  }
  ++counters_.rejects;
  orphan(*s, index);
  reset_stream(*s, index);
}

SocketAddress Translator::source_for(AppNode& node, const SocketAddress& remote) {
  for (const service::ServiceId id : services_.services_of(node.index)) {
    const SocketAddress& address = services_.find(id)->address();
    if (address.ip.family == remote.ip.family && !address.ip.is_any()) {
      return {address.ip, 0};
    }
  }
  return {};
}

void Translator::on_active_request(AppNode& node, const wire::Message& message) {
  const wire::ConnectionRequestBody& body = message.request;
  const auto refuse = [&](wire::CloseCode code) { say_farewell(node, 0, body.request, code); };
  ++counters_.active_requests;
  const auto remote = wire::from_wire(body.client);
  if (!remote.ok() || remote->port == 0 || !window_is_its_own(node, body.send_window_bytes)) {
    return refuse(wire::CloseCode::kProtocolError);
  }
  if (!options_.outgoing || !allowed_anything(node)) {
    return refuse(wire::CloseCode::kNotPermitted);
  }
  if (body.service != 0) {
    service::Service* service = services_.find(body.service);
    if (service == nullptr || service->find(node.index) == nullptr) {
      return refuse(wire::CloseCode::kNotPermitted);
    }
  }
  if (!takes_more(&node)) return refuse(wire::CloseCode::kLimitReached);
  if (draining_) return refuse(wire::CloseCode::kProxyShutdown);
  // RFC 9293, MUST-46.
  if (!remote->ip.is_unicast()) return refuse(wire::CloseCode::kUnreachable);
  // The source is an address that the node serves anyway: its own, or the first of that family.
  SocketAddress source = source_for(node, *remote);
  if (body.local.family != 0) {
    const auto wanted = wire::from_wire(body.local);
    if (!wanted.ok() || wanted->ip.family != remote->ip.family) {
      return refuse(wire::CloseCode::kProtocolError);
    }
    // "Every address" is none that it serves: the stack would take another node's.
    bool serves = false;
    for (const service::ServiceId id : services_.services_of(node.index)) {
      serves = serves || services_.find(id)->address().ip == wanted->ip;
    }
    if (!serves || wanted->ip.is_any()) return refuse(wire::CloseCode::kNotPermitted);
    source = *wanted;
  }
  if (source.ip.family == Family::kNone) return refuse(wire::CloseCode::kUnreachable);
  const auto conn = stack_->connect(*remote, source);
  if (!conn.ok()) {
    return refuse(conn.status().code() == Code::kExhausted ? wire::CloseCode::kLimitReached
                  : conn.status().code() == Code::kExists  ? wire::CloseCode::kAddressInUse
                                                           : wire::CloseCode::kUnreachable);
  }
  Stream& s = open_stream(*conn);
  s.state = StreamState::kConnecting;
  s.request = body.request;
  attach_to_node(*conn, node);
}

void Translator::on_connected(stack::ConnIndex conn, const stack::ConnectionInfo&) {
  Stream& s = streams_[conn];
  if (s.state != StreamState::kConnecting) return;
  s.state = StreamState::kOpen;
  s.set(kAcceptPending);
  mark_dirty(s, conn);
}

Status Translator::send_accept(Stream& s, StreamIndex index, AppNode& node) {
  const stack::ConnectionInfo info = stack_->info(index);
  const std::uint32_t window_bytes = window_for(node);
  s.from_app = flow::ReceiveWindow(window_bytes);
  wire::AcceptConnectionBody body{};
  body.connection = s.id;
  body.request = s.request;
  body.send_window_bytes = window_bytes;
  body.local = wire::to_wire(info.local);
  body.initial_seq_local = info.initial_seq_local;
  body.initial_seq_remote = info.initial_seq_remote;
  body.mss_bytes = info.mss_bytes;
  body.window_scale_local = info.window_scale_local;
  body.window_scale_remote = info.window_scale_remote;
  body.tcp_options = tcp_options(info);
  return node.channel->send_stream_control(wire::MessageType::kAcceptConnection, 0,
                                           wire::CloseCode::kNone, body);
}

}  // namespace sanproxy::translate
