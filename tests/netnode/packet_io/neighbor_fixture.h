// A Neighbor with a clock that stands still and a sink that keeps every frame.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "netnode/packet_io/neighbor.h"
#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::packet_io::testing {

using net::testing::Bytes;

inline IpAddress ip(const char* text) { return IpAddress::parse(text).value(); }
inline net::MacAddress mac(std::uint8_t last) { return {{2, 0, 0, 0, 0, last}}; }
inline const net::MacAddress kOurs = mac(0xee);

struct Sink : FrameSink {
  void send_frame(std::span<const std::byte> frame, const Offload& offload) override {
    const auto* at = reinterpret_cast<const std::uint8_t*>(frame.data());
    frames.emplace_back(at, at + frame.size());
    offloads.push_back(offload);
  }
  std::vector<Bytes> frames;
  std::vector<Offload> offloads;
};

// A packet out of one piece that lives as long as this.
struct Outgoing {
  explicit Outgoing(const IpAddress& src, const IpAddress& dst, std::size_t data = 4) {
    bytes = dst.family == Family::kIpv4 ? net::testing::ipv4(6, net::testing::tcp(data))
                                        : net::testing::ipv6(6, net::testing::tcp(data));
    const std::size_t at = dst.family == Family::kIpv4 ? 12 : 8;
    std::copy_n(src.bytes.begin(), src.size(), bytes.begin() + static_cast<long>(at));
    std::copy_n(dst.bytes.begin(), dst.size(), bytes.begin() + static_cast<long>(at + dst.size()));
    packet.pieces[0] = {bytes.data(), bytes.size()};
    packet.piece_count = 1;
    packet.length = static_cast<std::uint32_t>(bytes.size());
  }
  Bytes bytes;
  SendPacket packet;
};

class NeighborTest : public ::testing::Test {
 protected:
  void start(std::vector<IpAddress> gateways = {}) {
    neighbor = std::make_unique<Neighbor>(NeighborConfig{kOurs,
                                                         {IpPrefix::parse("10.0.0.10/24").value(),
                                                          IpPrefix::parse("fd00::10/64").value()},
                                                         std::move(gateways)},
                                          clock, sink, counters, 99);
    ASSERT_TRUE(neighbor->add_local(ip("10.0.0.10")));
    ASSERT_TRUE(neighbor->add_local(ip("fd00::10")));
    sink.frames.clear();
    sink.offloads.clear();
  }
  // Whether a packet to `dst` could leave now, and to whom.
  bool resolve(const char* dst, net::MacAddress& out) {
    const IpAddress to = ip(dst);
    Outgoing outgoing(to.family == Family::kIpv4 ? ip("10.0.0.10") : ip("fd00::10"), to);
    return neighbor->resolve(outgoing.packet, out);
  }
  void arp(std::uint16_t operation, const net::MacAddress& sender_mac, const char* sender_ip,
           const net::MacAddress& target_mac, const char* target_ip) {
    const ArpMessage message{operation, sender_mac, ip(sender_ip), target_mac, ip(target_ip)};
    neighbor->input_arp(build_arp(message, kOurs, sender_mac));
  }
  void nd(const NdMessage& message) {
    const NdFrame frame = build_nd(message, kOurs, message.mac);
    nd_bytes(Bytes(reinterpret_cast<const std::uint8_t*>(frame.data()) + 14,
                   reinterpret_cast<const std::uint8_t*>(frame.data()) + frame.size()));
  }
  void nd_bytes(const Bytes& packet) {
    net::ParsedPacket parsed;
    const auto span = net::testing::as_span(packet);
    if (net::parse_packet(span, parsed) == net::DropReason::kNone && is_nd(span, parsed)) {
      neighbor->input_nd(span, parsed);
    }
  }
  // Packets to as many neighbours of which nothing is known.
  void flood(unsigned count) {
    net::MacAddress to;
    for (unsigned i = 0; i < count; ++i) {
      IpAddress dst = ip("fd00::1:0:1000");
      net::store_be16(dst.bytes.data() + 14, static_cast<std::uint16_t>(i));
      net::store_be16(dst.bytes.data() + 12, flood_round);
      Outgoing outgoing(ip("fd00::10"), dst);
      EXPECT_FALSE(neighbor->resolve(outgoing.packet, to));
    }
    ++flood_round;
  }
  // How many of the frames ask for `target`.
  int asks_for(const char* target) {
    return static_cast<int>(
        std::count_if(sink.frames.begin(), sink.frames.end(), [&](const Bytes& frame) {
          ArpMessage message;
          return net::load_be16(frame.data() + 12) == net::kEtherTypeArp &&
                 parse_arp(net::testing::as_span(frame), message) &&
                 message.operation == kArpRequest && message.target_ip == ip(target);
        }));
  }
  // Answers if it was asked.
  void arp_answer(const net::MacAddress& from, const char* sender_ip) {
    if (asks_for(sender_ip) != 0) {
      arp(kArpReply, from, sender_ip, kOurs, "10.0.0.10");
    }
  }
  ArpMessage last_arp() {
    ArpMessage message;
    EXPECT_FALSE(sink.frames.empty());
    EXPECT_TRUE(parse_arp(net::testing::as_span(sink.frames.back()), message));
    return message;
  }
  NdMessage last_nd() {
    NdMessage message;
    net::ParsedPacket parsed;
    EXPECT_FALSE(sink.frames.empty());
    const auto packet = net::testing::as_span(sink.frames.back()).subspan(14);
    EXPECT_EQ(net::parse_packet(packet, parsed), net::DropReason::kNone);
    EXPECT_TRUE(is_nd(packet, parsed));
    EXPECT_TRUE(parse_nd(packet, parsed, message));
    return message;
  }
  net::MacAddress frame_dst(std::size_t index) {
    return net::MacAddress::from(sink.frames.at(index).data());
  }
  void later(std::uint64_t seconds) {
    clock.advance_ns(seconds * kNeighborSecondNs);
    neighbor->on_time();
  }

  ManualClock clock;
  Sink sink;
  Counters counters;
  std::unique_ptr<Neighbor> neighbor;
  std::uint16_t flood_round = 0;
};

}  // namespace sanproxy::packet_io::testing
