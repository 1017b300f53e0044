#include "lwproto/fabric/address.h"

#include "gtest/gtest.h"

namespace sanproxy::fabric {
namespace {

TEST(FabricAddress, EveryFormReadsAndPrintsTheSame) {
  for (const char* text : {"shm:/run/sanproxy/proxy.sock", "verbs://10.9.0.1:7471",
                           "tcp://10.9.0.1:7471", "tcp://[fd77::1]:7471"}) {
    auto address = FabricAddress::parse(text);
    ASSERT_TRUE(address.ok()) << text << ": " << address.status().to_string();
    EXPECT_EQ(address->to_string(), text);
  }
}

TEST(FabricAddress, AnythingElseIsRefused) {
  const std::string too_long = "shm:/" + std::string(107, 'x');
  const std::string with_nul("shm:/a\0b", 8);
  for (const std::string& text :
       {std::string(), std::string("shm"), std::string("shm:"), std::string("shm:/"),
        std::string("shm:relative"), std::string("shm:/folder/"), too_long, with_nul,
        std::string("tcp:10.0.0.1:1"), std::string("tcp://10.0.0.1"),
        std::string("tcp://10.0.0.1:65536"), std::string("tcp://fd77::1:80"),
        std::string("udp://10.0.0.1:1"), std::string("/run/x.sock")}) {
    auto address = FabricAddress::parse(text);
    EXPECT_FALSE(address.ok()) << text;
    EXPECT_EQ(address.status().code(), Code::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace sanproxy::fabric
