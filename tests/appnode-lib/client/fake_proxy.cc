#include "tests/appnode-lib/client/fake_proxy.h"

#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "lwproto/wire/codec.h"

namespace sanproxy::app::test {
namespace {

constexpr std::size_t kRegionBytes = std::size_t{4} << 20;

std::string make_directory() {
  std::string name = "/tmp/appnode-test-XXXXXX";
  EXPECT_NE(mkdtemp(name.data()), nullptr);
  return name;
}

wire::WireAddress address_of(const char* text) {
  return wire::to_wire(*SocketAddress::parse(text));
}

}  // namespace

FakeProxy::FakeProxy(std::string address) : address_(std::move(address)) {
  auto region = buffer::MemoryRegion::create("fake-proxy", kRegionBytes);
  EXPECT_TRUE(region.ok());
  region_ = std::move(*region);
  for (std::size_t i = 0; i < region_.size(); ++i) {
    region_.data()[i] = static_cast<std::byte>('a' + i % 26);
  }
}

FakeProxy::~FakeProxy() { stop(); }

void FakeProxy::start() {
  ++epoch_;
  auto fabric =
      address_.starts_with("tcp:") ? fabric::make_tcp_fabric() : fabric::make_shm_fabric();
  ASSERT_TRUE(fabric.ok()) << fabric.status().to_string();
  fabric_ = std::move(*fabric);
  auto listener = fabric_->listen(address_, options.endpoint);
  ASSERT_TRUE(listener.ok()) << listener.status().to_string();
  listener_ = std::move(*listener);
  address_ = listener_->address();
}

void FakeProxy::stop() {
  if (channel_ != nullptr) release_loans();
  channel_.reset();
  listener_.reset();
  fabric_.reset();
  streams_.clear();
}

std::size_t FakeProxy::pump() {
  if (fabric_ == nullptr) return 0;
  std::size_t handled = 0;
  if (auto request = listener_->poll();
      request.ok() && options.refuse_channels != wire::CloseCode::kNone) {
    const wire::MessageHeader no{static_cast<std::uint8_t>(wire::MessageType::kError), 0,
                                 static_cast<std::uint16_t>(options.refuse_channels),
                                 sizeof(wire::MessageHeader)};
    listener_->reject(*request, std::as_bytes(std::span(&no, 1)));
  } else if (request.ok()) {
    const auto peer = wire::decode_hello(request->private_data);
    EXPECT_TRUE(peer.ok()) << peer.status().to_string();
    if (options.hello_code != wire::CloseCode::kNone) {
      const wire::MessageHeader reason{static_cast<std::uint8_t>(wire::MessageType::kError), 0,
                                       static_cast<std::uint16_t>(options.hello_code),
                                       sizeof(wire::MessageHeader)};
      listener_->reject(*request, std::as_bytes(std::span(&reason, 1)));
      return 1;
    }
    const wire::HelloBody ours =
        channel::make_hello(epoch_, options.endpoint, 1u << 20, 1000, "fake");
    std::array<std::byte, sizeof(wire::HelloBody)> bytes;
    wire::encode_hello(ours, bytes);
    auto endpoint = listener_->accept(*request, bytes);
    if (!endpoint.ok()) return handled;  // a node whose clock has leapt gives up, and comes again
    region_key_ = *(*endpoint)->attach(region_);
    channel_ = std::make_unique<channel::Channel>(std::move(*endpoint), ours, *peer, *this);
    ++handled;
  }
  if (channel_ != nullptr) {
    handled += channel_->poll();
    if (!channel_->closed()) channel_->flush();
  }
  return handled;
}

std::uint64_t FakeProxy::request(std::uint32_t service, std::uint32_t window_bytes) {
  const std::uint64_t id = wire::make_connection_id(epoch_, 1, next_index_++);
  wire::ConnectionRequestBody body{};
  body.connection = id;
  body.service = service;
  body.client = address_of("192.0.2.7:4711");
  body.local = address_of("10.77.0.10:80");
  body.mss_bytes = 1460;
  body.send_window_bytes = window_bytes;
  EXPECT_TRUE(channel_
                  ->send_stream_control(wire::MessageType::kConnectionRequest, 0,
                                        wire::CloseCode::kNone, body)
                  .ok());
  streams_[id];
  return id;
}

void FakeProxy::send(std::uint64_t id, std::string_view text) {
  Stream& s = streams_[id];
  EXPECT_TRUE(channel_->send_data_inline(id, s.sent, as_bytes(text)).ok());
  s.sent += text.size();
}

void FakeProxy::send_large(std::uint64_t id, std::size_t bytes) {
  Stream& s = streams_[id];
  const std::array refs{
      fabric::GatherRef{region_key_, static_cast<std::uint32_t>(bytes), s.sent % 26}};
  EXPECT_TRUE(channel_->send_data_reference(id, s.sent, refs, 1).ok());
  s.sent += bytes;
}

void FakeProxy::send_close(std::uint64_t id, wire::CloseCode code) {
  const wire::CloseConnectionBody body{id, streams_[id].sent};
  EXPECT_TRUE(channel_->send_control(wire::MessageType::kCloseConnection, 0, code, body).ok());
}

void FakeProxy::send_credit(std::uint64_t id, std::uint64_t freed, std::uint64_t acked) {
  EXPECT_TRUE(channel_->send_credit({id, freed, acked}).ok());
}

void FakeProxy::release_loans() {
  for (const fabric::Loan loan : loans_) channel_->release(loan);
  loans_.clear();
}

void FakeProxy::on_data(channel::Channel& channel, std::uint64_t id, std::uint64_t offset,
                        const channel::Payload& payload) {
  Stream& s = streams_[id];
  EXPECT_EQ(offset, s.received);
  EXPECT_TRUE(s.accepted);
  for (const fabric::Segment& piece : payload.pieces) {
    s.data.append(reinterpret_cast<const char*>(piece.data), piece.length);
  }
  s.received += payload.length;
  if (options.hold_loans && payload.loan != fabric::kNoLoan) {
    channel.retain(payload.loan);
    loans_.push_back(payload.loan);
  }
  if (options.free_at_once) send_credit(id, s.received, s.received);
}

void FakeProxy::on_message(channel::Channel&, const wire::Message& message) {
  using wire::MessageType;
  switch (message.type) {
    case MessageType::kCredit:
      streams_[message.credit.connection].freed = message.credit.freed_offset;
      return;
    case MessageType::kAcceptConnection:
      streams_[message.accept.connection].accepted = true;
      streams_[message.accept.connection].window_bytes = message.accept.send_window_bytes;
      break;
    case MessageType::kRejectConnection:
      streams_[message.reject.connection].rejected = true;
      streams_[message.reject.connection].reject_code = message.code;
      break;
    case MessageType::kCloseConnection:
      on_close(message);
      break;
    case MessageType::kJoinService:
      on_join(message);
      break;
    case MessageType::kAuthenticate:
      on_authenticate(message);
      break;
    case MessageType::kLeaveService:
    case MessageType::kShutdownService:
      if (options.answer_joins) {
        EXPECT_TRUE(channel_
                        ->send_control(message.type, wire::kFlagAnswer, wire::CloseCode::kNone,
                                       message.service)
                        .ok());
      }
      break;
    default:
      break;
  }
  messages.push_back(message);
  messages.back().payload = {};
}

void FakeProxy::on_join(const wire::Message& message) {
  ++joins;
  if (options.answer_joins) answer_join(message);
}

void FakeProxy::answer_join(const wire::Message& message) {
  wire::JoinServiceBody body = message.join;
  if (options.join_code == wire::CloseCode::kNone) {
    body.service = last_service = 100 + message.join.request;
  }
  EXPECT_TRUE(channel_
                  ->send_control(wire::MessageType::kJoinService, wire::kFlagAnswer,
                                 options.join_code, body)
                  .ok());
}

void FakeProxy::on_authenticate(const wire::Message& message) {
  if (!options.answer_keys) return;
  const auth::Hellos hellos{channel_->peer_hello(), channel_->our_hello()};
  const auth::Mac mac = std::move(auth::Mac::create()).value();
  const std::string name(wire::key_name_of(message.authenticate));
  wire::AuthenticateBody answer = message.authenticate;
  std::memset(answer.proof, 0, sizeof(answer.proof));
  wire::CloseCode code = wire::CloseCode::kNotPermitted;
  const bool limited = options.key_limit > 0 && options.key_limit-- > 0;
  if (limited) code = wire::CloseCode::kLimitReached;
  for (const auth::Key& key : options.keys) {
    if (limited) break;
    const auth::Proof expected = *mac.prove(auth::Prover::kApplication, key, hellos);
    if (key.name() != name || expected != auth::proof_of(message.authenticate)) continue;
    proven.push_back(name);
    code = wire::CloseCode::kNone;
    answer =
        auth::authenticate_body(answer.request, key, *mac.prove(auth::Prover::kProxy, key, hellos));
  }
  if (options.impostor_key != nullptr) {
    code = wire::CloseCode::kNone;
    answer =
        auth::authenticate_body(answer.request, *options.impostor_key,
                                *mac.prove(auth::Prover::kProxy, *options.impostor_key, hellos));
  }
  EXPECT_TRUE(
      channel_->send_control(wire::MessageType::kAuthenticate, wire::kFlagAnswer, code, answer)
          .ok());
}

void FakeProxy::on_close(const wire::Message& message) {
  Stream& s = streams_[message.close.connection];
  s.closes.emplace_back(message.code, message.close.offset);
}

// --- Harness

Harness::Harness()
    : directory_(make_directory()),
      address_("shm:" + directory_ + "/proxy.sock"),
      proxy_(address_) {}

Harness::~Harness() {
  impl_.reset();
  proxy_.stop();
  std::filesystem::remove_all(directory_);
}

void Harness::make_node(NodeOptions options) {
  if (options.proxies.empty()) options.proxies = {address_};
  internal::Assembly assembly = internal::default_assembly();
  assembly.clock = &clock_;
  auto node = internal::NodeImpl::create(std::move(options), std::move(assembly));
  ASSERT_TRUE(node.ok()) << node.status().to_string();
  impl_ = std::move(*node);
  node_ = impl_.get();
}

void Harness::pump() {
  node_->poll();
  proxy_.pump();
}

bool Harness::pump_until(const std::function<bool()>& condition) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > give_up) return false;
    pump();
  }
  return true;
}

void Harness::pump_some(int rounds) {
  for (int i = 0; i < rounds; ++i) pump();
}

void Harness::serve(ConnectionHandler& handler, NodeOptions options) {
  proxy_.start();
  make_node(std::move(options));
  auto joined = node_->join("10.77.0.10:80", [&](Request& request) { request.accept(handler); });
  ASSERT_TRUE(joined.ok());
  service_ = *joined;
  ASSERT_TRUE(pump_until([&] { return service_.joined_count() == 1; }));
}

std::uint64_t Harness::open(std::uint32_t window_bytes) {
  const std::uint64_t id = proxy_.request(proxy_.last_service, window_bytes);
  EXPECT_TRUE(pump_until([&] { return proxy_.stream(id).accepted; }));
  return id;
}

std::uint64_t Harness::opened(Recorder& handler, std::uint32_t window_bytes) {
  const auto id = open(window_bytes);
  proxy_.send(id, "x");
  EXPECT_TRUE(pump_until([&] { return handler.connection != nullptr; }));
  return id;
}

}  // namespace sanproxy::app::test
