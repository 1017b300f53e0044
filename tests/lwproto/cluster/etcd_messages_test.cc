#include "lwproto/cluster/etcd_messages.h"

#include <gtest/gtest.h>

#include <random>

namespace sanproxy::cluster {
namespace {

TEST(EtcdMessages, Base64IsThatOfRfc4648) {
  EXPECT_EQ(to_base64(""), "");
  EXPECT_EQ(to_base64("f"), "Zg==");
  EXPECT_EQ(to_base64("fo"), "Zm8=");
  EXPECT_EQ(to_base64("foobar"), "Zm9vYmFy");
}

TEST(EtcdMessages, AnyBytesComeBackFromBase64) {
  std::mt19937 random(7);
  for (std::size_t size = 0; size < 200; ++size) {
    std::string bytes(size, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    const auto back = from_base64(to_base64(bytes));
    ASSERT_TRUE(back.ok());
    EXPECT_EQ(*back, bytes);
  }
}

TEST(EtcdMessages, WhatIsNotBase64IsRefused) {
  for (const char* text : {"Z", "Zg=", "Zg", "Z===", "Zm 8", "Zg==Zg==", "Zm8\n"}) {
    EXPECT_FALSE(from_base64(text).ok()) << text;
  }
}

TEST(EtcdMessages, TheEndOfAPrefixIsTheFirstKeyBehindIt) {
  EXPECT_EQ(prefix_end("/a/"), "/a0");
  EXPECT_EQ(prefix_end("a\xff"), "b");
  EXPECT_EQ(prefix_end("\xff\xff"), std::string(1, '\0')) << "to the end of all keys";
}

TEST(EtcdMessages, NumbersAreStringsOrNumbers) {
  EXPECT_EQ(*read_number(nlohmann::json{{"n", "9223372036854775807"}}, "n"), INT64_MAX);
  EXPECT_EQ(*read_number(nlohmann::json{{"n", 5}}, "n"), 5);
  EXPECT_EQ(*read_number(nlohmann::json::object(), "n"), 0);
  for (const char* text : {"", "5 ", "x", "9223372036854775808"}) {
    EXPECT_FALSE(read_number(nlohmann::json{{"n", text}}, "n").ok()) << text;
  }
}

TEST(EtcdMessages, MalformedAnswersAreErrorsAndNothingElse) {
  for (const char* text :
       {"[]", "{}", R"({"header":1})", R"({"header":{"revision":"x"}})",
        R"({"header":{"revision":"1"},"kvs":{}})", R"({"header":{"revision":"1"},"kvs":[1]})",
        R"({"header":{"revision":"1"},"kvs":[{"key":"?"}]})"}) {
    EXPECT_FALSE(read_range(nlohmann::json::parse(text)).ok()) << text;
  }
  for (const char* line :
       {"", "x", "[]", "{}", R"({"result":1})", R"({"result":{"header":{}, "events":1}})",
        R"({"result":{"header":{"revision":"1"},"events":[{}]}})",
        R"({"result":{"header":{"revision":"1"},"events":[{"kv":{"key":5}}]}})"}) {
    EXPECT_FALSE(read_watch(line).ok()) << line;
  }
}

TEST(EtcdMessages, ACompactedWatchSaysFromWhereItIsGone) {
  const auto answer = read_watch(
      R"({"result":{"header":{"revision":"9"},"canceled":true,"compact_revision":"7"}})");
  ASSERT_TRUE(answer.ok());
  EXPECT_TRUE(answer->canceled);
  EXPECT_EQ(answer->compact_revision, 7);
}

}  // namespace
}  // namespace sanproxy::cluster
