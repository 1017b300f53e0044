// Cutting a segment in two, where it is longer than what may leave now. lwIP's own cut copies the
// tail, and leaves FIN on the first part, which ends the stream too early.
#include <cstring>

#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

bool holds_bytes(const pbuf& piece) {
  return (piece.type_internal & PBUF_TYPE_FLAG_STRUCT_DATA_CONTIGUOUS) != 0;
}

// A packet of its own for what `chain` has from `skip` on: room for the options first. References
// stay references; copied bytes are copied again. No more pieces than the chain has. Null: no
// memory.
pbuf* tail_of(const pbuf* chain, std::uint32_t skip, std::uint16_t option_bytes,
              std::uint64_t& copied) {
  for (; skip >= chain->len; chain = chain->next) skip -= chain->len;
  const auto length = static_cast<u16_t>(chain->len - skip);
  const u16_t lead = holds_bytes(*chain) ? length : u16_t{0};
  pbuf* const tail = pbuf_alloc(PBUF_TRANSPORT, static_cast<u16_t>(option_bytes + lead), PBUF_RAM);
  if (tail == nullptr) return nullptr;
  if (lead != 0) {
    std::memcpy(static_cast<std::byte*>(tail->payload) + option_bytes,
                static_cast<const std::byte*>(chain->payload) + skip, lead);
    copied += lead;
    skip = 0;
    chain = chain->next;
  }
  for (; chain != nullptr; chain = chain->next, skip = 0) {
    const auto bytes = static_cast<u16_t>(chain->len - skip);
    auto* const from = static_cast<std::byte*>(chain->payload) + skip;
    pbuf* const piece = pbuf_alloc(PBUF_RAW, bytes, holds_bytes(*chain) ? PBUF_RAM : PBUF_ROM);
    if (piece == nullptr) {
      pbuf_free(tail);
      return nullptr;
    }
    if (holds_bytes(*chain)) {
      std::memcpy(piece->payload, from, bytes);
      copied += bytes;
    } else {
      piece->payload = from;
    }
    pbuf_cat(tail, piece);
  }
  return tail;
}

}  // namespace

// The rest becomes the next segment of the list. False: no memory, or its packet is still in the
// queue to the device.
bool Stack::Impl::split(tcp_pcb& pcb, tcp_seg& segment, std::uint32_t bytes) {
  if (segment.p->ref != 1) return false;
  const auto options_length = static_cast<u16_t>(LWIP_TCP_OPT_LENGTH(segment.flags));
  const std::uint32_t skip = segment.p->tot_len - segment.len + bytes;
  std::uint64_t copied = 0;
  pbuf* const tail = tail_of(segment.p, skip, options_length, copied);
  if (tail == nullptr) return false;
  auto* const second = static_cast<tcp_seg*>(memp_malloc(MEMP_TCP_SEG));
  if (second == nullptr || pbuf_add_header(tail, TCP_HLEN) != 0) {
    if (second != nullptr) memp_free(MEMP_TCP_SEG, second);
    pbuf_free(tail);
    return false;
  }
  counters.bytes_copied += copied;
  second->p = tail;
  second->len = static_cast<u16_t>(segment.len - bytes);
  second->flags = segment.flags;
  second->tcphdr = static_cast<tcp_hdr*>(tail->payload);
  *second->tcphdr = *segment.tcphdr;  // FIN and PSH go with the last byte
  second->tcphdr->seqno = lwip_htonl(lwip_ntohl(segment.tcphdr->seqno) + bytes);
  TCPH_UNSET_FLAG(segment.tcphdr, TCP_FIN | TCP_PSH);

  const u16_t pieces = pbuf_clen(segment.p);
  pbuf_realloc(segment.p, static_cast<u16_t>(skip));
  segment.len = static_cast<u16_t>(bytes);
  pcb.snd_queuelen =
      static_cast<u16_t>(pcb.snd_queuelen - pieces + pbuf_clen(segment.p) + pbuf_clen(tail));
  second->next = std::exchange(segment.next, second);
  pcb.unsent_oversize = 0;  // the last segment may be another one
  return true;
}

