// A port that goes down, and one that loses its addresses. For the guest alone: it takes the
// machine's network away.
//
// Soft-RoCE does not get over the first with connections alive (its own management queue pair stays
// broken), so the device is made anew afterwards; that waits for every process that has it open,
// so the channel lives in a child, and this process keeps away from RDMA.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "tests/lwproto/fabric/verbs/device_fixture.h"

namespace sanproxy::fabric::verbs::test {
namespace {

class VerbsPort : public VerbsDevice {
 protected:
  void SetUp() override {
    const char* interface = std::getenv("SANPROXY_VM_INTERFACE");
    const char* device = std::getenv("SANPROXY_VM_DEVICE");
    if (interface == nullptr || device == nullptr) GTEST_SKIP() << "not in the guest";
    interface_ = interface;
    device_ = device;
  }
  static bool run(const std::string& command) { return std::system(command.c_str()) == 0; }

  // In the child.
  void lose_the_port() {
    connect();
    const GatherRef ref{key_, 1000, 0};
    for (std::uint64_t i = 0; i < 10; ++i) ASSERT_TRUE(client_.send({}, {&ref, 1}, i).ok());
    ASSERT_TRUE(run("ip link set " + interface_ + " down"));
    ASSERT_TRUE(run_until([&] { return client_.disconnected && server_.disconnected; }));
    EXPECT_EQ(client_.sent.size(), 10u);
    EXPECT_STREQ(client_.disconnected->text(), "the port went down");
    EXPECT_EQ(client_.disconnected->code(), Code::kDisconnected);
    EXPECT_EQ(server_.disconnected->code(), Code::kDisconnected);
    for (const auto& received : server_.received) server_.endpoint->release(received.loan);
  }

  // In the child. Nothing tells a channel of this: it is seen by whoever sends.
  void lose_the_addresses() {
    connect();
    ASSERT_TRUE(run("ip address flush dev " + interface_));
    const GatherRef ref{key_, 1000, 0};
    for (std::uint64_t i = 0; i < 10; ++i) ASSERT_TRUE(client_.send({}, {&ref, 1}, i).ok());
    ASSERT_TRUE(server_.send(pattern(64, 2), {}, 0).ok());
    ASSERT_TRUE(run_until([&] { return client_.disconnected && server_.disconnected; }));
    EXPECT_EQ(client_.sent.size(), 10u);
    EXPECT_EQ(client_.disconnected->code(), Code::kDisconnected);
    EXPECT_EQ(server_.disconnected->code(), Code::kDisconnected);
    for (const auto& received : server_.received) server_.endpoint->release(received.loan);
  }

  // In the child. The kernel waits with the removal until the listener has let go of the device.
  void lose_the_device() {
    VerbsCounters counters;
    auto server = make_verbs_fabric({.counters = &counters});
    ASSERT_TRUE(server.ok());
    auto memory = buffer::MemoryRegion::create("device-removal", 1 << 20);
    ASSERT_TRUE(memory.ok());
    EndpointOptions serving = options();
    serving.send_regions.push_back(&*memory);
    auto listening = (*server)->listen(address_, serving);
    ASSERT_TRUE(listening.ok()) << listening.status().to_string();
    const std::string removed = "/tmp/removed-" + device_;
    ASSERT_TRUE(run("(rdma link delete " + device_ + " && touch " + removed + ") &"));
    ASSERT_TRUE(
        fabric::test::eventually({server->get()}, [&] { return counters.lost_listeners == 1; }));
    ASSERT_TRUE(fabric::test::eventually({server->get()},
                                         [&] { return ::access(removed.c_str(), F_OK) == 0; }));
    ASSERT_TRUE(run("rdma link add " + device_ + " type rxe netdev " + interface_));
    auto client = make_verbs_fabric();
    ASSERT_TRUE(client.ok());
    EXPECT_TRUE(fabric::test::eventually({server->get()}, [&] {
      return fabric::test::connect_sides(**server, **listening, **client, options(), server_,
                                         client_);
    }));
    EXPECT_EQ(counters.lost_listeners, 1u);
    client_ = Side();
    server_ = Side();
  }
  template <typename Act>
  static int in_child(const Act& act) {
    const pid_t child = ::fork();
    if (child == 0) {
      act();
      ::_exit(testing::Test::HasFailure() ? 1 : 0);
    }
    int status = -1;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return status;
  }

  std::string interface_;
  std::string device_;
};

TEST_F(VerbsPort, ThatIsRemovedWithItsDeviceIsListenedAtAgainWhenItIsBack) {
  // The library notices that a device has gone only where there is another.
  ASSERT_TRUE(run("rdma link add spare type rxe netdev " + interface_ + "-peer"));
  EXPECT_EQ(in_child([this] { lose_the_device(); }), 0);
  EXPECT_TRUE(run("rdma link delete spare"));
}

TEST_F(VerbsPort, ThatLosesItsAddressesEndsItsChannelsAndGivesEverythingBack) {
  const std::string saved = "/tmp/addresses-of-" + interface_;
  ASSERT_TRUE(run("ip address save dev " + interface_ + " > " + saved));
  EXPECT_EQ(in_child([this] { lose_the_addresses(); }), 0);
  EXPECT_TRUE(run("ip address restore < " + saved));
}

TEST_F(VerbsPort, ThatGoesDownEndsItsChannelsAndGivesEverythingBack) {
  EXPECT_EQ(in_child([this] { lose_the_port(); }), 0);
  EXPECT_TRUE(run("ip link set " + interface_ + " up"));
  EXPECT_TRUE(run("rdma link delete " + device_));
  EXPECT_TRUE(run("rdma link add " + device_ + " type rxe netdev " + interface_));
}

}  // namespace
}  // namespace sanproxy::fabric::verbs::test
