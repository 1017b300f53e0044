// PacketQueue: packets that wait for flush(), of one interface.
//
// Role: lwIP and the stack put packets here; nothing leaves before flush() (stack.h, invariant 2),
//   except when the queue is full. A packet is a chain of pbufs held by reference: headers in
//   memory of lwIP's heap, payload where the application put it.
// Owner: the Stack. Thread: the worker's. No allocation after construction.
// Invariants:
//   1. At most kPacketsMax packets. In order, oldest first.
//   2. Connection::queued_packets counts a connection's packets here. When references to payload
//      end (acknowledged, or connection gone), its packets are dropped first: memory that went
//      back to its owner is never sent.
#pragma once

#include <array>
#include <cstdint>

#include "lwproto/base/reserved_array.h"
#include "netnode/packet_io/packet_io.h"
#include "proxynode/stack/connection.h"

struct pbuf;

namespace sanproxy::stack {

struct QueuedPacket {
  pbuf* chain = nullptr;       // null: dropped
  std::byte* start = nullptr;  // of the IP header, which lies in front of the first pbuf's payload
  std::uint16_t ip_header_bytes = 0;
  std::uint16_t tcp_header_bytes = 0;  // 0: a finished packet, sent as it is
  std::uint16_t segment_bytes = 0;     // of segmentation; 0: one segment
  Family family = Family::kNone;
  bool has_payload = false;
  packet_io::PeerNumber to = 0;
  ConnIndex conn = kNone;
  std::uint32_t seq_end = 0;
};

class PacketQueue {
 public:
  static constexpr std::uint32_t kPacketsMax = 1024;

  explicit PacketQueue(ReservedArray<Connection>& connections) : connections_(connections) {}

  bool empty() const { return head_ == tail_; }
  bool full() const { return tail_ - head_ == kPacketsMax; }
  // Takes a reference to the chain. Not when full().
  void push(const QueuedPacket& packet);
  // Gives all to the device, or as many as it takes.
  void flush(packet_io::PacketIo& io, StackCounters& counters);
  // Drops the connection's payload packets that end at or before `seq`.
  void drop_acknowledged(ConnIndex conn, std::uint32_t seq);
  // Drops the connection's payload packets; the others no longer belong to it.
  void forget(ConnIndex conn);
  void clear();

 private:
  static constexpr std::uint32_t kBatch = 32;
  QueuedPacket& at(std::uint32_t position) { return ring_[position % kPacketsMax]; }
  void drop(QueuedPacket& packet);
  bool describe(const QueuedPacket& packet, packet_io::SendPacket& out);

  ReservedArray<Connection>& connections_;
  std::array<QueuedPacket, kPacketsMax> ring_{};
  std::uint32_t head_ = 0;
  std::uint32_t tail_ = 0;
  std::array<packet_io::SendPacket, kBatch> batch_{};
  bool flushing_ = false;
};

}  // namespace sanproxy::stack
