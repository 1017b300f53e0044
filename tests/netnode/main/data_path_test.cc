// What a proxy sends over a channel goes to clients, or nowhere.
#include "netnode/main/data_path.h"

#include <gtest/gtest.h>

#include <utility>

#include "netnode/net/segments.h"
#include "tests/netnode/steer/steer_packets.h"

namespace sanproxy::netnode {
namespace {

using steer::testing::at;
using steer::testing::Bytes;
using steer::testing::packet_of;

class FakeIo final : public packet_io::PacketIo {
 public:
  const packet_io::InterfaceOptions& options() const override { return options_; }
  std::uint32_t mtu_bytes() const override { return mtu; }
  int fd() const override { return -1; }
  std::size_t receive(std::span<const packet_io::ReceiveBuffer> buffers,
                      std::span<packet_io::ReceivedPacket> out) override {
    const std::size_t count = std::min(buffers.size(), arrived.size());
    for (std::size_t i = 0; i < count; ++i) {
      const auto& [packet, offload] = arrived[i];
      std::memcpy(buffers[i].data + 64, packet.data(), packet.size());
      out[i] = {static_cast<std::uint32_t>(i), 64, static_cast<std::uint32_t>(packet.size()),
                offload};
    }
    arrived.erase(arrived.begin(), arrived.begin() + static_cast<std::ptrdiff_t>(count));
    return count;
  }
  std::size_t send(std::span<const packet_io::SendPacket> packets) override {
    sent.insert(sent.end(), packets.begin(), packets.end());
    for (const packet_io::SendPacket& packet : packets) {
      const auto* at = static_cast<const std::uint8_t*>(packet.pieces[0].iov_base);
      sent_bytes.emplace_back(at, at + packet.pieces[0].iov_len);
    }
    return packets.size();
  }
  void flush() override {}
  std::uint64_t way_changes() const override { return ways; }
  void add_local_address(const IpAddress&) override {}
  void remove_local_address(const IpAddress&) override {}
  const packet_io::Counters& counters() const override { return counters_; }

  std::uint32_t mtu = 1500;
  std::uint64_t ways = 0;
  std::vector<std::pair<Bytes, packet_io::Offload>> arrived;
  std::vector<packet_io::SendPacket> sent;
  std::vector<Bytes> sent_bytes;  // of their first pieces

 private:
  packet_io::InterfaceOptions options_;
  packet_io::Counters counters_;
};

class FakeChannels final : public ChannelWay {
 public:
  explicit FakeChannels(buffer::SlotPool& pool) : pool_(pool) {}
  bool send(std::uint16_t proxy, buffer::SlotIndex slot, std::uint32_t, std::uint32_t,
            const packet_io::Offload&, bool) override {
    to.push_back(proxy);
    pool_.release(slot);
    return true;
  }
  std::vector<std::uint16_t> to;

