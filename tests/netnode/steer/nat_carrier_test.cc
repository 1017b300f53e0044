// Which sessions a Nat gives to who can carry them, and when it takes them back.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "netnode/steer/nat.h"
#include "tests/netnode/steer/steer_packets.h"

namespace sanproxy::steer {
namespace {

using namespace testing;  // NOLINT: the test's own

class Carrier : public NatCarrier {
 public:
  std::uint32_t generation() const override { return now; }
  bool carry(const net::FlowKey& client, const net::FlowKey& proxy, std::uint16_t,
             std::uint16_t) override {
    ++asked;
    if (!can) return false;
    if (std::find(carried.begin(), carried.end(), client) == carried.end()) {
      carried.push_back(client);
    }
    EXPECT_EQ(proxy.src_port, 8080);
    return true;
  }
  void leave(const net::FlowKey& client, const net::FlowKey&) override {
    EXPECT_EQ(std::erase(carried, client), 1U);
  }

  std::vector<net::FlowKey> carried;
  std::uint32_t now = 0;
  int asked = 0;
  bool can = true;
};

class NatCarrierTest : public ::testing::Test {
 protected:
  static NatOptions options() {
    NatOptions out;
    out.addresses = {*IpAddress::parse("10.9.9.9")};
    out.sessions_max = 16;
    return out;
  }
  void SetUp() override { nat.set_carrier(&carrier); }
  void client_says(std::uint8_t flags, std::uint8_t protocol = net::kProtocolTcp) {
    Bytes packet = packet_of({.from = at("10.1.2.3:5555"),
                              .to = at("10.0.0.10:80"),
                              .flags = flags,
                              .protocol = protocol});
    const net::ParsedPacket p = parsed(packet);
    ASSERT_EQ(nat.to_proxy({std::as_writable_bytes(std::span(packet)), p}, flow_of(packet), 3,
                           at("10.5.0.1:8080"), now_s),
              NatResult::kOk);
    there = packet;
  }
  void proxy_says(std::uint8_t flags) {
    const net::FlowKey k = flow_of(there);
    const net::ParsedPacket p = parsed(there);
    Bytes packet = packet_of({.from = {p.dst_address(), k.dst_port},
                              .to = {p.src_address(), k.src_port},
                              .flags = flags,
                              .protocol = p.protocol});
    const net::ParsedPacket q = parsed(packet);
    ASSERT_EQ(nat.to_client({std::as_writable_bytes(std::span(packet)), q}, flow_of(packet), now_s),
              NatResult::kOk);
  }
  void handshake() {
    client_says(net::kTcpSyn);
    proxy_says(net::kTcpSyn | net::kTcpAck);
    client_says(net::kTcpAck);
  }
  void until_carried() {
    handshake();
    for (int i = 0; i < kNatCarryAfter; ++i) client_says(net::kTcpAck);
    ASSERT_EQ(carrier.carried.size(), 1U);
  }

