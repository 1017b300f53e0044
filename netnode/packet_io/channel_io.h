// ChannelIo: the proxy's end of the channels of network nodes: all of them are one interface.
//
// Documents: docs/packet_io.md "Packets over channels", docs/wire_format.md "PACKET".
// Role: admits network nodes, yields their packets where they lie (in the node's own memory on shm,
//   in slots of the receive pool on verbs and tcp), sends each packet to the node that its flow's
//   last packet came from, or to any other live one.
// Owner: a worker. Thread: that of the fabric and the data path.
// Invariants:
//   1. A packet's loan keeps its bytes in place, also when its node is gone: a node's channel is
//      destroyed when its last loan is back.
//   2. What is sent is copied once when it is small (into the transfer; tx_bytes_copied). The
//      headers of a large packet are copied into a slot of the send pool, always: they are ours
//      alone. Its payload is passed on where it lies in memory that LentMemory knows and the node's
//      fabric can attach (shm), and stays in use until the node has done with it (a lend). Other
//      payload goes into the slot behind the headers (tx_bytes_copied_unlent), and is free when
//      send() returns.
//   3. Bounds: nodes by nodes_max; packets sent and not completed by send_slots and the node's
//      credits; loans by loans_max (beyond, packets are lent without a loan and have to be copied);
//      packets that came in pieces and are put together by joined_max (beyond, they are dropped);
//      packets taken from channels and not yet yielded by one batch of transfers.
//   4. A full node does not hold up the others: its packets go by way of another one. When none has
//      room, send() takes no more: back-pressure.
//   5. What a network node sends can end its own channel, nothing else. One that keeps a
//      packet of what it was lent for lent_ms_max is cut off, because it holds up the memory of
//      others, and nobody of its user is lent anything for kWithoutLendsShare times as long. One
//      that keeps a copied packet for dead_after_ms is cut off as well.
//   6. No node has more packets out than slots are left for the others.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lwproto/base/clock.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/buffer/slot_pool.h"
#include "lwproto/channel/channel.h"
#include "lwproto/fabric/fabric.h"
#include "lwproto/fabric/lent_memory.h"
#include "lwproto/flow/log_gate.h"
#include "netnode/packet_io/packet_io.h"

namespace sanproxy::packet_io {

struct ChannelIoOptions {
  std::string listen;       // "shm:/run/sanproxy/net.sock", "tcp://IP:PORT", "verbs://IP:PORT"
  std::string proxy_name;   // HELLO's node name
  std::uint64_t epoch = 0;  // of this process
  fabric::EndpointOptions endpoint;
  std::uint32_t nodes_max = 64;
  std::uint32_t send_slots = 1024;  // of 64 KB, touched when used
  std::uint32_t loans_max = 16'384;
  // Packets that came in several pieces, each in a slot of 64 KB of their own: a network node of
  // ours sends none, and whoever does shall not take the slots that answers need.
  std::uint32_t joined_max = 64;
  std::uint16_t proxy_id = 0;  // 1..1023; 0: no session tags
  std::uint32_t weight = 100;
  std::uint32_t heartbeat_ms = 100;
  std::uint32_t dead_after_ms = 5'000;  // a node that says nothing for so long is cut off
  fabric::LentMemory* lent = nullptr;   // null: nothing is passed on. Outlives the interface
  std::uint32_t lent_ms_max = 1'000;    // a node that keeps what it was lent for so long, too
  std::function<bool(const fabric::PeerIdentity&)> allow;  // null: nobody
};

// For so many times lent_ms_max nothing is lent to whoever has kept what it was lent.
inline constexpr std::uint64_t kWithoutLendsShare = 64;

class ChannelIo final : public PacketIo, private channel::Delegate {
 public:
  // Start-up; `fabric` outlives the interface, and its owner arms it, sleeps and disarms it.
  static Result<std::unique_ptr<ChannelIo>> open(const InterfaceOptions& options,
                                                 ChannelIoOptions channel_options,
                                                 fabric::Fabric& fabric, const Clock& clock);
  ~ChannelIo() override;

  // --- PacketIo
  const InterfaceOptions& options() const override { return options_; }
  std::uint32_t mtu_bytes() const override { return options_.mtu_bytes; }
  int fd() const override { return -1; }  // the fabric's
  std::size_t receive(std::span<const ReceiveBuffer> buffers,
                      std::span<ReceivedPacket> out) override;
  std::size_t send(std::span<const SendPacket> packets) override;
  void flush() override;
  void add_local_address(const IpAddress&) override {}  // network nodes know the services
  void remove_local_address(const IpAddress&) override {}
  bool lends() const override { return true; }
  void release(PacketLoan loan) override;
  void send_back(const ReceivedPacket& packet) override;
  const Counters& counters() const override { return counters_; }

  // --- now and then, and before sleeping
  std::size_t poll_listener();  // network nodes that want in
  void on_time();               // heartbeats, silent nodes
  std::uint64_t next_timer_ns() const { return next_beat_ns_; }

  // Told to every node at once. A draining proxy gets no new flows and keeps the old.
  void set_draining(bool draining);
  void set_weight(std::uint32_t weight);
  bool draining() const { return draining_; }
  // ERROR to every node; packets can still be received and released.
  void close_all(wire::CloseCode code, const char* text);
  std::vector<PacketPeer> peers() const override;
  const std::string& address() const { return listener_->address(); }

