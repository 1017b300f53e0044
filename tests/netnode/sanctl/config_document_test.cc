#include "netnode/sanctl/config_document.h"

#include <gtest/gtest.h>

#include "netnode/sanctl/options.h"

namespace sanproxy::sanctl {
namespace {

using nlohmann::json;

const json kDocument = json::parse(R"({
  "services": {"10.77.0.10:80": {"balance": "weighted"}},
  "proxies": {"p1": {"weight": 50}}})");

TEST(ConfigDocument, ADocumentIsItsKeysAndBack) {
  const Keys keys = keys_of(kDocument);
  EXPECT_EQ(keys, (Keys{{"config/proxy/p1", R"({"weight":50})"},
                        {"config/service/10.77.0.10:80", R"({"balance":"weighted"})"}}));
  EXPECT_EQ(document_of(keys), kDocument);
}

TEST(ConfigDocument, EveryErrorIsShownAtOnce) {
  try {
    (void)keys_of(json::parse(R"({"servises": {}, "proxies": 5,
      "services": {"10.77.0.10": {}, "10.77.0.10:80": {"balance": "magic"}, "10.0.0.1:1": {}}})"));
    FAIL() << "accepted";
  } catch (const Failure& failure) {
    const std::string text = failure.what();
    EXPECT_EQ(failure.exit_status(), kExitUsage);
    for (const char* part : {"unknown section \"servises\"", "proxies: expected an object",
                             "services/10.77.0.10: expected IP:PORT",
                             "services/10.77.0.10:80: balance: expected one of"}) {
      EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
    }
  }
}

TEST(ConfigDocument, ANameThatAnObjectHasTwiceIsRefused) {
  const auto error = [](const char* text) -> std::string {
    try {
      (void)parse_document(text, "all.json");
      return "accepted";
    } catch (const Failure& failure) {
      return failure.what();
    }
  };
  EXPECT_EQ(error(R"({"a": {"balance": 1, "balance": 2}})"),
            "all.json: \"balance\" is there twice");
  EXPECT_EQ(error(R"({"a": {"b": 1}, "c": [{"b": 1}, {"b": 1}], "b": 2})"), "accepted");
  EXPECT_TRUE(error("{\"a\":").starts_with("all.json: this is no JSON: parse error at line 1"))
      << error("{\"a\":");
  EXPECT_TRUE(error("{\"a\": 1e999}").starts_with("all.json: this is no JSON: number overflow"))
      << error("{\"a\": 1e999}");
}

TEST(ConfigDocument, DifferencesOfWhatOtherHandsWroteMoveNoCursor) {
  const Keys by_hand = {{"config/service/\x1b[2J", "\x1b[2J\x9b"},
                        {"config/service/a", "{\"b\":\"\xc2\x9b \x7f\"}"}};
  EXPECT_EQ(differences({}, by_hand),
            (std::vector<std::string>{R"(+ services/\x1b[2J: \x1b[2J\x9b)",
                                      R"(+ services/a: {"b":"\u009b \u007f"})"}));
}

TEST(ConfigDocument, DifferencesAreLinesOfWhatGoesAndComes) {
  const Keys before = keys_of(kDocument);
  Keys after = before;
  after.erase("config/proxy/p1");
  after["config/service/10.77.0.10:80"] = "{}";
  after["config/service/10.77.0.11:80"] = "{}";
  EXPECT_EQ(
      differences(before, after),
      (std::vector<std::string>{R"(- proxies/p1: {"weight":50})",
                                R"(- services/10.77.0.10:80: {"balance":"weighted"})",
                                "+ services/10.77.0.10:80: {}", "+ services/10.77.0.11:80: {}"}));
  EXPECT_TRUE(differences(before, before).empty());
}

TEST(ConfigDocument, APathNamesOneEntry) {
  EXPECT_EQ(key_of("services/10.77.0.10:80"), "config/service/10.77.0.10:80");
  EXPECT_EQ(key_of("proxies/p1"), "config/proxy/p1");
  for (const char* path : {"", "services", "services/", "service/10.0.0.1:80", "/proxies/p1"}) {
    EXPECT_THROW((void)key_of(path), Failure) << path;
  }
}

}  // namespace
}  // namespace sanproxy::sanctl
