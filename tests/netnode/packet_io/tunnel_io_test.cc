#include "netnode/packet_io/tunnel_io.h"

#include <gtest/gtest.h>

#include "netnode/net/tunnel.h"
#include "tests/netnode/steer/steer_packets.h"

namespace sanproxy::packet_io {
namespace {

using namespace steer::testing;  // NOLINT: the test's own

constexpr const char* kAddresses[2][2] = {{"10.9.0.1", "10.9.0.2"}, {"fd09::1", "fd09::2"}};

// A driver that has received one packet.
class OnePacket final : public PacketIo {
 public:
  OnePacket(Bytes bytes, const Offload& offload) : bytes_(std::move(bytes)), offload_(offload) {
    options_.decapsulate_from = {*IpAddress::parse(kAddresses[0][0]),
                                 *IpAddress::parse(kAddresses[1][0])};
  }
  const InterfaceOptions& options() const override { return options_; }
  std::uint32_t mtu_bytes() const override { return 1500; }
  int fd() const override { return -1; }
  std::size_t receive(std::span<const ReceiveBuffer> buffers,
                      std::span<ReceivedPacket> out) override {
    std::memcpy(buffers[0].data + 64, bytes_.data(), bytes_.size());
    out[0] = {};
    out[0].offset = 64;
    out[0].length = static_cast<std::uint32_t>(bytes_.size());
    out[0].offload = offload_;
    return 1;
  }
  std::size_t send(std::span<const SendPacket> packets) override { return packets.size(); }
  void flush() override {}
  void add_local_address(const IpAddress&) override {}
  void remove_local_address(const IpAddress&) override {}
  const Counters& counters() const override { return counters_; }

 private:
  Bytes bytes_;
  Offload offload_;
  InterfaceOptions options_;
  Counters counters_;
};

struct Outcome {
  bool kept = false;
  Bytes packet;
  Offload offload;
};

Outcome receive(const Bytes& packet, const Offload& offload) {
  const auto io = make_tunnel_io(std::make_unique<OnePacket>(packet, offload));
  const auto memory = std::make_unique<std::byte[]>(64 + packet.size());  // ends with the packet
  const ReceiveBuffer buffer{memory.get(), static_cast<std::uint32_t>(64 + packet.size())};
  ReceivedPacket out;
  if (io->receive({&buffer, 1}, {&out, 1}) == 0) {
    EXPECT_EQ(io->counters().rx_dropped_tunnel, 1U);
    return {};
  }
  const auto* at = reinterpret_cast<const std::uint8_t*>(memory.get()) + out.offset;
  return {true, Bytes(at, at + out.length), out.offload};
}

struct Tunnelled {
  Bytes inner;
  Bytes packet;
  Offload merged;  // what a kernel says that has merged segments of the inner packet

