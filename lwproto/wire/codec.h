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

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/wire/format.h"

namespace sanproxy::wire {

WireAddress to_wire(const SocketAddress& address);
// Refuses an unknown family, a dirty IPv4 tail or reserved bytes.
Result<SocketAddress> from_wire(const WireAddress& address);

constexpr std::size_t padded(std::size_t bytes) {
  return (bytes + kAlignment - 1) & ~(kAlignment - 1);
}

namespace detail {

// The one way in which the reader looks at headers. The fence keeps the compiler from loading a
// field a second time from memory that the peer may have changed since.
inline void copy_out(void* to, const std::byte* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
  std::atomic_signal_fence(std::memory_order_acq_rel);
}

// A payload into a transfer. Small ones, in sixteens of which the last two may overlap: a call
// costs as much as they do.
inline void copy_in(std::byte* to, std::span<const std::byte> from) {
  constexpr std::size_t kBlock = 16, kSmall = 128;
  const std::size_t bytes = from.size();
  if (bytes < kBlock || bytes > kSmall) {
    std::memcpy(to, from.data(), bytes);
    return;
  }
  for (std::size_t at = 0; at < bytes - kBlock; at += kBlock) {
    __builtin_memcpy(to + at, from.data() + at, kBlock);
  }
  __builtin_memcpy(to + bytes - kBlock, from.data() + bytes - kBlock, kBlock);
}

}  // namespace detail

// Packs messages into `space` (at most kTransferInlineBytesMax is used). Every append either
// writes the whole message or returns false and changes nothing: false means no room, a payload
// outside the limits below, or that the transfer is sealed.
class TransferWriter {
 public:
  TransferWriter() = default;
  explicit TransferWriter(std::span<std::byte> space);

  bool append(MessageType type, std::uint8_t flags, CloseCode code, const void* body,
              std::size_t body_bytes, std::span<const std::byte> tail = {}) {
    std::byte* at = begin_message(type, flags, code, body_bytes + tail.size());
    if (at == nullptr) return false;
    std::memcpy(at, body, body_bytes);
    if (!tail.empty()) detail::copy_in(at + body_bytes, tail);
    return true;
  }
  template <typename Body>
  bool append(MessageType type, std::uint8_t flags, CloseCode code, const Body& body) {
    return append(type, flags, code, &body, sizeof(body));
  }
  // DATA with its payload copied behind it (payload 1..kInlinePayloadBytesMax).
  bool append_data(std::uint64_t connection, std::uint64_t offset,
                   std::span<const std::byte> payload) {
    if (payload.empty() || payload.size() > kInlinePayloadBytesMax) return false;
    const DataBody body{connection, offset};
    return append(MessageType::kData, 0, CloseCode::kNone, &body, sizeof(body), payload);
  }
  // The header of a DATA whose payload (kInlinePayloadBytesMax + 1..kDataPayloadBytesMax) follows
  // by reference; nothing may be appended after it.
  bool append_data_header(std::uint64_t connection, std::uint64_t offset,
                          std::uint32_t payload_bytes);
  // Likewise for PACKET: the packet (kPacketBytesMin..kInlinePayloadBytesMax) copied behind it, or
  // the header of one of kInlinePayloadBytesMax + 1..kPacketBytesMax bytes that follows by
  // reference.
  bool append_packet(std::uint8_t flags, const PacketBody& body,
                     std::span<const std::byte> packet) {
    if (packet.size() < kPacketBytesMin || packet.size() > kInlinePayloadBytesMax) return false;
    return append(MessageType::kPacket, flags, CloseCode::kNone, &body, sizeof(body), packet);
  }
  bool append_packet_header(std::uint8_t flags, const PacketBody& body, std::uint32_t bytes);

  bool empty() const { return message_count_ == 0; }
  bool sealed() const { return referenced_bytes_ != 0; }  // ends in a reference
  std::size_t bytes() const { return used_; }             // inline bytes so far, with the header
  std::size_t room() const { return space_.size() - used_; }
  // Writes the TransferHeader; returns the inline byte count (0 if the span was too small for a
  // header). The writer is then spent.
  std::size_t finish(std::uint32_t credits_granted);

