// ChannelPackets: a proxy's end of packet channels and network nodes' ends, over every fabric.
#pragma once

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

using Bytes = std::vector<std::uint8_t>;

inline constexpr std::size_t kSlotBytes = 73728;
inline constexpr std::size_t kSlots = 64;

inline Bytes packet_of(std::size_t bytes, std::uint8_t seed = 1) {
  Bytes out = net::testing::ipv4(6, net::testing::tcp(bytes - 40));
  for (std::size_t i = 40; i < out.size(); ++i) {
    out[i] = static_cast<std::uint8_t>(seed + i * 7 + (i >> 8));
  }
  return out;
}

inline Bytes bytes_of(const ReceivedPacket& packet) {
  const auto* at = reinterpret_cast<const std::uint8_t*>(packet.lent);
  return {at, at + packet.length};
}

inline Bytes bytes_of(const LinkReceived& packet) {
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

inline std::ostream& operator<<(std::ostream& out, const Way& way) { return out << way.name; }

inline std::unique_ptr<fabric::Fabric> shm() {
  return std::move(fabric::make_shm_fabric()).value();
}
inline std::unique_ptr<fabric::Fabric> tcp() {
  return std::move(fabric::make_tcp_fabric()).value();
}

class ChannelPackets : public ::testing::TestWithParam<Way> {
 protected:
  // A network node's side.
  struct Node {
    std::unique_ptr<fabric::Fabric> fabric;
    buffer::MemoryRegion region, receive_region;
    std::unique_ptr<buffer::SlotPool> pool, receive_pool;
    std::unique_ptr<PacketPool> packets;  // of `pool`
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

  Node& add_node(const std::function<void(ChannelLinkOptions&)>& change = nullptr) {
    auto node = std::make_unique<Node>();
    node->fabric = GetParam().make();
    node->region = std::move(buffer::MemoryRegion::create("node", kSlots * kSlotBytes)).value();
    node->pool = std::make_unique<buffer::SlotPool>(node->region.bytes(), kSlotBytes);
    node->packets = std::make_unique<PacketPool>(*node->pool);
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
    if (change) change(options);
    node->link =
        std::make_unique<ChannelLink>(*node->fabric, options, *node->packets, node->region, clock_);
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
  Node& up(const std::function<void(ChannelLinkOptions&)>& change = nullptr) {
    Node& node = add_node(change);
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
  // A packet whose payload is copied to `at`, in memory of a third party.
  static SendPacket lent_packet(const Bytes& packet, std::byte* at, PeerNumber to = 1) {
    std::memcpy(at, packet.data() + 40, packet.size() - 40);
    SendPacket out;
    out.pieces[0] = {const_cast<std::uint8_t*>(packet.data()), 40};
    out.pieces[1] = {at, packet.size() - 40};
    out.piece_count = 2;
    out.length = static_cast<std::uint32_t>(packet.size());
    out.offload.checksum_partial = true;
    out.offload.checksum_start = 20;
    out.offload.checksum_offset = 16;
    out.to = to;
    return out;
  }
  // A packet whose payload lies in memory of a third party, at `offset`.
  bool send_lent(std::size_t bytes, std::size_t offset, PeerNumber to = 1) {
    const Bytes packet = packet_of(bytes);
    const SendPacket out = lent_packet(packet, third_.data() + offset, to);
    const bool taken = io_->send({&out, 1}) == 1;
    io_->flush();
    return taken;
  }
  void lend_third() { lent_.on_region({third_.data(), third_.size(), third_.fd()}); }
  bool passes_on() const { return std::string(GetParam().name) == "shm"; }

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
  buffer::MemoryRegion third_ = std::move(buffer::MemoryRegion::create("third", 1 << 20)).value();
  fabric::LentMemory lent_{2};
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

// The simulated fabrics' two shapes, in calm and rough weather; all fabrics of a test in one world.
inline Way sim(const char* name, bool lends, std::uint64_t seed) {
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

inline Way shm_way() { return {"shm", shm, "shm:/tmp/sanproxy-packets-", false}; }
inline std::vector<Way> all_ways() {
  return {shm_way(),
          Way{"tcp", tcp, "tcp://127.0.0.1:0", true},
          sim("sim", true, 0),
          sim("sim_buffers", false, 0),
          sim("sim_rough", true, 11),
          sim("sim_buffers_rough", false, 12)};
}
inline std::string name_of(const ::testing::TestParamInfo<Way>& one) { return one.param.name; }

}  // namespace sanproxy::packet_io
