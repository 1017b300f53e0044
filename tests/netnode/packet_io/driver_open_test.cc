// Opening an interface: what it sets up, and how it says no.
#include <array>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "tests/netnode/packet_io/kernel_side.h"

namespace sanproxy::packet_io::testing {
namespace {

InterfaceOptions options(const char* driver, const char* name) {
  InterfaceOptions result;
  result.driver = driver;
  result.name = name;
  return result;
}

class OpenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why_not;
    if (!NetNamespace::available(why_not)) {
      GTEST_SKIP() << "needs network namespaces and /dev/net/tun: " << why_not;
    }
    space = std::make_unique<NetNamespace>();
  }
  Result<std::unique_ptr<PacketIo>> open(const InterfaceOptions& what) {
    space->enter();
    auto result = open_interface(what);
    space->leave();
    return result;
  }
  std::string output(const std::string& command) {
    space->enter();
    FILE* pipe = ::popen(command.c_str(), "r");
    space->leave();
    std::string text;
    std::array<char, 512> line;
    while (::fgets(line.data(), line.size(), pipe) != nullptr) {
      text += line.data();
    }
    ::pclose(pipe);
    return text;
  }
  std::unique_ptr<NetNamespace> space;
};

TEST_F(OpenTest, ADeviceIsConfiguredAndGoesAwayWithItsOwner) {
  for (const char* driver : {"tun", "tap"}) {
    InterfaceOptions what = options(driver, "san7");
    what.mtu_bytes = 4000;
    what.addresses = {IpPrefix::parse("10.77.0.1/24").value(),
                      IpPrefix::parse("fd77::1/64").value()};
    {
      auto io = open(what);
      ASSERT_TRUE(io.ok()) << io.status().to_string();
      EXPECT_EQ((*io)->mtu_bytes(), 4000U);
      EXPECT_EQ((*io)->options().name, "san7");
      const std::string link = output("ip -o link show san7");
      EXPECT_NE(link.find("mtu 4000"), std::string::npos) << link;
      EXPECT_NE(link.find("qlen 10000"), std::string::npos) << link;
      EXPECT_NE(link.find("UP"), std::string::npos) << link;
      const std::string addresses = output("ip -o addr show san7 scope global");
      EXPECT_NE(addresses.find("10.77.0.1/24"), std::string::npos) << addresses;
      EXPECT_NE(addresses.find("fd77::1/64"), std::string::npos) << addresses;
      EXPECT_EQ(addresses.find("tentative"), std::string::npos) << addresses;
    }
    EXPECT_EQ(output("ip -o link show san7 2>/dev/null"), "");
  }
}

TEST_F(OpenTest, WhatCannotBeOpenedSaysWhy) {
  auto first = open(options("tun", "san7"));
  ASSERT_TRUE(first.ok());
  space->run("ip link add down0 type veth peer name down1");
  InterfaceOptions small_mtu = options("tun", "san8"), big_mtu = options("packet", "down0");
  small_mtu.mtu_bytes = 500;
  space->run("ip link set down1 up");
  big_mtu.name = "down1";
  big_mtu.mtu_bytes = 9000;
  struct Row {
    const char* description;
    InterfaceOptions what;
    Code code;
    const char* says;
  };
  const Row table[] = {
      {"unknown driver", options("wire", "san8"), Code::kInvalidArgument, "known: tun"},
      {"no name", options("tun", ""), Code::kInvalidArgument, "1 to 15"},
      {"long name", options("tun", "sixteen-letters-"), Code::kInvalidArgument, "1 to 15"},
      {"MTU too small for IPv6", small_mtu, Code::kInvalidArgument, "1280"},
      {"device in use", options("tun", "san7"), Code::kExists, "another process"},
      {"device of another kind", options("tap", "san7"), Code::kExists, "another kind"},
      {"name of a veth", options("tun", "down0"), Code::kExists, "another kind"},
      {"absent interface", options("packet", "gone0"), Code::kNotFound, "no such"},
      {"interface that is down", options("packet", "down0"), Code::kInvalidArgument, "ip link set"},
      {"interface without Ethernet", options("packet", "san7"), Code::kUnsupported, "Ethernet"},
      {"MTU above the interface's", big_mtu, Code::kInvalidArgument, "smaller"},
  };
  for (const Row& row : table) {
    auto io = open(row.what);
    ASSERT_FALSE(io.ok()) << row.description;
    EXPECT_EQ(io.status().code(), row.code) << row.description << ": " << io.status().to_string();
    EXPECT_NE(io.status().to_string().find(row.says), std::string::npos)
        << row.description << ": " << io.status().to_string();
  }
}

// More queues could be attached to it, and half of its packets would go there.
TEST_F(OpenTest, ADeviceOfSeveralQueuesThatIsInUseIsLeftAlone) {
  const QueueSteering steering{2, 4711};
  space->enter();
  auto first = open_queues(options("tun", "san7"), steering);
  auto second = open_queues(options("tun", "san7"), steering);
  space->leave();
  ASSERT_TRUE(first.ok()) << first.status().to_string();
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), Code::kExists);
}

TEST_F(OpenTest, ADeviceThatWasMadeToStayIsTakenWhileNobodyHasIt) {
  const QueueSteering steering{2, 4711};
  space->run("ip tuntap add dev san7 mode tun multi_queue");
  for (const char* state : {"down", "up"}) {
    space->run("ip link set san7 " + std::string(state));
    space->enter();
    auto first = open_queues(options("tun", "san7"), steering);
    auto second = open_queues(options("tun", "san7"), steering);
    space->leave();
    EXPECT_TRUE(first.ok()) << state << ": " << first.status().to_string();
    EXPECT_EQ(second.status().code(), Code::kExists) << state;
  }
}

