// ChannelLink: a network node's channel to one proxy: bursts of IP packets both ways.
//
// Documents: docs/packet_io.md "Packets over channels", docs/wire_format.md "PACKET".
// Role: connects to one proxy over any fabric and keeps on connecting; sends packets out of the
//   slots of the node's own registered pool, hands up what the proxy sends, tells how the proxy is.
//   Which packet goes to which proxy is not its business.
// Owner: a network node. Thread: that of the fabric. Nothing blocks; no allocation while packets
//   flow (connecting allocates).
//
// Who owns which buffer:
//   1. A slot given to send() is the link's from the moment that send() has counted it as taken.
//      The link releases it to the pool itself: at once when the packet was copied into the
//      transfer (at most wire::kInlinePayloadBytesMax bytes), else when the fabric is done with it.
//      A slot that was not taken stays the caller's, in the state in which it was (kReceived).
//   2. What receive() yields lies in memory of the fabric (the proxy's own on shm) and may be read
//      until release_received(). receive() yields nothing more while something is unreleased.
// What bounds what: packets sent and not completed by `endpoint.send_depth` and the proxy's
//   credits, so that one link holds at most send_depth slots; packets received and not released by
//   `out.size()`; everything behind that waits at the proxy, for our credits. No queue in here.
// When the proxy dies at any moment: the slots that are on their way come back to the pool (within
//   some poll()s, without help from the peer); the packets in them may or may not have arrived, as
//   on any network. What receive() yielded stays readable until release_received(). send() takes
//   nothing from then on, state() is not kUp, and the link connects again with growing pauses.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "lwproto/base/clock.h"
#include "lwproto/buffer/memory_region.h"
#include "lwproto/buffer/slot_pool.h"
#include "lwproto/fabric/fabric.h"
#include "netnode/packet_io/packet_io.h"
#include "netnode/packet_io/packet_pool.h"

namespace sanproxy::packet_io {

struct ChannelLinkOptions {
  std::string address;      // of the proxy's [[interface]] with driver "channel"
  std::string node_name;    // ours, for the proxy's log and /status
  std::uint64_t epoch = 0;  // of this process
  // receive_depth: our credits for the proxy. receive_memory is needed over verbs and tcp (slots
  // of wire::kTransferBytesMax); send_regions is filled in by the link.
  fabric::EndpointOptions endpoint;
  std::uint32_t retry_ms_min = 50;  // pause before connecting again; doubles up to the maximum
  std::uint32_t retry_ms_max = 2'000;
  std::uint32_t connect_timeout_ms = 5'000;
  std::uint32_t heartbeat_ms = 100;     // we say that we live so often
  std::uint32_t silent_after_ms = 500;  // nothing heard for so long: kSilent
  std::uint32_t dead_after_ms = 5'000;  // nothing heard for so long: given up, connected anew
};

enum class LinkState : std::uint8_t {
  kDown,        // waits before it connects again
  kConnecting,  // no answer yet
  kUp,          // the proxy has said who it is, and is heard
  kSilent,      // connected, but not heard of late: still takes packets; give it no new flows
};
const char* link_state_name(LinkState state);

// What the proxy says of itself; kept (and stale) when the link is not up.
struct ProxyStatus {
  std::string name;            // HELLO's node name
  std::uint64_t epoch = 0;     // of its process: another one after a restart
  std::uint16_t proxy_id = 0;  // 1..1023, in the session tags that it sends; 0: it has none
  std::uint32_t weight = 0;
  bool draining = false;  // wants no new flows
};

// A packet on its way to the proxy: [offset, offset + length) of `slot`, a slot in state kReceived
// or a frame that was taken.
struct LinkSend {
  buffer::SlotIndex slot = buffer::kNoSlot;
  std::uint32_t offset = 0;  // of the IP header inside the slot
  std::uint32_t length = 0;  // kLinkPacketBytesMin..kLinkPacketBytesMax
  Offload offload;
  // No other proxy is left to ask: if the proxy does not know the flow it answers with RST. Else
  // it sends such a packet back (LinkReceived::unknown_flow).
  bool final = false;
};
inline constexpr std::uint32_t kLinkPacketBytesMin = 20;
inline constexpr std::uint32_t kLinkPacketBytesMax = 65'536;

// A packet from the proxy. A good proxy puts the whole IP and TCP header into the first piece; the
// receiver checks that, and finds at least kLinkPacketBytesMin bytes there.
struct LinkReceived {
  std::array<iovec, fabric::kSegmentsMax> pieces;
  std::uint32_t piece_count = 0;
  std::uint32_t length = 0;
  Offload offload;
  // Our own packet, unchanged: the proxy knows no such flow. Otherwise a packet for the client.
  bool unknown_flow = false;
};

struct ChannelLinkCounters {
  std::uint64_t tx_packets = 0, tx_bytes = 0, tx_bytes_copied = 0;
  std::uint64_t tx_refused_down = 0;  // offered while there was no proxy
  std::uint64_t tx_refused_full = 0;  // no credit or no room: back-pressure
  std::uint64_t tx_invalid = 0;       // lengths or offload that no packet can have: dropped
  std::uint64_t tx_lost = 0;          // referenced packets under way when the channel ended
  std::uint64_t rx_packets = 0, rx_bytes = 0, rx_unknown_flow = 0;
  std::uint64_t rx_dropped_malformed = 0;
  std::uint64_t rx_dropped_ended = 0;  // by reference, and read only when the channel had ended
  std::uint64_t connects = 0, connect_failures = 0, disconnects = 0, silences = 0;
};

class ChannelLink {
 public:
  // `fabric`, `pool` and `region` (under the pool) outlive the link. The fabric may be shared by
  // many links; its owner arms it, sleeps and disarms it.
  ChannelLink(fabric::Fabric& fabric, ChannelLinkOptions options, PacketPool& pool,
              const buffer::MemoryRegion& region, const Clock& clock);
  // Ends the channel. All slots must be back or their pool be done with: call disconnect() and
  // poll() until slots_out() is 0 first.
  ~ChannelLink();
  ChannelLink(const ChannelLink&) = delete;
  ChannelLink& operator=(const ChannelLink&) = delete;

  // --- one round of the node's loop
  // Takes packets in order, returns how many; fewer: no credit, no room or no proxy. A packet that
  // no proxy could take (tx_invalid) counts as taken. Leaves with flush() or before.
  std::size_t send(std::span<const LinkSend> packets);
  void flush();
  // Up to out.size() packets; 0 when there is none, or something is unreleased.
  std::size_t receive(std::span<LinkReceived> out);
  void release_received();
  // Completions, connecting, heartbeats, deadlines. Every round, also when idle. Packets that
  // arrive meanwhile wait for receive().
  void poll();
  // When poll() has something to do by the clock alone (Clock time).
  std::uint64_t next_timer_ns() const;

  LinkState state() const;
  bool takes_packets() const;  // kUp or kSilent
  const ProxyStatus& proxy() const;
  const ChannelLinkOptions& options() const;
  std::uint32_t slots_out() const;  // sent and not back yet
  const ChannelLinkCounters& counters() const;
  // Why the last channel or attempt ended, for /status; ok before the first end.
  const Status& last_error() const;
  // For good (the node shuts down, or the proxy has left the configuration).
  void disconnect();

  struct Impl;  // channel_link.cc

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace sanproxy::packet_io
