#include "lwproto/fabric/tcp/handshake_socket.h"

#include <cstring>

namespace sanproxy::fabric::tcp {

Status HandshakeSocket::establish() {
  if (established_) return {};
  const Status status = transport_->establish();
  established_ = status.ok();
  return status;
}

Status HandshakeSocket::fill(std::span<std::byte> into) {
  while (have_ < into.size()) {
    iovec piece{into.data() + have_, into.size() - have_};
    const Io io = transport_->read({&piece, 1});
    have_ += io.bytes;
    if (io.state == IoState::kAgain && have_ < into.size()) return Status::again();
    if (io.state == IoState::kFailed && !transport_->failure().ok()) return transport_->failure();
    if (io.state == IoState::kEnd || io.state == IoState::kFailed) {
      return Status::error(Code::kDisconnected, "the peer closed during the handshake");
    }
  }
  return {};
}

Result<HandshakeMessage> HandshakeSocket::receive() {
  if (Status status = establish(); !status.ok()) return status;
  if (!begun_) {
    auto bytes = std::as_writable_bytes(std::span(&preamble_, 1));
    if (Status status = fill(bytes); !status.ok()) return status;
    if (preamble_.magic != kMagic) return Status::error(Code::kProtocol, "not a sanproxy peer");
    if (preamble_.version != kVersion) {
      return Status::error(Code::kUnsupported, "the peer speaks another version");
    }
    if (preamble_.body_bytes > kBodyBytesMax) {
      return Status::error(Code::kProtocol, "a handshake message too long");
    }
    begun_ = true;
    have_ = 0;
  }
  if (Status status = fill(std::span(body_).first(preamble_.body_bytes)); !status.ok()) {
    return status;
  }
  begun_ = false;
  have_ = 0;
  HandshakeMessage message;
  message.type = preamble_.type;
  message.body = std::span<const std::byte>(body_).first(preamble_.body_bytes);
  return message;
}

Status send_message(Transport& transport, MessageType type, std::span<const std::byte> body,
                    std::span<const std::byte> private_data) {
  std::array<std::byte, sizeof(Preamble) + kBodyBytesMax> out;
  Preamble preamble;
  preamble.type = type;
  preamble.body_bytes = static_cast<std::uint32_t>(body.size() + private_data.size());
  const std::size_t total = sizeof(preamble) + preamble.body_bytes;
  if (total > out.size()) return Status::error(Code::kInvalidArgument, "too much private data");
  std::memcpy(out.data(), &preamble, sizeof(preamble));
  std::memcpy(out.data() + sizeof(preamble), body.data(), body.size());
  if (!private_data.empty()) {
    std::memcpy(out.data() + sizeof(preamble) + body.size(), private_data.data(),
                private_data.size());
  }
  iovec piece{out.data(), total};
  const Io io = transport.write({&piece, 1});
  if (io.bytes != total) {
    return Status::error(Code::kDisconnected, "the peer takes no handshake message");
  }
  return {};
}

}  // namespace sanproxy::fabric::tcp