  Nat nat{options(), 42};
  Carrier carrier;
  Bytes there;
  std::uint32_t now_s = 1000;
};

TEST_F(NatCarrierTest, IsGivenAnEstablishedSessionThatGoesOn) {
  for (int i = 0; i < 20; ++i) client_says(net::kTcpSyn);
  EXPECT_EQ(carrier.asked, 0) << "a handshake";
  handshake();
  for (int i = 1; i < kNatCarryAfter; ++i) {
    client_says(net::kTcpAck);
    EXPECT_EQ(carrier.asked, 0) << "perhaps a short one";
  }
  client_says(net::kTcpAck);
  EXPECT_EQ(carrier.carried.size(), 1U);
  EXPECT_EQ(nat.sessions(), 1U);
}

TEST_F(NatCarrierTest, IsNotGivenDatagrams) {
  for (int i = 0; i < 20; ++i) client_says(0, net::kProtocolUdp);
  EXPECT_EQ(carrier.asked, 0);
}

TEST_F(NatCarrierTest, IsAskedAgainAfterAWhileOrWhenNothingHoldsAnyMore) {
  until_carried();
  now_s += kNatCarriedS - 1;
  client_says(net::kTcpAck);
  EXPECT_EQ(carrier.asked, 1);
  ++now_s;
  client_says(net::kTcpAck);
  EXPECT_EQ(carrier.asked, 2);
  client_says(net::kTcpAck);
  EXPECT_EQ(carrier.asked, 2);
  ++carrier.now;
  client_says(net::kTcpAck);
  EXPECT_EQ(carrier.asked, 3);
}

TEST_F(NatCarrierTest, IsAskedAgainAtOnceWhenItCouldNot) {
  carrier.can = false;
  handshake();
  for (int i = 0; i < kNatCarryAfter + 4; ++i) client_says(net::kTcpAck);
  EXPECT_EQ(carrier.asked, 5);
  carrier.can = true;
  client_says(net::kTcpAck);
  EXPECT_EQ(carrier.carried.size(), 1U);
}

// Of a client's packet somebody has said just now whose it is; a proxy that is down, or whose
// service is gone, may go on speaking.
TEST_F(NatCarrierTest, IsNotAskedBecauseAProxyGoesOnSpeaking) {
  handshake();
  for (int i = 0; i < 20; ++i) proxy_says(net::kTcpAck);
  EXPECT_EQ(carrier.asked, 0);
  client_says(net::kTcpAck);
  EXPECT_EQ(carrier.asked, 1);
  ++carrier.now;
  for (int i = 0; i < 20; ++i) proxy_says(net::kTcpAck);
  EXPECT_EQ(carrier.asked, 1);
  now_s += kNatCarriedS;
  for (int i = 0; i < 20; ++i) proxy_says(net::kTcpAck);
  EXPECT_EQ(carrier.asked, 1);
}

TEST_F(NatCarrierTest, GivesBackWhatItCannotCarryAnyMore) {
  until_carried();
  now_s += kNatCarriedS;
  carrier.can = false;
  client_says(net::kTcpAck);
  EXPECT_TRUE(carrier.carried.empty()) << "the session may end before it is asked again";
  client_says(net::kTcpRst);
  EXPECT_TRUE(carrier.carried.empty());
}

TEST_F(NatCarrierTest, GivesBackWhatIsReset) {
  until_carried();
  client_says(net::kTcpRst);
  EXPECT_TRUE(carrier.carried.empty());
  // It was made up: the connection goes on.
  client_says(net::kTcpAck);
  EXPECT_TRUE(carrier.carried.empty()) << "perhaps a short one";
  for (int i = 0; i < kNatCarryAfter; ++i) client_says(net::kTcpAck);
  EXPECT_EQ(carrier.carried.size(), 1U);
}

TEST_F(NatCarrierTest, KeepsWhatIsHalfClosedUntilBothHaveEnded) {
  until_carried();
  client_says(net::kTcpFin | net::kTcpAck);
  EXPECT_EQ(carrier.carried.size(), 1U);
  proxy_says(net::kTcpFin | net::kTcpAck);
  EXPECT_TRUE(carrier.carried.empty());
  for (int i = 0; i < 20; ++i) client_says(net::kTcpAck);
  EXPECT_TRUE(carrier.carried.empty());
}

TEST_F(NatCarrierTest, GivesBackWhatBeginsAnew) {
  until_carried();
  client_says(net::kTcpSyn);
  EXPECT_EQ(carrier.carried.size(), 1U) << "anybody can say so";
  proxy_says(net::kTcpSyn | net::kTcpAck);
  EXPECT_TRUE(carrier.carried.empty());
}

TEST_F(NatCarrierTest, GivesBackWhatAgesOrGoesWithItsProxy) {
  until_carried();
  nat.age(now_s + 10'000);
  EXPECT_EQ(nat.sessions(), 0U);
  EXPECT_TRUE(carrier.carried.empty());
  until_carried();
  nat.erase_proxy(3);
  EXPECT_TRUE(carrier.carried.empty());
}

TEST_F(NatCarrierTest, KeepsWhatMayHaveBeenCarriedWhileNobodyWatched) {
  until_carried();
  const std::uint32_t established_s = options().established_s;
  const auto pass = [&](std::uint32_t seconds) {
    now_s += seconds;
    nat.watch_time(now_s);
    nat.age(now_s);
  };
  pass(1);
  pass(established_s + 100);
  EXPECT_EQ(nat.sessions(), 1U);
  EXPECT_EQ(carrier.carried.size(), 1U);
  // Nothing comes any more: it ends by its timer, from then on.
  for (std::uint32_t i = 0; i < established_s; ++i) pass(1);
  EXPECT_EQ(nat.sessions(), 1U);
  pass(1);
  EXPECT_EQ(nat.sessions(), 0U);
  EXPECT_TRUE(carrier.carried.empty());
}

TEST_F(NatCarrierTest, KeepsNoHandshakeForThat) {
  client_says(net::kTcpSyn);
  nat.watch_time(now_s);
  now_s += options().transitory_s + 1;
  nat.watch_time(now_s);
  nat.age(now_s);
  EXPECT_EQ(nat.sessions(), 0U);
}

}  // namespace
}  // namespace sanproxy::steer
