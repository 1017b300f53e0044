// Packets over channels: both ends, over every fabric, and what happens when one of them dies.
#include <spdlog/sinks/sink.h>

#include "lwproto/daemon/log.h"
#include "tests/netnode/packet_io/channel_fixture.h"

namespace sanproxy::packet_io {
namespace {

TEST_P(ChannelPackets, TheLinkLearnsWhoTheProxyIsAndWhenItDrains) {
  listen();
  Node& node = up();
  EXPECT_EQ(node.link->proxy().name, "proxy-7");
  EXPECT_EQ(node.link->proxy().proxy_id, 7);
  EXPECT_EQ(node.link->proxy().weight, 300u);
  EXPECT_FALSE(node.link->proxy().draining);
  io_->set_draining(true);
  EXPECT_TRUE(until([&] { return node.link->proxy().draining; }));
  ASSERT_EQ(io_->peers().size(), 1u);
  EXPECT_EQ(io_->peers()[0].name, "node");
}

TEST_P(ChannelPackets, PacketsOfEverySizeArriveWholeBothWaysAndEverySlotComesBack) {
  listen();
  Node& node = up();
  std::uint64_t bytes = 0;
  for (const std::size_t size : {40u, 41u, 576u, 1024u, 1025u, 1500u, 9000u, 65535u}) {
    const Bytes packet = packet_of(size, static_cast<std::uint8_t>(size));
    arrived_bytes_.clear();
    ASSERT_TRUE(send_surely(node, packet)) << size;
    ASSERT_TRUE(until([&] { return !arrived_bytes_.empty(); })) << size;
    EXPECT_EQ(arrived_bytes_[0], packet) << size;
    ASSERT_TRUE(send_surely_from_proxy(packet, 1)) << size;
    Bytes back;
    LinkReceived received;
    ASSERT_TRUE(next_at(node, back, received)) << size;
    EXPECT_EQ(back, packet) << size;
    EXPECT_FALSE(received.unknown_flow);
    bytes += size;
  }
  EXPECT_TRUE(until([&] { return node.link->slots_out() == 0; }));
  EXPECT_EQ(node.pool->free_count(), node.pool->slot_count());
  EXPECT_EQ(node.link->counters().tx_bytes, bytes);
  EXPECT_EQ(io_->counters().tx_bytes_copied + io_->counters().tx_bytes_copied_unlent, bytes);
}

TEST_P(ChannelPackets, OffloadMetadataTravelsWithThePacket) {
  listen();
  Node& node = up();
  const Offload offload{.segmentation = Segmentation::kTcp4,
                        .checksum_partial = true,
                        .segment_bytes = 1448,
                        .header_bytes = 52,
                        .checksum_start = 20,
                        .checksum_offset = 16};
  ASSERT_TRUE(send_surely(node, packet_of(30'000), offload));
  ASSERT_TRUE(until([&] { return !arrived_.empty(); }));
  ASSERT_TRUE(send_surely_from_proxy(packet_of(30'000), 1, offload));
  Bytes back;
  LinkReceived received;
  ASSERT_TRUE(next_at(node, back, received));
  for (const Offload& got : {arrived_[0].offload, received.offload}) {
    EXPECT_EQ(got.segmentation, Segmentation::kTcp4);
    EXPECT_TRUE(got.checksum_partial);
    EXPECT_FALSE(got.checksum_verified);
    EXPECT_EQ(got.segment_bytes, 1448);
    EXPECT_EQ(got.header_bytes, 52);
    EXPECT_EQ(got.checksum_start, 20);
    EXPECT_EQ(got.checksum_offset, 16);
  }
}

TEST_P(ChannelPackets, ManySmallPacketsShareTransfersAndStayInOrder) {
  listen();
  Node& node = up();
  constexpr std::size_t kPackets = 60;
  std::vector<LinkSend> batch;
  for (std::size_t i = 0; i < kPackets; ++i) {
    batch.push_back(fill(node, packet_of(60, static_cast<std::uint8_t>(i))));
  }
  ASSERT_EQ(node.link->send(batch), kPackets);
  EXPECT_EQ(node.pool->free_count(), node.pool->slot_count()) << "small packets are copied";
  ASSERT_TRUE(until([&] { return arrived_bytes_.size() == kPackets; }));
  for (std::size_t i = 0; i < kPackets; ++i) {
    EXPECT_EQ(arrived_bytes_[i], packet_of(60, static_cast<std::uint8_t>(i))) << i;
  }
}

TEST_P(ChannelPackets, ALinkThatLeavesWithPacketsNotHandedOutGetsEverySlotBack) {
  listen();
  Node& node = up();
  const PeerNumber number = io_->peers()[0].number;
  for (std::uint8_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(send_surely_from_proxy(packet_of(60, i), number));
  }
  LinkReceived one;
  ASSERT_TRUE(until([&] { return node.link->receive({&one, 1}) == 1; }));
  node.link->release_received();
  ASSERT_TRUE(send_surely(node, packet_of(9'000, 1)));
  node.link->flush();
  serving_ = false;
  node.link->disconnect();
  EXPECT_TRUE(until([&] { return node.link->slots_out() == 0; }));
  EXPECT_EQ(node.pool->free_count(), node.pool->slot_count());
}

TEST_P(ChannelPackets, APacketOfAnUnknownFlowComesBackToItsOwnNodeUnlessItIsFinal) {
  listen();
  (void)up();
  Node& second = up();
  for (const std::size_t size : {60u, 20'000u}) {
    arrived_.clear();
    keep_ = true;
    const Bytes packet = packet_of(size);
    ASSERT_TRUE(send_surely(second, packet));
    ASSERT_TRUE(until([&] { return !arrived_.empty(); }));
    EXPECT_TRUE(arrived_[0].others_may_know);
    ReceivedPacket received = arrived_[0];
    if (received.loan == kNoPacketLoan) {  // its bytes have gone; what the stack would have kept
      received.lent = reinterpret_cast<const std::byte*>(arrived_bytes_.back().data());
    }
    io_->send_back(received);
    io_->flush();
    io_->release(received.loan);
    Bytes back;
    LinkReceived at_node;
    ASSERT_TRUE(next_at(second, back, at_node));
    EXPECT_TRUE(at_node.unknown_flow);
    EXPECT_EQ(back, packet);
  }
  arrived_.clear();
  ASSERT_TRUE(send_surely(second, packet_of(60), {}, true));
  ASSERT_TRUE(until([&] { return !arrived_.empty(); }));
  EXPECT_FALSE(arrived_[0].others_may_know);
  io_->release(arrived_[0].loan);
}

TEST_P(ChannelPackets, AnswersGoToTheNodeOfTheFlowAndToAnotherWhenItIsGone) {
  listen();
  Node& first = up();
  Node& second = up();
  ASSERT_TRUE(send_surely(second, packet_of(100)));
  ASSERT_TRUE(until([&] { return !arrived_.empty(); }));
  const PeerNumber number = arrived_[0].from;
  ASSERT_TRUE(send_surely_from_proxy(packet_of(2000, 5), number));
  Bytes back;
  LinkReceived received;
  ASSERT_TRUE(next_at(second, back, received));
  EXPECT_EQ(back, packet_of(2000, 5));
  second.link->disconnect();
  ASSERT_TRUE(until([&] { return io_->peers().size() == 1; }));
  ASSERT_TRUE(send_surely_from_proxy(packet_of(2000, 6), number));
  ASSERT_TRUE(next_at(first, back, received));
  EXPECT_EQ(back, packet_of(2000, 6));
}

TEST_P(ChannelPackets, WithoutAnyNodePacketsAreDroppedAndCounted) {
  listen();
  EXPECT_TRUE(send_from_proxy(packet_of(100), 0));
  EXPECT_EQ(io_->counters().tx_dropped_no_peer, 1u);
}

TEST_P(ChannelPackets, AProxyThatDoesNotReadHoldsUpTheSenderAndLosesNothing) {
  listen();
  Node& node = up();
  reading_ = false;
  std::size_t taken = 0;
  for (int i = 0; i < 60; ++i) {
    if (!send(node, packet_of(2000, static_cast<std::uint8_t>(taken)))) break;
    ++taken;
    node.link->flush();
  }
  EXPECT_GT(taken, 4u);
  EXPECT_LT(taken, 60u);
  EXPECT_GT(node.link->counters().tx_refused_full, 0u);
  reading_ = true;
  ASSERT_TRUE(until([&] { return arrived_bytes_.size() == taken; }));
  for (std::size_t i = 0; i < taken; ++i) {
    ASSERT_EQ(arrived_bytes_[i], packet_of(2000, static_cast<std::uint8_t>(i))) << i;
  }
  EXPECT_TRUE(until([&] { return send(node, packet_of(2000)); })) << "credits come back";
}

TEST_P(ChannelPackets, ANodeThatDoesNotReadHoldsUpTheProxy) {
  listen();
  Node& node = up();
  std::size_t taken = 0;
  while (taken < 200 && send_from_proxy(packet_of(2000, static_cast<std::uint8_t>(taken)), 1)) {
    ++taken;
  }
  EXPECT_GT(taken, 4u);
  EXPECT_LT(taken, 200u);
  for (std::size_t i = 0; i < taken; ++i) {
    Bytes back;
    LinkReceived received;
    ASSERT_TRUE(next_at(node, back, received)) << i;
    ASSERT_EQ(back, packet_of(2000, static_cast<std::uint8_t>(i))) << i;
  }
  EXPECT_TRUE(until([&] { return send_from_proxy(packet_of(2000), 1); })) << "credits come back";
}

TEST_P(ChannelPackets, WhatIsReceivedStaysReadableAfterItsNodeHasDied) {
  listen();
  keep_ = true;
  Node& node = up();
  const Bytes packet = packet_of(40'000, 9);
  ASSERT_TRUE(send_surely(node, packet));
  ASSERT_TRUE(until([&] { return !arrived_.empty(); }));
  nodes_.clear();
  ASSERT_TRUE(until([&] { return io_->counters().peers_ended == 1; }));
  if (arrived_[0].loan != kNoPacketLoan) {
    EXPECT_EQ(bytes_of(arrived_[0]), packet);
    EXPECT_EQ(io_->peers().size(), 1u) << "kept for its loan";
    io_->release(arrived_[0].loan);
  }
  EXPECT_TRUE(until([&] { return io_->peers().empty(); }));
  EXPECT_TRUE(until([&] { return proxy_pool_->received_count() == 0; }));
}

TEST_P(ChannelPackets, WhenTheProxyDiesEverySlotComesBackAndTheLinkConnectsAgain) {
  listen();
  Node& node = up();
  reading_ = false;
  while (send(node, packet_of(3000))) node.link->flush();
  io_.reset();
  EXPECT_TRUE(until([&] { return node.link->state() != LinkState::kUp; }));
  EXPECT_TRUE(until([&] { return node.link->slots_out() == 0; }));
  EXPECT_EQ(node.pool->free_count(), node.pool->slot_count());
  EXPECT_FALSE(send(node, packet_of(3000)));
  EXPECT_GT(node.link->counters().tx_refused_down, 0u);
  reading_ = true;
  listen([](ChannelIoOptions& options) { options.proxy_id = 8; });
  ASSERT_TRUE(until([&] { return node.link->state() == LinkState::kUp; }));
  EXPECT_EQ(node.link->proxy().proxy_id, 8);
  arrived_bytes_.clear();
  ASSERT_TRUE(send_surely(node, packet_of(3000)));
  EXPECT_TRUE(until([&] { return !arrived_bytes_.empty(); }));
}

TEST_P(ChannelPackets, ASilentProxyIsNoticedBeforeItIsGivenUp) {
  listen();
  Node& node = up();
  serving_ = false;
  EXPECT_TRUE(until([&] { return node.link->state() == LinkState::kSilent; }));
  EXPECT_TRUE(node.link->takes_packets());
  serving_ = true;
  EXPECT_TRUE(until([&] { return node.link->state() == LinkState::kUp; }));
  serving_ = false;
  EXPECT_TRUE(until([&] { return node.link->counters().disconnects == 1; }));
}

TEST_P(ChannelPackets, WhoWasAwayHimselfGivesNobodyUp) {
  listen();
  Node& node = up();
  const auto go_on = [&](const std::uint64_t connects) {
    for (int i = 0; i < 300; ++i) round();
    EXPECT_EQ(node.link->state(), LinkState::kUp);
    EXPECT_EQ(node.link->counters().connects, connects);
    EXPECT_EQ(node.link->counters().disconnects, 0U);
    ASSERT_EQ(io_->peers().size(), 1U);
  };
  for (int i = 0; i < 3; ++i) {
    clock_.advance_ns(60'000'000'000);  // both were stopped
    go_on(1);
  }
  // One that has been away still hears of the other's silence, later.
  clock_.advance_ns(60'000'000'000);
  serving_ = false;
  EXPECT_TRUE(until([&] { return node.link->counters().disconnects == 1; }));
}

TEST_P(ChannelPackets, WhoIsNotAllowedIsRefusedWithAReason) {
  listen([](ChannelIoOptions& options) {
    options.allow = [](const fabric::PeerIdentity&) { return false; };
  });
  Node& node = add_node();
  ASSERT_TRUE(until([&] { return node.link->counters().connect_failures > 0; }));
  EXPECT_EQ(node.link->last_error().code(), Code::kRefused);
  EXPECT_STREQ(node.link->last_error().text(), "not_permitted");
  EXPECT_EQ(io_->counters().peers_admitted, 0u);
}

// Counts what is logged.
class LineCounter final : public spdlog::sinks::sink {
 public:
  void log(const spdlog::details::log_msg&) override { ++lines; }
  void flush() override {}
  void set_pattern(const std::string&) override {}
  void set_formatter(std::unique_ptr<spdlog::formatter>) override {}
  int lines = 0;
};

TEST_P(ChannelPackets, AFloodOfNewcomersIsWorkedOffAFewAtATimeAndFillsNoLog) {
  listen();
  const auto counter = std::make_shared<LineCounter>();
  const auto log_before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("counted", counter));
  auto fabric = GetParam().make();
  fabric::EndpointOptions options;
  options.receive_depth = 16;
  for (std::uint64_t refused = 0; refused < 100;) {
    std::vector<std::unique_ptr<fabric::Connecting>> attempts;
    for (int i = 0; i < 50; ++i) {
      auto connecting = fabric->connect(address_, {}, options);
      ASSERT_TRUE(connecting.ok()) << connecting.status().to_string();
      attempts.push_back(std::move(*connecting));
    }
    refused += attempts.size();
    ASSERT_TRUE(until([&] {
      (void)fabric->arm();
      fabric->disarm();
      for (auto& attempt : attempts) (void)attempt->poll();
      EXPECT_LE(io_->poll_listener(), 16u);
      return io_->counters().peers_refused == refused;
    }));
  }
  spdlog::set_default_logger(log_before);
  // A burst of 50, then 5 a second.
  EXPECT_LT(counter->lines, 60);
}

TEST_P(ChannelPackets, AnApplicationNodeIsRefusedWhereNetworkNodesConnect) {
  listen();
  auto fabric = GetParam().make();
  fabric::EndpointOptions options;
  options.receive_depth = 16;
  const wire::HelloBody hello = channel::make_hello(1, options, 65536, 10, "app");
  std::array<std::byte, sizeof(hello)> bytes{};
  wire::encode_hello(hello, bytes);
  auto connecting = fabric->connect(address_, bytes, options);
  ASSERT_TRUE(connecting.ok()) << connecting.status().to_string();
  Status status;
  ASSERT_TRUE(until([&] {
    (void)fabric->arm();
    fabric->disarm();
    status = (*connecting)->poll().status();
    return !status.is_again();
  }));
  EXPECT_EQ(status.code(), Code::kRefused);
  EXPECT_EQ(io_->counters().peers_refused, 1u);
}

TEST_P(ChannelPackets, MoreNodesThanTheLimitAreRefused) {
  listen([](ChannelIoOptions& options) { options.nodes_max = 1; });
  (void)up();
  Node& second = add_node();
  ASSERT_TRUE(until([&] { return second.link->counters().connect_failures > 0; }));
  EXPECT_STREQ(second.link->last_error().text(), "limit_reached");
}

TEST_P(ChannelPackets, APacketThatCannotBeOneIsDroppedAndItsSlotReturned) {
  listen();
  Node& node = up();
  Offload beyond;
  beyond.checksum_partial = true;
  beyond.checksum_start = 90;
  beyond.checksum_offset = 16;
  EXPECT_TRUE(send(node, packet_of(100), beyond));
  Offload half;
  half.segmentation = Segmentation::kTcp4;
  EXPECT_TRUE(send(node, packet_of(100), half));
  LinkSend small = fill(node, packet_of(100));
  small.length = 19;
  EXPECT_EQ(node.link->send({&small, 1}), 1u);
  LinkSend large = fill(node, packet_of(100));
  large.length = 65'537;
  EXPECT_EQ(node.link->send({&large, 1}), 1u);
  EXPECT_EQ(node.link->counters().tx_invalid, 4u);
  EXPECT_EQ(node.pool->free_count(), node.pool->slot_count());
  EXPECT_EQ(node.link->state(), LinkState::kUp);
}

TEST_P(ChannelPackets, LoansBeyondTheLimitAreLentWithoutALoan) {
  listen([](ChannelIoOptions& options) { options.loans_max = 1; });
  keep_ = true;
  Node& node = up();
  ASSERT_TRUE(send_surely(node, packet_of(2000, 1)));
  ASSERT_TRUE(send_surely(node, packet_of(2000, 2)));
  ASSERT_TRUE(until([&] { return arrived_.size() == 2; }));
  EXPECT_EQ(arrived_bytes_[0], packet_of(2000, 1));
  EXPECT_EQ(arrived_bytes_[1], packet_of(2000, 2));
  EXPECT_EQ(arrived_[1].loan, kNoPacketLoan);
  io_->release(arrived_[0].loan);
}

// A network node that does as it likes.
struct RawNode final : channel::Delegate {
  void on_data(channel::Channel&, std::uint64_t, std::uint64_t, const channel::Payload&) override {}
  void on_packet(channel::Channel&, const channel::PacketInfo&, const channel::Payload&) override {
    ++packets;
  }
  void on_message(channel::Channel&, const wire::Message&) override {}
  void on_sent(channel::Channel&, std::uint64_t, bool) override {}
  void on_writable(channel::Channel&) override {}
  void on_closed(channel::Channel&, wire::CloseCode, const Status&) override {}

  std::unique_ptr<fabric::Fabric> fabric;
  buffer::MemoryRegion region, receive_region;
  std::unique_ptr<buffer::SlotPool> receive_pool;
  fabric::RegionKey key = 0;
  std::unique_ptr<channel::Channel> channel;
  int packets = 0;
};

TEST_P(ChannelPackets, PacketsInPiecesDoNotTakeTheSlotsThatAnswersNeed) {
  listen([](ChannelIoOptions& options) { options.send_slots = options.joined_max = 2; });
  keep_ = true;
  RawNode raw;
  raw.fabric = GetParam().make();
  raw.region = std::move(buffer::MemoryRegion::create("raw", kSlotBytes)).value();
  raw.receive_region =
      std::move(buffer::MemoryRegion::create("raw-rx", kSlots * kSlotBytes)).value();
  raw.receive_pool = std::make_unique<buffer::SlotPool>(raw.receive_region.bytes(), kSlotBytes);
  fabric::EndpointOptions options;
  options.receive_depth = 16;
  options.send_regions = {&raw.region};
  if (GetParam().own_memory) {
    options.receive_memory = {raw.receive_pool.get(), &raw.receive_region, 0};
  }
  wire::HelloBody hello = channel::make_hello(1, options, 0, 0, "raw");
  hello.role = static_cast<std::uint16_t>(wire::Role::kNetworkNode);
  std::array<std::byte, sizeof(hello)> bytes{};
  wire::encode_hello(hello, bytes);
  auto connecting = raw.fabric->connect(address_, bytes, options);
  ASSERT_TRUE(connecting.ok()) << connecting.status().to_string();
  const auto raw_round = [&] {
    if (raw.channel != nullptr) raw.channel->poll();
    (void)raw.fabric->arm();
    raw.fabric->disarm();
  };
  ASSERT_TRUE(until([&] {
    raw_round();
    auto endpoint = (*connecting)->poll();
    if (!endpoint.ok()) return !endpoint.status().is_again();
    raw.key = *(*endpoint)->attach(raw.region);
    const auto theirs = wire::decode_hello((*connecting)->private_data());
    raw.channel =
        std::make_unique<channel::Channel>(std::move(endpoint).value(), hello, *theirs, raw);
    return true;
  }));
  ASSERT_NE(raw.channel, nullptr);
  const Bytes packet = packet_of(3000);
  std::memcpy(raw.region.bytes().data(), packet.data(), 2000);
  std::memcpy(raw.region.bytes().data() + 10'000, packet.data() + 2000, 1000);
  const std::array<fabric::GatherRef, 2> pieces = {{{raw.key, 2000, 0}, {raw.key, 1000, 10'000}}};
  channel::PacketInfo info;
  for (std::size_t i = 0; i < 3; ++i) {
    ASSERT_TRUE(until([&] {
      raw_round();
      const bool sent = raw.channel->send_packet_reference(info, pieces, i).ok();
      raw.channel->flush();
      return sent;
    }));
  }
  ASSERT_TRUE(until([&] {
    raw_round();
    return arrived_.size() + io_->counters().rx_dropped_joined == 3;
  }));
  if (!GetParam().own_memory) {
    EXPECT_EQ(arrived_.size(), 2u);
    EXPECT_EQ(io_->counters().rx_bytes_copied, 6000u);
  }
  for (const Bytes& one : arrived_bytes_) EXPECT_EQ(one, packet);
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(send_surely_from_proxy(packet_of(3000), 0)) << "none of them has been released";
  }
  for (const ReceivedPacket& one : arrived_) io_->release(one.loan);
  io_.reset();
  raw.channel.reset();
}

INSTANTIATE_TEST_SUITE_P(Fabrics, ChannelPackets, ::testing::ValuesIn(all_ways()), name_of);

}  // namespace
}  // namespace sanproxy::packet_io