TEST_F(OpenTest, TheKernelReportsTheGroupsOfOurAddresses) {
  for (const char* driver : {"packet", "xdp"}) {
    space->run("ip link add v0 type veth peer name v1");
    space->run("ip link set v0 up");
    space->run("ip link set v1 up");
    auto io = open(options(driver, "v0"));
    ASSERT_TRUE(io.ok()) << driver << ": " << io.status().to_string();
    const auto one = IpAddress::parse("fd77::12:abcd").value();
    const auto other = IpAddress::parse("fd77::5612:abcd").value();  // of the same group
    const auto is_member = [&] {
      return output("ip -6 maddr show dev v0").find("ff02::1:ff12:abcd") != std::string::npos;
    };
    EXPECT_FALSE(is_member());
    (*io)->add_local_address(one);
    (*io)->add_local_address(other);
    EXPECT_TRUE(is_member()) << driver;
    (*io)->remove_local_address(one);
    EXPECT_TRUE(is_member()) << driver;
    (*io)->remove_local_address(other);
    EXPECT_FALSE(is_member()) << driver;
    io.value().reset();
    space->run("ip link del v0");
  }
}

TEST_F(OpenTest, WhatHappensToADeviceIsSeen) {
  const auto what = [](const PacketIo& io) {
    return std::string(io.lost() == nullptr ? "nothing" : io.lost());
  };
  auto tun = open(options("tun", "san7"));
  ASSERT_TRUE(tun.ok());
  EXPECT_EQ(what(**tun), "nothing");
  space->run("ip link del san7");
  EXPECT_EQ(what(**tun), "has been removed");
  for (const char* driver : {"packet", "xdp"}) {
    space->run("ip link add v0 type veth peer name v1");
    space->run("ip link set v0 up");
    auto io = open(options(driver, "v0"));
    ASSERT_TRUE(io.ok()) << driver << ": " << io.status().to_string();
    space->enter();
    EXPECT_EQ(what(**io), "nothing") << driver;
    space->leave();
    space->run("ip link set v0 address 02:00:00:00:00:77");
    space->enter();
    EXPECT_EQ(what(**io), "has another MAC address now") << driver;
    space->leave();
    space->run("ip link del v0");
    space->enter();
    EXPECT_EQ(what(**io), "has been removed") << driver;
    space->leave();
  }
}

TEST_F(OpenTest, ADeviceThatGoesDownLosesPacketsButNothingElse) {
  InterfaceOptions what = options("tun", "san7");
  what.addresses = {IpPrefix::parse("10.77.0.1/24").value()};
  auto io = open(what);
  ASSERT_TRUE(io.ok());
  Bytes packet = net::testing::ipv4(17, Bytes(8));
  SendPacket send;
  send.pieces[0] = {packet.data(), packet.size()};
  send.piece_count = 1;
  send.length = static_cast<std::uint32_t>(packet.size());
  space->run("ip link set san7 down");
  EXPECT_EQ((*io)->send({&send, 1}), 1U);
  EXPECT_EQ((*io)->counters().tx_errors, 1U);
  std::vector<std::byte> buffer(kReceiveBufferBytesMin);
  const ReceiveBuffer lent{buffer.data(), static_cast<std::uint32_t>(buffer.size())};
  ReceivedPacket received;
  EXPECT_EQ((*io)->receive({&lent, 1}, {&received, 1}), 0U);
  space->run("ip link set san7 up");
  EXPECT_EQ((*io)->send({&send, 1}), 1U);
  EXPECT_EQ((*io)->counters().tx_packets, 1U);
}

// What arrived at a namespace's IP layer, whatever became of it.
std::uint64_t ip_packets(const KernelSide& side) {
  side.driver_namespace().enter();
  std::ifstream file(side.v4() ? "/proc/thread-self/net/snmp" : "/proc/thread-self/net/snmp6");
  side.driver_namespace().leave();
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    std::uint64_t first = 0, second = 0, third = 0;
    words >> name;
    if (name == "Ip6InReceives" && words >> first) return first;
    if (name == "Ip:" && words >> first >> second >> third) return third;
  }
  return ~std::uint64_t{0};
}

class BesideTheKernel : public DriverTest {};

TEST_P(BesideTheKernel, PacketsToUsDoNotReachTheHostsStackAndOthersDo) {
  const std::string mode = side->io().mode();
  if (mode != "the kernel does not see our packets") GTEST_SKIP() << mode;  // before Linux 6.6
  const UniqueFd udp = side->kernel_socket(SOCK_DGRAM);
  side->bind(udp.get(), side->kernel_ip(), 5555);
  const auto arrives = [&](const char* text) {
    side->send_udp(udp.get(), 7777, text);
    return side->receive_until(
        [&](const Received& received) { return udp_text(received.packet, 7777) == text; });
  };
  ASSERT_TRUE(arrives("first"));  // neighbours are known from here on
  const std::uint64_t before = ip_packets(*side);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(arrives("again"));
  EXPECT_LT(ip_packets(*side) - before, 5U) << "what IPv6 says for itself at most";
  side->io().remove_local_address(side->our_ip());
  for (int i = 0; i < 20; ++i) side->send_udp(udp.get(), 7777, "not ours");
  EXPECT_GE(ip_packets(*side) - before, 20U);
}

INSTANTIATE_TEST_SUITE_P(Packet, BesideTheKernel,
                         ::testing::Values(DriverCase{"packet", Family::kIpv4},
                                           DriverCase{"packet", Family::kIpv6}),
                         case_name);

}  // namespace
}  // namespace sanproxy::packet_io::testing