 private:
  bool append_referenced(MessageType type, std::uint8_t flags, const void* body,
                         std::size_t body_bytes, std::uint32_t payload_bytes);
  // Writes header and padding of a message of `content_bytes`; returns where the content goes, or
  // nullptr if it does not fit.
  std::byte* begin_message(MessageType type, std::uint8_t flags, CloseCode code,
                           std::size_t content_bytes) {
    const std::size_t length = sizeof(MessageHeader) + content_bytes;
    const std::size_t whole = padded(length);
    if (whole > room() || sealed()) return nullptr;
    std::byte* at = space_.data() + used_;
    // The padding is part of the last 8 bytes; the content overwrites the rest of them.
    std::memset(at + whole - kAlignment, 0, kAlignment);
    const MessageHeader header{static_cast<std::uint8_t>(type), flags,
                               static_cast<std::uint16_t>(code),
                               static_cast<std::uint32_t>(length)};
    std::memcpy(at, &header, sizeof(header));
    used_ += whole;
    ++message_count_;
    return at + sizeof(header);
  }

  std::span<std::byte> space_;
  std::size_t used_ = 0;
  std::uint32_t referenced_bytes_ = 0;
  std::uint16_t message_count_ = 0;
};

// One decoded message: a copy of header and body; only `payload` still points into the transfer,
// so its bytes may change while they are looked at. Not initialised beyond the plain fields,
// because one is filled for every message received.
struct Message {
  MessageType type = MessageType::kError;
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
    AuthenticateBody authenticate;
    PacketBody packet;
    NodeStatusBody status;
    HeartbeatBody heartbeat;
  };
  // kData, kPacket: payload bytes. kError: text. If `referenced` the payload is not here but in the
  // segments behind the first one, and makes up all of them.
  std::span<const std::byte> payload;
  std::uint32_t payload_bytes = 0;
  bool referenced = false;
  Message() {}  // NOLINT: the union has no member until TransferReader::next() succeeded
};

// Reads one received transfer. `head` is its first segment (all of it on a fabric that delivers
// contiguously); `rest_bytes` counts the bytes in the segments behind it.
class TransferReader {
 public:
  TransferReader(std::span<const std::byte> head, std::size_t rest_bytes);

  // Checks and returns the header. Call first.
  Result<TransferHeader> begin();
  // The next message; Code::kNotFound at the orderly end; Code::kProtocol for a broken rule.
  // Checked here: type and flags known, code allowed for the type, length against the type,
  // lengths against the transfer, reserved fields zero, addresses well-formed, padding zero and
  // inside the transfer, no message behind a reference, message_count exact, HELLO never
  // inside a transfer, payload not empty and not above its limit, a payload above
  // kInlinePayloadBytesMax being the rest of the transfer (in the first segment or behind it).
  // After anything but ok, `out` is unspecified.
  Status next(Message& out);
  // next() would say kNotFound.
  bool at_end() const { return remaining_ == 0 && !spent_; }

 private:
  // The rule that was broken, or null: a Status would be put together anew at each step of the way
  // out.
  const char* read(Message& out);
  const char* read_data(const MessageHeader& header, Message& out);
  const char* read_packet(const MessageHeader& header, Message& out);
  const char* read_referenced(std::size_t header_bytes, std::size_t payload_bytes, Message& out);
  const char* read_other(const MessageHeader& header, Message& out);
  const char* advance(std::size_t length);
  const char* finish_message();
  Status refuse(const char* text);

  std::span<const std::byte> head_;
  std::size_t rest_bytes_;
  std::size_t position_ = 0;
  std::uint16_t remaining_ = 0;
  bool spent_ = false;
};