 private:
  buffer::SlotPool& pool_;
};

class DataPathTest : public ::testing::Test {
 protected:
  static constexpr std::size_t kSlotBytes = 17 * 4096;
  DataPathTest() {
    steer::ProxySet set;
    set.services = {{at("10.0.0.10:80")}, {at("[fd00::10]:80")}};
    for (const char* name : {"a", "b"}) {
      steer::ProxyConfig proxy;
      proxy.name = name;
      proxy.channel = std::string("shm:/run/") + name;
      set.proxies.push_back(proxy);
    }
    auto io = std::make_unique<FakeIo>();
    io_ = io.get();
    path_.add_interface(std::move(io), {});
    path_.set_channel_way(&channels_);
    std::vector<std::uint16_t> gone;
    path_.forwarder().apply(set, gone);
    for (std::uint16_t i = 0; i < 2; ++i) path_.forwarder().set_state(i, steer::ProxyState::kUp);
  }
  static NetnodeConfig config() {
    NetnodeConfig out;
    out.forwarder.maglev_entries = 1009;
    out.forwarder.flows.flows_max = 1024;
    out.forwarder.nat.sessions_max = 64;
    out.forwarder.nat.addresses = {at("10.0.1.1:1").ip, at("[fd00:1::1]:1").ip};
    out.tunnel_addresses = {at("[fd00:1::2]:1").ip};
    out.icmp_errors = {.per_s = 1, .burst = 3};
    return out;
  }
  static Bytes answer(std::size_t payload = 100) {
    return packet_of({.from = at("10.0.0.10:80"), .to = at("10.1.1.1:4000"), .payload = payload});
  }
  // In pieces of their own allocations: a read beyond them is seen by the address sanitizer.
  std::size_t to_client(const Bytes& packet, const packet_io::Offload& offload = {},
                        std::size_t first = SIZE_MAX) {
    const std::size_t head = std::min(first, packet.size());
    const auto one = std::make_unique<std::uint8_t[]>(head);
    const auto two = std::make_unique<std::uint8_t[]>(packet.size() - head);
    std::memcpy(one.get(), packet.data(), head);
    std::memcpy(two.get(), packet.data() + head, packet.size() - head);
    const std::array<iovec, 2> pieces = {{{one.get(), head}, {two.get(), packet.size() - head}}};
    const std::size_t before = io_->sent.size();
    path_.to_client(0, {pieces.data(), head == packet.size() ? std::size_t{1} : std::size_t{2}},
                    static_cast<std::uint32_t>(packet.size()), offload);
    path_.flush();
    return io_->sent.size() - before;
  }
  // One ordinary server behind the NAT, for TCP and UDP over both families.
  void translate() {
    steer::ProxySet set;
    for (const char* address : {"10.0.0.10:80", "[fd00::10]:80"}) {
      for (const std::uint8_t protocol : {net::kProtocolTcp, net::kProtocolUdp}) {
        set.services.push_back({at(address), protocol});
      }
    }
    steer::ProxyConfig proxy;
    proxy.name = "n";
    proxy.mode = steer::Mode::kNat;
    proxy.targets = {at("10.5.5.5:80"), at("[fd00::5]:80")};
    set.proxies.push_back(proxy);
    std::vector<std::uint16_t> gone;
    path_.forwarder().apply(set, gone);
    path_.forwarder().set_state(path_.forwarder().find("n"), steer::ProxyState::kUp);
  }
  // A super-packet of `payload` bytes, as a kernel hands it over, and what is said of it.
  static std::pair<Bytes, packet_io::Offload> datagrams(bool v4, std::size_t payload,
                                                        std::uint16_t each) {
    const std::uint16_t l3 = v4 ? 20 : 40;
    Bytes packet = packet_of({.from = at(v4 ? "10.1.1.1:4000" : "[fd00::1]:4000"),
                              .to = at(v4 ? "10.0.0.10:80" : "[fd00::10]:80"),
                              .payload = payload,
                              .protocol = net::kProtocolUdp});
    if (v4) {
      net::store_be16(packet.data() + 4, 0xfffe);  // the identification runs over
      net::testing::fix_ipv4_checksum(packet);
    }
    packet_io::Offload said;
    said.segmentation = packet_io::Segmentation::kUdp;
    said.segment_bytes = each;
    said.checksum_partial = true;
    said.checksum_start = l3;
    said.checksum_offset = 6;
    return {packet, said};
  }
  std::uint64_t malformed() const { return path_.counters().dropped_reply_malformed; }
  static packet_io::Offload super_packet() {
    packet_io::Offload out;
    out.segmentation = packet_io::Segmentation::kTcp4;
    out.checksum_partial = true;
    out.segment_bytes = 1448;
    out.header_bytes = 40;
    out.checksum_start = 20;
    out.checksum_offset = 16;
    return out;
  }

