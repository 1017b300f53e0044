// HandshakeSocket: one connection of a channel that is being set up.
//
// Document: docs/tcp_fabric.md "Handshake".
// Role: establishes the transport, then reads and writes whole handshake messages. Owner: a
//   listener or a connection attempt. Thread: the fabric's.
// Invariants:
//   1. Never reads beyond the message: what follows belongs to the endpoint.
//   2. Holds at most kBodyBytesMax bytes of a peer that has proved nothing.
#pragma once

#include <array>
#include <memory>
#include <span>

#include "lwproto/fabric/tcp/handshake.h"
#include "lwproto/fabric/tcp/transport.h"

namespace sanproxy::fabric::tcp {

struct HandshakeMessage {
  MessageType type = MessageType::kHello;
  std::span<const std::byte> body;  // valid until the next receive()
};

class HandshakeSocket {
 public:
  HandshakeSocket() = default;
  explicit HandshakeSocket(std::unique_ptr<Transport> transport)
      : transport_(std::move(transport)) {}

  bool open() const { return transport_ != nullptr; }
  int fd() const { return transport_->fd(); }
  Transport& transport() { return *transport_; }
  std::unique_ptr<Transport> take() { return std::move(transport_); }
  void close() { transport_.reset(); }

  Status establish();  // ok when messages may be sent; kAgain meanwhile
  bool established() const { return established_; }
  Result<HandshakeMessage> receive();  // kAgain until a message is whole

 private:
  Status fill(std::span<std::byte> into);

  std::unique_ptr<Transport> transport_;
  bool established_ = false;
  bool begun_ = false;    // the preamble is there
  std::size_t have_ = 0;  // of what is being read
  Preamble preamble_;
  std::array<std::byte, kBodyBytesMax> body_ = {};
};

// Small messages on a new connection: one that does not fit the kernel's buffer is an error.
Status send_message(Transport& transport, MessageType type, std::span<const std::byte> body,
                    std::span<const std::byte> private_data);

}  // namespace sanproxy::fabric::tcp
