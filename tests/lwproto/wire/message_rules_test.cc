// Walks through docs/wire_format.md, section 6: the table "Messages".
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "tests/lwproto/wire/message_drafts.h"

namespace sanproxy::wire {
namespace {

using namespace testing;  // NOLINT: the test's own

struct Broken {
  const char* rule;
  Draft draft;
};

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

}  // namespace
}  // namespace sanproxy::wire
