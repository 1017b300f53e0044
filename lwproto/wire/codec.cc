#include "lwproto/wire/codec.h"

#include <algorithm>

#include "lwproto/wire/message_rules.h"

namespace sanproxy::wire {
namespace {

using detail::copy_out;

constexpr Status broken(const char* text) { return Status::error(Code::kProtocol, text); }

}  // namespace

// --- addresses

WireAddress to_wire(const SocketAddress& address) {
  WireAddress out{};
  std::memcpy(out.ip, address.ip.bytes.data(), address.ip.size());
  out.port = address.port;
  out.family = static_cast<std::uint8_t>(address.ip.family);
  return out;
}

Result<SocketAddress> from_wire(const WireAddress& address) {
  if (!well_formed(address, false)) return broken("the address is malformed");
  SocketAddress out;
  out.ip.family = static_cast<Family>(address.family);
  std::memcpy(out.ip.bytes.data(), address.ip, sizeof(address.ip));
  out.port = address.port;
  return out;
}

// --- writer

bool TransferWriter::append_referenced(MessageType type, std::uint8_t flags, const void* body,
                                       std::size_t body_bytes, std::uint32_t payload_bytes) {
  std::byte* at = begin_message(type, flags, CloseCode::kNone, body_bytes);
  if (at == nullptr) return false;
  std::memcpy(at, body, body_bytes);
  const auto length =
      static_cast<std::uint32_t>(sizeof(MessageHeader) + body_bytes + payload_bytes);
  std::memcpy(at - sizeof(MessageHeader) + offsetof(MessageHeader, length), &length,
              sizeof(length));
  referenced_bytes_ = payload_bytes;
  return true;
}

bool TransferWriter::append_data_header(std::uint64_t connection, std::uint64_t offset,
                                        std::uint32_t payload_bytes) {
  if (payload_bytes <= kInlinePayloadBytesMax || payload_bytes > kDataPayloadBytesMax) return false;
  const DataBody body{connection, offset};
  return append_referenced(MessageType::kData, 0, &body, sizeof(body), payload_bytes);
}

bool TransferWriter::append_packet_header(std::uint8_t flags, const PacketBody& body,
                                          std::uint32_t bytes) {
  if (bytes <= kInlinePayloadBytesMax || bytes > kPacketBytesMax) return false;
  return append_referenced(MessageType::kPacket, flags, &body, sizeof(body), bytes);
}

// --- reader

[[gnu::cold]] Status TransferReader::refuse(const char* text) {
  spent_ = true;
  remaining_ = 0;
  return broken(text);
}

const char* TransferReader::read_packet(const MessageHeader& header, Message& out) {
  const std::size_t bytes = std::size_t{header.length} - kPacketHeaderBytes;
  if (bytes - kPacketBytesMin > kPacketBytesMax - kPacketBytesMin) {
    return "the length of a PACKET is out of range";
  }
  if (head_.size() - position_ < kPacketHeaderBytes) {
    return "a message body lies outside the transfer";
  }
  copy_out(&out.packet, head_.data() + position_ + sizeof(header), sizeof(out.packet));
  out.payload_bytes = static_cast<std::uint32_t>(bytes);
  if (const char* rule = broken_rule(out)) return rule;
  if (bytes > kInlinePayloadBytesMax) return read_referenced(kPacketHeaderBytes, bytes, out);
  out.referenced = false;
  out.payload = {head_.data() + position_ + kPacketHeaderBytes, bytes};
  return advance(header.length);
}

// The payload is all that is left of the transfer: behind the message, or in the other segments.
const char* TransferReader::read_referenced(std::size_t header_bytes, std::size_t payload_bytes,
                                            Message& out) {
  if (remaining_ != 1) return "a message follows a payload by reference";
  position_ += header_bytes;
  if (position_ > kTransferInlineBytesMax) return "the inline part is too long";
  const std::size_t behind_bytes = head_.size() - position_;
  out.referenced = rest_bytes_ != 0;
  if ((out.referenced ? rest_bytes_ : behind_bytes) != payload_bytes ||
      (out.referenced && behind_bytes != 0)) {
    return "a payload by reference is not the rest of the transfer";
  }
  out.payload = head_.subspan(position_);
  position_ = head_.size();
  rest_bytes_ = 0;
  return finish_message();
}

const char* TransferReader::read_other(const MessageHeader& header, Message& out) {
  const std::size_t body_bytes = body_bytes_of(header.type);
  if (body_bytes == 0) return "the message type is unknown";
  const std::size_t fixed_bytes = sizeof(header) + body_bytes;
  if (head_.size() - position_ < fixed_bytes) {
    return "a message body lies outside the transfer";
  }
  const std::byte* body = head_.data() + position_ + sizeof(header);
  out.payload = {};
  out.payload_bytes = 0;
  out.referenced = false;
  if (out.type == MessageType::kCredit) {
    copy_out(&out.credit, body, sizeof(out.credit));
  } else {
    copy_out(&out.hello, body, body_bytes);  // the largest member of the union, so all of it
  }
  std::size_t text_bytes = 0;
  if (out.type == MessageType::kError) {
    text_bytes = out.error.text_bytes;
    if (text_bytes > kErrorTextBytesMax) return "the text of an ERROR is too long";
  }
  if (header.length != fixed_bytes + text_bytes) {
    return "a message has not the length of its type";
  }
  if (const char* rule = broken_rule(out)) return rule;
  const std::byte* text = body + body_bytes;
  if (const char* rule = advance(header.length)) return rule;
  if (text_bytes != 0) {
    out.payload = {text, text_bytes};
    out.payload_bytes = static_cast<std::uint32_t>(text_bytes);
  }
  return nullptr;
}

std::string error_text(const Message& message) {
  std::string out;
  out.reserve(message.payload.size());
  for (const std::byte byte : message.payload) {
    const char c = static_cast<char>(byte);
    out.push_back(c >= 0x20 && c < 0x7f ? c : '?');
  }
  return out;
}

}  // namespace sanproxy::wire
