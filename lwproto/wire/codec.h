// Encoding and checked decoding of transfers (docs/wire_format.md).
//
// Role: the only code that touches wire bytes. Pure: no I/O, no allocation, no global state.
// Thread: a Writer or Reader belongs to one call chain.
// Invariants:
//   1. Reader copies a header out of the transfer before it looks at it, and never reads a field
//      twice from memory that the peer may still be writing (shared memory).
//   2. Reader never yields a message that breaks a rule of the page; it stops for good at the
//      first such message with Code::kProtocol and a text that names the rule.
//   3. Writer never writes past the span that it was given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/wire/format.h"

namespace sanproxy::wire {

WireAddress to_wire(const SocketAddress& address);
// Refuses an unknown family, a dirty IPv4 tail or reserved bytes.
Result<SocketAddress> from_wire(const WireAddress& address);

// Packs messages into `space` (at most kTransferInlineBytesMax is used). Every append either
// writes the whole message or returns false and changes nothing.
class TransferWriter {
 public:
  TransferWriter() = default;
  explicit TransferWriter(std::span<std::byte> space);

  bool append(MessageType type, std::uint8_t flags, CloseCode code, const void* body,
              std::size_t body_bytes, std::span<const std::byte> tail = {});
  template <typename Body>
  bool append(MessageType type, std::uint8_t flags, CloseCode code, const Body& body) {
    return append(type, flags, code, &body, sizeof(body));
  }
  // DATA with its payload copied behind it (payload at most kInlinePayloadBytesMax).
  bool append_data(std::uint64_t connection, std::uint64_t offset,
                   std::span<const std::byte> payload);
  // The header of a DATA whose payload follows by reference; nothing may be appended after it.
  bool append_data_header(std::uint64_t connection, std::uint64_t offset,
                          std::uint32_t payload_bytes);

  bool empty() const { return message_count_ == 0; }
  bool sealed() const { return referenced_bytes_ != 0; }  // ends in a referenced DATA
  std::size_t bytes() const { return used_; }             // inline bytes so far
  std::size_t room() const { return space_.size() - used_; }
  // Writes the TransferHeader; returns the inline byte count. The writer is then spent.
  std::size_t finish(std::uint32_t sequence, std::uint32_t credits_granted);

 private:
  std::span<std::byte> space_;
  std::size_t used_ = 0;
  std::uint32_t referenced_bytes_ = 0;
  std::uint16_t message_count_ = 0;
};

// One decoded message: a copy of header and body; only `payload` still points into the transfer.
struct Message {
  MessageType type;
  std::uint8_t flags = 0;
  CloseCode code = CloseCode::kNone;
  union {
    HelloBody hello;
    JoinServiceBody join;
    ServiceBody service;  // LEAVE, SHUTDOWN
    ConnectionRequestBody request;
    AcceptConnectionBody accept;
    RejectConnectionBody reject;
    DataBody data;
    CloseConnectionBody close;
    CreditBody credit;
    ErrorBody error;
  };
  // kData: payload bytes. kError: text. If `referenced` the payload is not here but in the
  // segments behind the first one, and makes up all of them.
  std::span<const std::byte> payload;
  std::uint32_t payload_bytes = 0;
  bool referenced = false;
  Message() : hello{} {}
};

// Reads one received transfer. `head` is its first segment (all of it on a fabric that delivers
// contiguously); `rest_bytes` counts the bytes in the segments behind it.
class TransferReader {
 public:
  TransferReader(std::span<const std::byte> head, std::size_t rest_bytes);

  // Checks and returns the header. Call first.
  Result<TransferHeader> begin();
  // The next message; Code::kNotFound at the orderly end; Code::kProtocol for a broken rule.
  // Checked here: type and flags known, length against the type, lengths against the transfer,
  // reserved fields zero, addresses well-formed, padding inside the transfer, no message behind
  // a referenced DATA, message_count exact, HELLO never inside a transfer, payload not empty and
  // not above its limit, a referenced payload above kInlinePayloadBytesMax or in the first
  // segment.
  Status next(Message& out);

 private:
  std::span<const std::byte> head_;
  std::size_t rest_bytes_;
  std::size_t position_ = 0;
  std::uint16_t remaining_ = 0;
  bool spent_ = false;
};

// HELLO as private data: fixed size, both ways.
void encode_hello(const HelloBody& hello, std::span<std::byte, sizeof(HelloBody)> out);
Result<HelloBody> decode_hello(std::span<const std::byte> in);

const char* message_type_name(MessageType type);
const char* close_code_name(CloseCode code);

}  // namespace sanproxy::wire