  std::uint32_t outer_bytes() const {
    return static_cast<std::uint32_t>(packet.size() - inner.size());
  }
};

Tunnelled tunnelled(net::TunnelKind kind, bool outer6, bool inner6,
                    std::uint8_t protocol = net::kProtocolTcp) {
  Tunnelled out;
  out.inner = packet_of({.from = at(inner6 ? "[fd01::7]:5" : "10.1.2.3:5"),
                         .to = at(inner6 ? "[fd00::10]:80" : "10.0.0.10:80"),
                         .tag = protocol == net::kProtocolTcp ? std::uint16_t{3} : std::uint16_t{0},
                         .payload = 3'000,
                         .protocol = protocol});
  const net::TunnelSpec spec{kind, *IpAddress::parse(kAddresses[outer6][0]),
                             *IpAddress::parse(kAddresses[outer6][1])};
  out.packet.resize(spec.overhead_bytes());
  net::write_tunnel_header(std::as_writable_bytes(std::span(out.packet)), spec, parsed(out.inner),
                           out.inner.size(), 7);
  out.packet.insert(out.packet.end(), out.inner.begin(), out.inner.end());
  const bool tcp = protocol == net::kProtocolTcp;
  out.merged.checksum_partial = true;
  out.merged.checksum_start =
      static_cast<std::uint16_t>(spec.overhead_bytes() + (inner6 ? 40U : 20U));
  out.merged.checksum_offset = tcp ? 16 : 6;
  if (tcp) {
    out.merged.segmentation = inner6 ? Segmentation::kTcp6 : Segmentation::kTcp4;
    out.merged.segment_bytes = 1'000;
    out.merged.header_bytes = 200;  // a hint that covers more than headers
  }
  return out;
}

TEST(TunnelIo, WhatTheKernelHasMergedInsideATunnelKeepsWhatItSaysOfIt) {
  for (const net::TunnelKind kind : {net::TunnelKind::kIp, net::TunnelKind::kGue}) {
    for (const bool outer6 : {false, true}) {
      for (const bool inner6 : {false, true}) {
        const Tunnelled one = tunnelled(kind, outer6, inner6);
        const Outcome got = receive(one.packet, one.merged);
        ASSERT_TRUE(got.kept) << outer6 << inner6;
        EXPECT_EQ(got.packet, one.inner);
        EXPECT_TRUE(got.offload.checksum_partial);
        EXPECT_EQ(got.offload.checksum_start, inner6 ? 40 : 20);
        EXPECT_EQ(got.offload.checksum_offset, 16);
        EXPECT_EQ(got.offload.segmentation, one.merged.segmentation);
        EXPECT_EQ(got.offload.segment_bytes, 1'000);
        EXPECT_EQ(got.offload.header_bytes, (inner6 ? 40 : 20) + 32);
      }
    }
  }
}

TEST(TunnelIo, AChecksumThatTheSendersKernelLeftUndoneInsideATunnelIsTrusted) {
  for (const std::uint8_t protocol : {net::kProtocolTcp, net::kProtocolUdp}) {
    Tunnelled one = tunnelled(net::TunnelKind::kIp, false, true, protocol);
    one.merged.segmentation = Segmentation::kNone;
    const Outcome got = receive(one.packet, one.merged);
    ASSERT_TRUE(got.kept);
    EXPECT_TRUE(got.offload.checksum_partial);
    EXPECT_EQ(got.offload.checksum_start, 40);
    EXPECT_EQ(got.offload.segmentation, Segmentation::kNone);
    EXPECT_EQ(got.offload.header_bytes, 0);
  }
}

TEST(TunnelIo, MetadataThatDoesNotFitTheInnerHeadersIsNotBelieved) {
  const Tunnelled one = tunnelled(net::TunnelKind::kIp, false, false);
  const auto believed = [](const Tunnelled& packet, const Offload& offload) {
    const Outcome got = receive(packet.packet, offload);
    EXPECT_TRUE(got.kept);
    EXPECT_EQ(got.packet, packet.inner);
    return got.offload.checksum_partial || got.offload.checksum_verified ||
           got.offload.segmentation != Segmentation::kNone || got.offload.header_bytes != 0;
  };
  EXPECT_TRUE(believed(one, one.merged));
  Offload wrong;
  wrong.checksum_verified = true;
  EXPECT_FALSE(believed(one, wrong)) << "verified, which was the outer one";
  for (const std::uint32_t start : {0U, 16U, 20U, 39U, 41U, 60U, one.outer_bytes() + 3'000U}) {
    wrong = one.merged;
    wrong.checksum_start = static_cast<std::uint16_t>(start);
    EXPECT_FALSE(believed(one, wrong)) << start;
  }
  wrong = one.merged;
  wrong.checksum_offset = 14;
  EXPECT_FALSE(believed(one, wrong));
  wrong = one.merged;
  wrong.segmentation = Segmentation::kTcp6;
  EXPECT_FALSE(believed(one, wrong)) << "segments of another version";
  wrong = one.merged;
  wrong.checksum_partial = false;
  EXPECT_FALSE(believed(one, wrong)) << "segments whose checksum nobody speaks of";
  const Tunnelled udp = tunnelled(net::TunnelKind::kIp, false, false, net::kProtocolUdp);
  wrong = udp.merged;
  wrong.segmentation = Segmentation::kTcp4;
  EXPECT_FALSE(believed(udp, wrong)) << "TCP segments of a datagram";
  Tunnelled cut = one;
  cut.inner[32] = cut.packet[one.outer_bytes() + 32] = 0xf0;  // a header beyond the packet
  cut.inner.resize(40);
  cut.packet.resize(one.outer_bytes() + 40);
  for (Bytes* bytes : {&cut.inner, &cut.packet}) {
    net::store_be16(bytes->data() + bytes->size() - 38, 40);
    net::store_be16(bytes->data() + 2, static_cast<std::uint16_t>(bytes->size()));
    net::testing::fix_ipv4_checksum(*bytes);
  }
  std::copy(cut.inner.begin(), cut.inner.end(), cut.packet.begin() + one.outer_bytes());
  EXPECT_FALSE(believed(cut, one.merged)) << "half a TCP header";
}

TEST(TunnelIo, SegmentsOfTheOtherVersionAreOnlyATunnels) {
  Offload six;
  six.checksum_partial = true;
  six.checksum_start = 20;
  six.checksum_offset = 16;
  six.segmentation = Segmentation::kTcp6;
  six.segment_bytes = 1'000;
  for (const std::uint8_t protocol : {net::kProtocolTcp, net::kProtocolUdp}) {
    const Bytes plain =
        packet_of({.from = at("10.1.2.3:5"), .to = at("10.0.0.10:80"), .protocol = protocol});
    EXPECT_FALSE(receive(plain, six).kept);
    Offload four = six;
    four.segmentation = Segmentation::kTcp4;
    const Outcome got = receive(plain, four);
    EXPECT_TRUE(got.kept);
    EXPECT_EQ(got.offload.checksum_start, 20) << "what is no tunnel's stays as it is";
  }
}

}  // namespace
}  // namespace sanproxy::packet_io
