// Super-packets: what a kernel's TCP hands over, and what it makes of ours.
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "netnode/net/tcp_header.h"
#include "tests/netnode/packet_io/tcp_peer.h"

namespace sanproxy::packet_io::testing {
namespace {

class DriverTcpTest : public DriverTest {};

std::string pattern(std::size_t bytes) {
  std::string text(bytes, 0);
  std::uint32_t state = 1;
  for (char& c : text) {
    state = state * 1664525U + 1013904223U;
    c = static_cast<char>(state >> 24);
  }
  return text;
}

UniqueFd start_client(const KernelSide& side) {
  UniqueFd client = side.kernel_socket(SOCK_STREAM | SOCK_NONBLOCK);
  EXPECT_EQ(::setsockopt(client.get(), IPPROTO_TCP, TCP_CONGESTION, "reno", 4), 0);
  EXPECT_EQ(side.connect(client.get(), side.our_ip(), 80), EINPROGRESS);
  return client;
}

TEST_P(DriverTcpTest, BulkFromAKernelArrivesAsSuperPackets) {
  TcpPeer peer(*side);
  const UniqueFd client = start_client(*side);
  const std::string sent = pattern(1'000'000);
  std::size_t written = 0;
  ASSERT_TRUE(side->receive_until([&](const Received& received) {
    peer.input(received);
    while (written < sent.size()) {
      const ssize_t got = ::send(client.get(), sent.data() + written, sent.size() - written, 0);
      if (got < 0) {
        break;
      }
      written += static_cast<std::size_t>(got);
    }
    return peer.data().size() >= sent.size();
  })) << peer.data().size()
      << " bytes arrived";
  EXPECT_TRUE(peer.data() == sent) << "same bytes";
  if (side->super_packets()) {
    EXPECT_GT(peer.largest_packet_bytes(), 4U * 1500U);
    EXPECT_GE(peer.segment_bytes(), 1400U);
  } else {
    EXPECT_EQ(peer.largest_packet_bytes(), 1500U);
  }
  EXPECT_TRUE(peer.saw_partial_checksum());
}

TEST_P(DriverTcpTest, AKernelsTcpTakesOurSuperPacketWhole) {
  TcpPeer peer(*side);
  const UniqueFd client = start_client(*side);
  ASSERT_EQ(::send(client.get(), "x", 1, 0), -1) << "not connected yet";
  // Once it is connected it says something, so that we know.
  ASSERT_TRUE(side->receive_until([&](const Received& received) {
    peer.input(received);
    return peer.established();
  }));
  const std::string text = pattern(60'001);
  peer.send_super_packet(text, 1400);
  std::string got;
  std::array<char, 65536> chunk;
  pollfd waiting{client.get(), POLLIN, 0};
  while (got.size() < text.size() && ::poll(&waiting, 1, 10'000) == 1) {
    const ssize_t bytes = ::recv(client.get(), chunk.data(), chunk.size(), 0);
    ASSERT_GT(bytes, 0);
    got.append(chunk.data(), static_cast<std::size_t>(bytes));
  }
  EXPECT_TRUE(got == text) << got.size() << " bytes arrived";
}

// A capture at the far end of a link that can segment nothing, so that what it hears has been
// segmented and summed by the kernel from our metadata.
class Wire {
 public:
  Wire(KernelSide& side, bool ethernet_driver_is_the_link) {
    if (ethernet_driver_is_the_link) {
      side.driver_namespace().run("ethtool -K san0 tx off tso off gso off >/dev/null");
      open(side, side.kernel(), "kern0");
      return;
    }
    // TUN and TAP hand super-packets to the host as they are: it has to route them onward.
    side.kernel().run(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 && "
        "ip link add out0 type veth peer name far0 && "
        "ip addr add 10.78.0.1/24 dev out0 && ip addr add fd78::1/64 dev out0 nodad && "
        "ip link set far0 address 02:00:00:00:00:02 netns " +
        far_.path());
    side.kernel().run("ethtool -K out0 tx off tso off gso off >/dev/null");
    far_.run("ip link set far0 up");
    side.kernel().run(
        "ip link set out0 up && ip neigh add 10.78.0.2 lladdr 02:00:00:00:00:02 dev out0 && "
        "ip neigh add fd78::2 lladdr 02:00:00:00:00:02 dev out0");
    open(side, far_, "far0");
  }
  IpAddress far_ip(const KernelSide& side, bool ethernet_driver_is_the_link) const {
    if (ethernet_driver_is_the_link) {
      return side.kernel_ip();
    }
    return ip(side.v4() ? "10.78.0.2" : "fd78::2");
  }
  // The next IP packet of the family.
  Bytes next() {
    pollfd waiting{capture_.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 10'000) != 1) {
      return {};
    }
    Bytes packet(70'000);
    const ssize_t got = ::recv(capture_.get(), packet.data(), packet.size(), 0);
    packet.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
    return packet;
  }

 private:
  void open(const KernelSide& side, const NetNamespace& where, const char* device) {
    const auto protocol = htons(side.v4() ? 0x0800 : 0x86dd);
    where.enter();
    capture_ = UniqueFd(::socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, protocol));
    sockaddr_ll address{};
    address.sll_family = AF_PACKET;
    address.sll_protocol = protocol;
    address.sll_ifindex = static_cast<int>(::if_nametoindex(device));
    ASSERT_EQ(::bind(capture_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
              0);
    where.leave();
  }

  NetNamespace far_;
  UniqueFd capture_;
};

TEST_P(DriverTcpTest, ASuperPacketLeavesAsSegmentsWithRightChecksums) {
  const bool direct = side->on_veth();
  Wire wire(*side, direct);
  // Something from the kernel first, so that our next hop is known.
  const UniqueFd udp = side->kernel_socket(SOCK_DGRAM);
  side->bind(udp.get(), side->kernel_ip(), 5555);
  side->send_udp(udp.get(), 7777, "go");
  ASSERT_TRUE(side->receive_until(
      [](const Received& received) { return udp_text(received.packet, 7777) == "go"; }));
  TcpPeer peer(*side);
  peer.pretend_established(wire.far_ip(*side, direct), 4242);
  const std::string text = pattern(20'001);
  peer.send_super_packet(text, 1400);
  std::string got;
  std::size_t segments = 0;
  while (got.size() < text.size()) {
    const Bytes packet = wire.next();
    ASSERT_FALSE(packet.empty()) << "after " << got.size() << " bytes";
    net::ParsedPacket parsed;
    ASSERT_EQ(net::parse_packet(net::testing::as_span(packet), parsed), net::DropReason::kNone);
    if (parsed.l4 != net::L4::kTcp || parsed.src_address() != side->our_ip()) {
      continue;
    }
    const std::size_t header = parsed.l3_header_bytes + parsed.l4_header_bytes;
    EXPECT_LE(parsed.total_bytes - header, 1400U);
    EXPECT_TRUE(l4_checksum_ok(packet)) << "segment " << segments;
    const net::TcpHeader tcp = net::load_tcp_header(packet.data() + parsed.l3_header_bytes);
    EXPECT_EQ(tcp.seq, 1'000'000U + got.size());
    got.append(reinterpret_cast<const char*>(packet.data()) + header, parsed.total_bytes - header);
    ++segments;
  }
  EXPECT_TRUE(got == text);
  EXPECT_EQ(segments, 15U);
}

TEST_P(DriverTcpTest, WithoutSegmentationOffloadTunAndTapDeliverSegments) {
  if (side->on_veth()) {
    return;  // the sender's interface decides there
  }
  side.reset();
  side = std::make_unique<KernelSide>(GetParam().driver, GetParam().family, false);
  TcpPeer peer(*side);
  const UniqueFd client = start_client(*side);
  const std::string sent = pattern(30'000);
  ASSERT_TRUE(side->receive_until([&](const Received& received) {
    if (peer.input(received) && peer.established() && peer.data().empty()) {
      (void)!::send(client.get(), sent.data(), sent.size(), 0);
    }
    return peer.data().size() == sent.size();
  }));
  EXPECT_TRUE(peer.data() == sent);
  EXPECT_LE(peer.largest_packet_bytes(), 1500U);
}

INSTANTIATE_TEST_SUITE_P(
    EveryDriver, DriverTcpTest,
    ::testing::Values(DriverCase{"tun", Family::kIpv4}, DriverCase{"tun", Family::kIpv6},
                      DriverCase{"tap", Family::kIpv4}, DriverCase{"tap", Family::kIpv6},
                      DriverCase{"packet", Family::kIpv4}, DriverCase{"packet", Family::kIpv6},
                      DriverCase{"xdp", Family::kIpv4}, DriverCase{"xdp", Family::kIpv6}),
    case_name);

}  // namespace
}  // namespace sanproxy::packet_io::testing