// A transfer that is one DATA with its payload inside, as peers send them that wait for answers:
// all that TransferReader checks of it, in a row.
struct OneData {
  TransferHeader transfer;
  DataBody data;
  std::span<const std::byte> payload;  // points into the transfer

  // False: it is something else, or malformed. Let TransferReader look at it, from the beginning.
  bool read(std::span<const std::byte> bytes);
};

// --- what each small message goes through, so that it becomes part of its caller

inline TransferWriter::TransferWriter(std::span<std::byte> space)
    : space_(space.first(std::min(space.size(), kTransferInlineBytesMax))) {
  // A span without room for the header takes nothing at all.
  if (space_.size() < sizeof(TransferHeader)) space_ = {};
  used_ = space_.empty() ? 0 : sizeof(TransferHeader);
}

inline std::size_t TransferWriter::finish(std::uint32_t credits_granted) {
  const std::size_t inline_bytes = used_;
  if (inline_bytes != 0) {
    const TransferHeader header{credits_granted, message_count_, 0};
    std::memcpy(space_.data(), &header, sizeof(header));
  }
  space_ = {};
  used_ = 0;
  return inline_bytes;
}

inline TransferReader::TransferReader(std::span<const std::byte> head, std::size_t rest_bytes)
    : head_(head), rest_bytes_(rest_bytes) {}

// Steps over a message of the inline part, with its padding.
inline const char* TransferReader::advance(std::size_t length) {
  const std::size_t whole = padded(length);
  if (head_.size() - position_ < whole) return "a message lies outside the transfer";
  for (std::size_t i = length; i < whole; ++i) {
    if (head_[position_ + i] != std::byte{0}) return "padding is not zero";
  }
  position_ += whole;
  if (position_ > kTransferInlineBytesMax) return "the inline part is too long";
  return finish_message();
}

// The last message is yielded only when it ends where the transfer does.
inline const char* TransferReader::finish_message() {
  if (--remaining_ == 0 && (position_ != head_.size() || rest_bytes_ != 0)) {
    return "bytes follow the last message";
  }
  return nullptr;
}

inline const char* TransferReader::read_data(const MessageHeader& header, Message& out) {
  // Unsigned: a length below the header's wraps to something above every limit.
  const std::size_t payload_bytes = std::size_t{header.length} - kDataHeaderBytes;
  if (payload_bytes - 1 >= kDataPayloadBytesMax) {
    return "the length of a DATA is out of range";
  }
  if (header.flags != 0 || header.code != 0) return "a DATA has flags or a code";
  if (head_.size() - position_ < kDataHeaderBytes) {
    return "a message body lies outside the transfer";
  }
  detail::copy_out(&out.data, head_.data() + position_ + sizeof(header), sizeof(out.data));
  if (out.data.connection == 0) return "connection 0 does not exist";
  out.payload_bytes = static_cast<std::uint32_t>(payload_bytes);
  if (payload_bytes > kInlinePayloadBytesMax) {
    return read_referenced(kDataHeaderBytes, payload_bytes, out);
  }
  out.referenced = false;
  out.payload = {head_.data() + position_ + kDataHeaderBytes, payload_bytes};
  return advance(header.length);
}

inline bool OneData::read(std::span<const std::byte> bytes) {
  constexpr std::size_t kHeadBytes = sizeof(TransferHeader) + kDataHeaderBytes;
  if (bytes.size() <= kHeadBytes || bytes.size() > kHeadBytes + kInlinePayloadBytesMax) {
    return false;
  }
  MessageHeader header;
  detail::copy_out(&transfer, bytes.data(), sizeof(transfer));
  detail::copy_out(&header, bytes.data() + sizeof(transfer), sizeof(header));
  detail::copy_out(&data, bytes.data() + sizeof(transfer) + sizeof(header), sizeof(data));
  if (transfer.message_count != 1 || transfer.reserved != 0 ||
      header.type != static_cast<std::uint8_t>(MessageType::kData) || header.flags != 0 ||
      header.code != 0 || header.length <= kDataHeaderBytes || data.connection == 0) {
    return false;
  }
  // The padding alone is behind it.
  const std::size_t end = sizeof(transfer) + header.length;
  if (padded(end) != bytes.size()) return false;
  for (std::size_t i = end; i < bytes.size(); ++i) {
    if (bytes[i] != std::byte{0}) return false;
  }
  payload = bytes.subspan(kHeadBytes, end - kHeadBytes);
  return true;
}

