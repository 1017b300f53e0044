// Packets over channels: both ends, over every fabric, and what happens when one of them dies.
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lwproto/fabric/shm/shm_fabric.h"
#include "lwproto/fabric/tcp/tcp_fabric.h"
#include "netnode/packet_io/channel_io.h"
#include "netnode/packet_io/channel_link.h"
#include "tests/lwproto/fabric/sim/sim_fabric.h"
#include "tests/netnode/net/packet_builder.h"

namespace sanproxy::packet_io {
namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::size_t kSlotBytes = 73728;
constexpr std::size_t kSlots = 64;

Bytes packet_of(std::size_t bytes, std::uint8_t seed = 1) {
  Bytes out = net::testing::ipv4(6, net::testing::tcp(bytes - 40));
  for (std::size_t i = 40; i < out.size(); ++i) {
    out[i] = static_cast<std::uint8_t>(seed + i * 7 + (i >> 8));
  }
  return out;
}

Bytes bytes_of(const ReceivedPacket& packet) {
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.lent);
  return {at, at + packet.length};
}

Bytes bytes_of(const LinkReceived& packet) {
  Bytes out;
  for (std::uint32_t i = 0; i < packet.piece_count; ++i) {
    const auto* at = static_cast<const std::uint8_t*>(packet.pieces[i].iov_base);
    out.insert(out.end(), at, at + packet.pieces[i].iov_len);
  }
  return out;
}

struct Way {
  const char* name;
  std::function<std::unique_ptr<fabric::Fabric>()> make;
  std::string address;
  bool own_memory;  // receives into slots of ours
  std::function<void()> end = [] {};
};

std::ostream& operator<<(std::ostream& out, const Way& way) { return out << way.name; }

std::unique_ptr<fabric::Fabric> shm() { return std::move(fabric::make_shm_fabric()).value(); }
std::unique_ptr<fabric::Fabric> tcp() { return std::move(fabric::make_tcp_fabric()).value(); }

class ChannelPackets : public ::testing::TestWithParam<Way> {
 protected:
  // A network node's side.
  struct Node {
    std::unique_ptr<fabric::Fabric> fabric;
    buffer::MemoryRegion region, receive_region;
    std::unique_ptr<buffer::SlotPool> pool, receive_pool;
    std::unique_ptr<ChannelLink> link;
    std::vector<LinkReceived> received{64};
    ~Node() { link.reset(); }
  };

  void SetUp() override {
    proxy_fabric_ = GetParam().make();
    proxy_region_ = std::move(buffer::MemoryRegion::create("test", kSlots * kSlotBytes)).value();
    proxy_pool_ = std::make_unique<buffer::SlotPool>(proxy_region_.bytes(), kSlotBytes);
    address_ = GetParam().address;
    if (address_.rfind("shm:", 0) == 0) address_ += std::to_string(getpid());
  }
  void TearDown() override {
    nodes_.clear();
    io_.reset();
    proxy_fabric_.reset();
    GetParam().end();
  }

  void listen(const std::function<void(ChannelIoOptions&)>& change = nullptr) {
    InterfaceOptions options;
    options.driver = "channel";
    options.name = "channel";
    ChannelIoOptions channel;
    channel.listen = address_;
    channel.proxy_name = "proxy-7";
    channel.proxy_id = 7;
    channel.weight = 300;
    channel.send_slots = 16;
    channel.endpoint.receive_depth = 16;
    if (GetParam().own_memory) {
      channel.endpoint.receive_memory = {proxy_pool_.get(), &proxy_region_, 0};
    }
    channel.allow = [](const fabric::PeerIdentity&) { return true; };
    if (change) change(channel);
    auto io = ChannelIo::open(options, channel, *proxy_fabric_, clock_);
    ASSERT_TRUE(io.ok()) << io.status().to_string();
    io_ = std::move(io).value();
    if (address_.rfind("tcp:", 0) == 0) address_ = io_->address();
  }

  Node& add_node() {
    auto node = std::make_unique<Node>();
    node->fabric = GetParam().make();
    node->region = std::move(buffer::MemoryRegion::create("node", kSlots * kSlotBytes)).value();
    node->pool = std::make_unique<buffer::SlotPool>(node->region.bytes(), kSlotBytes);
    node->receive_region =
        std::move(buffer::MemoryRegion::create("node-rx", kSlots * kSlotBytes)).value();
    node->receive_pool =
        std::make_unique<buffer::SlotPool>(node->receive_region.bytes(), kSlotBytes);
    ChannelLinkOptions options;
    options.address = address_;
    options.node_name = "node";
    options.endpoint.receive_depth = 16;
    if (GetParam().own_memory) {
      options.endpoint.receive_memory = {node->receive_pool.get(), &node->receive_region, 0};
    }
    node->link =
        std::make_unique<ChannelLink>(*node->fabric, options, *node->pool, node->region, clock_);
    nodes_.push_back(std::move(node));
    return *nodes_.back();
  }

