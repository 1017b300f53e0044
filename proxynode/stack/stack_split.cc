// Cutting a segment that waits in two, where it is longer than the client's window. lwIP's own cut
// copies the tail, and leaves FIN on the first part, which ends the stream too early.
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

// False: no memory, or its packet is still in the queue to the device.
bool Stack::Impl::split_unsent(tcp_pcb& pcb, std::uint32_t bytes) {
  tcp_seg& head = *pcb.unsent;
  if (head.p->ref != 1) return false;
  const auto options_length = static_cast<u16_t>(LWIP_TCP_OPT_LENGTH(head.flags));
  const std::uint32_t skip = head.p->tot_len - head.len + bytes;
  std::uint64_t copied = 0;
  pbuf* const tail = tail_of(head.p, skip, options_length, copied);
  if (tail == nullptr) return false;
  auto* const second = static_cast<tcp_seg*>(memp_malloc(MEMP_TCP_SEG));
  if (second == nullptr || pbuf_add_header(tail, TCP_HLEN) != 0) {
    if (second != nullptr) memp_free(MEMP_TCP_SEG, second);
    pbuf_free(tail);
    return false;
  }
  counters.bytes_copied += copied;
  second->p = tail;
  second->len = static_cast<u16_t>(head.len - bytes);
  second->flags = head.flags;
  second->tcphdr = static_cast<tcp_hdr*>(tail->payload);
  *second->tcphdr = *head.tcphdr;  // FIN and PSH go with the last byte
  second->tcphdr->seqno =
      lwip_htonl(lwip_ntohl(head.tcphdr->seqno) + static_cast<std::uint32_t>(bytes));
  TCPH_UNSET_FLAG(head.tcphdr, TCP_FIN | TCP_PSH);

  const u16_t pieces = pbuf_clen(head.p);
  pbuf_realloc(head.p, static_cast<u16_t>(skip));
  head.len = static_cast<u16_t>(bytes);
  pcb.snd_queuelen =
      static_cast<u16_t>(pcb.snd_queuelen - pieces + pbuf_clen(head.p) + pbuf_clen(tail));
  second->next = std::exchange(head.next, second);
  if (second->next == nullptr) pcb.unsent_oversize = 0;
  return true;
}

// So that the first segment ends within `window_bytes` of what the client has; it may have a part
// of the segment already.
void Stack::Impl::cut_unsent(tcp_pcb& pcb, std::uint32_t window_bytes) {
  const std::uint32_t had = pcb.lastack - lwip_ntohl(pcb.unsent->tcphdr->seqno);
  if (pcb.unsent->len > had + window_bytes) split_unsent(pcb, had + window_bytes);
}

// RFC 9293 3.8.6.2.1: what the window takes of the next segment is worth sending when it is a full
// segment, or half of the largest window that the client ever had; and, with nothing under way,
// after a time, which is the persist timer's.
void Stack::Impl::fit_unsent(Connection& conn) {
  tcp_pcb& pcb = *conn.pcb;
  if (pcb.unsent == nullptr || pcb.unsent->len <= pcb.snd_wnd || pcb.snd_wnd == 0) return;
  if (seq_after(lwip_ntohl(pcb.unsent->tcphdr->seqno), pcb.lastack)) return;  // an answer will come
  const std::uint32_t wire = conn.mss_bytes - LWIP_TCP_OPT_LENGTH(pcb.unsent->flags);
  if (pcb.snd_wnd >= wire) {
    cut_unsent(pcb, pcb.snd_wnd / wire * wire);
  } else if (pcb.snd_wnd >= pcb.snd_wnd_max / 2) {
    cut_unsent(pcb, pcb.snd_wnd);
  }
}

}  // namespace sanproxy::stack
