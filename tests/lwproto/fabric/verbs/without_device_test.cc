// What a host without RDMA, or without RDMA at that address, is told.
#include "gtest/gtest.h"
#include "lwproto/fabric/verbs/verbs_fabric.h"

namespace sanproxy::fabric {
namespace {

// RFC 5737: nobody's address, so no device has it.
constexpr const char* kNobodys = "verbs://192.0.2.1:7471";

TEST(VerbsWithoutDevice, AFabricCanBeMadeAndSlept) {
  auto fabric = make_verbs_fabric();
  ASSERT_TRUE(fabric.ok()) << fabric.status().to_string();
  EXPECT_STREQ((*fabric)->name(), "verbs");
  EXPECT_TRUE((*fabric)->arm());
  (*fabric)->disarm();
}

TEST(VerbsWithoutDevice, ListeningSaysThatThereIsNoDevice) {
  auto fabric = make_verbs_fabric();
  ASSERT_TRUE(fabric.ok());
  const auto listening = (*fabric)->listen(kNobodys, {});
  ASSERT_FALSE(listening.ok());
  EXPECT_EQ(listening.status().code(), Code::kUnsupported) << listening.status().to_string();
  EXPECT_NE(std::string(listening.status().text()).find("no RDMA device"), std::string::npos);
}

TEST(VerbsWithoutDevice, OtherAddressesAndImpossibleOptionsAreRefusedBeforeAnyDevice) {
  auto fabric = make_verbs_fabric();
  ASSERT_TRUE(fabric.ok());
  for (const char* address : {"shm:/x", "tcp://10.0.0.1:1", "verbs://10.0.0.1", "verbs:///x", ""}) {
    EXPECT_EQ((*fabric)->listen(address, {}).status().code(), Code::kInvalidArgument) << address;
    EXPECT_EQ((*fabric)->connect(address, {}, {}).status().code(), Code::kInvalidArgument)
        << address;
  }
  const auto refused = [&](auto change) {
    EndpointOptions options;
    change(options);
    return (*fabric)->listen("verbs://[fd77::1]:7471", options).status().code() ==
               Code::kInvalidArgument &&
           (*fabric)->connect("verbs://[fd77::1]:7471", {}, options).status().code() ==
               Code::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](EndpointOptions& o) { o.receive_depth = 0; }));
  EXPECT_TRUE(refused([](EndpointOptions& o) { o.send_depth = 0; }));
  EXPECT_TRUE(refused([](EndpointOptions& o) { o.inline_bytes_max = 0; }));
  EXPECT_TRUE(refused([](EndpointOptions& o) { o.inline_bytes_max = o.transfer_bytes_max + 1; }));
  EXPECT_TRUE(refused([](EndpointOptions& o) { o.transfer_bytes_max = o.inline_bytes_max = 64; }));
}

TEST(VerbsWithoutDevice, AParameterThatCannotBeHonouredIsNamedBeforeAnyDevice) {
  auto fabric = make_verbs_fabric();
  ASSERT_TRUE(fabric.ok());
  EndpointOptions options;
  options.link.parallel_streams = 4;
  const auto connecting = (*fabric)->connect(kNobodys, {}, options);
  EXPECT_EQ(connecting.status().code(), Code::kUnsupported);
  EXPECT_NE(std::string(connecting.status().text()).find("streams"), std::string::npos);
}

}  // namespace
}  // namespace sanproxy::fabric
