// Sending and consuming: an application's bytes become segments, its freed bytes window.
#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

// A copied segment with lwIP's record and headers fits one block of the heap.
constexpr std::uint32_t kPacketBytesMax = 65535 - 128;
constexpr std::uint32_t kHeaderBytes = 40 + 20;  // IPv6, the longer one, and TCP
// What a window opens by without a packet of its own, while the client has half of it left.
constexpr std::uint32_t kWindowUpdateBytesMax = 256 * 1024;
// lwIP's heap for one segment: its record, header pbuf, payload pbuf.
constexpr std::size_t kSegmentBytes = 48 + 128 + 32;
// Headers take one of the pieces that a packet may have.
constexpr std::uint32_t kPiecesMax = packet_io::kSendPiecesMax;

std::uint32_t option_bytes(const tcp_pcb& pcb) {
  return (pcb.flags & TF_TIMESTAMP) != 0 ? LWIP_TCP_OPT_LEN_TS_OUT : 0;
}

}  // namespace

std::uint32_t Stack::Impl::send_room(ConnIndex index) const {
  if (!is_open(index) || connections[index].send_shut) return 0;
  const tcp_pcb& pcb = *connections[index].pcb;
  return pcb.state == ESTABLISHED || pcb.state == CLOSE_WAIT ? pcb.snd_buf : 0;
}

// How long segments are made, as an MSS (with options): several of the wire's in one, to be cut
// up by the device or kernel, as far as windows and offload allow.
std::uint16_t Stack::Impl::segment_mss(const Connection& conn) const {
  const tcp_pcb& pcb = *conn.pcb;
  const std::uint32_t opts = option_bytes(pcb);
  const std::uint32_t wire = conn.mss_bytes - opts;
  const bool in_recovery = (pcb.flags & (TF_RTO | TF_INFR)) != 0 || pcb.nrtx > 0;
  std::uint32_t count = 1;
  if (interfaces[conn.interface]->segmentation && !in_recovery) {
    // Half a window, so that one is under way while the other is acknowledged.
    count = (kPacketBytesMax - kHeaderBytes - opts) / wire;
    // On a path that has lost something less of it: what leaves at once has to find room on the
    // way.
    const std::uint32_t cwnd = conn.recovering ? pcb.ssthresh : pcb.cwnd;
    count = std::min(count, cwnd / (conn.loss_window_bytes == 0 ? 2 : kLossyBurstPart) / wire);
    count = std::min(count, pcb.snd_wnd_max / 2 / wire);
    count = std::max(count, 1u);
  }
  return static_cast<std::uint16_t>(count * wire + opts);
}

Status Stack::Impl::write(ConnIndex index, std::span<const std::byte> bytes, WriteMode mode) {
  if (!is_open(index) || connections[index].send_shut) {
    return Status::error(Code::kDisconnected, "the sending side is shut");
  }
  Connection& conn = connections[index];
  tcp_pcb* const pcb = conn.pcb;
  if (pcb->state != ESTABLISHED && pcb->state != CLOSE_WAIT) return Status::again();
  if (bytes.empty()) return {};
  if (bytes.size() > pcb->snd_buf) return Status::again();
  hold_retransmission(*pcb);
  restart_if_idle(conn);
  // All or nothing: what the pieces need is looked at before the first is made.
  const std::uint16_t mss = segment_mss(conn);
  const std::uint32_t payload = mss - option_bytes(*pcb);
  const std::size_t segments = bytes.size() / payload + 2 + bytes.size() / 0xffff;
  const std::size_t copied = mode == WriteMode::kCopy ? bytes.size() + segments * payload / 4 : 0;
  if (pcb->snd_queuelen + 2 * segments > TCP_SND_QUEUELEN ||
      heap.used_bytes() + segments * kSegmentBytes + copied + LwipHeap::kSpanBytes >
          heap.bytes_max()) {
    return Status::again();
  }
  const std::uint8_t flags = mode == WriteMode::kCopy ? TCP_WRITE_FLAG_COPY : 0;
  const std::size_t chunk_max = 0xffff / payload * payload;
  for (std::size_t done = 0; done < bytes.size();) {
    const std::size_t chunk = std::min(bytes.size() - done, chunk_max);
    const bool last = done + chunk == bytes.size();
    const auto chunk_flags = static_cast<std::uint8_t>(flags | (last ? 0 : TCP_WRITE_FLAG_MORE));
    if (write_segment(conn, bytes.data() + done, static_cast<std::uint16_t>(chunk), chunk_flags,
                      mss) != ERR_OK) {
      if (done == 0) return Status::again();
      abort(index, EndReason::kNoMemory, true);  // the heap is too fragmented to keep the promise
      return Status::error(Code::kDisconnected, "no memory in the middle of a write");
    }
    done += chunk;
  }
  mark_dirty(conn);
  return {};
}

