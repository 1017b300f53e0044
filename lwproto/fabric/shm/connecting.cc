#include "lwproto/fabric/shm/connecting.h"

#include <sys/epoll.h>

#include <array>
#include <cstring>

#include "lwproto/fabric/shm/endpoint.h"

namespace sanproxy::fabric::shm {

Result<std::unique_ptr<Connecting>> ShmConnecting::create(std::shared_ptr<Core> core,
                                                          std::string path,
                                                          std::span<const std::byte> private_data,
                                                          const EndpointOptions& options) {
  if (private_data.size() > kPrivateBytesMax) {
    return Status::error(Code::kInvalidArgument, "too much private data");
  }
  auto own = OwnMemory::create(make_sizes(options, core->options().ring_bytes));
  if (!own.ok()) return own.status();
  auto socket = make_socket();
  if (!socket.ok()) return socket.status();
  ShmEndpoint::prepare(*own, options);
  std::unique_ptr<ShmConnecting> connecting(
      new ShmConnecting(std::move(core), std::move(path), private_data, options));
  connecting->own_ = std::move(*own);
  connecting->socket_ = std::move(*socket);
  connecting->dial();
  return std::unique_ptr<Connecting>(std::move(connecting));
}

ShmConnecting::ShmConnecting(std::shared_ptr<Core> core, std::string path,
                             std::span<const std::byte> private_data,
                             const EndpointOptions& options)
    : core_(std::move(core)),
      path_(std::move(path)),
      hello_data_(private_data.begin(), private_data.end()),
      options_(options),
      deadline_ns_(core_->now_ns() + core_->options().handshake_timeout_ms * 1'000'000ull) {
  core_->add(static_cast<Handshaker*>(this));
  core_->start_ticking();
}

ShmConnecting::~ShmConnecting() {
  if (watched_) core_->unwatch(socket_.get());
  core_->remove(static_cast<Handshaker*>(this));
}

void ShmConnecting::fail(Status status) {
  if (watched_) core_->unwatch(socket_.get());
  watched_ = false;
  socket_.reset();
  failure_ = status;
  state_ = State::kFailed;
}

void ShmConnecting::dial() {
  const Status dialled = connect_to(socket_.get(), path_);
  if (dialled.is_again()) return;  // the server's queue is full: the next tick tries again
  if (!dialled.ok()) return fail(dialled);
  if (Status said = say_hello(); !said.ok()) return fail(said);
  Status watched = core_->watch(socket_.get(), EPOLLIN | EPOLLRDHUP, this);
  if (!watched.ok()) return fail(watched);
  watched_ = true;
  state_ = State::kWaiting;
}

Status ShmConnecting::say_hello() {
  HelloMessage hello;
  hello.private_bytes = static_cast<std::uint32_t>(hello_data_.size());
  hello.sizes = own_.sizes();
  const std::array<int, kHelloFds> fds = {own_.fd(), core_->sleep_fd()};
  const Status sent =
      send_message(socket_.get(), std::as_bytes(std::span(&hello, 1)), hello_data_, fds);
  // The queue of a new socket is empty, so there is nothing to wait for.
  if (sent.is_again()) return Status::error(Code::kSystem, "no memory for the handshake");
  return sent;
}

void ShmConnecting::on_tick() {
  if (!waiting()) return;
  if (core_->now_ns() >= deadline_ns_) {
    return fail(Status::error(Code::kTimeout, "the server did not answer in time"));
  }
  if (state_ == State::kDialling) dial();
}

void ShmConnecting::on_events(std::uint32_t /*events*/) {
  if (state_ != State::kWaiting) return;
  std::array<std::byte, kMessageBytesMax> bytes;
  ReceivedMessage message = receive_message(socket_.get(), bytes);
  switch (message.kind) {
    case ReceivedMessage::Kind::kNothing:
      return;
    case ReceivedMessage::Kind::kEnd:
      return fail(Status::error(Code::kDisconnected, "the server closed without an answer"));
    case ReceivedMessage::Kind::kMalformed:
      return fail(Status::error(Code::kProtocol, "a malformed answer"));
    case ReceivedMessage::Kind::kNoDescriptors:
      return fail(Status::error(Code::kExhausted, "no descriptors left for the server's memory"));
    case ReceivedMessage::Kind::kMessage:
      break;
  }
  if (Status taken = take_answer(message, std::span(bytes).first(message.bytes)); !taken.ok()) {
    return fail(taken);
  }
  core_->unwatch(socket_.get());  // the endpoint watches it
  watched_ = false;
  state_ = State::kReady;
}

Status ShmConnecting::take_answer(ReceivedMessage& message, std::span<const std::byte> bytes) {
  AnswerMessage answer;
  if (bytes.size() < sizeof(answer)) return Status::error(Code::kProtocol, "a short answer");
  std::memcpy(&answer, bytes.data(), sizeof(answer));
  const std::span<const std::byte> private_data = bytes.subspan(sizeof(answer));
  if (answer.magic != kMagic || answer.private_bytes != private_data.size()) {
    return Status::error(Code::kProtocol, "a malformed answer");
  }
  answer_data_.assign(private_data.begin(), private_data.end());
  switch (answer.verdict) {
    case Verdict::kAccepted:
      break;
    case Verdict::kRejected:
      return Status::error(Code::kRefused, "rejected by the server");
    case Verdict::kBadVersion:
      return Status::error(Code::kUnsupported, "the server speaks another version");
    default:
      return Status::error(Code::kProtocol, "the server took offence at our hello");
  }
  if (answer.version != kVersion || message.fd_count != kAnswerFds) {
    return Status::error(Code::kProtocol, "a malformed answer");
  }
  auto peer = PeerMemory::map(answer.sizes, message.fds[0].get(), message.fds[1].get());
  if (!peer.ok()) return peer.status();
  peer_ = std::move(*peer);
  if (answer.sizes.inline_bytes_max < own_.sizes().inline_bytes_max ||
      answer.sizes.transfer_bytes_max < own_.sizes().transfer_bytes_max) {
    return Status::error(Code::kProtocol, "the server takes smaller transfers than we send");
  }
  doorbell_ = std::move(message.fds[2]);
  return {};
}

Result<std::unique_ptr<Endpoint>> ShmConnecting::poll() {
  if (waiting()) core_->pump();
  if (waiting()) on_tick();
  if (state_ == State::kFailed) return failure_;
  if (state_ == State::kTaken) {
    return Status::error(Code::kInvalidArgument, "the endpoint was already handed out");
  }
  if (state_ != State::kReady) return Status::again();
  state_ = State::kTaken;
  EndpointParts parts;
  parts.core = core_;
  parts.identity = identify_peer(socket_.get());
  parts.socket = std::move(socket_);
  parts.doorbell = std::move(doorbell_);
  parts.own = std::move(own_);
  parts.peer = std::move(peer_);
  parts.options = options_;
  return ShmEndpoint::create(std::move(parts));
}

}  // namespace sanproxy::fabric::shm
