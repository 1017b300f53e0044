#include "netnode/net/ethernet.h"

#include <gtest/gtest.h>

namespace sanproxy::net {
namespace {

TEST(Ethernet, WritesWhatItParses) {
  std::array<std::byte, kEthernetHeaderBytes> frame;
  const MacAddress dst{{2, 0, 0, 0, 0, 1}}, src{{2, 0, 0, 0, 0, 2}};
  write_ethernet(frame.data(), dst, src, kEtherTypeIpv6);
  EthernetView view;
  ASSERT_TRUE(parse_ethernet(frame, view));
  EXPECT_EQ(view.dst, dst);
  EXPECT_EQ(view.src, src);
  EXPECT_EQ(view.ether_type, kEtherTypeIpv6);
  EXPECT_FALSE(view.is_vlan());
  EXPECT_FALSE(parse_ethernet(std::span(frame).first(13), view));
}

TEST(Ethernet, RecognisesVlanTagsAndGroupAddresses) {
  std::array<std::byte, kEthernetHeaderBytes> frame;
  for (const std::uint16_t type : {kEtherTypeVlan, kEtherTypeServiceVlan}) {
    write_ethernet(frame.data(), MacAddress::broadcast(), MacAddress{}, type);
    EthernetView view;
    ASSERT_TRUE(parse_ethernet(frame, view));
    EXPECT_TRUE(view.is_vlan());
    EXPECT_TRUE(view.dst.is_group());
    EXPECT_TRUE(view.src.is_zero());
  }
}

}  // namespace
}  // namespace sanproxy::net