  ManualClock clock_;
  buffer::MemoryRegion region_ = buffer::MemoryRegion::create("test", 256 * kSlotBytes).value();
  buffer::SlotPool pool_{region_.bytes(), kSlotBytes};
  packet_io::PacketPool packets_{pool_};
  DataPath path_{config(), clock_, packets_};
  FakeChannels channels_{pool_};
  FakeIo* io_ = nullptr;
};

TEST_F(DataPathTest, AnAnswerOfAServiceGoesToItsClient) {
  EXPECT_EQ(to_client(answer()), 1u);
  EXPECT_EQ(to_client(answer(4'000), super_packet()), 1u);
  EXPECT_EQ(to_client(answer(4'000), super_packet(), 100), 1u) << "in two pieces";
  EXPECT_EQ(io_->sent.back().offload.header_bytes, 40u);
  EXPECT_EQ(malformed(), 0u);
}

TEST_F(DataPathTest, WhatComesFromTheAddressOfNoServiceGoesNowhere) {
  EXPECT_EQ(to_client(packet_of({.from = at("10.0.0.11:80"), .to = at("10.1.1.1:4000")})), 0u);
  EXPECT_EQ(path_.counters().dropped_reply_foreign, 1u);
}

TEST_F(DataPathTest, ShortCutAndLongPacketsGoNowhere) {
  Bytes six(20);
  six[0] = 0x60;
  EXPECT_EQ(to_client(six), 0u) << "IPv6 in 20 bytes";
  Bytes longer = answer();
  longer.push_back(0);
  EXPECT_EQ(to_client(longer), 0u) << "bytes behind the packet";
  Bytes shorter = answer();
  shorter.pop_back();
  EXPECT_EQ(to_client(shorter), 0u);
  EXPECT_EQ(to_client(answer(), {}, 30), 0u) << "a header in two pieces";
  Bytes checksum = answer();
  checksum[10] ^= 1;
  EXPECT_EQ(to_client(checksum), 0u);
  EXPECT_EQ(malformed(), 5u);
}

TEST_F(DataPathTest, MetadataThatTheBytesDoNotBearOutGoNowhere) {
  const auto with = [&](auto change) {
    packet_io::Offload offload = super_packet();
    change(offload);
    return to_client(answer(4'000), offload);
  };
  EXPECT_EQ(with([](auto&) {}), 1u);
  EXPECT_EQ(with([](auto& o) { o.segment_bytes = 1; }), 0u) << "thousands of packets out of one";
  EXPECT_EQ(with([](auto& o) { o.checksum_start = 0; }), 0u);
  EXPECT_EQ(with([](auto& o) { o.checksum_offset = 2; }), 0u);
  EXPECT_EQ(malformed(), 3u);
  EXPECT_EQ(with([](auto& o) { o.header_bytes = 2'000; }), 1u);
  EXPECT_EQ(io_->sent.back().offload.header_bytes, 40u) << "its own word does not count";
}

TEST_F(DataPathTest, APacketThatComesBackIsLookedAtAsAnyOther) {
  const auto back = [&](const Bytes& packet, const packet_io::Offload& offload = {}) {
    const buffer::SlotIndex slot = pool_.acquire();
    pool_.mark_received(slot);
    std::memcpy(pool_.data(slot), packet.data(), packet.size());
    path_.retry(0, slot, 0, static_cast<std::uint32_t>(packet.size()), offload);
    path_.flush();
    return pool_.free_count() == pool_.slot_count();
  };
  const Bytes segment = packet_of({.from = at("10.1.1.1:4000"), .to = at("10.0.0.10:80")});
  EXPECT_TRUE(back(segment));
  EXPECT_EQ(channels_.to.size(), 1u);
  Bytes wrong = segment;
  wrong[3] = 255;
  EXPECT_TRUE(back(wrong)) << "and its buffer is free again";
  packet_io::Offload tiny = super_packet();
  tiny.segment_bytes = 1;
  EXPECT_TRUE(back(segment, tiny));
  EXPECT_EQ(channels_.to.size(), 1u);
  EXPECT_EQ(path_.counters().dropped_sent_back, 2u);
}

class NatPathTest : public DataPathTest {
 protected:
  NatPathTest() {
    translate();
    place_ = path_.forwarder().find("n");
  }
  void arrive(const Bytes& packet) {
    io_->arrived.emplace_back(packet, packet_io::Offload{});
    path_.receive();
    path_.flush();
  }
  static Bytes from_client(std::uint8_t flags) {
    return packet_of({.from = at("10.1.1.1:5"), .to = at("10.0.0.10:80"), .flags = flags});
  }
  // Of the server, to what was sent to it.
  static Bytes from_server(const Bytes& sent, std::uint8_t flags) {
    const net::FlowKey key = steer::testing::flow_of(sent);
    const net::ParsedPacket p = steer::testing::parsed(sent);
    return packet_of({.from = {p.dst_address(), key.dst_port},
                      .to = {p.src_address(), key.src_port},
                      .flags = flags});
  }
  std::uint16_t place_ = 0;
};

TEST_F(NatPathTest, WhatIsDroppedDoesNotCountAsSent) {
  Bytes last_hop = from_client(net::kTcpSyn);
  last_hop[8] = 1;
  net::testing::fix_ipv4_checksum(last_hop);
  arrive(last_hop);
  arrive(packet_of({.from = at("10.5.5.5:80"), .to = at("10.0.1.1:3000")}));
  EXPECT_TRUE(io_->sent.empty());
  EXPECT_EQ(path_.counters().to_nat, 0U);
  EXPECT_EQ(path_.counters().to_client, 0U);
  EXPECT_EQ(path_.forwarder().sessions(), 0U);
  arrive(from_client(net::kTcpSyn));
  arrive(from_server(io_->sent_bytes.back(), net::kTcpSyn | net::kTcpAck));
  EXPECT_EQ(path_.counters().to_nat, 1U);
  EXPECT_EQ(path_.counters().to_client, 1U);
}

TEST_F(NatPathTest, ATranslatedSessionCountsOnceAndItsServersEndIsTheFlowsToo) {
  steer::Forwarder& forwarder = path_.forwarder();
  arrive(from_client(net::kTcpSyn));
  const Bytes sent = io_->sent_bytes.back();
  arrive(from_server(sent, net::kTcpSyn | net::kTcpAck));
  arrive(from_client(net::kTcpAck));
  EXPECT_EQ(forwarder.sessions_of(place_), 1U);
  EXPECT_EQ(forwarder.sessions(), 1U);
  EXPECT_EQ(forwarder.flows().size(), 1U);
  arrive(from_server(sent, net::kTcpRst));
  const auto age = [&](std::uint64_t s) {
    for (int i = 0; i < 4; ++i) forwarder.age(path_.now_ms() + s * 1'000);
  };
  age(62);
  EXPECT_EQ(forwarder.flows().size(), 0U) << "established no longer";
  EXPECT_EQ(forwarder.sessions_of(place_), 1U) << "while the NAT waits for the last packets";
  age(242);
  EXPECT_EQ(forwarder.sessions(), 0U);
}

TEST_F(DataPathTest, AnswersThatAPacketIsTooBigAreNoMoreThanTheRate) {
  translate();
  Bytes large =
      packet_of({.from = at("10.1.1.1:4000"), .to = at("10.0.0.10:80"), .payload = 3'000});
  net::store_be16(large.data() + 6, 0x4000);  // must not be cut
  net::testing::fix_ipv4_checksum(large);
  Bytes cuttable = large;
  cuttable[6] = 0;
  net::testing::fix_ipv4_checksum(cuttable);
  for (int i = 0; i < 15; ++i) {
    const Bytes& packet = i < 10 ? cuttable : large;
    const buffer::SlotIndex slot = pool_.acquire();
    pool_.mark_received(slot);
    std::memcpy(pool_.data(slot), packet.data(), packet.size());
    path_.retry(0, slot, 0, static_cast<std::uint32_t>(packet.size()), {});
    path_.flush();
  }
  EXPECT_EQ(path_.counters().dropped_too_big, 10u) << "nobody is told, and it costs no answer";
  EXPECT_EQ(path_.counters().packet_too_big, 3u);
  EXPECT_EQ(path_.counters().icmp_limited, 2u);
  EXPECT_EQ(io_->sent.size(), 3u);
  EXPECT_EQ(pool_.free_count(), pool_.slot_count());
}

TEST_F(DataPathTest, AUdpSuperPacketGoesOnAsItsDatagramsInTheirPlace) {
  translate();
  for (const bool v4 : {true, false}) {
    const std::size_t l3 = v4 ? 20 : 40;
    const auto plain = [&](std::size_t payload) {
      return std::pair{datagrams(v4, payload, 1).first, packet_io::Offload{}};
    };
    const auto whole = datagrams(v4, 70 * 900 + 1, 900);
    io_->sent.clear();
    io_->sent_bytes.clear();
    io_->arrived = {plain(11), whole, plain(12)};
    EXPECT_EQ(path_.receive(), 3u);
    path_.flush();
    ASSERT_EQ(io_->sent.size(), 1u + 71u + 1u);
    EXPECT_EQ(io_->sent_bytes.front().size(), l3 + 8 + 11);
    EXPECT_EQ(io_->sent_bytes.back().size(), l3 + 8 + 12);
    Bytes together;
    for (std::size_t i = 0; i < 71; ++i) {
      Bytes one = io_->sent_bytes[1 + i];
      const packet_io::Offload& offload = io_->sent[1 + i].offload;
      ASSERT_EQ(one.size(), l3 + 8 + (i == 70 ? 1 : 900));
      EXPECT_EQ(offload.segmentation, packet_io::Segmentation::kNone);
      ASSERT_TRUE(offload.checksum_partial);
      EXPECT_EQ(net::load_be16(one.data() + l3 + 4), one.size() - l3);
      ASSERT_TRUE(net::complete_checksum(std::as_writable_bytes(std::span(one)),
                                         offload.checksum_start, offload.checksum_offset));
      const std::string told = steer::testing::told(one);
      EXPECT_NE(told.find(v4 ? "-> 10.5.5.5:80" : "-> [fd00::5]:80"), std::string::npos) << told;
      EXPECT_EQ(told.find("wrong"), std::string::npos) << told;
      if (v4) {
        EXPECT_EQ(net::load_be16(one.data() + 4), static_cast<std::uint16_t>(0xfffe + i));
      }
      together.insert(together.end(), one.begin() + static_cast<std::ptrdiff_t>(l3 + 8), one.end());
    }
    EXPECT_EQ(together,
              Bytes(whole.first.begin() + static_cast<std::ptrdiff_t>(l3 + 8), whole.first.end()));
  }
  EXPECT_EQ(path_.counters().dropped_uncut, 0u);
}

TEST_F(DataPathTest, UdpSuperPacketsThatCannotBeCutAreCounted) {
  translate();
  const auto with = [&](auto change) {
    auto one = datagrams(true, 1'000, 100);
    change(one.first, one.second);
    io_->sent.clear();
    io_->arrived = {one};
    path_.receive();
    path_.flush();
    return io_->sent.size();
  };
  EXPECT_EQ(with([](auto&, auto&) {}), 10u);
  EXPECT_EQ(with([](auto&, auto& o) { o.segment_bytes = 8; }), 125u);
  EXPECT_EQ(path_.counters().dropped_uncut, 0u);
  EXPECT_EQ(with([](auto&, auto& o) { o.segment_bytes = 7; }), 0u) << "too many";
  EXPECT_EQ(with([](auto&, auto& o) { o.checksum_start = 24; }), 0u);
  EXPECT_EQ(with([](auto&, auto& o) { o.checksum_offset = 16; }), 0u);
  EXPECT_EQ(with([](auto&, auto& o) { o.checksum_partial = false; }), 0u);
  EXPECT_EQ(with([](auto& p, auto&) {
              p[9] = net::kProtocolTcp;
              net::testing::fix_ipv4_checksum(p);
            }),
            0u);
  EXPECT_EQ(with([](auto& p, auto&) { p[2] = 255; }), 0u) << "longer than it is";
  EXPECT_EQ(path_.counters().dropped_uncut, 6u);
}

TEST_F(DataPathTest, WithoutBuffersDatagramsAreLostAndCountedButNoBufferIs) {
  translate();
  std::vector<buffer::SlotIndex> taken;
  while (pool_.free_count() > 0) taken.push_back(pool_.acquire());
  for (int i = 0; i < 12; ++i) {
    pool_.release(taken.back());
    taken.pop_back();
  }
  // Every free buffer is lent to the interface; the first whole packet's is there for the second.
  io_->arrived = {datagrams(true, 1'000, 100), datagrams(true, 1'000, 100)};
  path_.receive();
  path_.flush();
  EXPECT_EQ(path_.counters().dropped_uncut, 19u);
  EXPECT_EQ(io_->sent.size(), 1u);
  for (const buffer::SlotIndex slot : taken) pool_.release(slot);
  io_->arrived = {datagrams(true, 1'000, 100), datagrams(true, 1'000, 100)};
  path_.receive();
  path_.flush();
  EXPECT_EQ(path_.counters().dropped_uncut, 19u);
  EXPECT_EQ(io_->sent.size(), 21u);
  EXPECT_EQ(pool_.free_count(), pool_.slot_count() - steer::kBurstMax);
}

TEST_F(DataPathTest, AnIpv6SegmentThatNoTunnelTakesWholeIsCutUnlessItsChecksumIsWrong) {
  steer::ProxySet set;
  set.services = {{at("[fd00::10]:80")}};
  steer::ProxyConfig proxy;
  proxy.name = "t";
  proxy.mode = steer::Mode::kTunnel;
  proxy.targets = {{at("[fd00:9::9]:1").ip, 0}};
  set.proxies.push_back(proxy);
  std::vector<std::uint16_t> gone;
  path_.forwarder().apply(set, gone);
  path_.forwarder().set_state(path_.forwarder().find("t"), steer::ProxyState::kUp);
  io_->mtu = 1300;  // 1260 inside
  const auto of = [](std::size_t bytes, std::uint8_t flags) {
    return packet_of({.from = at("[fd00::1]:4000"),
                      .to = at("[fd00::10]:80"),
                      .flags = flags,
                      .payload = bytes - 60});
  };
  const auto lengths = [&](const Bytes& packet) {
    io_->sent.clear();
    io_->arrived.emplace_back(packet, packet_io::Offload{});
    path_.receive();
    path_.flush();
    std::vector<std::uint32_t> out;
    for (const packet_io::SendPacket& one : io_->sent) out.push_back(one.length);
    return out;
  };
  using Lengths = std::vector<std::uint32_t>;
  EXPECT_EQ(lengths(of(1260, net::kTcpAck)), (Lengths{1300}));
  EXPECT_EQ(lengths(of(1280, net::kTcpAck)), (Lengths{1300, 120}));
  EXPECT_EQ(path_.counters().packet_too_big, 0u);
  Bytes wrong = of(1280, net::kTcpAck);
  wrong.back() ^= 1;
  EXPECT_EQ(lengths(wrong).size(), 1u) << "an answer";
  EXPECT_EQ(lengths(of(1280, net::kTcpSyn)).size(), 1u);
  EXPECT_EQ(lengths(of(1281, net::kTcpAck)).size(), 1u) << "a client can be told";
  EXPECT_EQ(path_.counters().packet_too_big, 3u);
  EXPECT_EQ(net::load_be32(io_->sent_bytes.back().data() + 44), 1280u);
}

TEST_F(DataPathTest, WhatTheKernelWasToldHoldsUntilSomethingChanges) {
  auto redirect = packet_io::FlowRedirect::create(16);
  if (!redirect.ok()) GTEST_SKIP() << redirect.status().to_string();
  path_.set_redirect(redirect->get());
  std::uint32_t before = (*redirect)->generation();
  const auto has_changed = [&] {
    path_.on_time();
    const std::uint32_t now = (*redirect)->generation();
    return std::exchange(before, now) != now;
  };
  EXPECT_FALSE(has_changed());
  path_.forwarder().set_state(0, steer::ProxyState::kDraining);
  EXPECT_TRUE(has_changed());
  EXPECT_FALSE(has_changed());
  path_.forwarder().set_state(0, steer::ProxyState::kDown);
  EXPECT_TRUE(has_changed()) << "no table of who takes new sessions is another one for that";
  ++io_->ways;
  EXPECT_TRUE(has_changed());
}

}  // namespace
}  // namespace sanproxy::netnode
