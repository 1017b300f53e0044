#include "lwproto/wire/codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "lwproto/buffer/pool_sizes.h"

namespace sanproxy::wire {
namespace {

static_assert(buffer::kEgressSlotBytes == kTransferBytesMax, "an egress slot takes a transfer");
static_assert(buffer::kSlotPayloadBytes == kDataPayloadBytesMax);
static_assert(make_connection_id(0x1234, 0x56789a, 0xbcdef0) == 0x1234'5678'9abc'def0);
static_assert(connection_index(0x1234'5678'9abc'def0) == 0xbcdef0);

std::vector<std::byte> pattern(std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>(i * 7 + 1);
  return out;
}

class Codec : public testing::Test {
 protected:
  // Finishes `writer` and returns a reader of what it wrote, referenced bytes behind the head.
  TransferReader finish(std::size_t rest_bytes = 0) {
    inline_bytes_ = writer_.finish(77);
    return TransferReader(std::span(space_).first(inline_bytes_), rest_bytes);
  }
  std::array<std::byte, kTransferInlineBytesMax + 64> space_{};
  TransferWriter writer_{space_};
  std::size_t inline_bytes_ = 0;
  Message message_;
};

TEST_F(Codec, WritesAPureCreditReturnAsABareHeader) {
  EXPECT_TRUE(writer_.empty());
  TransferReader reader = finish();
  EXPECT_EQ(inline_bytes_, sizeof(TransferHeader));
  const auto header = reader.begin();
  ASSERT_TRUE(header.ok()) << header.status().to_string();
  EXPECT_EQ(header->message_count, 0u);
  EXPECT_EQ(header->credits_granted, 77u);
  EXPECT_EQ(reader.next(message_).code(), Code::kNotFound);
}

TEST_F(Codec, CarriesSeveralMessagesInOneTransferInOrder) {
  const auto payload = pattern(13);  // needs padding
  ASSERT_TRUE(writer_.append(MessageType::kCredit, 0, CloseCode::kNone, CreditBody{9, 100, 50}));
  ASSERT_TRUE(writer_.append_data(9, 4096, payload));
  ASSERT_TRUE(writer_.append(MessageType::kCloseConnection, 0, CloseCode::kFin,
                             CloseConnectionBody{9, 4109}));
  TransferReader reader = finish();
  ASSERT_EQ(reader.begin()->message_count, 3u);

  ASSERT_TRUE(reader.next(message_).ok());
  EXPECT_EQ(message_.type, MessageType::kCredit);
  EXPECT_EQ(message_.credit.connection, 9u);
  EXPECT_EQ(message_.credit.freed_offset, 100u);
  EXPECT_EQ(message_.credit.acked_offset, 50u);
  EXPECT_TRUE(message_.payload.empty());

  ASSERT_TRUE(reader.next(message_).ok());
  EXPECT_EQ(message_.type, MessageType::kData);
  EXPECT_EQ(message_.data.connection, 9u);
  EXPECT_EQ(message_.data.offset, 4096u);
  EXPECT_FALSE(message_.referenced);
  EXPECT_EQ(message_.payload_bytes, 13u);
  ASSERT_EQ(message_.payload.size(), 13u);
  EXPECT_EQ(std::memcmp(message_.payload.data(), payload.data(), 13), 0);

  ASSERT_TRUE(reader.next(message_).ok());
  EXPECT_EQ(message_.type, MessageType::kCloseConnection);
  EXPECT_EQ(message_.code, CloseCode::kFin);
  EXPECT_EQ(message_.close.offset, 4109u);
  EXPECT_EQ(message_.payload_bytes, 0u);
  EXPECT_EQ(reader.next(message_).code(), Code::kNotFound);
  EXPECT_EQ(reader.next(message_).code(), Code::kNotFound);
}

// Small ones are copied in another way than large ones.
TEST_F(Codec, CarriesAPayloadOfAnyLengthAndWritesNothingBehindIt) {
  for (std::size_t length = 1; length <= kInlinePayloadBytesMax; ++length) {
    const auto payload = pattern(length);
    space_.fill(std::byte{0xee});
    writer_ = TransferWriter(space_);
    ASSERT_TRUE(writer_.append_data(9, 0, payload));
    TransferReader reader = finish();
    ASSERT_TRUE(reader.begin().ok());
    const Status status = reader.next(message_);
    ASSERT_TRUE(status.ok()) << length << ": " << status.to_string();
    EXPECT_TRUE(std::equal(payload.begin(), payload.end(), message_.payload.begin(),
                           message_.payload.end()))
        << length;
    EXPECT_EQ(space_[inline_bytes_], std::byte{0xee}) << length;
  }
}

TEST_F(Codec, ZeroesThePaddingOfDirtyMemory) {
  space_.fill(std::byte{0xee});
  for (std::size_t bytes = 1; bytes <= 9; ++bytes) {
    ASSERT_TRUE(writer_.append_data(1, 0, pattern(bytes)));
  }
  TransferReader reader = finish();
  ASSERT_TRUE(reader.begin().ok());
  for (std::size_t bytes = 1; bytes <= 9; ++bytes) {
    ASSERT_TRUE(reader.next(message_).ok()) << bytes;
    EXPECT_EQ(message_.payload_bytes, bytes);
  }
}

TEST_F(Codec, YieldsAReferencedPayloadBehindTheFirstSegment) {
  ASSERT_TRUE(writer_.append(MessageType::kCredit, 0, CloseCode::kNone, CreditBody{9, 1, 0}));
  ASSERT_TRUE(writer_.append_data_header(9, 5, 65536));
  EXPECT_TRUE(writer_.sealed());
  TransferReader reader = finish(65536);
  ASSERT_TRUE(reader.begin().ok());
  ASSERT_TRUE(reader.next(message_).ok());
  ASSERT_TRUE(reader.next(message_).ok());
  EXPECT_TRUE(message_.referenced);
  EXPECT_TRUE(message_.payload.empty());
  EXPECT_EQ(message_.payload_bytes, 65536u);
  EXPECT_EQ(reader.next(message_).code(), Code::kNotFound);
}

TEST_F(Codec, YieldsAReferencedPayloadOfAFabricThatDeliversInOnePiece) {
  ASSERT_TRUE(writer_.append_data_header(9, 5, 1025));
  const std::size_t head = writer_.finish(0);
  const auto payload = pattern(1025);
  std::memcpy(space_.data() + head, payload.data(), payload.size());
  TransferReader reader({space_.data(), head + 1025}, 0);
  ASSERT_TRUE(reader.begin().ok());
  ASSERT_TRUE(reader.next(message_).ok());
  EXPECT_FALSE(message_.referenced);
  ASSERT_EQ(message_.payload.size(), 1025u);
  EXPECT_EQ(std::memcmp(message_.payload.data(), payload.data(), payload.size()), 0);
}

TEST_F(Codec, RefusesToAppendBehindAReferencedPayload) {
  ASSERT_TRUE(writer_.append_data_header(9, 5, 2000));
  const std::size_t before = writer_.bytes();
  EXPECT_FALSE(writer_.append(MessageType::kCredit, 0, CloseCode::kNone, CreditBody{9, 1, 0}));
  EXPECT_FALSE(writer_.append_data(9, 5, pattern(1)));
  EXPECT_FALSE(writer_.append_data_header(9, 5, 2000));
  EXPECT_EQ(writer_.bytes(), before);
}

TEST_F(Codec, RefusesToAppendAPayloadOutsideItsLimits) {
  EXPECT_FALSE(writer_.append_data(1, 0, {}));
  EXPECT_FALSE(writer_.append_data(1, 0, pattern(kInlinePayloadBytesMax + 1)));
  EXPECT_TRUE(writer_.append_data(1, 0, pattern(kInlinePayloadBytesMax)));
  EXPECT_FALSE(writer_.append_data_header(1, 0, kInlinePayloadBytesMax));
  EXPECT_FALSE(writer_.append_data_header(1, 0, kDataPayloadBytesMax + 1));
}

TEST_F(Codec, NeverWritesBehindItsSpanAndSaysWhenItIsFull) {
  for (std::size_t size = 0; size <= 200; ++size) {
    std::vector<std::byte> memory(size + 64, std::byte{0xaa});
    TransferWriter writer({memory.data(), size});
    std::size_t appended = 0;
    while (writer.append_data(1, appended, pattern(3))) ++appended;
    EXPECT_EQ(appended, size < 8 ? 0 : (size - 8) / 32) << size;
    EXPECT_LE(writer.bytes(), size);
    const std::size_t bytes = writer.finish(0);
    EXPECT_EQ(bytes, size < 8 ? 0 : 8 + appended * 32) << size;
    for (std::size_t i = bytes; i < memory.size(); ++i) ASSERT_EQ(memory[i], std::byte{0xaa});
  }
}

TEST_F(Codec, UsesNoMoreThanTheInlineLimitOfALargerSpan) {
  ASSERT_TRUE(writer_.append(MessageType::kCloseConnection, 0, CloseCode::kFin,
                             CloseConnectionBody{1, 0}));  // 24 bytes, all others 16
  while (writer_.append(MessageType::kLeaveService, 0, CloseCode::kNone, ServiceBody{1, 1})) {
  }
  EXPECT_EQ(writer_.room(), 0u);
  TransferReader reader = finish();
  EXPECT_EQ(inline_bytes_, kTransferInlineBytesMax);
  ASSERT_TRUE(reader.begin().ok());
  std::size_t count = 0;
  while (reader.next(message_).ok()) ++count;
  EXPECT_EQ(count, 1 + (kTransferInlineBytesMax - 8 - 24) / 16);
}

TEST_F(Codec, ASpentWriterTakesNothing) {
  (void)writer_.finish(0);
  EXPECT_FALSE(writer_.append_data(1, 0, pattern(1)));
  EXPECT_EQ(writer_.finish(0), 0u);
  TransferWriter none;
  EXPECT_FALSE(none.append_data(1, 0, pattern(1)));
}

TEST_F(Codec, CarriesTheTextOfAnErrorAndMakesItPrintable) {
  const std::string text = "bad \x1b[2J\xc3\xa4";
  ASSERT_TRUE(writer_.append(
      MessageType::kError, 0, CloseCode::kProtocolError,
      std::array<std::uint32_t, 2>{4, static_cast<std::uint32_t>(text.size())}.data(),
      sizeof(ErrorBody), std::as_bytes(std::span(text))));
  TransferReader reader = finish();
  ASSERT_TRUE(reader.begin().ok());
  ASSERT_TRUE(reader.next(message_).ok());
  EXPECT_EQ(message_.error.request, 4u);
  EXPECT_EQ(message_.payload_bytes, text.size());
  EXPECT_EQ(error_text(message_), "bad ?[2J??");
}

TEST_F(Codec, StopsForGoodAtTheFirstBrokenRule) {
  ASSERT_TRUE(writer_.append(MessageType::kCredit, 0, CloseCode::kNone, CreditBody{1, 0, 0}));
  ASSERT_TRUE(writer_.append(MessageType::kCredit, 1, CloseCode::kNone, CreditBody{1, 0, 0}));
  ASSERT_TRUE(writer_.append(MessageType::kCredit, 0, CloseCode::kNone, CreditBody{1, 0, 0}));
  TransferReader reader = finish();
  ASSERT_TRUE(reader.begin().ok());
  EXPECT_TRUE(reader.next(message_).ok());
  EXPECT_EQ(reader.next(message_).code(), Code::kProtocol);
  EXPECT_EQ(reader.next(message_).code(), Code::kProtocol);
}

TEST(WireAddress, ComesBackAsItWasSent) {
  for (const char* text : {"10.77.0.10:80", "0.0.0.0:1", "[fd77::1]:65535", "[::]:443"}) {
    const SocketAddress address = *SocketAddress::parse(text);
    const auto back = from_wire(to_wire(address));
    ASSERT_TRUE(back.ok()) << text;
    EXPECT_EQ(*back, address) << text;
  }
  EXPECT_FALSE(from_wire(to_wire(SocketAddress{})).ok());
}

TEST(Names, EveryTypeAndCodeHasOneOfItsOwn) {
  std::set<std::string> names;
  for (int type = 1; type <= 12; ++type) {
    EXPECT_TRUE(names.insert(message_type_name(static_cast<MessageType>(type))).second) << type;
  }
  for (int code = 0; code <= 15; ++code) {
    EXPECT_TRUE(names.insert(close_code_name(static_cast<CloseCode>(code))).second) << code;
  }
  EXPECT_EQ(names.count("unknown"), 0u);
  EXPECT_STREQ(message_type_name(MessageType{99}), "unknown");
  EXPECT_STREQ(close_code_name(CloseCode{999}), "unknown");
}

}  // namespace
}  // namespace sanproxy::wire
