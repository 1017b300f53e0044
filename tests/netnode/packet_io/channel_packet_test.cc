// What of packets is worth a wake-up.
#include "netnode/packet_io/channel_packet.h"

#include <gtest/gtest.h>

#include "netnode/net/tcp_header.h"
#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::packet_io {
namespace {

using net::testing::Bytes;

Bytes tcp_with(std::uint8_t flags, std::size_t payload) {
  Bytes segment = net::testing::tcp(payload);
  segment[13] = flags;
  return segment;
}

bool mere(const Bytes& packet) { return is_mere_ack(net::testing::as_span(packet)); }

TEST(ChannelPacket, OnlyAnAckWithNothingElseIsAMereAck) {
  EXPECT_TRUE(mere(net::testing::ipv4(6, tcp_with(net::kTcpAck, 0))));
  EXPECT_TRUE(mere(net::testing::ipv6(6, tcp_with(net::kTcpAck, 0))));
  for (const std::uint8_t flag :
       {net::kTcpSyn, net::kTcpFin, net::kTcpRst, net::kTcpPsh, net::kTcpEce, net::kTcpCwr}) {
    const auto flags = static_cast<std::uint8_t>(net::kTcpAck | flag);
    EXPECT_FALSE(mere(net::testing::ipv4(6, tcp_with(flags, 0)))) << int{flag};
  }
  EXPECT_FALSE(mere(net::testing::ipv4(6, tcp_with(net::kTcpSyn, 0))));
  EXPECT_FALSE(mere(net::testing::ipv4(6, tcp_with(net::kTcpAck, 1)))) << "a byte";
  EXPECT_FALSE(mere(net::testing::ipv4(6, tcp_with(net::kTcpAck, 1000))));
  EXPECT_FALSE(mere(net::testing::ipv4(17, Bytes(20))));
  const Bytes cut = net::testing::ipv4(6, tcp_with(net::kTcpAck, 0));
  for (std::size_t length = 0; length < cut.size(); ++length) {
    EXPECT_FALSE(mere(Bytes(cut.begin(), cut.begin() + static_cast<std::ptrdiff_t>(length))))
        << length;
  }
}

}  // namespace
}  // namespace sanproxy::packet_io