// What the client has of the first segment of a list is acknowledged, as lwIP does with segments
// that it has whole. Returns how much of it the segment has still: none, unless memory is short or
// FIN is all that is missing.
std::uint32_t Stack::Impl::trim_acknowledged(Connection& conn, tcp_seg*& first) {
  tcp_pcb& pcb = *conn.pcb;
  const std::uint32_t seq = lwip_ntohl(first->tcphdr->seqno);
  if (!seq_after(pcb.lastack, seq)) return 0;
  const std::uint32_t had = pcb.lastack - seq;
  const std::uint32_t cut = std::min<std::uint32_t>(had, first->len - 1u);
  if (cut == 0 || !split(pcb, *first, cut)) return had;
  tcp_seg* const trimmed = std::exchange(first, first->next);
  pcb.snd_queuelen = static_cast<u16_t>(pcb.snd_queuelen - pbuf_clen(trimmed->p));
  pcb.snd_buf += trimmed->len;
  conn.acked_bytes += trimmed->len;
  conn.acked_pending = true;
  tcp_seg_free(trimmed);
  return had - cut;
}

// Before a time-out sends the first segment again: one segment of the wire, without what the client
// has. Sent whole, a super-segment longer than some queue on the way would lose its end each time.
void Stack::Impl::prepare_retransmission(Connection& conn) {
  tcp_seg*& first = conn.pcb->unacked;
  if (first->len == 0) return;
  const std::uint32_t next = trim_acknowledged(conn, first) + wire_bytes(conn, *first);
  if (first->len > next) split(*conn.pcb, *first, next);
}

// RFC 9293 3.8.6.2.1: what the windows take of the next segment is worth sending when it is a full
// segment, or half of the largest window that the client ever had; and, with nothing under way,
// after a time, which is the persist timer's (`all`).
void Stack::Impl::fit_unsent(Connection& conn, bool all) {
  tcp_pcb& pcb = *conn.pcb;
  const std::uint32_t window = std::min(pcb.snd_wnd, pcb.cwnd);
  if (pcb.unsent == nullptr || window == 0) return;
  const std::uint32_t seq = lwip_ntohl(pcb.unsent->tcphdr->seqno);
  if (seq_after(seq, pcb.lastack)) {
    fit_behind(conn, seq - pcb.lastack);
    return;
  }
  if (pcb.unsent->len <= window) return;
  const std::uint32_t had = trim_acknowledged(conn, pcb.unsent);
  if (pcb.unsent->len <= had + window) return;
  const std::uint32_t wire = wire_bytes(conn, *pcb.unsent);
  if (window >= wire) {
    if (split(pcb, *pcb.unsent, had + window / wire * wire)) return;
    // Without memory to cut it it leaves whole, if the client takes that: its answer frees memory.
    pcb.cwnd = std::max(pcb.cwnd, std::min<tcpwnd_size_t>(pcb.unsent->len, pcb.snd_wnd));
  } else if (all || window >= pcb.snd_wnd_max / 2) {
    split(pcb, *pcb.unsent, had + window);
  }
}

// With something under way an answer will come, which opens the client's window again. The
// congestion window opens by the segment: what it takes leaves when that is a good part of it, and
// in recovery, where each answer is worth about a segment, all of it.
void Stack::Impl::fit_behind(Connection& conn, std::uint32_t under_way_bytes) {
  tcp_pcb& pcb = *conn.pcb;
  if (pcb.cwnd >= pcb.snd_wnd || pcb.cwnd <= under_way_bytes) return;
  const std::uint32_t wire = wire_bytes(conn, *pcb.unsent);
  const std::uint32_t room = pcb.cwnd - under_way_bytes;
  const bool lossy = conn.loss_window_bytes != 0;
  const std::uint32_t part = lossy ? pcb.cwnd / kLossyBurstPart : std::max(2 * wire, pcb.cwnd / 4);
  const std::uint32_t worth = conn.recovering ? wire : std::max(wire, part);
  if (pcb.unsent->len > room && room >= worth) split(pcb, *pcb.unsent, room / wire * wire);
}

}  // namespace sanproxy::stack
