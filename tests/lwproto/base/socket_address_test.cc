#include "lwproto/base/socket_address.h"

#include <gtest/gtest.h>

#include <string>

namespace sanproxy {
namespace {

TEST(IpAddress, ReadsBothFamiliesAndWritesThemBack) {
  for (const char* text : {"0.0.0.0", "10.77.0.1", "255.255.255.255", "::", "::1", "fd77::1",
                           "2001:db8::8:800:200c:417a", "::ffff:10.0.0.1"}) {
    const auto address = IpAddress::parse(text);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_EQ(address->to_string(), text);
  }
}

TEST(IpAddress, KeepsIpv4InTheFirstFourBytesWithZerosBehind) {
  const auto address = IpAddress::parse("10.77.0.1");
  ASSERT_TRUE(address.ok());
  EXPECT_EQ(address->family, Family::kIpv4);
  EXPECT_EQ(address->size(), 4u);
  EXPECT_EQ(address->bytes, (std::array<std::uint8_t, 16>{10, 77, 0, 1}));
}

TEST(IpAddress, RefusesWhatIsNone) {
  for (const char* text :
       {"", " ", "10.0.0", "10.0.0.256", "10.0.0.1 ", "010.0.0.1x", "1.2.3.4.5", "fd77:::1",
        "g::", "[::1]", "10.0.0.1:80", "host", "1234:5678:9abc:def0:1234:5678:9abc:def0:1234",
        "1234:5678:9abc:def0:1234:5678:9abc:def0:1234:5678:9abc:def0:1234"}) {
    EXPECT_FALSE(IpAddress::parse(text).ok()) << '"' << text << '"';
  }
  EXPECT_FALSE(IpAddress::parse(std::string(1000, ':')).ok());
  EXPECT_FALSE(IpAddress::parse(std::string_view("10.0.0.1\0junk", 13)).ok());
}

TEST(IpAddress, OneHostsIsNoGroupsAndNoneThatNobodyHas) {
  for (const char* text : {"10.77.0.1", "223.255.255.255", "1.0.0.0", "127.0.0.1", "::1", "fe80::1",
                           "::ffff:10.0.0.1", "fe::"}) {
    EXPECT_TRUE(IpAddress::parse(text)->is_unicast()) << text;
  }
  for (const char* text : {"0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "240.0.0.1",
                           "255.255.255.255", "::", "ff02::1", "ff00::"}) {
    EXPECT_FALSE(IpAddress::parse(text)->is_unicast()) << text;
  }
  EXPECT_FALSE(IpAddress().is_unicast());
}

TEST(IpAddress, ComparesByFamilyAndBytes) {
  EXPECT_EQ(*IpAddress::parse("::1"), *IpAddress::parse("0:0:0:0:0:0:0:1"));
  EXPECT_NE(IpAddress::any(Family::kIpv4), IpAddress::any(Family::kIpv6));
  EXPECT_TRUE(IpAddress::any(Family::kIpv6).is_any());
  EXPECT_FALSE(IpAddress::parse("0.0.0.1")->is_any());
}

TEST(SocketAddress, ReadsAddressAndPortAndWritesThemBack) {
  for (const char* text : {"10.0.0.1:80", "0.0.0.0:0", "[fd77::1]:65535", "[::]:443"}) {
    const auto address = SocketAddress::parse(text);
    ASSERT_TRUE(address.ok()) << text << ": " << address.status().to_string();
    EXPECT_EQ(address->to_string(), text);
  }
}

TEST(SocketAddress, RefusesWhatIsNone) {
  for (const char* text : {"", ":", ":80", "10.0.0.1", "10.0.0.1:", "10.0.0.1:65536", "10.0.0.1:-1",
                           "10.0.0.1:+1", "10.0.0.1: 80", "10.0.0.1:80x", "fd77::1:80",
                           "[10.0.0.1]:80", "[fd77::1]", "[fd77::1:80", "fd77::1]:80", "[]:80"}) {
    EXPECT_FALSE(SocketAddress::parse(text).ok()) << '"' << text << '"';
  }
}

struct PrefixCase {
  const char* prefix;
  const char* address;
  bool inside;
};

TEST(IpPrefix, ContainsExactlyTheAddressesThatShareItsBits) {
  const PrefixCase cases[] = {
      {"10.77.0.1/24", "10.77.0.255", true},
      {"10.77.0.1/24", "10.77.1.0", false},
      {"10.77.0.0/23", "10.77.1.255", true},
      {"10.77.0.0/23", "10.77.2.0", false},
      {"10.77.0.1/32", "10.77.0.1", true},
      {"10.77.0.1/32", "10.77.0.0", false},
      {"0.0.0.0/0", "255.255.255.255", true},
      {"0.0.0.0/0", "::", false},
      {"fd77::1/64", "fd77::ffff:1", true},
      {"fd77::1/64", "fd77:0:0:1::1", false},
      {"fd77::/63", "fd77:0:0:1::1", true},
      {"fd77::/63", "fd77:0:0:2::1", false},
      {"fd77::1/128", "fd77::1", true},
      {"fd77::1/128", "fd77::", false},
      {"::/0", "ffff::", true},
      {"128.0.0.0/1", "127.255.255.255", false},
  };
  for (const PrefixCase& c : cases) {
    const auto prefix = IpPrefix::parse(c.prefix);
    ASSERT_TRUE(prefix.ok()) << c.prefix;
    EXPECT_EQ(prefix->contains(*IpAddress::parse(c.address)), c.inside)
        << c.prefix << " and " << c.address;
  }
}

TEST(IpPrefix, RefusesWhatIsNone) {
  for (const char* text : {"10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "fd77::1/129", "10.0.0.1/-1",
                           "10.0.0.1/256", "/24", "10.0.0.1/24/24"}) {
    EXPECT_FALSE(IpPrefix::parse(text).ok()) << '"' << text << '"';
  }
}

}  // namespace
}  // namespace sanproxy
