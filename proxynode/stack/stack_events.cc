// What lwIP tells us about a connection, and what is put right after each time it worked on one.
#include <cstring>

#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

// Of all slots refused payload may hold one in kRefusedShare: nodes that take nothing must not
// leave everybody else without slots. From half of that on, or while fewer than half of all are
// free, it is copied into TCP memory.
constexpr std::size_t kRefusedShare = 2;
// What was on its way when payload was refused is kept behind it, so much of a connection, as long
// as no more than this share of the TCP memory is used: a client that has to send it again after a
// time-out is slow for seconds, however soon there is room. The rest is for those who get on.
constexpr std::size_t kRefusedPiecesMax = 64;
constexpr std::size_t kKeptHeapShare = 4;
// Of the three repeated acknowledgements that make lwIP send a segment again (RFC 5681).
constexpr u8_t kDuplicatesBefore = 2;

bool holds_slot(const pbuf& piece) { return (piece.flags & PBUF_FLAG_IS_CUSTOM) != 0; }

std::size_t slots_in(const pbuf* chain) {
  std::size_t count = 0;
  for (; chain != nullptr; chain = chain->next) count += holds_slot(*chain) ? 1 : 0;
  return count;
}

}  // namespace

err_t Stack::Impl::event(Connection* conn, tcp_pcb* pcb, lwip_event kind, pbuf* chain,
                         std::uint32_t bytes, err_t error) {
  if (conn == nullptr) return ERR_OK;  // a listener's, for want of memory
  switch (kind) {
    case LWIP_EVENT_ACCEPT:
    case LWIP_EVENT_CONNECTED:
      return pcb == nullptr ? err_t{ERR_OK} : on_established(*conn);
    case LWIP_EVENT_RECV:
      return chain != nullptr ? on_data(*conn, chain) : on_end_of_data(*conn);
    case LWIP_EVENT_SENT:
      conn->acked_bytes += bytes;
      conn->acked_pending = true;
      return ERR_OK;
    case LWIP_EVENT_ERR:
      // With ERR_ABRT the control block is freed already and its end known.
      if (error == ERR_RST && conn->pcb != nullptr) {
        ++counters.resets_in;
        end_reason =
            conn->state == TcpState::kSynSent ? EndReason::kRefused : EndReason::kResetByPeer;
      }
      return ERR_OK;
    case LWIP_EVENT_POLL:
      return ERR_OK;
  }
  return ERR_OK;
}

err_t Stack::Impl::on_established(Connection& conn) {
  tcp_pcb* const pcb = conn.pcb;
  const ConnIndex index = index_of(conn);
  const std::uint32_t generation = conn.generation;
  // The interface's may have become smaller since the SYN.
  const std::uint32_t headers =
      (conn.flow.key.family == Family::kIpv4 ? net::kIpv4HeaderBytesMin : net::kIpv6HeaderBytes) +
      net::kTcpHeaderBytesMin;
  const auto fits = static_cast<u16_t>(interfaces[conn.interface]->lwip.mtu - headers);
  conn.mss_bytes = pcb->mss = std::min(pcb->mss, fits);
  follow_state(conn);
  arm_keepalive(conn);
  if (conn.active) {
    set_windows(conn);
    ++counters.connected;
    delegate.on_connected(index, info(conn));
    return conn.generation == generation ? ERR_OK : ERR_ABRT;
  }
  ++counters.accepted;
  conn.reported = true;
  const bool wanted = delegate.on_accepted(index, info(conn));
  if (conn.generation != generation) return ERR_ABRT;
  if (wanted) return ERR_OK;
  conn.reported = false;
  end_reason = EndReason::kAborted;
  return ERR_VAL;  // lwIP resets it
}

err_t Stack::Impl::on_data(Connection& conn, pbuf* chain) {
  const ConnIndex index = index_of(conn);
  const std::uint32_t generation = conn.generation;
  deliver_acked(index);
  if (conn.generation != generation) {
    pbuf_free(chain);
    return ERR_ABRT;
  }
  if (conn.receive_shut) {
    pbuf_free(chain);
    abort(index, EndReason::kAborted, true);
    return ERR_ABRT;
  }
  if (conn.refused != nullptr) {
    pbuf* const first = take_refused(conn);
    pbuf* last = first;
    while (last->next != nullptr) last = last->next;
    last->next = chain;
    conn.rx_segments = 255;
    mark_dirty(conn);
    if (keep_refused(conn, first)) return ERR_OK;
    abort(index, EndReason::kNoMemory, true);
    return ERR_ABRT;
  }
  const std::uint32_t bytes = chain->tot_len;
  const std::uint32_t segments = (bytes + conn.mss_bytes - 1) / conn.mss_bytes;
  conn.rx_segments = static_cast<std::uint8_t>(std::min(conn.rx_segments + segments, 255u));
  conn.rx_unconsumed_bytes += bytes;
  RxPayload payload(chain);
  const bool taken = delegate.on_received(index, payload);
  if (conn.generation != generation) return ERR_ABRT;
  if (!taken) {
    conn.rx_unconsumed_bytes -= payload.length();
    if (!keep_refused(conn, payload.detach())) {
      abort(index, EndReason::kNoMemory, true);
      return ERR_ABRT;
    }
  }
  return ERR_OK;
}

