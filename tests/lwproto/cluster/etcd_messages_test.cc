#include "lwproto/cluster/etcd_messages.h"

#include <gtest/gtest.h>

#include <random>

#include "lwproto/cluster/bounded_json.h"

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
  for (const char* text : {"", "5 ", "x", "-1", "9223372036854775808"}) {
    EXPECT_FALSE(read_number(nlohmann::json{{"n", text}}, "n").ok()) << text;
  }
  EXPECT_FALSE(read_number(nlohmann::json{{"n", -1}}, "n").ok());
  EXPECT_FALSE(read_number(nlohmann::json{{"n", UINT64_MAX}}, "n").ok());
  EXPECT_FALSE(read_number(nlohmann::json{{"n", 1.5}}, "n").ok());
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

nlohmann::json with_value(const std::string& key, const std::string& value) {
  return {{"header", {{"revision", "1"}}},
          {"kvs", {{{"key", to_base64(key)}, {"value", to_base64(value)}}}}};
}

TEST(EtcdMessages, AValueThatIsTooLongIsNotKept) {
  const auto answer = read_range(with_value("/k", std::string(11, 'x')), 10);
  ASSERT_TRUE(answer.ok());
  EXPECT_EQ(answer->values[0].key, "/k");
  EXPECT_EQ(answer->values[0].value, "");
  EXPECT_EQ(answer->values[0].fault, Fault::kValueTooLong);
  EXPECT_EQ(read_range(with_value("/k", std::string(10, 'x')), 10)->values[0].fault, Fault::kNone);
}

TEST(EtcdMessages, AKeyThatIsTooLongIsCutAndSaysSo) {
  const auto answer = read_range(with_value(std::string(kKeyBytesMax + 1, 'k'), "v"));
  ASSERT_TRUE(answer.ok());
  EXPECT_EQ(answer->values[0].fault, Fault::kKeyTooLong);
  EXPECT_LT(answer->values[0].key.size(), kKeyBytesMax);
  EXPECT_EQ(answer->values[0].value, "");
}

TEST(EtcdMessages, ARevisionThatCannotBeCountedOnFromIsRefused) {
  auto answer = with_value("/k", "v");
  answer["kvs"][0]["mod_revision"] = "9223372036854775807";
  EXPECT_FALSE(read_range(answer).ok());
  answer["kvs"][0]["mod_revision"] = "7";
  EXPECT_TRUE(read_range(answer).ok());
  answer["header"]["revision"] = "9223372036854775807";
  EXPECT_FALSE(read_range(answer).ok());
}

TEST(EtcdMessages, AnAnswerThatIsNestedTooDeeplyIsRefused) {
  const std::string deep(1'000'000, '[');
  EXPECT_FALSE(read_watch(R"({"result":)" + deep).ok());
  EXPECT_FALSE(read_watch(R"({"result":)" + deep + std::string(deep.size(), ']') + "}").ok());
}

TEST(EtcdMessages, EtcdsOwnWordsAreOnePrintableShortLine) {
  const std::string words = "no\nleader\x1b" + std::string(100'000, 'x');
  for (const nlohmann::json& error : {nlohmann::json(words), nlohmann::json{{"message", words}}}) {
    const std::string text = error_text({{"error", error}});
    EXPECT_TRUE(text.starts_with("no\\x0aleader\\x1bxxx")) << text;
    EXPECT_LE(text.size(), kShownBytesMax + 10);
  }
}

TEST(BoundedJson, DepthIsOfBracketsOutsideOfStrings) {
  EXPECT_FALSE(nested_deeper("[{}]", 2));
  EXPECT_TRUE(nested_deeper("[{\"a\":[]}]", 2));
  EXPECT_FALSE(nested_deeper(R"(["[[[[\"[[[[", [], []])", 2));
  EXPECT_FALSE(nested_deeper("]]]][[", 2));
  EXPECT_FALSE(parse_bounded("[[1]]", 2).is_discarded());
  EXPECT_TRUE(parse_bounded("[[[1]]]", 2).is_discarded());
  EXPECT_TRUE(parse_bounded("\"\\", 2).is_discarded());
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
