#include "lwproto/base/status.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <set>
#include <string>

namespace sanproxy {
namespace {

TEST(Status, IsOkWhenNothingWasSaid) {
  const Status status;
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), Code::kOk);
  EXPECT_EQ(status.to_string(), "ok");
}

TEST(Status, CarriesCodeAndText) {
  const Status status = Status::error(Code::kProtocol, "offset gap");
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), Code::kProtocol);
  EXPECT_EQ(status.sys_errno(), 0);
  EXPECT_EQ(status.to_string(), "protocol: offset gap");
}

TEST(Status, ExplainsTheErrnoOfASystemCall) {
  const Status status = Status::error(Code::kSystem, "open /dev/net/tun", EACCES);
  EXPECT_EQ(status.sys_errno(), EACCES);
  EXPECT_EQ(status.to_string(), "system: open /dev/net/tun (Permission denied)");
}

TEST(Status, AgainIsBackPressureAndNothingElse) {
  EXPECT_TRUE(Status::again().is_again());
  EXPECT_FALSE(Status::again().ok());
  EXPECT_FALSE(Status::error(Code::kExhausted, "full").is_again());
  EXPECT_FALSE(Status().is_again());
}

TEST(Status, EveryCodeHasANameOfItsOwn) {
  std::set<std::string> names;
  for (int code = 0; code <= static_cast<int>(Code::kSystem); ++code) {
    const std::string name = code_name(static_cast<Code>(code));
    EXPECT_NE(name, "unknown") << "code " << code;
    EXPECT_TRUE(names.insert(name).second) << name << " is there twice";
  }
  EXPECT_STREQ(code_name(static_cast<Code>(200)), "unknown");
}

TEST(Result, HoldsAValueOrTheReasonWhyNot) {
  Result<int> good = 7;
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(*good, 7);
  EXPECT_TRUE(good.status().ok());
  const Result<int> bad = Status::error(Code::kNotFound, "no such thing");
  EXPECT_FALSE(bad.ok());
  EXPECT_EQ(bad.status().code(), Code::kNotFound);
}

TEST(Result, MovesAValueThatCannotBeCopied) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(5);
  const std::unique_ptr<int> value = std::move(result).value();
  EXPECT_EQ(*value, 5);
}

}  // namespace
}  // namespace sanproxy