// lwIP could keep refused payload too, but would lose it when the connection ends in order, and
// not look at acknowledgements meanwhile. Here the segments that follow come without payload
// (to_connection()), until it is taken, and the client is told of no window: the acknowledgement of
// the refused bytes is the one that no client overlooks. False: it holds slots that others need.
bool Stack::Impl::keep_refused(Connection& conn, pbuf* chain) {
  conn.refused = chain;
  if (conn.pcb != nullptr) conn.pcb->rcv_ann_wnd = 0;
  refused_slots += slots_in(chain);
  if (!conn.in_refused) {
    conn.in_refused = true;
    refused.push_back(index_of(conn));
    arm_tick();
  }
  return unpin_refused(conn);
}

bool Stack::Impl::may_add_to_refused(const Connection& conn) const {
  if (heap.used_bytes() >= heap.bytes_max() / kKeptHeapShare) return false;
  std::size_t pieces = 0;
  for (const pbuf* at = conn.refused; at != nullptr; at = at->next) {
    if (++pieces == kRefusedPiecesMax) return false;
  }
  return true;
}

pbuf* Stack::Impl::take_refused(Connection& conn) {
  refused_slots -= slots_in(conn.refused);
  return std::exchange(conn.refused, nullptr);
}

// Slots go back while they are short, and what is lent in any case, if there is memory for a copy.
bool Stack::Impl::unpin_refused(Connection& conn) {
  const std::size_t slots = ingress.slot_count();
  const bool slots_short =
      ingress.free_count() < slots / 2 || refused_slots > slots / kRefusedShare / 2;
  bool pins = false;
  for (pbuf** at = &conn.refused; *at != nullptr; at = &(*at)->next) {
    pbuf* const piece = *at;
    if (!holds_slot(*piece) || !(slots_short || is_lent(*piece))) continue;
    pbuf* const copy = copy_of(*piece);
    if (copy == nullptr) {
      pins = true;
      continue;
    }
    copy->next = std::exchange(piece->next, nullptr);
    piece->tot_len = piece->len;
    *at = copy;
    --refused_slots;
    pbuf_free(piece);
  }
  return !pins || refused_slots <= slots / kRefusedShare;
}

void Stack::Impl::offer_refused() {
  for (std::size_t i = 0; i < refused.size();) {
    const ConnIndex index = refused[i];
    if (connections[index].refused != nullptr) offer(index);
    if (connections[index].refused != nullptr) {
      ++i;
      continue;
    }
    connections[index].in_refused = false;
    refused[i] = refused.back();
    refused.pop_back();
  }
}

void Stack::Impl::offer(ConnIndex index) {
  Connection& conn = connections[index];
  const std::uint32_t generation = conn.generation;
  RxPayload payload(take_refused(conn));
  const std::uint32_t bytes = payload.length();
  conn.rx_unconsumed_bytes += bytes;
  const bool taken = delegate.on_received(index, payload);
  if (conn.generation != generation) return;
  if (!taken) {
    conn.rx_unconsumed_bytes -= payload.length();
    if (!keep_refused(conn, payload.detach())) abort(index, EndReason::kNoMemory, true);
    return;
  }
  if (conn.fin_pending) {
    conn.fin_pending = false;
    delegate.on_fin(index);
  } else if (conn.pcb != nullptr && tcp_update_rcv_ann_wnd(conn.pcb) != 0) {
    conn.rx_segments = 255;
    mark_dirty(conn);
  }
  if (conn.generation == generation && conn.lingering) finish(index, EndReason::kFinished);
}

err_t Stack::Impl::on_end_of_data(Connection& conn) {
  const ConnIndex index = index_of(conn);
  const std::uint32_t generation = conn.generation;
  follow_state(conn);
  if (conn.state != TcpState::kTimeWait) {
    // flush() acknowledges, on the segment with our answer when there is one.
    tcp_clear_flags(conn.pcb, TF_ACK_NOW | TF_ACK_DELAY);
    conn.rx_segments = 255;
    mark_dirty(conn);
  }
  if (conn.refused != nullptr) {
    conn.fin_pending = true;
  } else if (!conn.receive_shut) {
    delegate.on_fin(index);
  }
  return conn.generation == generation ? ERR_OK : ERR_ABRT;
}

