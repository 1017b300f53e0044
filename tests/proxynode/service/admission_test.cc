#include "lwproto/auth/admission.h"

#include "tests/proxynode/service/service_fixture.h"

namespace sanproxy::service::testing {
namespace {

AllowList list(std::initializer_list<const char*> entries) {
  AllowList out;
  for (const char* text : entries) {
    const auto entry = AllowEntry::parse(text);
    EXPECT_TRUE(entry.ok()) << text;
    out.push_back(*entry);
  }
  return out;
}

TEST(Admission, AnEntryIsOneOfFourForms) {
  EXPECT_EQ(AllowEntry::parse("any")->kind, AllowEntry::Kind::kAny);
  EXPECT_EQ(AllowEntry::parse("uid:0")->uid, 0u);
  EXPECT_EQ(AllowEntry::parse("uid:4294967295")->uid, 4294967295u);
  EXPECT_EQ(AllowEntry::parse("key:web")->name, "web");
  EXPECT_EQ(AllowEntry::parse("cert:app1.example")->name, "app1.example");
  EXPECT_EQ(AllowEntry::parse("cert:uid:33")->kind, AllowEntry::Kind::kCertificate);
  for (const char* text :
       {"", "any ", "ANY", "uid", "uid:", "uid: 33", "uid:+33", "uid:-1", "uid:33 ", "uid:0x21",
        "uid:4294967296", "uid:-18446744073709551583", "uid:www", "key:", "cert:", "web", "33"}) {
    EXPECT_EQ(AllowEntry::parse(text).status().code(), Code::kInvalidArgument) << text;
  }
}

TEST(Admission, OneMatchingEntryIsEnough) {
  const AllowList allow = list({"uid:33", "key:web", "cert:app1.example"});
  EXPECT_TRUE(allows(allow, {33, "", {}}));
  EXPECT_TRUE(allows(allow, {1000, "", {"db", "web"}}));
  EXPECT_TRUE(allows(allow, {-1, "app1.example", {}}));
  EXPECT_FALSE(allows(allow, {1000, "app2.example", {"db"}}));
  EXPECT_TRUE(allows(list({"any"}), {-1, "", {}}));
}

TEST(Admission, WhatIsNotKnownMatchesNothing) {
  EXPECT_FALSE(allows({}, {0, "app1.example", {"web"}})) << "an empty list allows nobody";
  const AllowList allow = list({"uid:4294967295", "key:web", "cert:app1.example"});
  EXPECT_FALSE(allows(allow, {-1, "", {}})) << "-1 is no user";
  EXPECT_FALSE(allows(allow, {-1, "", {""}}));
  AllowEntry nameless;
  nameless.kind = AllowEntry::Kind::kCertificate;
  EXPECT_FALSE(nameless.matches({-1, "", {}})) << "no certificate is not a nameless one";
}

TEST(Admission, NamesAreComparedAsTheyAreWritten) {
  const AllowList allow = list({"key:web", "cert:app1.example"});
  EXPECT_FALSE(allows(allow, {-1, "APP1.example", {}}));
  EXPECT_FALSE(allows(allow, {-1, "app1.example.evil", {"we", "web2"}}));
  EXPECT_FALSE(allows(allow, {-1, "web", {"app1.example"}})) << "a key is no certificate";
}

// --- the table

Policy policy(const char* where, std::initializer_list<const char*> allow) {
  return {.address = address(where), .allow = list(allow)};
}

Code join(ServiceTable& table, const char* where, const Credentials& who,
          const AllowList& otherwise = anybody()) {
  static NodeId next = 100;
  JoinRequest ask = request(next++, address(where));
  ask.who = who;
  ask.otherwise = otherwise;
  return table.join(ask).status().code();
}

TEST(Admission, TheServicesOwnListStandsBeforeTheFabrics) {
  ServiceTable table({policy("10.77.0.10:80", {"key:web"})}, 10);
  const Credentials with_key{-1, "", {"web"}};
  EXPECT_EQ(join(table, "10.77.0.10:80", with_key, {}), Code::kOk);
  EXPECT_EQ(join(table, "10.77.0.10:80", {}, anybody()), Code::kPermission);
  EXPECT_EQ(join(table, "10.77.0.10:81", with_key, {}), Code::kPermission);
  EXPECT_EQ(join(table, "10.77.0.10:81", with_key, list({"key:web"})), Code::kOk);
  EXPECT_EQ(join(table, "10.77.0.10:81", {}, list({"key:web"})), Code::kPermission);
}

TEST(Admission, APolicyWithoutAListLeavesItToTheFabric) {
  ServiceTable table({Policy{.address = kWeb, .balance = Balance::kWeighted}}, 10);
  EXPECT_EQ(join(table, "10.77.0.10:80", {}, {}), Code::kPermission);
  EXPECT_EQ(join(table, "10.77.0.10:80", {}, anybody()), Code::kOk);
}

TEST(Admission, JoiningEveryAddressTakesWhatEachOfThemTakes) {
  ServiceTable table(
      {policy("10.77.0.10:80", {"uid:33", "uid:34"}), policy("10.77.0.11:80", {"uid:33"}),
       policy("10.77.0.12:81", {"uid:35"}), policy("[fd77::1]:80", {"uid:36"})},
      10);
  EXPECT_EQ(join(table, "0.0.0.0:80", {1000, "", {}}), Code::kPermission);
  EXPECT_EQ(join(table, "0.0.0.0:80", {34, "", {}}), Code::kPermission);
  EXPECT_EQ(join(table, "0.0.0.0:80", {33, "", {}}), Code::kOk);
  EXPECT_EQ(join(table, "0.0.0.0:82", {1000, "", {}}), Code::kOk) << "another port";
  EXPECT_EQ(join(table, "[::]:81", {1000, "", {}}), Code::kOk) << "another family";
}

TEST(Admission, AListForEveryAddressHoldsForThoseWithoutOne) {
  ServiceTable table({policy("0.0.0.0:80", {"uid:33"}), policy("10.77.0.11:80", {"uid:34"})}, 10);
  EXPECT_EQ(join(table, "10.77.0.10:80", {1000, "", {}}), Code::kPermission);
  EXPECT_EQ(join(table, "10.77.0.10:80", {33, "", {}}), Code::kOk);
  EXPECT_EQ(join(table, "10.77.0.11:80", {33, "", {}}), Code::kPermission);
  EXPECT_EQ(join(table, "10.77.0.11:80", {34, "", {}}), Code::kOk);
  EXPECT_EQ(join(table, "10.77.0.10:81", {1000, "", {}}), Code::kOk) << "another port";
  EXPECT_EQ(join(table, "[fd77::1]:80", {1000, "", {}}), Code::kOk) << "another family";
}

}  // namespace
}  // namespace sanproxy::service::testing
