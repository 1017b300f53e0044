// Messages as they would be sent, with nothing checked: a good one of each kind, and how to spoil
// it.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "lwproto/wire/codec.h"

namespace sanproxy::wire::testing {

using Bytes = std::vector<std::byte>;

// A message as it would be sent, with nothing checked.
struct Draft {
  std::uint8_t type = 0;
  std::uint8_t flags = 0;
  std::uint16_t code = 0;
  Bytes content;  // body and payload
  std::int64_t length_extra = 0;

  template <typename Body>
  static Draft of(MessageType type, std::uint8_t flags, CloseCode code, const Body& body) {
    Draft out{static_cast<std::uint8_t>(type), flags, static_cast<std::uint16_t>(code), {}, 0};
    out.content.resize(sizeof(body));
    std::memcpy(out.content.data(), &body, sizeof(body));
    return out;
  }
  template <typename Body, typename Change>
  Draft with(Change change) const {
    Draft out = *this;
    Body body;
    std::memcpy(&body, out.content.data(), sizeof(body));
    change(body);
    std::memcpy(out.content.data(), &body, sizeof(body));
    return out;
  }
  Draft flagged(unsigned bits) const {
    Draft out = *this;
    out.flags = static_cast<std::uint8_t>(bits);
    return out;
  }
  Draft coded(CloseCode value) const {
    Draft out = *this;
    out.code = static_cast<std::uint16_t>(value);
    return out;
  }
  Bytes bytes() const {
    Bytes out(padded(sizeof(MessageHeader) + content.size()));
    const MessageHeader header{
        type, flags, code,
        static_cast<std::uint32_t>(
            static_cast<std::int64_t>(sizeof(MessageHeader) + content.size()) + length_extra)};
    std::memcpy(out.data(), &header, sizeof(header));
    std::memcpy(out.data() + sizeof(header), content.data(), content.size());
    return out;
  }
};

inline Bytes transfer_of(const std::vector<Bytes>& messages) {
  Bytes out(sizeof(TransferHeader));
  for (const Bytes& message : messages) out.insert(out.end(), message.begin(), message.end());
  const TransferHeader header{0, static_cast<std::uint16_t>(messages.size()), 0};
  std::memcpy(out.data(), &header, sizeof(header));
  return out;
}

// Reads all; ok if every message was yielded. The bytes stand at the end of their own allocation,
// so that a read beyond them is seen by the address sanitizer.
inline Status read_all(const Bytes& transfer, Message& last, std::size_t rest_bytes = 0) {
  TransferReader reader(transfer, rest_bytes);
  if (const auto header = reader.begin(); !header.ok()) return header.status();
  while (true) {
    const Status status = reader.next(last);
    if (status.code() == Code::kNotFound) return {};
    if (!status.ok()) return status;
  }
}

inline Status read_one(const Draft& draft, Message& out) {
  return read_all(transfer_of({draft.bytes()}), out);
}

inline WireAddress address(const char* text) { return to_wire(*SocketAddress::parse(text)); }

// --- one good message of each kind, named by what it is

inline JoinServiceBody join_body() { return {address("10.77.0.10:80"), 1, 0, 1, 0}; }
inline Draft join() {
  return Draft::of(MessageType::kJoinService, 0, CloseCode::kNone, join_body());
}
inline Draft join_answer() {
  return join().flagged(kFlagAnswer).with<JoinServiceBody>([](auto& b) { b.service = 7; });
}
inline Draft leave() {
  return Draft::of(MessageType::kLeaveService, 0, CloseCode::kNone, ServiceBody{7, 2});
}
inline Draft shutdown_service() {
  return Draft::of(MessageType::kShutdownService, 0, CloseCode::kNone, ServiceBody{7, 2});
}
inline Draft announcement() {
  return Draft::of(MessageType::kShutdownService, 0, CloseCode::kProxyShutdown, ServiceBody{7, 0});
}
inline Draft passive() {
  ConnectionRequestBody body{};
  body.connection = 0x0001'000001'000005;
  body.service = 7;
  body.client = address("[fd77::2]:40000");
  body.local = address("[fd77::1]:80");
  body.initial_seq_local = 11;
  body.initial_seq_remote = 12;
  body.mss_bytes = 1440;
  body.window_scale_local = 14;
  body.window_scale_remote = 7;
  body.tcp_options = kTcpOptionsKnown;
  body.send_window_bytes = 1 << 20;
  body.timestamp_offset = 99;
  return Draft::of(MessageType::kConnectionRequest, 0, CloseCode::kNone, body);
}
inline Draft active() {
  ConnectionRequestBody body{};
  body.request = 4;
  body.client = address("192.0.2.1:443");
  body.send_window_bytes = 1;
  return Draft::of(MessageType::kConnectionRequest, kFlagActive, CloseCode::kNone, body);
}
inline Draft accept_passive() {
  AcceptConnectionBody body{};
  body.connection = 5;
  body.send_window_bytes = kStreamWindowBytesMax;
  return Draft::of(MessageType::kAcceptConnection, 0, CloseCode::kNone, body);
}
inline Draft accept_active() {
  return accept_passive().with<AcceptConnectionBody>([](auto& b) {
    b.request = 4;
    b.local = address("10.77.0.10:40001");
    b.initial_seq_local = 1;
    b.window_scale_local = 14;
    b.tcp_options = 5;
  });
}
inline Draft reject_passive() {
  return Draft::of(MessageType::kRejectConnection, 0, CloseCode::kRefused,
                   RejectConnectionBody{5, 0, 0});
}
inline Draft reject_active() {
  return Draft::of(MessageType::kRejectConnection, 0, CloseCode::kTimedOut,
                   RejectConnectionBody{0, 4, 0});
}
inline Draft data(std::size_t bytes = 100) {
  Draft out = Draft::of(MessageType::kData, 0, CloseCode::kNone, DataBody{5, 0});
  out.content.resize(out.content.size() + bytes, std::byte{0x55});
  return out;
}
inline Draft close_fin() {
  return Draft::of(MessageType::kCloseConnection, 0, CloseCode::kFin, CloseConnectionBody{5, 9});
}
inline Draft credit() {
  return Draft::of(MessageType::kCredit, 0, CloseCode::kNone, CreditBody{5, 10, 10});
}
inline Draft error(std::uint32_t text_bytes = 5) {
  Draft out =
      Draft::of(MessageType::kError, 0, CloseCode::kProtocolError, ErrorBody{0, text_bytes});
  out.content.resize(out.content.size() + text_bytes, std::byte{'x'});
  return out;
}

inline AuthenticateBody authenticate_body(std::string_view name = "web") {
  AuthenticateBody body{};
  body.request = 3;
  std::memcpy(body.key_name, name.data(), name.size());
  std::memset(body.proof, 0x5c, sizeof(body.proof));
  return body;
}
inline Draft authenticate(std::string_view name = "web") {
  return Draft::of(MessageType::kAuthenticate, 0, CloseCode::kNone, authenticate_body(name));
}
inline Draft authenticate_refused() {
  return authenticate()
      .flagged(kFlagAnswer)
      .coded(CloseCode::kNotPermitted)
      .with<AuthenticateBody>([](auto& b) { std::memset(b.proof, 0, sizeof(b.proof)); });
}

inline Draft packet(std::size_t bytes = 60) {
  Draft out = Draft::of(MessageType::kPacket, 0, CloseCode::kNone, PacketBody{});
  out.content.resize(out.content.size() + bytes, std::byte{0x45});
  return out;
}
inline Draft partial_packet() {
  return packet().flagged(kFlagChecksumPartial).with<PacketBody>([](PacketBody& b) {
    b.checksum_start = 20;
    b.checksum_offset = 16;
  });
}
inline Draft super_packet() {
  return partial_packet().with<PacketBody>([](PacketBody& b) {
    b.segmentation = 1;
    b.segment_bytes = 1448;
    b.header_bytes = 52;
  });
}
inline Draft proxy_status() {
  return Draft::of(MessageType::kNodeStatus, 0, CloseCode::kNone, NodeStatusBody{100, 7, 0});
}
inline Draft node_status() {
  return Draft::of(MessageType::kNodeStatus, 0, CloseCode::kNone, NodeStatusBody{});
}

inline Draft heartbeat() {
  return Draft::of(MessageType::kHeartbeat, 0, CloseCode::kNone, HeartbeatBody{7, 60'000});
}
inline Draft heartbeat_answer() {
  return Draft::of(MessageType::kHeartbeat, kFlagAnswer, CloseCode::kNone, HeartbeatBody{7, 0});
}

struct Named {
  const char* name;
  Draft draft;
};

inline std::vector<Named> good_messages() {
  return {{"JOIN", join()},
          {"JOIN immediate", join().flagged(kFlagImmediate)},
          {"JOIN answer", join_answer()},
          {"JOIN refusal", join().flagged(kFlagAnswer).coded(CloseCode::kNotPermitted)},
          {"LEAVE", leave()},
          {"LEAVE answer", leave().flagged(kFlagAnswer)},
          {"LEAVE refusal", leave().flagged(kFlagAnswer).coded(CloseCode::kNotFound)},
          {"SHUTDOWN", shutdown_service()},
          {"SHUTDOWN answer", shutdown_service().flagged(kFlagAnswer)},
          {"SHUTDOWN announcement", announcement()},
          {"passive CONNECTION_REQUEST", passive()},
          {"active CONNECTION_REQUEST", active()},
          {"ACCEPT of a passive", accept_passive()},
          {"ACCEPT of an active", accept_active()},
          {"REJECT of a passive", reject_passive()},
          {"REJECT of an active", reject_active()},
          {"DATA of 1 byte", data(1)},
          {"DATA, longest inline", data(kInlinePayloadBytesMax)},
          {"CLOSE fin", close_fin()},
          {"CLOSE reset", close_fin().coded(CloseCode::kReset)},
          {"CREDIT", credit()},
          {"ERROR", error()},
          {"ERROR without text", error(0)},
          {"ERROR with all of its text", error(kErrorTextBytesMax)},
          {"AUTHENTICATE", authenticate()},
          {"AUTHENTICATE, every letter", authenticate("azAZ09._-")},
          {"AUTHENTICATE, longest name", authenticate(std::string(kKeyNameBytesMax, 'k'))},
          {"AUTHENTICATE answer", authenticate().flagged(kFlagAnswer)},
          {"AUTHENTICATE refusal", authenticate_refused()},
          {"HEARTBEAT", heartbeat()},
          {"HEARTBEAT answer", heartbeat_answer()},
          {"PACKET", packet()},
          {"PACKET, shortest", packet(kPacketBytesMin)},
          {"PACKET, longest inline", packet(kInlinePayloadBytesMax)},
          {"PACKET with half a checksum", partial_packet()},
          {"PACKET to be segmented", super_packet()},
          {"PACKET sent back", packet().flagged(kFlagUnknownFlow)},
          {"NODE_STATUS of a proxy", proxy_status()},
          {"NODE_STATUS of a draining proxy", proxy_status().flagged(kFlagDraining)},
          {"NODE_STATUS of a network node", node_status()}};
}

// The message with one field of its body changed.
template <typename Body, typename Field, typename Value>
inline Draft set(const Draft& draft, Field Body::*field, Value value) {
  return draft.with<Body>([&](Body& b) { b.*field = static_cast<Field>(value); });
}

}  // namespace sanproxy::wire::testing
