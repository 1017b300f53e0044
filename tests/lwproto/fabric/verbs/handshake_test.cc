// The bytes of a verbs handshake, good and bad.
#include "lwproto/fabric/verbs/handshake.h"

#include <algorithm>
#include <string>

#include "gtest/gtest.h"

namespace sanproxy::fabric::verbs {
namespace {

using Bytes = std::vector<std::byte>;

CmHeader header() {
  CmHeader out;
  out.receive_depth = 512;
  out.inline_bytes_max = 8192;
  out.transfer_bytes_max = 73'728;
  out.service_level = 3;
  out.traffic_class = 184;
  out.queue_pairs = 4;
  out.queue_pair = 3;
  out.token.bytes.fill(std::byte{0xa5});
  return out;
}

TEST(VerbsCmHeader, ComesBackAsItWasSentWithThePaddingOfTheConnectionManager) {
  const auto encoded = encode(header());
  Bytes padded(encoded.begin(), encoded.end());
  padded.resize(kCmBytesMax);
  const auto decoded = decode_cm_header(padded);
  ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
  EXPECT_EQ(*decoded, header());
}

TEST(VerbsCmHeader, IsLittleEndianOnTheWire) {
  const auto encoded = encode(header());
  EXPECT_EQ(encoded[0], std::byte{0x73});
  EXPECT_EQ(encoded[3], std::byte{0x76});
  EXPECT_EQ(encoded[4], std::byte{2});
  EXPECT_EQ(encoded[8], std::byte{0x00});
  EXPECT_EQ(encoded[9], std::byte{0x02});
}

TEST(VerbsCmHeader, EveryTruncationIsRefused) {
  const auto encoded = encode(header());
  for (std::size_t n = 0; n < kCmHeaderBytesMin; ++n) {
    EXPECT_EQ(decode_cm_header(std::span(encoded).first(n)).status().code(), Code::kProtocol) << n;
  }
}

TEST(VerbsCmHeader, OfAPeerThatKnowsOfNoFurtherQueuePairsIsForOne) {
  auto encoded = encode(header());
  encoded[kCmHeaderBytesMin - 1] = std::byte{0};
  const auto decoded = decode_cm_header(std::span(encoded).first(kCmHeaderBytesMin));
  ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
  EXPECT_EQ(decoded->queue_pairs, 1);
  EXPECT_EQ(decoded->queue_pair, 0);
  EXPECT_EQ(decoded->token, ChannelToken());
}

TEST(VerbsChannelToken, IsAnotherOneForEachChannelAndNeverThatOfNone) {
  const auto one = make_channel_token();
  const auto other = make_channel_token();
  ASSERT_TRUE(one.ok() && other.ok());
  EXPECT_TRUE(same_channel(*one, *one));
  EXPECT_FALSE(same_channel(*one, *other));
  EXPECT_FALSE(same_channel({}, {}));
  ChannelToken almost = *one;
  almost.bytes.back() ^= std::byte{1};
  EXPECT_FALSE(same_channel(*one, almost));
}

TEST(VerbsCmHeader, AnotherProtocolOrVersionIsRefusedAsThat) {
  auto other_protocol = encode(header());
  other_protocol[1] ^= std::byte{1};
  EXPECT_EQ(decode_cm_header(other_protocol).status().code(), Code::kProtocol);
  auto other_version = encode(header());
  other_version[4] = std::byte{9};
  EXPECT_EQ(decode_cm_header(other_version).status().code(), Code::kUnsupported);
}

TEST(VerbsCmHeader, ImpossibleNumbersAreRefused) {
  const auto refused = [](auto change) {
    CmHeader changed = header();
    change(changed);
    return decode_cm_header(encode(changed)).status().code() == Code::kProtocol;
  };
  EXPECT_TRUE(refused([](CmHeader& h) { h.receive_depth = 0; }));
  EXPECT_TRUE(refused([](CmHeader& h) { h.inline_bytes_max = 0; }));
  EXPECT_TRUE(refused([](CmHeader& h) { h.transfer_bytes_max = h.inline_bytes_max - 1; }));
  EXPECT_TRUE(refused([](CmHeader& h) {
    h.inline_bytes_max = kInlineBytesLimit + 1;
    h.transfer_bytes_max = 1u << 30;
  }));
  EXPECT_TRUE(refused([](CmHeader& h) { h.service_level = 16; }));
  EXPECT_TRUE(refused([](CmHeader& h) { h.service_level = -2; }));
  EXPECT_TRUE(refused([](CmHeader& h) { h.traffic_class = 256; }));
  EXPECT_TRUE(refused([](CmHeader& h) { h.queue_pairs = kQueuePairsMax + 1; }));
  EXPECT_TRUE(refused([](CmHeader& h) { h.queue_pair = h.queue_pairs; }));
  EXPECT_FALSE(refused([](CmHeader&) {}));
}

TEST(VerbsImmediate, KeepsKindAndNumber) {
  const std::uint32_t immediate = make_immediate(Kind::kReferenced, 8192);
  EXPECT_EQ(kind_of(immediate), Kind::kReferenced);
  EXPECT_EQ(number_of(immediate), 8192u);
}

LinkParameters asked() {
  LinkParameters link;
  link.window_bytes = 1u << 20;
  link.quality = QualityClass::kVariable;
  link.rate_bytes_per_s = 1'000'000;
  link.peak_bytes_per_s = 2'000'000;
  link.burst_bytes = 65'536;
  link.dscp = 46;
  link.service_level = 4;
  link.traffic_class = 46 << 2;
  link.queue_pairs = 1;
  return link;
}

TEST(VerbsHello, CarriesTheLinkAndThePrivateData) {
  const Bytes private_data(kPrivateDataBytesMax, std::byte{0x5a});
  Bytes wire(kHandshakeBytesMax);
  wire.resize(encode_hello(asked(), private_data, wire));
  const auto hello = decode_hello(wire);
  ASSERT_TRUE(hello.ok()) << hello.status().to_string();
  EXPECT_EQ(hello->link, asked());
  EXPECT_EQ(hello->private_data, private_data);
}

TEST(VerbsHello, AWrongLengthIsRefused) {
  Bytes wire(kHandshakeBytesMax);
  wire.resize(encode_hello(asked(), Bytes(10), wire));
  for (std::size_t n = 0; n < wire.size(); ++n) {
    EXPECT_EQ(decode_hello(std::span(wire).first(n)).status().code(), Code::kProtocol) << n;
  }
  wire.push_back(std::byte{0});
  EXPECT_EQ(decode_hello(wire).status().code(), Code::kProtocol);
  wire.assign(kHelloHeaderBytes + kPrivateDataBytesMax + 1, std::byte{0});
  wire[0] = std::byte{0x01};
  wire[1] = std::byte{0x04};
  EXPECT_EQ(decode_hello(wire).status().code(), Code::kProtocol);
}

TEST(VerbsHello, AnyBytesAreAHelloOrAStatus) {
  Bytes wire(kHelloHeaderBytes);
  for (unsigned seed = 0; seed < 10'000; ++seed) {
    unsigned x = seed * 2654435761u + 1;
    for (std::byte& b : wire) {
      x = x * 1664525u + 1013904223u;
      b = static_cast<std::byte>(x >> 24);
    }
    // A possible length, so that the other fields are looked at.
    std::fill(wire.begin(), wire.begin() + 4, std::byte{0});
    const auto hello = decode_hello(wire);
    if (hello.ok()) {
      const std::uint32_t field = refused_field(hello->link);
      EXPECT_EQ(field == 0, check_asked_link(hello->link).ok());
    }
  }
}

TEST(VerbsAnswer, CarriesItsPrivateDataAndNothingElse) {
  const Bytes private_data(900, std::byte{7});
  Bytes wire(kHandshakeBytesMax);
  wire.resize(encode_answer(private_data, wire));
  const auto answer = decode_answer(wire);
  ASSERT_TRUE(answer.ok());
  EXPECT_EQ(*answer, private_data);
  wire.pop_back();
  EXPECT_EQ(decode_answer(wire).status().code(), Code::kProtocol);
  EXPECT_EQ(decode_answer({}).status().code(), Code::kProtocol);
}

TEST(VerbsLink, WhatOnlyTcpHasIsRefusedByName) {
  const auto text_after = [](auto change) {
    LinkParameters link;
    change(link);
    const Status status = check_asked_link(link);
    EXPECT_EQ(status.code(), Code::kUnsupported);
    return std::string(status.text()) + " | " + field_refused_by_peer(refused_field(link)).text();
  };
  const auto expect_named = [](const std::string& texts, const std::string& name) {
    EXPECT_NE(texts.find(name), std::string::npos) << texts;
    EXPECT_NE(texts.rfind(name), texts.find(name)) << texts;
  };
  expect_named(text_after([](LinkParameters& l) { l.parallel_streams = 4; }), "streams");
  expect_named(text_after([](LinkParameters& l) { l.skip_slow_start = true; }), "skip_slow_start");
  expect_named(text_after([](LinkParameters& l) { l.congestion[0] = 'x'; }), "congestion");
  expect_named(text_after([](LinkParameters& l) { l.priority = 1; }), "priority");
}

TEST(VerbsLink, AContradictionIsRefused) {
  LinkParameters link = asked();
  EXPECT_TRUE(check_asked_link(link).ok());
  link.traffic_class = 8;
  EXPECT_EQ(check_asked_link(link).code(), Code::kInvalidArgument);
  EXPECT_NE(refused_field(link), 0u);
}

TEST(VerbsLink, TheTrafficClassComesFromWhateverSaysIt) {
  LinkParameters link;
  EXPECT_EQ(traffic_class_of(link), -1);
  link.quality = QualityClass::kUnspecified;
  EXPECT_EQ(traffic_class_of(link), 4);
  link.dscp = 46;
  EXPECT_EQ(traffic_class_of(link), 184);
  link.traffic_class = 186;
  EXPECT_EQ(traffic_class_of(link), 186);
}

}  // namespace
}  // namespace sanproxy::fabric::verbs
