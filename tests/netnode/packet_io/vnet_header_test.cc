#include "netnode/packet_io/vnet_header.h"

#include <gtest/gtest.h>

#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::packet_io {
namespace {

using net::testing::Bytes;

TEST(VnetHeader, OffloadSurvivesTheWayThereAndBack) {
  const Bytes packet = net::testing::ipv4(6, net::testing::tcp(5000));
  Offload offload;
  offload.segmentation = Segmentation::kTcp4;
  offload.checksum_partial = true;
  offload.segment_bytes = 1448;
  offload.header_bytes = 40;
  offload.checksum_start = 20;
  offload.checksum_offset = 16;
  for (const std::uint16_t link : {std::uint16_t{0}, std::uint16_t{14}}) {
    const VnetHeader header = vnet_from_offload(offload, link);
    EXPECT_EQ(header.checksum_start, 20 + link);
    EXPECT_EQ(header.header_bytes, 40 + link);
    Offload back;
    ASSERT_TRUE(offload_from_vnet(header, packet.data(), 5040, link, Metadata::kOfPacket, back));
    EXPECT_EQ(back.segmentation, offload.segmentation);
    EXPECT_EQ(back.segment_bytes, offload.segment_bytes);
    EXPECT_EQ(back.header_bytes, offload.header_bytes);
    EXPECT_EQ(back.checksum_start, offload.checksum_start);
    EXPECT_EQ(back.checksum_offset, offload.checksum_offset);
    EXPECT_TRUE(back.checksum_partial);
    EXPECT_FALSE(back.checksum_verified);
  }
}

TEST(VnetHeader, MetadataThatContradictsThePacketIsRefused) {
  struct Row {
    const char* description;
    VnetHeader header;
    bool v6;
    bool accepted;
  };
  // flags, type, header, gso, start, offset
  const Row table[] = {
      {"nothing", {}, false, true},
      {"verified", {2, 0, 0, 0, 0, 0}, false, true},
      {"checksum at the very end", {1, 0, 0, 0, 34, 84}, false, true},
      {"checksum beyond the end", {1, 0, 0, 0, 34, 85}, false, false},
      {"checksum offset wraps", {1, 0, 0, 0, 34, 0xffff}, false, false},
      {"checksum inside the frame header", {1, 0, 0, 0, 13, 16}, false, false},
      {"TSO4", {1, 1, 54, 10, 34, 16}, false, true},
      {"TSO4 with ECN", {1, 0x81, 54, 10, 34, 16}, false, true},
      {"TSO6", {1, 4, 74, 10, 54, 16}, true, true},
      {"TSO4 on IPv6", {1, 1, 54, 10, 34, 16}, true, false},
      {"TSO6 on IPv4", {1, 4, 54, 10, 34, 16}, false, false},
      {"TSO without a segment size", {1, 1, 54, 0, 34, 16}, false, false},
      {"UDP segmentation", {1, 5, 42, 10, 34, 6}, false, true},
      {"UDP segmentation of IPv6", {1, 5, 62, 10, 54, 6}, true, true},
      {"UDP segmentation without a size", {1, 5, 42, 0, 34, 6}, false, false},
      {"UDP fragmentation", {1, 3, 54, 10, 34, 6}, false, false},
  };
  const Bytes v4 = net::testing::ipv4(6, net::testing::tcp(66));
  const Bytes v6 = net::testing::ipv6(6, net::testing::tcp(46));
  for (const Row& row : table) {
    const Bytes& packet = row.v6 ? v6 : v4;
    ASSERT_EQ(packet.size(), 106U);
    Offload offload;
    EXPECT_EQ(offload_from_vnet(row.header, packet.data(), 106, 14, Metadata::kOfPacket, offload),
              row.accepted)
        << row.description;
  }
}

TEST(VnetHeader, WhereTunnelsEndSegmentsMayBeOfTheOtherVersionAndNothingElseIsLet) {
  const Bytes v4 = net::testing::ipv4(41, Bytes(86));
  const auto taken = [&](VnetHeader header) {
    Offload offload;
    return offload_from_vnet(header, v4.data(), 106, 14, Metadata::kMayBeOfInner, offload);
  };
  EXPECT_TRUE(taken({1, 4, 94, 10, 74, 16})) << "TSO6 in IPv4";
  EXPECT_FALSE(taken({1, 4, 94, 0, 74, 16})) << "without a segment size";
  EXPECT_FALSE(taken({1, 5, 94, 10, 74, 6})) << "UDP segmentation";
  EXPECT_FALSE(taken({1, 4, 94, 10, 104, 16})) << "a checksum beyond the end";
}

TEST(VnetHeader, PacketsAreCutToTheirOwnLengthAndShortOnesRefused) {
  struct Row {
    const char* description;
    Bytes packet;
    IpCheck verdict;
    std::uint32_t length;
  };
  Bytes padded = net::testing::ipv4(6, net::testing::tcp());
  padded.resize(46);
  Bytes cut = net::testing::ipv4(6, net::testing::tcp());
  cut.resize(39);
  Bytes tiny_total = net::testing::ipv4(6, net::testing::tcp());
  net::store_be16(tiny_total.data() + 2, 19);
  Bytes cut6 = net::testing::ipv6(59, {});
  cut6.resize(39);
  const Row table[] = {{"padded", padded, IpCheck::kOk, 40},
                       {"cut", cut, IpCheck::kShort, 0},
                       {"total length below a header", tiny_total, IpCheck::kShort, 0},
                       {"nothing", {}, IpCheck::kShort, 0},
                       {"IPv6 cut in its header", cut6, IpCheck::kShort, 0},
                       {"IPv6", net::testing::ipv6(59, {}), IpCheck::kOk, 40},
                       {"version 0", Bytes(40), IpCheck::kNotIp, 0}};
  for (const Row& row : table) {
    auto length = static_cast<std::uint32_t>(row.packet.size());
    EXPECT_EQ(check_ip(row.packet.data(), length), row.verdict) << row.description;
    if (row.verdict == IpCheck::kOk) {
      EXPECT_EQ(length, row.length) << row.description;
    }
  }
}

}  // namespace
}  // namespace sanproxy::packet_io