// tcp_write() with a raised MSS. lwIP appends to the last unsent segment when there is room in
// it; when that one is longer than the MSS, or of too many pieces already, it must not see it.
// Copies into a queue that waits leave spare room behind them, which the next copies fill; the
// spare room must not exceed what the present MSS leaves, and references do not go there.
err_t Stack::Impl::write_segment(Connection& conn, const std::byte* data, std::uint16_t bytes,
                                 std::uint8_t flags, std::uint16_t mss) {
  tcp_pcb* const pcb = conn.pcb;
  const bool copy = (flags & TCP_WRITE_FLAG_COPY) != 0;
  tcp_seg* last = pcb->unsent;
  bool hide = false;
  u16_t spare = 0;
  if (last != nullptr) {
    while (last->next != nullptr) last = last->next;
    const std::uint32_t used = last->len + option_bytes(*pcb);
    if (copy && used < mss) {
      spare = static_cast<u16_t>(std::min<std::uint32_t>(pcb->unsent_oversize, mss - used));
    }
    hide = used >= mss || (bytes > spare && pbuf_clen(last->p) >= kPiecesMax);
  }
  const u16_t spare_before = std::exchange(pcb->unsent_oversize, hide ? u16_t{0} : spare);
  tcp_seg* const hidden = hide ? pcb->unsent : nullptr;
  const u16_t hidden_length = hide && pcb->unacked == nullptr ? pcb->snd_queuelen : u16_t{0};
  if (hide) {
    pcb->unsent = nullptr;
    pcb->snd_queuelen = static_cast<u16_t>(pcb->snd_queuelen - hidden_length);
  }
  const u16_t wire_mss = pcb->mss;
  const tcpwnd_size_t window_max = pcb->snd_wnd_max;
  pcb->mss = mss;
  const bool gather = copy && pcb->unsent != nullptr;  // more will come before this one leaves
  if (gather) tcp_clear_flags(pcb, TF_NODELAY);
  // lwIP makes no segment longer than half of this, down to where it miscounts.
  pcb->snd_wnd_max = std::max<tcpwnd_size_t>(window_max, 2u * mss);
  const err_t result = tcp_write(pcb, data, bytes, flags);
  if (gather) tcp_set_flags(pcb, TF_NODELAY);
  pcb->mss = wire_mss;
  pcb->snd_wnd_max = window_max;
  if (hide) {
    last->next = pcb->unsent;
    pcb->unsent = hidden;
    pcb->snd_queuelen = static_cast<u16_t>(pcb->snd_queuelen + hidden_length);
  }
  if (result != ERR_OK) pcb->unsent_oversize = copy ? spare_before : u16_t{0};
  return result;
}

void Stack::Impl::consume(ConnIndex index, std::uint32_t bytes) {
  if (!is_open(index)) return;
  Connection& conn = connections[index];
  tcp_pcb* const pcb = conn.pcb;
  bytes = std::min(bytes, conn.rx_unconsumed_bytes);
  conn.rx_unconsumed_bytes -= bytes;
  const std::uint64_t window = std::uint64_t{pcb->rcv_wnd} + bytes;
  pcb->rcv_wnd = static_cast<tcpwnd_size_t>(std::min<std::uint64_t>(window, conn.window_bytes));
  if (conn.refused != nullptr) return;  // closed until that is taken
  const std::uint32_t opened_bytes = tcp_update_rcv_ann_wnd(pcb);
  // A window that is open entirely is told as such by the next packet: to a receiver whose peer's
  // window never changes that packet is of the quick kind (header prediction).
  if (pcb->rcv_wnd == conn.window_bytes) pcb->rcv_ann_wnd = pcb->rcv_wnd;
  if (pcb->state != ESTABLISHED && pcb->state != FIN_WAIT_1 && pcb->state != FIN_WAIT_2) return;
  // Worth a packet of its own, the more so the less the client has left; less waits for the next
  // one. Far below the half of RFC 9293 3.8.6.2.2, for a client's send memory may be small.
  const std::uint32_t left_bytes = pcb->rcv_ann_right_edge - pcb->rcv_nxt;
  const std::uint32_t worth_bytes =
      left_bytes < conn.window_bytes / 2 ? 4u * conn.mss_bytes : kWindowUpdateBytesMax;
  if (opened_bytes >= std::min(conn.window_bytes / 4, worth_bytes)) {
    conn.rx_segments = 255;
    mark_dirty(conn);
  }
}

}  // namespace sanproxy::stack
