// Walks through docs/wire_format.md, section 6: tables "Transfers", "Messages" and "Direction".
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "lwproto/wire/codec.h"

namespace sanproxy::wire {
namespace {

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

Bytes transfer_of(const std::vector<Bytes>& messages) {
  Bytes out(sizeof(TransferHeader));
  for (const Bytes& message : messages) out.insert(out.end(), message.begin(), message.end());
  const TransferHeader header{0, static_cast<std::uint16_t>(messages.size()), 0};
  std::memcpy(out.data(), &header, sizeof(header));
  return out;
}

// Reads all; ok if every message was yielded. The bytes stand at the end of their own allocation,
// so that a read beyond them is seen by the address sanitizer.
Status read_all(const Bytes& transfer, Message& last, std::size_t rest_bytes = 0) {
  TransferReader reader(transfer, rest_bytes);
  if (const auto header = reader.begin(); !header.ok()) return header.status();
  while (true) {
    const Status status = reader.next(last);
    if (status.code() == Code::kNotFound) return {};
    if (!status.ok()) return status;
  }
}

Status read_one(const Draft& draft, Message& out) {
  return read_all(transfer_of({draft.bytes()}), out);
}

WireAddress address(const char* text) { return to_wire(*SocketAddress::parse(text)); }

// --- one good message of each kind, named by what it is

JoinServiceBody join_body() { return {address("10.77.0.10:80"), 1, 0, 1, 0}; }
Draft join() { return Draft::of(MessageType::kJoinService, 0, CloseCode::kNone, join_body()); }
Draft join_answer() {
  return join().flagged(kFlagAnswer).with<JoinServiceBody>([](auto& b) { b.service = 7; });
}
Draft leave() {
  return Draft::of(MessageType::kLeaveService, 0, CloseCode::kNone, ServiceBody{7, 2});
}
Draft shutdown_service() {
  return Draft::of(MessageType::kShutdownService, 0, CloseCode::kNone, ServiceBody{7, 2});
}
Draft announcement() {
  return Draft::of(MessageType::kShutdownService, 0, CloseCode::kProxyShutdown, ServiceBody{7, 0});
}
Draft passive() {
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
Draft active() {
  ConnectionRequestBody body{};
  body.request = 4;
  body.client = address("192.0.2.1:443");
  body.send_window_bytes = 1;
  return Draft::of(MessageType::kConnectionRequest, kFlagActive, CloseCode::kNone, body);
}
Draft accept_passive() {
  AcceptConnectionBody body{};
  body.connection = 5;
  body.send_window_bytes = kStreamWindowBytesMax;
  return Draft::of(MessageType::kAcceptConnection, 0, CloseCode::kNone, body);
}
Draft accept_active() {
  return accept_passive().with<AcceptConnectionBody>([](auto& b) {
    b.request = 4;
    b.local = address("10.77.0.10:40001");
    b.initial_seq_local = 1;
    b.window_scale_local = 14;
    b.tcp_options = 5;
  });
}
Draft reject_passive() {
  return Draft::of(MessageType::kRejectConnection, 0, CloseCode::kRefused,
                   RejectConnectionBody{5, 0, 0});
}
Draft reject_active() {
  return Draft::of(MessageType::kRejectConnection, 0, CloseCode::kTimedOut,
                   RejectConnectionBody{0, 4, 0});
}
Draft data(std::size_t bytes = 100) {
  Draft out = Draft::of(MessageType::kData, 0, CloseCode::kNone, DataBody{5, 0});
  out.content.resize(out.content.size() + bytes, std::byte{0x55});
  return out;
}
Draft close_fin() {
  return Draft::of(MessageType::kCloseConnection, 0, CloseCode::kFin, CloseConnectionBody{5, 9});
}
Draft credit() {
  return Draft::of(MessageType::kCredit, 0, CloseCode::kNone, CreditBody{5, 10, 10});
}
Draft error(std::uint32_t text_bytes = 5) {
  Draft out =
      Draft::of(MessageType::kError, 0, CloseCode::kProtocolError, ErrorBody{0, text_bytes});
  out.content.resize(out.content.size() + text_bytes, std::byte{'x'});
  return out;
}

AuthenticateBody authenticate_body(std::string_view name = "web") {
  AuthenticateBody body{};
  body.request = 3;
  std::memcpy(body.key_name, name.data(), name.size());
  std::memset(body.proof, 0x5c, sizeof(body.proof));
  return body;
}
Draft authenticate(std::string_view name = "web") {
  return Draft::of(MessageType::kAuthenticate, 0, CloseCode::kNone, authenticate_body(name));
}
Draft authenticate_refused() {
  return authenticate()
      .flagged(kFlagAnswer)
      .coded(CloseCode::kNotPermitted)
      .with<AuthenticateBody>([](auto& b) { std::memset(b.proof, 0, sizeof(b.proof)); });
}

Draft packet(std::size_t bytes = 60) {
  Draft out = Draft::of(MessageType::kPacket, 0, CloseCode::kNone, PacketBody{});
  out.content.resize(out.content.size() + bytes, std::byte{0x45});
  return out;
}
Draft partial_packet() {
  return packet().flagged(kFlagChecksumPartial).with<PacketBody>([](PacketBody& b) {
    b.checksum_start = 20;
    b.checksum_offset = 16;
  });
}
Draft super_packet() {
  return partial_packet().with<PacketBody>([](PacketBody& b) {
    b.segmentation = 1;
    b.segment_bytes = 1448;
    b.header_bytes = 52;
  });
}
Draft proxy_status() {
  return Draft::of(MessageType::kNodeStatus, 0, CloseCode::kNone, NodeStatusBody{100, 7, 0});
}
Draft node_status() {
  return Draft::of(MessageType::kNodeStatus, 0, CloseCode::kNone, NodeStatusBody{});
}

Draft heartbeat() {
  return Draft::of(MessageType::kHeartbeat, 0, CloseCode::kNone, HeartbeatBody{7, 60'000});
}
Draft heartbeat_answer() {
  return Draft::of(MessageType::kHeartbeat, kFlagAnswer, CloseCode::kNone, HeartbeatBody{7, 0});
}

struct Named {
  const char* name;
  Draft draft;
};

std::vector<Named> good_messages() {
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

struct Broken {
  const char* rule;
  Draft draft;
};

template <typename Body, typename Field, typename Value>
Draft set(const Draft& draft, Field Body::*field, Value value) {
  return draft.with<Body>([&](Body& b) { b.*field = static_cast<Field>(value); });
}

Draft raw_type(unsigned type) {
  Draft out = credit();
  out.type = static_cast<std::uint8_t>(type);
  return out;
}

Draft with_length(Draft draft, std::int64_t extra) {
  draft.length_extra = extra;
  return draft;
}

// Every way in which an address may be malformed, put into `field`.
template <typename Body>
void add_addresses(std::vector<Broken>& out, const Draft& draft, WireAddress Body::*field,
                   bool optional) {
  const auto change = [&](const std::function<void(WireAddress&)>& edit) {
    out.push_back({"M8", draft.with<Body>([&](Body& b) { edit(b.*field); })});
  };
  for (const int family : {1, 2, 5, 10, 255}) {
    change([&](WireAddress& a) { a.family = static_cast<std::uint8_t>(family); });
  }
  for (int i = 4; i < 16; ++i) {
    change([&](WireAddress& a) {
      a = address("10.0.0.1:80");
      a.ip[i] = 1;
    });
  }
  for (int i = 0; i < 5; ++i) change([&](WireAddress& a) { a.reserved[i] = 1; });
  if (!optional) {
    change([](WireAddress& a) { a = {}; });
  } else {
    change([](WireAddress& a) { a = WireAddress{{0}, 80, 0, {0}}; });
    change([](WireAddress& a) { a = WireAddress{{1}, 0, 0, {0}}; });
  }
}

std::vector<Broken> broken_forms() {
  using J = JoinServiceBody;
  using S = ServiceBody;
  using Q = ConnectionRequestBody;
  using A = AcceptConnectionBody;
  using R = RejectConnectionBody;
  std::vector<Broken> out = {
      {"M1", raw_type(0)},
      {"M1", raw_type(1)},
      {"M1", raw_type(15)},
      {"M1", raw_type(255)},
      {"M2", join_answer().flagged(kFlagAnswer | kFlagImmediate)},
      {"M2", join().flagged(kFlagActive)},
      {"M2", leave().flagged(kFlagImmediate)},
      {"M2", passive().flagged(kFlagAnswer)},
      {"M2", authenticate().flagged(kFlagImmediate)},
      {"M7", set(authenticate(), &AuthenticateBody::reserved, 1)},
      {"M26", authenticate("")},
      {"M26", authenticate("a b")},
      {"M26", authenticate("web/key")},
      {"M26", authenticate("k\xc3\xa4se")},
      {"M26", authenticate(std::string_view("a\0b", 3))},
      {"M26", authenticate("web").with<AuthenticateBody>([](auto& b) { b.key_name[31] = 'x'; })},
      {"M27", authenticate().flagged(kFlagAnswer).coded(CloseCode::kNotPermitted)},
      {"M27", authenticate_refused().with<AuthenticateBody>([](auto& b) { b.proof[31] = 1; })},
      {"M2", packet().flagged(0x10)},
      {"M2", proxy_status().flagged(0x02)},
      {"M3", packet().coded(CloseCode::kReset)},
      {"M3", proxy_status().coded(CloseCode::kReset)},
      {"M7", packet().with<PacketBody>([](PacketBody& b) { b.reserved[6] = 1; })},
      {"M7", set(proxy_status(), &NodeStatusBody::reserved, 1)},
      {"M28", packet(kPacketBytesMin - 1)},
      {"M29", set(partial_packet(), &PacketBody::checksum_offset, 39)},
      {"M29", set(partial_packet(), &PacketBody::checksum_start, 65535)},
      {"M29", set(packet(), &PacketBody::checksum_start, 1)},
      {"M29", set(packet(), &PacketBody::checksum_offset, 1)},
      {"M30", set(super_packet(), &PacketBody::segmentation, 2)},
      {"M30", set(super_packet(), &PacketBody::segmentation, 0)},
      {"M30", set(super_packet(), &PacketBody::segment_bytes, 0)},
      {"M30", set(super_packet(), &PacketBody::header_bytes, 61)},
      {"M31", set(proxy_status(), &NodeStatusBody::weight, 65536)},
      {"M31", set(proxy_status(), &NodeStatusBody::proxy_id, 1024)},
      {"M3", heartbeat().coded(CloseCode::kTimedOut)},
      {"M32", set(heartbeat_answer(), &HeartbeatBody::silence_ms, 1)},
      {"M9", join().with<J>([](J& b) { b.address.port = 0; })},
      {"M10", set(join(), &J::weight, 0)},
      {"M10", set(join(), &J::weight, 65536)},
      {"M10", set(join_answer(), &J::weight, 65536)},
      {"M11", set(join(), &J::service, 1)},
      {"M11", set(join_answer(), &J::service, 0)},
      {"M11", join_answer().coded(CloseCode::kLimitReached)},
      {"M12", set(leave(), &S::service, 0)},
      {"M12", set(shutdown_service(), &S::service, 0)},
      {"M13", set(announcement(), &S::request, 1)},
      {"M14", set(passive(), &Q::connection, 0)},
      {"M14", set(passive(), &Q::service, 0)},
      {"M14", set(passive(), &Q::request, 1)},
      {"M15", set(active(), &Q::connection, 1)},
      {"M15", set(active(), &Q::request, 0)},
      {"M15", active().with<Q>([](Q& b) { b.client.port = 0; })},
      {"M15", set(active(), &Q::initial_seq_local, 1)},
      {"M15", set(active(), &Q::initial_seq_remote, 1)},
      {"M15", set(active(), &Q::mss_bytes, 1)},
      {"M15", set(active(), &Q::window_scale_local, 1)},
      {"M15", set(active(), &Q::window_scale_remote, 1)},
      {"M15", set(active(), &Q::tcp_options, 1)},
      {"M15", set(active(), &Q::timestamp_offset, 1)},
      {"M16", passive().with<Q>([](Q& b) { b.local = address("10.0.0.1:80"); })},
      {"M16", active().with<Q>([](Q& b) { b.local = address("[fd77::1]:0"); })},
      {"M17", set(passive(), &Q::send_window_bytes, 0)},
      {"M17", set(passive(), &Q::send_window_bytes, kStreamWindowBytesMax + 1)},
      {"M17", set(accept_passive(), &A::send_window_bytes, 0)},
      {"M17", set(accept_active(), &A::send_window_bytes, 0xffff'ffffu)},
      {"M18", set(passive(), &Q::window_scale_local, 15)},
      {"M18", set(passive(), &Q::window_scale_remote, 15)},
      {"M18", set(passive(), &Q::tcp_options, 8)},
      {"M18", set(accept_active(), &A::window_scale_local, 15)},
      {"M18", set(accept_active(), &A::window_scale_remote, 15)},
      {"M18", set(accept_active(), &A::tcp_options, 0x8000'0000u)},
      {"M19", set(accept_passive(), &A::connection, 0)},
      {"M19", set(data(), &DataBody::connection, 0)},
      {"M19", set(close_fin(), &CloseConnectionBody::connection, 0)},
      {"M19", set(credit(), &CreditBody::connection, 0)},
      {"M20", accept_passive().with<A>([](A& b) { b.local = address("10.0.0.1:80"); })},
      {"M20", set(accept_passive(), &A::initial_seq_local, 1)},
      {"M20", set(accept_passive(), &A::tcp_options, 1)},
      {"M21", accept_active().with<A>([](A& b) { b.local = {}; })},
      {"M22", set(reject_passive(), &R::request, 1)},
      {"M22", set(reject_passive(), &R::connection, 0)},
      {"M7", set(reject_passive(), &R::reserved, 1)},
      {"M23", data(0)},
      {"M24", set(credit(), &CreditBody::acked_offset, 11)},
      {"M25", error(kErrorTextBytesMax + 1)},
      {"M25", error(0).with<ErrorBody>([](ErrorBody& b) { b.text_bytes = 0xffff'ffffu; })},
      {"M4", error(5).with<ErrorBody>([](ErrorBody& b) { b.text_bytes = 4; })},
      {"M5", error(5).with<ErrorBody>([](ErrorBody& b) { b.text_bytes = 200; })},
  };
  add_addresses(out, join(), &J::address, false);
  add_addresses(out, passive(), &Q::client, false);
  add_addresses(out, passive(), &Q::local, false);
  add_addresses(out, active(), &Q::client, false);
  add_addresses(out, active(), &Q::local, true);
  add_addresses(out, accept_active(), &A::local, false);
  for (const Named& good : good_messages()) {
    const auto type = static_cast<MessageType>(good.draft.type);
    for (const int bit : {3, 4, 5, 6, 7}) {
      if (type == MessageType::kPacket && bit == 3) continue;  // kFlagFinal
      out.push_back({"M2", good.draft.flagged(good.draft.flags | 1u << bit)});
    }
    out.push_back({"M3", good.draft.coded(CloseCode{16})});
    out.push_back({"M3", good.draft.coded(CloseCode{32})});
    out.push_back({"M3", good.draft.coded(CloseCode{0x8001})});
    if (type == MessageType::kData || type == MessageType::kPacket) continue;
    for (const int extra : {-64, -8, -1, 1, 8}) {
      out.push_back({"M4", with_length(good.draft, extra)});
    }
  }
  return out;
}

TEST(MessageRules, EveryGoodMessageIsYielded) {
  for (const Named& good : good_messages()) {
    Message message;
    const Status status = read_one(good.draft, message);
    ASSERT_TRUE(status.ok()) << good.name << ": " << status.to_string();
    EXPECT_EQ(static_cast<std::uint8_t>(message.type), good.draft.type) << good.name;
    EXPECT_EQ(message.flags, good.draft.flags) << good.name;
    EXPECT_EQ(static_cast<std::uint16_t>(message.code), good.draft.code) << good.name;
  }
}

TEST(MessageRules, EveryBrokenFormIsRefused) {
  std::size_t number = 0;
  for (const Broken& broken : broken_forms()) {
    Message message;
    EXPECT_EQ(read_one(broken.draft, message).code(), Code::kProtocol)
        << broken.rule << ", line " << number << ": "
        << message_type_name(static_cast<MessageType>(broken.draft.type));
    ++number;
  }
}

TEST(MessageRules, EachTypeTakesExactlyTheCodesOfTheTable) {  // M3 and the table of section 5
  const struct {
    const char* name;
    Draft draft;
    std::vector<int> codes;
  } rows[] = {
      {"JOIN", join(), {0}},
      {"JOIN answer, refused", join().flagged(kFlagAnswer), {4, 7, 8, 9, 10, 11, 12, 15}},
      {"LEAVE", leave(), {0}},
      {"LEAVE answer", leave().flagged(kFlagAnswer), {0, 4, 7, 8, 9, 10, 11, 12, 15}},
      {"SHUTDOWN", announcement(), {0, 7, 8, 10}},
      {"SHUTDOWN answer", shutdown_service().flagged(kFlagAnswer), {0, 4, 7, 8, 9, 10, 11, 12, 15}},
      {"CONNECTION_REQUEST", passive(), {0}},
      {"active CONNECTION_REQUEST", active(), {0}},
      {"ACCEPT", accept_passive(), {0}},
      {"REJECT", reject_passive(), {3, 4, 5, 7, 8, 9, 10, 11, 12, 14, 15}},
      {"DATA", data(), {0}},
      {"CLOSE", close_fin(), {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14}},
      {"CREDIT", credit(), {0}},
      {"ERROR", error(), {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}},
      {"AUTHENTICATE", authenticate(), {0}},
      {"AUTHENTICATE answer", authenticate_refused(), {0, 4, 7, 8, 9, 10, 11, 12, 15}},
  };
  for (const auto& row : rows) {
    for (int code = 0; code <= 20; ++code) {
      Message message;
      const bool legal = std::find(row.codes.begin(), row.codes.end(), code) != row.codes.end();
      EXPECT_EQ(read_one(row.draft.coded(static_cast<CloseCode>(code)), message).ok(), legal)
          << row.name << " with code " << code;
    }
  }
}

TEST(MessageRules, PaddingIsPartOfTheTransferAndZero) {  // M5, M6
  Bytes good = transfer_of({data(3).bytes()});
  Message message;
  ASSERT_TRUE(read_all(good, message).ok());
  for (std::size_t i = 1; i <= 5; ++i) {
    Bytes dirty = good;
    dirty[dirty.size() - i] = std::byte{1};
    EXPECT_EQ(read_all(dirty, message).code(), Code::kProtocol) << i;
    Bytes cut(good.begin(), good.end() - static_cast<std::ptrdiff_t>(i));
    EXPECT_EQ(read_all(cut, message).code(), Code::kProtocol) << i;
  }
}

TEST(TransferRules, EveryCutOfAGoodTransferIsRefused) {  // T1, M5
  std::vector<Bytes> messages;
  for (const Named& good : good_messages()) messages.push_back(good.draft.bytes());
  const Bytes whole = transfer_of(messages);
  Message message;
  ASSERT_TRUE(read_all(whole, message).ok());
  for (std::size_t length = 0; length < whole.size(); ++length) {
    Bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
    cut.shrink_to_fit();
    EXPECT_FALSE(read_all(cut, message).ok()) << length;
  }
}

TEST(TransferRules, TheHeaderMustAgreeWithWhatArrived) {  // T3, T5
  const auto refused = [](auto change, std::size_t rest_bytes = 0) {
    Bytes bytes = transfer_of({credit().bytes(), leave().bytes()});
    TransferHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    change(header);
    std::memcpy(bytes.data(), &header, sizeof(header));
    Message message;
    return read_all(bytes, message, rest_bytes).code() == Code::kProtocol;
  };
  EXPECT_FALSE(refused([](auto&) {}));
  EXPECT_TRUE(refused([](auto& h) { h.reserved = 1; }));
  EXPECT_TRUE(refused([](auto& h) { h.message_count = 0; }));
  EXPECT_TRUE(refused([](auto& h) { h.message_count = 1; }));
  EXPECT_TRUE(refused([](auto& h) { h.message_count = 3; }));
  EXPECT_TRUE(refused([](auto& h) { h.message_count = 65535; }));
  EXPECT_TRUE(refused([](auto&) {}, 8));  // bytes that no message claims
}

// A transfer whose only message is a DATA that says it has `payload_bytes`.
Bytes referenced(std::size_t payload_bytes, std::size_t in_head) {
  Draft draft = data(0);
  draft.length_extra = static_cast<std::int64_t>(payload_bytes);
  Bytes bytes = transfer_of({draft.bytes()});
  bytes.resize(bytes.size() + in_head);
  return bytes;
}

TEST(TransferRules, AReferencedPayloadIsTheRestOfTheTransfer) {  // M23, T5, T10
  const struct {
    std::size_t payload, head, rest;
    bool legal;
  } rows[] = {
      {1025, 1025, 0, true},    {1025, 0, 1025, true},     {65536, 65536, 0, true},
      {65536, 0, 65536, true},  {1024, 0, 1024, false},    {1024, 1024, 0, true},
      {2000, 1999, 0, false},   {2000, 2001, 0, false},    {2000, 0, 1999, false},
      {2000, 0, 2001, false},   {2000, 1000, 1000, false}, {2000, 2000, 8, false},
      {65537, 65537, 0, false}, {65537, 0, 65537, false},  {1, 0, 1, false},
  };
  for (const auto& row : rows) {
    Message message;
    const Bytes bytes = referenced(row.payload, row.head);
    const Status status = read_all(bytes, message, row.rest);
    EXPECT_EQ(status.ok(), row.legal) << row.payload << " bytes, " << row.head << " in the head, "
                                      << row.rest << " behind it: " << status.to_string();
  }
}

TEST(TransferRules, NothingFollowsAReferencedPayload) {  // T6
  Bytes bytes = referenced(2000, 2000);
  const Bytes more = credit().bytes();
  bytes.insert(bytes.end(), more.begin(), more.end());
  const TransferHeader header{0, 2, 0};
  std::memcpy(bytes.data(), &header, sizeof(header));
  Message message;
  EXPECT_EQ(read_all(bytes, message).code(), Code::kProtocol);
}

TEST(TransferRules, LengthsThatWrapAreRefused) {
  for (const std::int64_t extra : {std::int64_t{-24}, std::int64_t{-1}, std::int64_t{0xffff'ffff},
                                   std::int64_t{0x7fff'ffff}, std::int64_t{0xffff'fff0}}) {
    Draft draft = data(0);
    draft.length_extra = extra;
    Message message;
    EXPECT_EQ(read_one(draft, message).code(), Code::kProtocol) << extra;
  }
}

TEST(TransferRules, TheInlinePartIsBounded) {         // T1, T4
  std::vector<Bytes> messages(511, leave().bytes());  // 8 + 511 * 16 = 8184
  Message message;
  EXPECT_TRUE(read_all(transfer_of(messages), message).ok());
  messages.push_back(leave().bytes());
  EXPECT_EQ(read_all(transfer_of(messages), message).code(), Code::kProtocol);
  messages.assign(2000, data(1000).bytes());
  EXPECT_EQ(read_all(transfer_of(messages), message).code(), Code::kProtocol);
  TransferReader huge({}, SIZE_MAX);
  EXPECT_EQ(huge.begin().status().code(), Code::kProtocol);
}

TEST(DirectionRules, EachMessageTravelsWhereTheTableSays) {
  enum Way { kToProxy, kToApplication, kBoth };
  const struct {
    const char* name;
    Draft draft;
    Way way;
  } rows[] = {
      {"JOIN", join(), kToProxy},
      {"JOIN answer (D1)", join_answer(), kToApplication},
      {"LEAVE", leave(), kToProxy},
      {"LEAVE answer (D1)", leave().flagged(kFlagAnswer), kToApplication},
      {"SHUTDOWN (D6)", shutdown_service(), kToProxy},
      {"SHUTDOWN answer (D1)", shutdown_service().flagged(kFlagAnswer), kToApplication},
      {"SHUTDOWN announcement (D2)", announcement(), kToApplication},
      {"passive CONNECTION_REQUEST (D3)", passive(), kToApplication},
      {"active CONNECTION_REQUEST (D7)", active(), kToProxy},
      {"ACCEPT of a passive (D8)", accept_passive(), kToProxy},
      {"ACCEPT of an active (D4)", accept_active(), kToApplication},
      {"REJECT of a passive (D8)", reject_passive(), kToProxy},
      {"REJECT of an active (D4)", reject_active(), kToApplication},
      {"DATA", data(), kBoth},
      {"CLOSE", close_fin(), kBoth},
      {"CREDIT", credit(), kBoth},
      {"ERROR", error(), kBoth},
      {"HEARTBEAT (D12)", heartbeat(), kToApplication},
      {"HEARTBEAT answer (D5)", heartbeat_answer(), kToProxy},
      {"AUTHENTICATE (D5)", authenticate(), kToProxy},
      {"AUTHENTICATE answer (D1)", authenticate().flagged(kFlagAnswer), kToApplication},
      {"AUTHENTICATE refusal (D1)", authenticate_refused(), kToApplication},
  };
  for (const auto& row : rows) {
    Message message;
    ASSERT_TRUE(read_one(row.draft, message).ok()) << row.name;
    EXPECT_EQ(check_direction(message, Receiver::kProxy).ok(), row.way != kToApplication)
        << row.name;
    EXPECT_EQ(check_direction(message, Receiver::kApplication).ok(), row.way != kToProxy)
        << row.name;
    const bool is_error = row.draft.type == static_cast<std::uint8_t>(MessageType::kError);
    EXPECT_EQ(check_direction(message, Receiver::kPacketProxy).ok(), is_error) << row.name;
    EXPECT_EQ(check_direction(message, Receiver::kNetworkNode).ok(), is_error) << row.name;
  }
}

TEST(DirectionRules, PacketsTravelBetweenNetworkNodesAndProxiesAlone) {
  const struct {
    const char* name;
    Draft draft;
    bool to_proxy, to_node;
  } rows[] = {
      {"PACKET", packet(), true, true},
      {"PACKET, final (D11)", packet().flagged(kFlagFinal), true, false},
      {"PACKET sent back (D10)", packet().flagged(kFlagUnknownFlow), false, true},
      {"NODE_STATUS of a proxy (D10)", proxy_status(), false, true},
      {"NODE_STATUS, draining (D10)", node_status().flagged(kFlagDraining), false, false},
      {"NODE_STATUS of a network node (D11)", node_status(), true, false},
      {"NODE_STATUS of a network node with an id (D10)",
       set(node_status(), &NodeStatusBody::proxy_id, 1), false, false},
  };
  for (const auto& row : rows) {
    Message message;
    ASSERT_TRUE(read_one(row.draft, message).ok()) << row.name;
    EXPECT_EQ(check_direction(message, Receiver::kPacketProxy).ok(), row.to_proxy) << row.name;
    EXPECT_EQ(check_direction(message, Receiver::kNetworkNode).ok(), row.to_node) << row.name;
    EXPECT_FALSE(check_direction(message, Receiver::kProxy).ok()) << row.name;
    EXPECT_FALSE(check_direction(message, Receiver::kApplication).ok()) << row.name;
  }
}

}  // namespace
}  // namespace sanproxy::wire
