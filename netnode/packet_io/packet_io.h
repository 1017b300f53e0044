// PacketIo: one burst interface over every way of getting IP packets in and out.
//
// Document: docs/packet_io.md. Modelled on the burst calls of DPDK's ethdev and on virtio-net's
//   per-packet metadata (VIRTIO 1.1, 5.1.6).
// Role: yields and takes *IP packets* (layer 3). Where the driver sees Ethernet (TAP, AF_PACKET)
//   it strips and adds the frame header and answers ARP and neighbour discovery by itself
//   (neighbor.h). A packet may be a super-packet of up to 64 KB with offload metadata.
// Owner: a worker. Thread: its data path. No allocation after open().
// Invariants:
//   1. receive() fills only buffers that the caller lent; a packet starts at
//      buffer.data + packet.offset and has packet.length bytes, all inside the buffer. A driver
//      that lends() takes no buffers: its packets lie at packet.lent, in memory that may be
//      read-only and may change while it is read; but in frames() they are the borrower's alone.
//   2. send() has copied (kernel drivers) or finished with the bytes when flush() returns, so the
//      caller may free them then. But "channel" may pass memory on that LentMemory knows (payload
//      alone): that stays in use until its lends are done (docs/buffer_ownership.md "Passed on").
//   3. Malformed frames never reach the caller: they are dropped and counted by reason.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lwproto/base/socket_address.h"
#include "lwproto/base/status.h"
#include "lwproto/base/unique_fd.h"
#include "netnode/packet_io/queue_steering.h"