inline Result<TransferHeader> TransferReader::begin() {
  TransferHeader header;
  if (head_.size() < sizeof(header)) return refuse("the transfer is shorter than its header");
  // Each by itself, so that the sum does not overflow, whatever a fabric counted.
  if (head_.size() > kTransferBytesMax || rest_bytes_ > kDataPayloadBytesMax ||
      head_.size() + rest_bytes_ > kTransferBytesMax) {
    return refuse("the transfer is too long");
  }
  detail::copy_out(&header, head_.data(), sizeof(header));
  if (header.reserved != 0) return refuse("a reserved field of the transfer is not zero");
  if (header.message_count == 0 && (head_.size() != sizeof(header) || rest_bytes_ != 0)) {
    return refuse("a transfer without messages has bytes behind its header");
  }
  position_ = sizeof(header);
  remaining_ = header.message_count;
  return header;
}

inline const char* TransferReader::read(Message& out) {
  MessageHeader header;
  if (head_.size() - position_ < sizeof(header)) {
    return "a message header lies outside the transfer";
  }
  detail::copy_out(&header, head_.data() + position_, sizeof(header));
  out.type = static_cast<MessageType>(header.type);
  out.flags = header.flags;
  out.code = static_cast<CloseCode>(header.code);
  if (out.type == MessageType::kData) [[likely]]
    return read_data(header, out);
  if (out.type == MessageType::kPacket) return read_packet(header, out);
  return read_other(header, out);
}

inline Status TransferReader::next(Message& out) {
  if (remaining_ == 0) [[unlikely]] {
    return Status::error(spent_ ? Code::kProtocol : Code::kNotFound,
                         spent_ ? "the transfer was refused before" : "no message is left");
  }
  if (const char* rule = read(out); rule != nullptr) [[unlikely]]
    return refuse(rule);
  return {};
}

// Who receives a message. Most messages may travel one way only, or mean different things.
enum class Receiver : std::uint8_t {
  kProxy,        // from an application node
  kApplication,  // from its proxy
  kPacketProxy,  // a proxy, from a network node
  kNetworkNode,  // from its proxy
};

// The rules of direction (docs/wire_format.md, "Direction"), which a reader cannot know by itself:
// kProtocol if a message that TransferReader yielded may not travel towards `receiver`.
Status check_direction(const Message& message, Receiver receiver);

// The text of an ERROR: copied, with everything but printable ASCII replaced by '?'.
std::string error_text(const Message& message);

// HELLO as private data: fixed size, both ways. decode_hello: kProtocol for a broken rule,
// kUnsupported for a version that we do not speak.
inline Role role_of(const HelloBody& hello) { return static_cast<Role>(hello.role); }
void encode_hello(const HelloBody& hello, std::span<std::byte, sizeof(HelloBody)> out);
Result<HelloBody> decode_hello(std::span<const std::byte> in);

// The longest beginning of `name` that a HELLO may have as its sender's: whole characters of
// printable UTF-8, at most kNodeNameBytesMax bytes of them.
std::string_view node_name_prefix(std::string_view name);
// Whether `name` is one that a key may have: 1 to kKeyNameBytesMax letters, digits, '.', '_', '-'.
bool key_name_legal(std::string_view name);
// The name in an AUTHENTICATE whose form was checked.
std::string_view key_name_of(const AuthenticateBody& body);

// Whether a REJECT_CONNECTION may have this code.
bool may_reject(CloseCode code);

const char* message_type_name(MessageType type);
const char* close_code_name(CloseCode code);

}  // namespace sanproxy::wire
