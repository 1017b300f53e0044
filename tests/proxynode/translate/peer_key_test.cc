#include "proxynode/translate/peer_key.h"

#include <gtest/gtest.h>

namespace sanproxy::translate {
namespace {

std::string key_of(const std::string& address, std::int64_t uid = -1) {
  return peer_key({.address = address, .uid = uid, .certificate_name = {}});
}

TEST(PeerKey, IsTheUserWhereTheKernelVouchesForOne) {
  EXPECT_EQ(key_of("shm:pid 812", 33), "uid:33");
  EXPECT_EQ(key_of("shm:pid 813", 33), "uid:33");
  EXPECT_NE(key_of("shm:pid 813", 34), "uid:33");
}

TEST(PeerKey, IsTheAddressWithoutItsPortElsewhere) {
  EXPECT_EQ(key_of("tcp:10.9.0.2:4711"), "tcp:10.9.0.2");
  EXPECT_EQ(key_of("tcp://10.9.0.2:4711"), "tcp://10.9.0.2");
  EXPECT_EQ(key_of("tcp:[fd77::2]:4712"), key_of("tcp:[fd77::2]:4711"));
}

// In which it may take any address.
TEST(PeerKey, IsThe64OfAnIpv6Address) {
  EXPECT_EQ(key_of("tcp:fd77::2"), "tcp:fd77::/64");
  EXPECT_EQ(key_of("tcp:fd77::abcd:2"), key_of("tcp:fd77::2"));
  EXPECT_EQ(key_of("tcp:fd77:1:2:3:4:5:6:7"), "tcp:fd77:1:2:3::/64");
  EXPECT_NE(key_of("tcp:fd77:0:0:1::2"), key_of("tcp:fd77::2"));
  EXPECT_EQ(key_of("verbs:[fd77::2]"), key_of("verbs:[fd77::3]:4711"));
}

TEST(PeerKey, IsTheNameInACertificateWhereThereIsOne) {
  const fabric::PeerIdentity peer{
      .address = "tcp:10.9.0.2", .uid = -1, .gid = -1, .pid = -1, .certificate_name = "app1"};
  EXPECT_EQ(peer_key(peer), "cert:app1");
}

TEST(PeerKey, KeepsAnAddressThatHasNoPort) {
  EXPECT_EQ(key_of("verbs:10.9.0.2"), "verbs:10.9.0.2");
  EXPECT_EQ(key_of("tcp:10.9.0.2"), "tcp:10.9.0.2");
  EXPECT_EQ(key_of("memory"), "memory");
  EXPECT_EQ(key_of("tcp:"), "tcp:");
  EXPECT_EQ(key_of(""), "");
}

}  // namespace
}  // namespace sanproxy::translate
