// What a proxy sends over a channel goes to clients, or nowhere.
#include "netnode/main/data_path.h"

#include <gtest/gtest.h>

#include "tests/netnode/steer/steer_packets.h"

namespace sanproxy::netnode {
namespace {

using steer::testing::as_span;
using steer::testing::at;
using steer::testing::Bytes;
using steer::testing::packet_of;

class FakeIo final : public packet_io::PacketIo {
 public:
  const packet_io::InterfaceOptions& options() const override { return options_; }
  std::uint32_t mtu_bytes() const override { return 1500; }
  int fd() const override { return -1; }
  std::size_t receive(std::span<const packet_io::ReceiveBuffer>,
                      std::span<packet_io::ReceivedPacket>) override {
    return 0;
  }
  std::size_t send(std::span<const packet_io::SendPacket> packets) override {
    sent.insert(sent.end(), packets.begin(), packets.end());
    return packets.size();
  }
  void flush() override {}
  void add_local_address(const IpAddress&) override {}
  void remove_local_address(const IpAddress&) override {}
  const packet_io::Counters& counters() const override { return counters_; }

  std::vector<packet_io::SendPacket> sent;

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
  buffer::MemoryRegion region_ = buffer::MemoryRegion::create("test", 64 * kSlotBytes).value();
  buffer::SlotPool pool_{region_.bytes(), kSlotBytes};
  DataPath path_{config(), clock_, pool_};
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

TEST_F(DataPathTest, AnswersThatAPacketIsTooBigAreNoMoreThanTheRate) {
  steer::ProxySet set;
  set.services = {{at("10.0.0.10:80")}};
  steer::ProxyConfig proxy;
  proxy.name = "n";
  proxy.mode = steer::Mode::kNat;
  proxy.targets = {at("10.5.5.5:80")};
  set.proxies.push_back(proxy);
  std::vector<std::uint16_t> gone;
  path_.forwarder().apply(set, gone);
  path_.forwarder().set_state(path_.forwarder().find("n"), steer::ProxyState::kUp);
  Bytes large =
      packet_of({.from = at("10.1.1.1:4000"), .to = at("10.0.0.10:80"), .payload = 3'000});
  net::store_be16(large.data() + 6, 0x4000);  // must not be cut
  net::testing::fix_ipv4_checksum(large);
  for (int i = 0; i < 5; ++i) {
    const buffer::SlotIndex slot = pool_.acquire();
    pool_.mark_received(slot);
    std::memcpy(pool_.data(slot), large.data(), large.size());
    path_.retry(0, slot, 0, static_cast<std::uint32_t>(large.size()), {});
    path_.flush();
  }
  EXPECT_EQ(path_.counters().packet_too_big, 3u);
  EXPECT_EQ(path_.counters().icmp_limited, 2u);
  EXPECT_EQ(io_->sent.size(), 3u);
  EXPECT_EQ(pool_.free_count(), pool_.slot_count());
}

}  // namespace
}  // namespace sanproxy::netnode
