#include "tests/proxynode/translate/scripted_node.h"

#include <algorithm>
#include <cstring>

namespace sanproxy::translate::testing {

using wire::CloseCode;
using wire::MessageType;

Node::Node(const NodeOptions& options) : options_(options) {
  region_ = buffer::MemoryRegion::create("scripted-node", kSlots * kSlotBytes).value();
  slots_.resize(kSlots);
  for (std::size_t i = 0; i < kSlots; ++i) free_slots_.push_back(i);
  hello_ = channel::make_hello(1, endpoint_options(), options_.window_bytes, options_.streams_max,
                               options_.name);
  hello_.credits_reserved = options_.reserve;
  if (options_.hello) hello_ = *options_.hello;
}

fabric::EndpointOptions Node::endpoint_options() const {
  fabric::EndpointOptions out;
  out.receive_depth = options_.credits;
  return out;
}

void Node::start(std::unique_ptr<fabric::Endpoint> endpoint, const wire::HelloBody& proxys) {
  key_ = *endpoint->attach(region_);
  channel_ = std::make_unique<channel::Channel>(std::move(endpoint), hello(), proxys, *this);
}

// --- words

void Node::say(Word word) {
  words_.push_back(std::move(word));
  run_words();
}

void Node::run_words() {
  while (!words_.empty()) {
    if (words_.front()().is_again()) return;
    words_.pop_front();
  }
}

std::uint32_t Node::join(const std::string& address, std::uint8_t flags, std::uint32_t weight,
                         std::uint32_t connections_max) {
  const std::uint32_t request = next_request_++;
  wire::JoinServiceBody body{};
  body.address = wire::to_wire(*SocketAddress::parse(address));
  body.request = request;
  body.weight = weight;
  body.connections_max = connections_max;
  say([this, body, flags] {
    return channel_->send_control(MessageType::kJoinService, flags, CloseCode::kNone, body);
  });
  return request;
}

auth::Proof Node::proof(const auth::Key& key, auth::Prover who) const {
  return *auth::Mac::create()->prove(who, key, {hello_, channel_->peer_hello()});
}

std::uint32_t Node::authenticate(const auth::Key& key) {
  const std::uint32_t request = next_request_++;
  authenticate(auth::authenticate_body(request, key, proof(key)));
  return request;
}

void Node::authenticate(const wire::AuthenticateBody& body) {
  say([this, body] {
    return channel_->send_control(MessageType::kAuthenticate, 0, CloseCode::kNone, body);
  });
}

void Node::leave(std::uint32_t service, std::uint32_t request) {
  say([=, this] {
    return channel_->send_control(MessageType::kLeaveService, 0, CloseCode::kNone,
                                  wire::ServiceBody{service, request});
  });
}

void Node::shut_down(std::uint32_t service, std::uint32_t request) {
  say([=, this] {
    return channel_->send_control(MessageType::kShutdownService, 0, CloseCode::kNone,
                                  wire::ServiceBody{service, request});
  });
}

void Node::accept_connection(std::uint64_t id) { accept_connection(id, options_.window_bytes); }

void Node::accept_connection(std::uint64_t id, std::uint32_t window) {
  wire::AcceptConnectionBody body{};
  body.connection = id;
  body.send_window_bytes = window;
  say([this, body] {
    const Status status =
        channel_->send_control(MessageType::kAcceptConnection, 0, CloseCode::kNone, body);
    if (status.ok() && conns.count(body.connection) != 0) conns[body.connection].may_send = true;
    return status;
  });
}

void Node::reject_connection(std::uint64_t id, CloseCode reason) {
  say([=, this] {
    return channel_->send_control(MessageType::kRejectConnection, 0, reason,
                                  wire::RejectConnectionBody{id, 0, 0});
  });
}

std::uint32_t Node::connect(const std::string& remote, const std::string& local,
                            std::uint32_t service) {
  wire::ConnectionRequestBody body{};
  body.request = next_request_++;
  body.service = service;
  body.client = wire::to_wire(*SocketAddress::parse(remote));
  if (!local.empty()) body.local = wire::to_wire(*SocketAddress::parse(local));
  body.send_window_bytes = options_.window_bytes;
  connect(body);
  return body.request;
}

void Node::connect(const wire::ConnectionRequestBody& body) {
  say([this, body] {
    return channel_->send_stream_control(MessageType::kConnectionRequest, wire::kFlagActive,
                                         CloseCode::kNone, body);
  });
}

void Node::send(std::uint64_t id, const Bytes& bytes) {
  Conn& conn = conns.at(id);
  conn.outbox.insert(conn.outbox.end(), bytes.begin(), bytes.end());
}

void Node::close(std::uint64_t id, CloseCode how) {
  if (how == CloseCode::kFin || how == CloseCode::kFinBoth) {
    conns.at(id).finish = how;
  } else {
    raw_close(id, how, 0);
  }
}

void Node::free_all(std::uint64_t id) {
  Conn& conn = conns.at(id);
  if (conn.received.size() == conn.announced) return;
  conn.announced = conn.received.size();
  raw_credit(id, conn.announced);
}

void Node::raw_data(std::uint64_t id, std::uint64_t offset, const Bytes& bytes) {
  say([=, this] { return send_piece(id, offset, stack::testing::as_span(bytes)); });
}

void Node::raw_close(std::uint64_t id, CloseCode how, std::uint64_t offset) {
  say([=, this] {
    return channel_->send_control(MessageType::kCloseConnection, 0, how,
                                  wire::CloseConnectionBody{id, offset});
  });
}

void Node::raw_credit(std::uint64_t id, std::uint64_t freed, std::uint64_t acked) {
  say([=, this] { return channel_->send_credit({id, freed, acked}); });
}

void Node::raw_heartbeat(std::uint32_t number) {
  say([=, this] {
    return channel_->send_control(MessageType::kHeartbeat, wire::kFlagAnswer, CloseCode::kNone,
                                  wire::HeartbeatBody{number, 0});
  });
}

Status Node::send_piece(std::uint64_t id, std::uint64_t offset, std::span<const std::byte> bytes) {
  if (bytes.size() <= wire::kInlinePayloadBytesMax) {
    return channel_->send_data_inline(id, offset, bytes);
  }
  if (free_slots_.empty()) return Status::again();
  const std::size_t slot = free_slots_.back();
  std::memcpy(region_.data() + slot * kSlotBytes, bytes.data(), bytes.size());
  const fabric::GatherRef ref{key_, static_cast<std::uint32_t>(bytes.size()), slot * kSlotBytes};
  const Status status = channel_->send_data_reference(id, offset, {&ref, 1}, slot);
  if (status.ok()) {
    free_slots_.pop_back();
    slots_[slot] = true;
  }
  return status;
}

void Node::drive(std::uint64_t id, Conn& conn) {
  if (!conn.may_send || conn.ended()) return;
  while (conn.sent < conn.outbox.size()) {
    const std::uint64_t room = conn.freed + conn.window - conn.sent;
    const std::size_t bytes = static_cast<std::size_t>(
        std::min<std::uint64_t>({room, conn.outbox.size() - conn.sent, piece_bytes}));
    if (bytes == 0) return;
    const auto all = stack::testing::as_span(conn.outbox);
    if (!send_piece(id, conn.sent, all.subspan(conn.sent, bytes)).ok()) return;
    conn.sent += bytes;
  }
  if (!conn.finish) return;
  const wire::CloseConnectionBody body{id, conn.sent};
  if (channel_->send_control(MessageType::kCloseConnection, 0, *conn.finish, body).ok()) {
    conn.finish.reset();
  }
}

bool Node::round() {
  if (stopped || channel_ == nullptr) return false;
  const std::uint64_t before = channel_->counters().transfers_out;
  const std::size_t handled = channel_->poll();
  if (closed == 0) {
    run_words();
    for (auto& [id, conn] : conns) drive(id, conn);
  }
  channel_->flush();
  return handled != 0 || channel_->counters().transfers_out != before;
}

void Node::release_held() {
  for (const fabric::Loan loan : held_) channel_->release(loan);
  held_.clear();
}

void Node::die() {
  if (channel_ == nullptr) return;
  release_held();
  channel_.reset();
  words_.clear();
}

// --- what it is told

void Node::on_data(channel::Channel& channel, std::uint64_t connection, std::uint64_t offset,
                   const channel::Payload& payload) {
  story.push_back("DATA");
  const auto it = conns.find(connection);
  if (it == conns.end() || it->second.ended()) {
    ADD_FAILURE() << "DATA on a connection that is not alive";
    return;
  }
  Conn& conn = it->second;
  EXPECT_EQ(offset, conn.received.size()) << "DATA with a gap or an overlap (rule P4)";
  EXPECT_LE(offset + payload.length, conn.announced + options_.window_bytes)
      << "DATA beyond the window (rule P4)";
  EXPECT_TRUE(conn.closes.empty()) << "DATA behind kFin (rule P4)";
  for (const fabric::Segment& piece : payload.pieces) {
    const auto* at = reinterpret_cast<const std::uint8_t*>(piece.data);
    conn.received.insert(conn.received.end(), at, at + piece.length);
  }
  if (hold && payload.loan != fabric::kNoLoan) {
    channel.retain(payload.loan);
    held_.push_back(payload.loan);
  }
  if (free) free_all(connection);
}

void Node::on_message(channel::Channel&, const wire::Message& message) {
  const Status direction = wire::check_direction(message, wire::Receiver::kApplication);
  EXPECT_TRUE(direction.ok()) << direction.to_string();
  story.push_back(wire::message_type_name(message.type));
  switch (message.type) {
    case MessageType::kConnectionRequest: {
      const std::uint64_t id = message.request.connection;
      EXPECT_EQ(conns.count(id), 0u) << "an id was given twice (rule P2)";
      conns[id].request = message.request;
      conns[id].window = message.request.send_window_bytes;
      order.push_back(id);
      if (accept) accept_connection(id);
      return;
    }
    case MessageType::kAcceptConnection: {
      const std::uint64_t id = message.accept.connection;
      conns[id].accept = message.accept;
      conns[id].window = message.accept.send_window_bytes;
      conns[id].may_send = true;
      order.push_back(id);
      return;
    }
    case MessageType::kCloseConnection: {
      ASSERT_EQ(conns.count(message.close.connection), 1u) << "CLOSE of an unknown connection";
      Conn& conn = conns[message.close.connection];
      EXPECT_FALSE(conn.ended()) << "CLOSE behind a terminal close";
      if (message.code == CloseCode::kFin) {
        EXPECT_TRUE(conn.closes.empty()) << "kFin twice (rule P5)";
        EXPECT_EQ(message.close.offset, conn.received.size()) << "(rule P5)";
      }
      conn.closes.push_back(message.code);
      conn.close_offset = message.close.offset;
      return;
    }
    case MessageType::kCredit: {
      Conn& conn = conns.at(message.credit.connection);
      EXPECT_GE(message.credit.freed_offset, conn.freed) << "(rule P6)";
      EXPECT_LE(message.credit.freed_offset, conn.sent) << "(rule P6)";
      conn.freed = message.credit.freed_offset;
      conn.acked = message.credit.acked_offset;
      return;
    }
    case MessageType::kHeartbeat:
      heartbeats.push_back(message.heartbeat);
      if (answers_heartbeats) raw_heartbeat(message.heartbeat.number);
      return;
    default:
      answers.push_back(message);
      answers.back().payload = {};
  }
}

void Node::on_sent(channel::Channel&, std::uint64_t cookie, bool) {
  EXPECT_TRUE(slots_[cookie]);
  slots_[cookie] = false;
  free_slots_.push_back(cookie);
}

void Node::on_writable(channel::Channel&) {}  // round() tries everything again anyway

void Node::on_closed(channel::Channel&, CloseCode why, const Status&) {
  ++closed;
  code = why;
  words_.clear();
}

}  // namespace sanproxy::translate::testing
