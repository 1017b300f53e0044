#include "netnode/net/flow_key.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::net {
namespace {

TEST(FlowKey, HoldsWhatThePacketSays) {
  const testing::Bytes packet = testing::ipv4(6, testing::tcp());
  ParsedPacket parsed;
  ASSERT_EQ(parse_packet(testing::as_span(packet), parsed), DropReason::kNone);
  const FlowKey key = flow_key(parsed, packet.data());
  EXPECT_EQ(key.src_port, 1000);
  EXPECT_EQ(key.dst_port, 80);
  EXPECT_EQ(key.protocol, 6);
  EXPECT_EQ(key.family, Family::kIpv4);
  EXPECT_EQ(key.src[3], 1);
  EXPECT_EQ(key.reversed().reversed(), key);
  EXPECT_FALSE(key.reversed() == key);
}

TEST(FlowKey, EveryFieldAndTheSeedChangeTheHash) {
  FlowKey base;
  base.family = Family::kIpv6;
  const std::uint64_t hash = base.hash(1);
  EXPECT_NE(base.hash(2), hash);
  for (std::size_t i = 0; i < 16; ++i) {
    FlowKey key = base;
    key.src[i] = 1;
    EXPECT_NE(key.hash(1), hash) << "src " << i;
    key = base;
    key.dst[i] = 1;
    EXPECT_NE(key.hash(1), hash) << "dst " << i;
  }
  FlowKey key = base;
  key.src_port = 1;
  EXPECT_NE(key.hash(1), hash);
  key = base;
  key.dst_port = 1;
  EXPECT_NE(key.hash(1), hash);
  key = base;
  key.protocol = 6;
  EXPECT_NE(key.hash(1), hash);
}

// 65,536 ports of one client and of one server into as many buckets: a random function leaves
// 1/e of them empty and has a fullest one of about 8.
TEST(FlowKey, SequentialPortsAndAddressesSpreadLikeARandomFunction) {
  constexpr std::size_t kBuckets = 65'536;
  for (const Family family : {Family::kIpv4, Family::kIpv6}) {
    for (const bool by_port : {true, false}) {
      std::vector<int> load(kBuckets);
      for (std::uint32_t i = 0; i < kBuckets; ++i) {
        FlowKey key;
        key.family = family;
        key.protocol = 6;
        key.dst_port = 80;
        if (by_port) {
          key.src_port = static_cast<std::uint16_t>(i);
        } else {
          store_be32(key.src.data() + (family == Family::kIpv4 ? 0 : 12), 0x0a000000U + i);
        }
        ++load[key.hash(0x1234567) % kBuckets];
      }
      const auto empty = static_cast<double>(std::count(load.begin(), load.end(), 0));
      EXPECT_NEAR(empty / kBuckets, 0.368, 0.01);
      EXPECT_LE(*std::max_element(load.begin(), load.end()), 12);
    }
  }
}

}  // namespace
}  // namespace sanproxy::net
