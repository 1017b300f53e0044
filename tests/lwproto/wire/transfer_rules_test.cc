// Walks through docs/wire_format.md, section 6: the tables "Transfers" and "Direction".
#include <gtest/gtest.h>

#include "tests/lwproto/wire/message_drafts.h"

namespace sanproxy::wire {
namespace {

using namespace testing;  // NOLINT: the test's own

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