 private:
  // A region of LentMemory, as the node knows it.
  struct Attached {
    fabric::RegionKey key = 0;          // 0: the node does not take it, as long as it has no place
    std::uint32_t generation = 0;       // of the region's place; another one: it is gone
    fabric::LentMemory::Lend last = 0;  // nothing of it was lent after this one
  };
  struct Node {
    PacketPeer about;
    std::unique_ptr<channel::Channel> channel;
    fabric::RegionKey region_key = 0;
    std::uint64_t transfers_heard = 0;
    std::uint64_t heard_ns = 0;
    bool dead = false;
    std::int64_t uid = -1;
    std::uint64_t lend_from_ns = 0;         // nothing is lent before
    std::size_t slots_out = 0;              // of the send pool
    bool socket_full = false;               // regions are told of again at the next beat
    std::size_t unpublished_bytes = 0;      // sent to the channel, perhaps not seen by the node yet
    std::vector<fabric::Loan> batch_loans;  // of packets without a loan of their own
    std::vector<Attached> attached;         // by LentMemory's places
  };
  // What a packet that is too large for a transfer is sent as.
  struct Reference {
    std::array<fabric::GatherRef, fabric::kGatherRefsMax> refs;
    std::uint32_t count = 0;
    std::uint32_t copied_bytes = 0;  // in the slot
    std::uint32_t lent_bytes = 0;
  };
  struct Loan {
    Node* node = nullptr;
    fabric::Loan loan = fabric::kNoLoan;
    buffer::SlotIndex slot = buffer::kNoSlot;  // where a packet in pieces was put together
    PacketLoan next_free = kNoPacketLoan;
  };

  ChannelIo(const InterfaceOptions& options, ChannelIoOptions channel_options,
            buffer::MemoryRegion region, buffer::MemoryRegion joined_region, const Clock& clock);

  // --- channel::Delegate
  void on_data(channel::Channel& channel, std::uint64_t connection, std::uint64_t offset,
               const channel::Payload& payload) override;
  void on_packet(channel::Channel& channel, const channel::PacketInfo& info,
                 const channel::Payload& payload) override;
  void on_message(channel::Channel& channel, const wire::Message& message) override;
  void on_sent(channel::Channel& channel, std::uint64_t cookie, bool ok) override;
  void on_writable(channel::Channel&) override {}
  void on_closed(channel::Channel& channel, wire::CloseCode code, const Status& status) override;

  void admit(const fabric::ConnectRequest& request);
  void refuse(const fabric::ConnectRequest& request, wire::CloseCode code, const char* why);
  void collect();
  void end_batch();
  void reap();
  PacketLoan lend(Node& node, fabric::Loan loan, buffer::SlotIndex slot);
  const std::byte* put_together(const channel::Payload& payload, buffer::SlotIndex& slot);
  Node* find(PeerNumber number);
  // Ok, kAgain, or another code when this node is of no use.
  Status send_by(Node& node, const SendPacket& packet, std::uint8_t flags);
  Status send_by_reference(Node& node, const SendPacket& packet, const channel::PacketInfo& info);
  bool describe(Node& node, const SendPacket& packet, buffer::SlotIndex slot, Reference& out);
  bool pass_on(Node& node, const iovec& piece, Reference& out);
  fabric::RegionKey key_for(Node& node, fabric::LentMemory::Place place);
  bool take_back(Node& node, Attached& entry);
  void take_back_gone_regions();
  void judge_sent(std::uint64_t now_ns, bool was_away);
  void cut_off(Node& node, bool lent, std::uint64_t now_ns);
  static void publish(Node& node);
  bool send_one(const SendPacket& packet);
  void say_status(Node& node);

  InterfaceOptions options_;
  ChannelIoOptions channel_options_;
  const Clock& clock_;
  buffer::MemoryRegion region_;
  buffer::SlotPool slots_;
  buffer::MemoryRegion joined_region_;
  buffer::SlotPool joined_;
  struct SentSlot {
    fabric::LentMemory::Lend lend = 0;  // 0: nothing lent
    Node* node = nullptr;               // whose completion ends it, before the node goes
    std::uint64_t seen_ns = 0;          // by judge_sent(), first; 0: not yet
  };
  std::vector<SentSlot> sent_;  // by slot
  // Users whose network nodes have kept what they were lent, the latest last; at most nodes_max.
  struct WithoutLends {
    std::int64_t uid = -1;
    std::uint64_t until_ns = 0;
  };
  std::vector<WithoutLends> without_lends_;
  std::uint64_t regions_gone_ = 0;  // as far as they are taken back from all nodes
  std::unique_ptr<fabric::Listener> listener_;
  std::vector<std::unique_ptr<Node>> nodes_;  // live and dying; at most 2 * nodes_max
  std::vector<Loan> loans_;                   // [0] is not used
  PacketLoan free_loan_ = kNoPacketLoan;
  std::vector<ReceivedPacket> pending_;  // taken from channels
  std::size_t yielded_ = 0;              // of pending_
  std::size_t next_node_ = 0;            // whose turn it is
  std::size_t next_sender_ = 0;
  PeerNumber last_number_ = 0;
  bool any_dead_ = false;
  bool draining_ = false;
  std::uint64_t next_beat_ns_ = 0;
  std::uint64_t looked_ns_ = 0;  // when the nodes were last judged
  flow::LogGate refusals_log_;
  Counters counters_;
};

}  // namespace sanproxy::packet_io
