// What holds for every driver with a real kernel on the other side.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>

#include "netnode/net/icmp.h"
#include "tests/netnode/packet_io/kernel_side.h"

namespace sanproxy::packet_io::testing {
namespace {

std::string receive_text(int fd) {
  pollfd waiting{fd, POLLIN, 0};
  if (::poll(&waiting, 1, 10'000) <= 0) {
    return "(nothing arrived)";
  }
  std::array<char, 2048> text;
  const ssize_t got = ::recv(fd, text.data(), text.size(), 0);
  return got < 0 ? "(error)" : std::string(text.data(), static_cast<std::size_t>(got));
}

TEST_P(DriverTest, DatagramsGoBothWays) {
  const UniqueFd udp = side->kernel_socket(SOCK_DGRAM);
  side->bind(udp.get(), side->kernel_ip(), 5555);
  side->send_udp(udp.get(), 7777, "from the kernel");
  ASSERT_TRUE(side->receive_until([](const Received& received) {
    return udp_text(received.packet, 7777) == "from the kernel";
  }));
  side->send(udp_packet(*side, 7777, 5555, "to the kernel"));
  EXPECT_EQ(receive_text(udp.get()), "to the kernel");
  const Counters& counters = side->io().counters();
  EXPECT_GE(counters.rx_packets, 1U);
  EXPECT_GE(counters.rx_bytes, 43U);
  EXPECT_GE(counters.tx_packets, 1U);
  EXPECT_EQ(counters.tx_errors, 0U);
  EXPECT_EQ(counters.tx_dropped_unresolved, 0U);
}

TEST_P(DriverTest, AnMtuThatIsMadeSmallerIsTakenOver) {
  if (std::string(GetParam().driver) != "packet") {
    return;  // it alone is on a device of others whose kernel refuses what is too long
  }
  const UniqueFd udp = side->kernel_socket(SOCK_DGRAM);
  side->bind(udp.get(), side->kernel_ip(), 5555);
  side->send_udp(udp.get(), 7777, "from the kernel");
  ASSERT_TRUE(side->receive_until([](const Received& received) {
    return udp_text(received.packet, 7777) == "from the kernel";
  }));
  EXPECT_EQ(side->io().mtu_bytes(), 1500U);
  side->driver_namespace().run("ip link set san0 mtu 1300");
  EXPECT_EQ(side->io().mtu_bytes(), 1500U) << "nobody has asked";
  const std::uint64_t before = side->io().way_changes();
  side->send(udp_packet(*side, 7777, 5555, std::string(1400, 'x')));
  EXPECT_EQ(side->io().counters().tx_errors, 1U);
  EXPECT_EQ(side->io().mtu_bytes(), 1300U);
  EXPECT_GT(side->io().way_changes(), before) << "what the kernel was told holds no more";
  side->send(udp_packet(*side, 7777, 5555, "small"));
  EXPECT_EQ(receive_text(udp.get()), "small");
}

TEST_P(DriverTest, AHostIsHeardAlsoWhenAServiceIsSaidToBeAtItsAddress) {
  if (std::string(GetParam().driver) != "tap") {
    return;  // it alone has the host's addresses and questions for neighbours
  }
  const UniqueFd udp = side->kernel_socket(SOCK_DGRAM);
  side->bind(udp.get(), side->kernel_ip(), 5555);
  side->io().add_local_address(side->kernel_ip());
  side->send_udp(udp.get(), 7777, "who are you");  // behind a question for the neighbour
  EXPECT_TRUE(side->receive_until(
      [](const Received& received) { return udp_text(received.packet, 7777) == "who are you"; }));
}

TEST_P(DriverTest, APacketToAKernelThatNeverSpokeArrives) {
  const UniqueFd udp = side->kernel_socket(SOCK_DGRAM);
  side->bind(udp.get(), side->kernel_ip(), 5555);
  side->send(udp_packet(*side, 7777, 5555, "hello, stranger"));
  // With Ethernet the answer to our question has to be received first.
  if (side->ethernet()) {
    const Counters& counters = side->io().counters();
    for (int i = 0; i < 100 && counters.tx_packets == 0; ++i) {
      std::vector<Received> ignored;
      side->poll_once(ignored, 8, 100);
    }
  }
  EXPECT_EQ(receive_text(udp.get()), "hello, stranger");
}

TEST_P(DriverTest, AKernelCanPingUs) {
  const UniqueFd icmp =
      side->kernel_socket(SOCK_RAW, side->v4() ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6});
  ASSERT_EQ(side->connect(icmp.get(), side->our_ip(), 0), 0);
  Bytes echo = {
      static_cast<std::uint8_t>(side->v4() ? 8 : 128), 0, 0, 0, 0x12, 0x34, 0, 1, 1, 2, 3};
  if (side->v4()) {
    net::store_raw16(echo.data() + 2, net::finish(net::sum_bytes(echo.data(), echo.size())));
  }
  ASSERT_EQ(::send(icmp.get(), echo.data(), echo.size(), 0), static_cast<ssize_t>(echo.size()));
  ASSERT_TRUE(side->receive_until([&](const Received& received) {
    net::ParsedPacket parsed;
    Bytes packet = received.packet;
    if (net::parse_packet(net::testing::as_span(packet), parsed) != net::DropReason::kNone ||
        !net::make_echo_reply(std::as_writable_bytes(std::span(packet)), parsed, false)) {
      return false;
    }
    side->send(packet);
    return true;
  }));
  for (;;) {  // a raw socket hears other ICMP as well
    const std::string reply = receive_text(icmp.get());
    const std::size_t header = side->v4() ? 20 : 0;
    ASSERT_GE(reply.size(), header + 8) << reply;
    const auto type = static_cast<std::uint8_t>(reply[header]);
    if (type == (side->v4() ? 0 : 129)) {
      EXPECT_EQ(reply.substr(header + 4), std::string(echo.begin() + 4, echo.end()));
      break;
    }
  }
}

TEST_P(DriverTest, ABurstIsNeverLargerThanAskedAndNothingIsLost) {
  const UniqueFd udp = side->kernel_socket(SOCK_DGRAM);
  side->bind(udp.get(), side->kernel_ip(), 5555);
  side->send_udp(udp.get(), 7777, "0");
  std::vector<std::string> texts;
  const auto collect = [&](const Received& received) {
    const std::string text = udp_text(received.packet, 7777);
    if (!text.empty()) {
      texts.push_back(text);
    }
    return !text.empty();
  };
  ASSERT_TRUE(side->receive_until(collect));
  for (int i = 1; i <= 200; ++i) {
    side->send_udp(udp.get(), 7777, std::to_string(i));
  }
  for (int round = 0; round < 300 && texts.size() < 201; ++round) {
    std::vector<Received> batch;
    side->poll_once(batch, 1 + static_cast<std::size_t>(round) % 5, 1'000);
    for (const Received& received : batch) {
      collect(received);
    }
  }
  ASSERT_EQ(texts.size(), 201U);
  for (std::size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(texts[i], std::to_string(i));
  }
}

TEST_P(DriverTest, ManyPacketsInOneSendArriveInOrder) {
  const UniqueFd udp = side->kernel_socket(SOCK_DGRAM);
  side->bind(udp.get(), side->kernel_ip(), 5555);
  side->send_udp(udp.get(), 7777, "who are you");  // so that our next hop is known
  ASSERT_TRUE(side->receive_until(
      [](const Received& received) { return udp_text(received.packet, 7777) == "who are you"; }));
  std::vector<Bytes> bytes;
  for (int i = 0; i < 150; ++i) {
    bytes.push_back(udp_packet(*side, 7777, 5555, std::to_string(i)));
  }
  std::vector<SendPacket> packets(bytes.size());
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    packets[i].pieces[0] = {bytes[i].data(), 20};
    packets[i].pieces[1] = {bytes[i].data() + 20, bytes[i].size() - 20};
    if (!side->v4()) {
      packets[i].pieces[0].iov_len = 40;
      packets[i].pieces[1] = {bytes[i].data() + 40, bytes[i].size() - 40};
    }
    packets[i].piece_count = 2;
    packets[i].length = static_cast<std::uint32_t>(bytes[i].size());
  }
  ASSERT_EQ(side->io().send(packets), packets.size());
  side->io().flush();
  for (int i = 0; i < 150; ++i) {
    ASSERT_EQ(receive_text(udp.get()), std::to_string(i));
  }
}

TEST_P(DriverTest, NothingWaitingYieldsNothing) {
  std::vector<Received> received;
  while (side->poll_once(received, 64, 200) != 0) {
  }
  std::vector<std::byte> buffer(kReceiveBufferBytesMin);
  const ReceiveBuffer lent{buffer.data(), static_cast<std::uint32_t>(buffer.size())};
  ReceivedPacket packet;
  EXPECT_EQ(side->io().receive({}, {}), 0U);
  EXPECT_EQ(side->io().receive({&lent, 1}, {&packet, 1}), 0U);
  EXPECT_EQ(side->io().send({}), 0U);
}

INSTANTIATE_TEST_SUITE_P(
    EveryDriver, DriverTest,
    ::testing::Values(DriverCase{"tun", Family::kIpv4}, DriverCase{"tun", Family::kIpv6},
                      DriverCase{"tap", Family::kIpv4}, DriverCase{"tap", Family::kIpv6},
                      DriverCase{"packet", Family::kIpv4}, DriverCase{"packet", Family::kIpv6},
                      DriverCase{"xdp", Family::kIpv4}, DriverCase{"xdp", Family::kIpv6}),
    case_name);

}  // namespace
}  // namespace sanproxy::packet_io::testing