  // One round of everybody, and a short sleep if nothing is to be done.
  void round() {
    if (io_ != nullptr && serving_) {
      io_->poll_listener();
      io_->on_time();
      collect();
      io_->flush();
    }
    for (auto& node : nodes_) {
      node->link->poll();
      node->link->flush();
    }
    std::vector<fabric::Fabric*> fabrics = {proxy_fabric_.get()};
    for (auto& node : nodes_) fabrics.push_back(node->fabric.get());
    bool sleep = true;
    std::vector<pollfd> fds;
    for (auto* fabric : fabrics) {
      sleep = fabric->arm() && sleep;
      fds.push_back({fabric->event_fd(), POLLIN, 0});
    }
    (void)::poll(fds.data(), fds.size(), sleep ? 1 : 0);
    for (auto* fabric : fabrics) fabric->disarm();
    clock_.advance_ns(1'000'000);
  }
  void collect() {
    if (!reading_) return;
    std::array<ReceivedPacket, 64> out;
    const std::size_t count = io_->receive({}, out);
    for (std::size_t i = 0; i < count; ++i) {
      arrived_.push_back(out[i]);
      arrived_bytes_.push_back(bytes_of(out[i]));
      if (!keep_) io_->release(out[i].loan);
    }
  }
  [[nodiscard]] bool until(const std::function<bool()>& done) {
    for (int i = 0; i < 20'000; ++i) {
      if (done()) return true;
      round();
    }
    return done();
  }
  Node& up() {
    Node& node = add_node();
    EXPECT_TRUE(until([&] { return node.link->state() == LinkState::kUp; }))
        << node.link->last_error().to_string();
    return node;
  }

  LinkSend fill(Node& node, const Bytes& packet, Offload offload = {}, bool final = false) {
    const buffer::SlotIndex slot = node.pool->acquire();
    EXPECT_NE(slot, buffer::kNoSlot);
    node.pool->mark_received(slot);
    std::memcpy(node.pool->data(slot) + 64, packet.data(), packet.size());
    return {slot, 64, static_cast<std::uint32_t>(packet.size()), offload, final};
  }
  bool send(Node& node, const Bytes& packet, Offload offload = {}, bool final = false) {
    const LinkSend out = fill(node, packet, offload, final);
    if (node.link->send({&out, 1}) == 1) return true;
    node.pool->release(out.slot);
    return false;
  }
  bool send_from_proxy(const Bytes& packet, PeerNumber to, Offload offload = {}) {
    SendPacket out;
    // In two pieces, as the stack has headers and payload.
    out.pieces[0] = {const_cast<std::uint8_t*>(packet.data()), 40};
    out.pieces[1] = {const_cast<std::uint8_t*>(packet.data()) + 40, packet.size() - 40};
    out.piece_count = 2;
    out.length = static_cast<std::uint32_t>(packet.size());
    out.offload = offload;
    out.to = to;
    const bool taken = io_->send({&out, 1}) == 1;
    io_->flush();
    return taken;
  }
  // In rough weather a link may have no room for a while.
  bool send_surely(Node& node, const Bytes& packet, Offload offload = {}, bool final = false) {
    return until([&] { return send(node, packet, offload, final); });
  }
  bool send_surely_from_proxy(const Bytes& packet, PeerNumber to, Offload offload = {}) {
    return until([&] { return send_from_proxy(packet, to, offload); });
  }
  // What arrives at the node next.
  bool next_at(Node& node, Bytes& bytes, LinkReceived& packet) {
    const bool got = until([&] {
      if (node.link->receive({&packet, 1}) == 0) return false;
      bytes = bytes_of(packet);
      node.link->release_received();
      return true;
    });
    return got;
  }

  ManualClock clock_;
  std::unique_ptr<fabric::Fabric> proxy_fabric_;
  buffer::MemoryRegion proxy_region_;
  std::unique_ptr<buffer::SlotPool> proxy_pool_;
  std::unique_ptr<ChannelIo> io_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::string address_;
  bool serving_ = true, reading_ = true, keep_ = false;
  std::vector<ReceivedPacket> arrived_;
  std::vector<Bytes> arrived_bytes_;
};

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
  EXPECT_EQ(io_->counters().tx_bytes_copied, bytes);
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

// The simulated fabrics' two shapes, in calm and rough weather; all fabrics of a test in one world.
Way sim(const char* name, bool lends, std::uint64_t seed) {
  using namespace fabric::sim;  // NOLINT
  const Weather weather = seed == 0 ? Weather{} : Weather::rough(seed);
  struct Universe {
    std::shared_ptr<World> world;
    std::shared_ptr<Network> network;
  };
  auto universe = std::make_shared<Universe>();
  return {name,
          [=]() -> std::unique_ptr<fabric::Fabric> {
            if (universe->world == nullptr) {
              universe->world = std::make_shared<World>(seed + 1, weather);
              universe->network = make_network(universe->world);
            }
            SimOptions options;
            options.link.delivery = lends ? Delivery::kLoans : Delivery::kReceiveBuffers;
            return std::move(make_sim_fabric(universe->network, options)).value();
          },
          "sim:packets", !lends,
          [=] {
            universe->network.reset();
            universe->world->clear();
            universe->world.reset();
          }};
}

INSTANTIATE_TEST_SUITE_P(Fabrics, ChannelPackets,
                         ::testing::Values(Way{"shm", shm, "shm:/tmp/sanproxy-packets-", false},
                                           Way{"tcp", tcp, "tcp://127.0.0.1:0", true},
                                           sim("sim", true, 0), sim("sim_buffers", false, 0),
                                           sim("sim_rough", true, 11),
                                           sim("sim_buffers_rough", false, 12)),
                         [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace sanproxy::packet_io