namespace sanproxy::packet_io {

class FlowRedirect;
struct KernelWay;

// The largest packet that a driver delivers, with its metadata and frame header in front:
// slots lent to receive() must have at least this capacity.
inline constexpr std::size_t kReceiveBufferBytesMin = 65536 + 128;
inline constexpr std::size_t kSendPiecesMax = 20;
// What "xdp" takes of InterfaceOptions::frame_memory.
inline constexpr std::size_t kXdpMemoryBytes = std::size_t{10'240} * 4096;

// VIRTIO_NET_HDR_GSO_*. kUdp (either version): of received packets alone, nobody is sent any.
enum class Segmentation : std::uint8_t { kNone = 0, kTcp4 = 1, kTcp6 = 4, kUdp = 5 };

struct Offload {
  Segmentation segmentation = Segmentation::kNone;
  // Send: the TCP checksum field holds the pseudo-header sum; the driver or kernel completes it
  // over the bytes from checksum_start. Receive: the sum is trusted (partial or verified).
  bool checksum_partial = false;      // send: complete it; receive: never needs a check
  bool checksum_verified = false;     // receive only
  std::uint16_t segment_bytes = 0;    // payload bytes of each segment on the wire
  std::uint16_t header_bytes = 0;     // IP + TCP header bytes (for segmentation)
  std::uint16_t checksum_start = 0;   // from the start of the IP header
  std::uint16_t checksum_offset = 0;  // from checksum_start
};

struct ReceiveBuffer {
  std::byte* data = nullptr;
  std::uint32_t capacity = 0;
};

using PacketLoan = std::uint32_t;
inline constexpr PacketLoan kNoPacketLoan = 0;
// Memory that a driver lends packets from, in frames of equal size: loan N is the frame N - 1.
struct FrameMemory {
  std::span<std::byte> memory;
  std::size_t frame_bytes = 0;
};
// One of several peers behind one interface (network nodes); 0 where there is but one.
using PeerNumber = std::uint16_t;

struct ReceivedPacket {
  std::uint32_t buffer = 0;  // index into the span given to receive()
  std::uint32_t offset = 0;  // of the IP header inside the buffer
  std::uint32_t length = 0;  // of the IP packet
  Offload offload;
  // Of a driver that lends(). Without a loan the bytes are there until the next receive(); with
  // one until release(loan), which must come once.
  const std::byte* lent = nullptr;
  PacketLoan loan = kNoPacketLoan;
  PeerNumber from = 0;
  // Whether somebody else may know its flow if we do not: then send_back() is better than a reset.
  bool others_may_know = false;
};

struct SendPacket {
  std::array<iovec, kSendPiecesMax> pieces;  // the IP packet, headers first
  std::uint32_t piece_count = 0;
  std::uint32_t length = 0;  // sum of the pieces
  Offload offload;
  PeerNumber to = 0;  // where the flow's last packet came from; another one will do
};

struct Counters {
  std::uint64_t rx_packets = 0, rx_bytes = 0, tx_packets = 0, tx_bytes = 0;
  std::uint64_t rx_calls = 0, tx_calls = 0;
  std::uint64_t rx_dropped_short = 0, rx_dropped_not_ip = 0, rx_dropped_not_for_us = 0,
                rx_dropped_metadata = 0, rx_truncated = 0;
  std::uint64_t rx_dropped_kernel = 0;  // packet: the socket's buffer was full
  std::uint64_t tx_bytes_copied = 0;    // of small packets, which leave in one block
  std::uint64_t tx_dropped_unresolved = 0, tx_dropped_full = 0, tx_errors = 0;
  std::uint64_t rx_decapsulated = 0, rx_dropped_tunnel = 0;
  std::uint64_t arp_in = 0, arp_out = 0, nd_in = 0, nd_out = 0;
  // channel
  std::uint64_t tx_dropped_no_peer = 0;      // no network node is connected
  std::uint64_t rx_bytes_copied = 0;         // of packets that came in pieces
  std::uint64_t rx_dropped_joined = 0;       // of those, that there was no room for
  std::uint64_t tx_bytes_copied_unlent = 0;  // payload of large packets that could not be passed on
  std::uint64_t tx_bytes_lent = 0;           // and that was
  std::uint64_t regions_not_taken = 0;       // by a peer that takes no more of them
  std::uint64_t peers_cut_off = 0;           // kept what they were lent for too long
  std::uint64_t sent_back = 0, send_back_dropped = 0;
  std::uint64_t peers_admitted = 0, peers_refused = 0, peers_ended = 0, peers_breached = 0;
};

// Who is behind the interface, where it knows them: network nodes. For /status.
struct PacketPeer {
  PeerNumber number = 0;
  std::string name;
  std::string address;
  std::uint64_t packets_in = 0, packets_out = 0, bytes_in = 0, bytes_out = 0;
  std::uint32_t loans_out = 0;
  bool connected = false;
};

// One of several queues of an interface, opened by open_queues() in another process.
struct InterfaceQueue {
  int fd = -1;  // -1: the interface has one queue, which open_interface() opens. Not owned
  std::uint32_t index = 0;
  QueueSteering steering;
};

struct InterfaceOptions {
  std::string driver;  // "tun", "tap", "packet", "xdp", "channel"
  std::string name;    // tun/tap: created if absent; packet/xdp: must exist; channel: for people
  std::uint32_t mtu_bytes = 1500;
  // tun/tap: assigned to the host's side of the device. packet/xdp: our own on that segment.
  std::vector<IpPrefix> addresses;
  std::vector<IpAddress> gateways;  // packet/tap: next hop for what is not on link; optional
  bool segmentation_offload = true;
  // Tunnels end here for packets from these; none: tunnels' packets are packets like others.
  std::vector<IpAddress> decapsulate_from;
  std::uint16_t gue_port = 6080;
  InterfaceQueue queue;
  FlowRedirect* redirect = nullptr;  // not tap: its flows are the kernel's. Not owned
  // xdp: kXdpMemoryBytes of whole pages to receive into, so that packets can go on from there
  // without a copy; empty: of its own. Outlives the interface.
  std::span<std::byte> frame_memory;
};

class PacketIo {
 public:
  virtual ~PacketIo() = default;
  virtual const InterfaceOptions& options() const = 0;
  virtual std::uint32_t mtu_bytes() const = 0;  // may become smaller
  // For poll/epoll: readable when receive() would yield something.
  virtual int fd() const = 0;

  // A second descriptor to watch, or -1; on_control() when it is readable.
  virtual int control_fd() const { return -1; }
  virtual void on_control() {}

  // Receives up to out.size() packets, each into its own buffer out of `buffers` (same size as
  // `out`; in ascending order, with gaps where a frame was dropped; those not named by a returned
  // packet stay free, whatever is in them). 0 when none waits.
  virtual std::size_t receive(std::span<const ReceiveBuffer> buffers,
                              std::span<ReceivedPacket> out) = 0;
  // Takes packets in order; returns how many were taken (fewer: the device is full, try again
  // after fd() is writable or drop). Bytes must stay until flush() returns.
  virtual std::size_t send(std::span<const SendPacket> packets) = 0;
  virtual void flush() = 0;
  // Something that was flushed is still to be handed to the kernel: flush() or receive() tries
  // again, and whoever sleeps should do so for a moment only.
  virtual bool unsent() const { return false; }
  // What has happened to its device, such as "has been removed", after which nothing comes or goes
  // by it any more, and fd() may be readable for ever; null as long as all is well. A few system
  // calls: to be asked about once a second.
  virtual const char* lost() const { return nullptr; }

  // How a packet to `dst` leaves by this interface without us, as far as is known just now; false:
  // it cannot. What was said may be wrong when way_changes() is another number.
  virtual bool kernel_way(const IpAddress& dst, KernelWay& out);
  virtual std::uint64_t way_changes() const { return 0; }

  // Addresses that we answer ARP/ND for (service addresses), besides options().addresses where
  // those are ours. "packet" receives packets to them alone, so an address must stay for as long
  // as connections to it do.
  virtual void add_local_address(const IpAddress& address) = 0;
  virtual void remove_local_address(const IpAddress& address) = 0;

  // --- drivers that lend their own memory instead of filling ours
  virtual bool lends() const { return false; }
  virtual void release(PacketLoan loan) { (void)loan; }
  // Where all that it lends lies, if in frames; else empty. Who has borrowed one may change it.
  virtual FrameMemory frames() const { return {}; }
  // Returns a packet that others_may_know to where it came from; it may be read during the call.
  virtual void send_back(const ReceivedPacket& packet) { (void)packet; }

  virtual const Counters& counters() const = 0;
  virtual std::vector<PacketPeer> peers() const { return {}; }
  // How it gets at packets, where there are several ways; for people.
  virtual std::string mode() const { return {}; }
};

// Opens the driver named in the options; an unknown driver is kInvalidArgument.
Result<std::unique_ptr<PacketIo>> open_interface(const InterfaceOptions& options);

// Whether the driver can spread packets over several queues.
bool has_queues(const InterfaceOptions& options);
// Makes the device if need be and opens steering.queues queues of it, one a worker. Packets go to
// the queue that `steering` says for as long as all the descriptors live, read or not: whoever
// restarts workers holds them.
Result<std::vector<UniqueFd>> open_queues(const InterfaceOptions& options,
                                          const QueueSteering& steering);

}  // namespace sanproxy::packet_io
