#include "proxynode/stack/packet_queue.h"

#include "lwip/pbuf.h"
#include "netnode/net/checksum.h"
#include "proxynode/stack/segment_guard.h"

namespace sanproxy::stack {

void PacketQueue::push(const QueuedPacket& packet) {
  pbuf_ref(packet.chain);
  at(tail_++) = packet;
  if (packet.conn != kNone) ++connections_[packet.conn].queued_packets;
}

void PacketQueue::drop(QueuedPacket& packet) {
  if (packet.conn != kNone) --connections_[packet.conn].queued_packets;
  packet.conn = kNone;
  pbuf_free(packet.chain);
  packet.chain = nullptr;
}

// False: more pieces than a packet may have. write() keeps segments below that.
bool PacketQueue::describe(const QueuedPacket& packet, packet_io::SendPacket& out) {
  out.piece_count = 0;
  out.length = packet.ip_header_bytes;
  std::byte* start = packet.start;
  std::uint32_t front = packet.ip_header_bytes;
  for (const pbuf* piece = packet.chain; piece != nullptr; piece = piece->next) {
    if (piece->len + front == 0) continue;
    if (out.piece_count == packet_io::kSendPiecesMax) return false;
    if (start == nullptr) start = static_cast<std::byte*>(piece->payload);
    out.pieces[out.piece_count++] = {start, piece->len + front};
    out.length += piece->len;
    start = nullptr;
    front = 0;
  }
  out.offload = {};
  out.to = packet.to;
  if (packet.tcp_header_bytes == 0) return true;
  out.offload.checksum_partial = true;
  out.offload.checksum_start = packet.ip_header_bytes;
  out.offload.checksum_offset = net::kTcpChecksumOffset;
  if (packet.segment_bytes != 0) {
    out.offload.segmentation = packet.family == Family::kIpv4 ? packet_io::Segmentation::kTcp4
                                                              : packet_io::Segmentation::kTcp6;
    out.offload.segment_bytes = packet.segment_bytes;
    out.offload.header_bytes =
        static_cast<std::uint16_t>(packet.ip_header_bytes + packet.tcp_header_bytes);
  }
  return true;
}

void PacketQueue::flush(packet_io::PacketIo& io, StackCounters& counters) {
  if (flushing_) return;
  flushing_ = true;
  std::uint32_t sent = head_;  // packets before this one are with the device
  bool device_full = false;
  while (sent != tail_ && !device_full) {
    std::uint32_t count = 0;
    std::uint32_t next = sent;
    std::array<std::uint32_t, kBatch> positions;
    for (; next != tail_ && count < kBatch; ++next) {
      if (at(next).chain == nullptr) continue;
      if (!describe(at(next), batch_[count])) {
        ++counters.dropped_send_queue;
        drop(at(next));
        continue;
      }
      positions[count++] = next;
    }
    const std::size_t taken = count == 0 ? 0 : io.send({batch_.data(), count});
    device_full = taken < count;
    sent = device_full ? positions[taken] : next;
  }
  io.flush();
  for (; head_ != sent; ++head_) {
    if (at(head_).chain != nullptr) drop(at(head_));
  }
  flushing_ = false;
}

void PacketQueue::drop_acknowledged(ConnIndex conn, std::uint32_t seq) {
  for (std::uint32_t left = connections_[conn].queued_packets, i = tail_; left > 0 && i != head_;) {
    QueuedPacket& packet = at(--i);
    if (packet.chain == nullptr || packet.conn != conn) continue;
    --left;
    if (packet.has_payload && !seq_after(packet.seq_end, seq)) drop(packet);
  }
}

void PacketQueue::forget(ConnIndex conn) {
  for (std::uint32_t i = tail_; connections_[conn].queued_packets > 0 && i != head_;) {
    QueuedPacket& packet = at(--i);
    if (packet.chain == nullptr || packet.conn != conn) continue;
    if (packet.has_payload) {
      drop(packet);
    } else {
      --connections_[conn].queued_packets;
      packet.conn = kNone;
    }
  }
}

void PacketQueue::clear() {
  for (; head_ != tail_; ++head_) {
    if (at(head_).chain != nullptr) drop(at(head_));
  }
}

}  // namespace sanproxy::stack
