#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <functional>
#include <string>

#include "lwproto/wire/codec.h"

namespace sanproxy::wire {
namespace {

HelloBody good_hello() {
  HelloBody hello{};
  hello.magic = kMagic;
  hello.version = kVersion;
  hello.epoch = 0x1234'5678'9abc'def0;
  hello.credits_initial = 512;
  hello.credits_reserved = 32;
  hello.stream_window_bytes = 1 << 20;
  hello.streams_max = 1000;
  std::memcpy(hello.node_name, "node-1", 6);
  return hello;
}

Result<HelloBody> decode(const HelloBody& hello) {
  std::array<std::byte, sizeof(HelloBody)> bytes{};
  encode_hello(hello, bytes);
  return decode_hello(bytes);
}

Result<HelloBody> decode_name(std::string_view name) {
  HelloBody hello = good_hello();
  std::memset(hello.node_name, 0, sizeof(hello.node_name));
  std::memcpy(hello.node_name, name.data(), name.size());
  return decode(hello);
}

TEST(Hello, ComesBackAsItWasSent) {
  const HelloBody hello = good_hello();
  const auto back = decode(hello);
  ASSERT_TRUE(back.ok()) << back.status().to_string();
  EXPECT_EQ(std::memcmp(&*back, &hello, sizeof(hello)), 0);
}

TEST(Hello, StartsWithItsMagicInReadableLetters) {
  std::array<std::byte, sizeof(HelloBody)> bytes{};
  encode_hello(good_hello(), bytes);
  EXPECT_EQ(std::memcmp(bytes.data(), "SNXp", 4), 0);
}

TEST(Hello, HasExactlyOneLength) {  // H1
  std::array<std::byte, sizeof(HelloBody) + 1> bytes{};
  encode_hello(good_hello(), std::span(bytes).first<sizeof(HelloBody)>());
  for (std::size_t length = 0; length <= bytes.size(); ++length) {
    EXPECT_EQ(decode_hello(std::span(bytes).first(length)).ok(), length == sizeof(HelloBody))
        << length;
  }
}

TEST(Hello, OfAnotherVersionIsUnsupportedAndNotMalformed) {  // H3
  HelloBody hello = good_hello();
  hello.version = kVersion + 1;
  hello.credits_initial = 0;  // whatever the rules of that version are
  EXPECT_EQ(decode(hello).status().code(), Code::kUnsupported);
}

TEST(Hello, IsRefusedWhenAFieldIsOutOfRange) {
  const struct {
    const char* rule;
    std::function<void(HelloBody&)> change;
  } cases[] = {
      {"H2", [](HelloBody& h) { h.magic ^= 1; }},
      {"H4", [](HelloBody& h) { h.role = 2; }},
      {"H4", [](HelloBody& h) { h.workers = kWorkersMax + 1; }},
      {"H5", [](HelloBody& h) { h.credits_initial = kCreditsMin - 1, h.credits_reserved = 0; }},
      {"H5", [](HelloBody& h) { h.credits_initial = kCreditsMax + 1; }},
      {"H6", [](HelloBody& h) { h.credits_reserved = h.credits_initial / 2 + 1; }},
      {"H7", [](HelloBody& h) { h.stream_window_bytes = kStreamWindowBytesMax + 1; }},
      {"H8", [](HelloBody& h) { h.streams_max = kStreamsMax + 1; }},
  };
  for (const auto& c : cases) {
    HelloBody hello = good_hello();
    c.change(hello);
    EXPECT_EQ(decode(hello).status().code(), Code::kProtocol) << c.rule;
  }
}

TEST(Hello, TakesTheLimitsThemselves) {
  HelloBody hello = good_hello();
  hello.credits_initial = kCreditsMin;
  hello.credits_reserved = kCreditsMin / 2;
  hello.stream_window_bytes = 0;
  hello.streams_max = 0;
  EXPECT_TRUE(decode(hello).ok());
  hello.credits_initial = kCreditsMax;
  hello.stream_window_bytes = kStreamWindowBytesMax;
  hello.streams_max = kStreamsMax;
  EXPECT_TRUE(decode(hello).ok());
}

TEST(Hello, TakesNamesInPrintableUtf8) {
  for (const std::string& name :
       {std::string(), std::string("a"), std::string("käse"), std::string("節點"),
        std::string("\xf0\x9f\x8c\x8d"), std::string("\xc2\xa0"), std::string("\xf4\x8f\xbf\xbf"),
        std::string("\xed\x9f\xbf"), std::string(64, 'x')}) {
    EXPECT_TRUE(decode_name(name).ok()) << name;
  }
}

TEST(Hello, RefusesNamesThatATerminalWouldChokeOn) {  // H9
  for (const std::string& name :
       {std::string("a\nb"), std::string("\x1b[2J"), std::string("\x7f"), std::string("a\0b", 3),
        std::string("\x80"), std::string("\xc3"), std::string("\xc3x"), std::string("\xc0\xaf"),
        std::string("\xc2\x9b"), std::string("\xe0\x80\xaf"), std::string("\xed\xa0\x80"),
        std::string("\xf4\x90\x80\x80"), std::string("\xf5\x80\x80\x80"), std::string("\xff"),
        std::string(63, 'x').append("\xc3")}) {
    EXPECT_EQ(decode_name(name).status().code(), Code::kProtocol) << name;
  }
}

}  // namespace
}  // namespace sanproxy::wire