void Stack::Impl::deliver_acked(ConnIndex index) {
  Connection& conn = connections[index];
  if (!conn.acked_pending) return;
  conn.acked_pending = false;
  interfaces[conn.interface]->queue.drop_acknowledged(index, conn.pcb->lastack);
  if (conn.reported) delegate.on_acked(index, conn.acked_bytes);
}

// lwIP frees the control block; its segments are freed already.
void Stack::Impl::destroyed(Connection& conn) {
  const ConnIndex index = index_of(conn);
  interfaces[conn.interface]->queue.forget(index);
  flows.remove(index);
  unlink_timer(conn);
  wheel.disarm(index);
  --states[static_cast<std::size_t>(conn.state)];
  if (conn.state == TcpState::kSynReceived) remove_half_open(conn);
  conn.pcb = nullptr;
  conn.state = TcpState::kClosed;
  conn.reason = end_reason;
  if (conn.refused != nullptr && conn.reported && end_reason == EndReason::kFinished) {
    conn.lingering = true;
    return;
  }
  conn.ended_next = ended;
  ended = index;
}

void Stack::Impl::reap() {
  while (ended != kNone) {
    const ConnIndex index = ended;
    ended = connections[index].ended_next;
    finish(index, connections[index].reason);
  }
}

void Stack::Impl::finish(ConnIndex index, EndReason reason) {
  Connection& conn = connections[index];
  const bool reported = conn.reported;
  if (conn.refused != nullptr) pbuf_free(take_refused(conn));
  conn.lingering = false;
  if (reported) {
    ++counters.closed;
    if (!delegate.on_closed(index, reason)) {
      conn.held = true;
      return;
    }
  }
  release(index);
}

void Stack::Impl::forget(ConnIndex index) {
  if (index >= connections.capacity() || !connections[index].held) return;
  connections[index].held = false;
  release(index);
}

void Stack::Impl::follow_state(Connection& conn) {
  const TcpState now = to_state(conn.pcb->state);
  if (now == conn.state) return;
  --states[static_cast<std::size_t>(conn.state)];
  ++states[static_cast<std::size_t>(now)];
  if (conn.state == TcpState::kSynReceived) remove_half_open(conn);
  conn.state = now;
  if (both_sides_ended(now) && !conn.receive_shut) arm_closed(conn);
}

void Stack::Impl::settle(ConnIndex index) {
  Connection& conn = connections[index];
  if (conn.pcb == nullptr) return;
  follow_state(conn);
  const std::uint32_t generation = conn.generation;
  deliver_acked(index);
  if (conn.generation != generation || conn.pcb == nullptr) return;
  if (conn.state == TcpState::kTimeWait) {
    enter_time_wait(conn);
    return;
  }
  tune(conn);
  if (conn.state == TcpState::kFinWait2 && conn.receive_shut && !conn.fin_deadline) {
    arm_closed(conn);
  }
  update_timers(conn);
}

// Corrections to lwIP's sender and receiver (docs/tcp_stack.md, "What lwIP needs help with").
void Stack::Impl::tune(Connection& conn) {
  tcp_pcb* const pcb = conn.pcb;
  // Its ticks measure round trips of nothing: without a floor each timer tick would retransmit.
  const auto floor = static_cast<s16_t>((options.min_rto_ms + kSlowTickMs - 1) / kSlowTickMs);
  if ((pcb->sa >> 3) + pcb->sv < floor) pcb->sv = static_cast<s16_t>(floor - (pcb->sa >> 3));
  if (pcb->rto < floor) pcb->rto = floor;
  if (pcb->unsent == nullptr) {
    pcb->persist_backoff = 0;  // a probe's byte was the last one
  } else if (pcb->state >= ESTABLISHED) {
    // What is longer than a window is cut by flush(), or is the persist timer's business.
    const std::uint32_t seq = lwip_ntohl(pcb->unsent->tcphdr->seqno);
    const bool first = !seq_after(seq, pcb->lastack) || pcb->unacked == nullptr;
    if (first && seq - pcb->lastack + pcb->unsent->len > std::min(pcb->cwnd, pcb->snd_wnd)) {
      mark_dirty(conn);
    }
  }
  // The next repeated acknowledgement sends the first segment again.
  if (pcb->dupacks == kDuplicatesBefore && pcb->unacked != nullptr && pcb->unacked->len > 0) {
    trim_acknowledged(conn, pcb->unacked);
  }
  // The acknowledgement waits for flush(): it may travel on data, and stands for a whole burst.
  if ((pcb->flags & TF_ACK_DELAY) != 0) {
    tcp_clear_flags(pcb, TF_ACK_DELAY);
    if (conn.rx_segments == 0) conn.rx_segments = 1;
    mark_dirty(conn);
  }
}

void Stack::Impl::update_timers(Connection& conn) {
  const bool pending = timer_pending(*conn.pcb);
  if (pending == conn.in_timers) return;
  pending ? link_timer(conn) : unlink_timer(conn);
}

}  // namespace sanproxy::stack
