// The ends of connections: FIN, RST and what follows close().
#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {

Status Stack::Impl::shutdown_send(ConnIndex index) {
  if (!is_open(index)) return Status::error(Code::kDisconnected, "the connection is gone");
  Connection& conn = connections[index];
  if (conn.send_shut) return {};
  if (conn.state == TcpState::kSynSent) {
    return Status::error(Code::kDisconnected, "the connection is not established");
  }
  conn.send_shut = true;
  {
    // Without memory for a FIN lwIP marks the connection and tries again on its timer.
    LwipLists lists(LwipLists::Active{conn.pcb});
    hold_retransmission(*conn.pcb);
    tcp_shutdown(conn.pcb, 0, 1);
  }
  follow_state(conn);
  mark_dirty(conn);
  update_timers(conn);
  return {};
}

// FIN for which the client had no room, and has now: as if it went for the first time.
void Stack::Impl::repeat_fin(Connection& conn) {
  tcp_pcb& pcb = *conn.pcb;
  if (pcb.snd_wnd == 0 || pcb.unacked == nullptr || tcp_rexmit(&pcb) != ERR_OK) return;
  pcb.nrtx = 0;
  pcb.rtime = 0;
  pcb.rto = static_cast<s16_t>((pcb.sa >> 3) + pcb.sv);
  mark_dirty(conn);
}

void Stack::Impl::close(ConnIndex index) {
  if (is_lingering(index)) finish(index, EndReason::kAborted);
  if (!is_open(index)) return;
  Connection& conn = connections[index];
  if (conn.receive_shut) return;
  const bool unread = conn.rx_unconsumed_bytes > 0 || conn.refused != nullptr;
  if (conn.state == TcpState::kSynSent || unread) {
    abort(index, EndReason::kAborted, true);
    return;
  }
  // tcp_close() would take our window, smaller than its own, for unread data and reset.
  conn.receive_shut = true;
  (void)shutdown_send(index);
  arm_closed(conn);
}

void Stack::Impl::abort(ConnIndex index, EndReason reason, bool with_reset) {
  if (is_lingering(index)) finish(index, reason);
  if (!is_open(index)) return;
  tcp_pcb* const pcb = connections[index].pcb;
  const EndReason outer = end_reason;
  end_reason = reason;
  tcp_clear_flags(pcb, TF_ACK_DELAY);  // or lwIP would acknowledge first
  // The client drops a reset from beyond its window, behind a probe of a closed one, or when the
  // window has shrunk, and would wait for ever.
  const std::uint32_t edge = pcb->lastack + pcb->snd_wnd;
  if (pcb->state >= ESTABLISHED && seq_after(pcb->snd_nxt, edge)) pcb->snd_nxt = edge;
  if (with_reset && pcb->state == TIME_WAIT) {  // where lwIP has nothing more to say
    const Connection& conn = connections[index];
    send_bare(conn.interface, conn.flow.key, pcb->snd_nxt, pcb->rcv_nxt,
              net::kTcpRst | net::kTcpAck, 0, (pcb->flags & TF_TIMESTAMP) != 0, pcb->ts_recent);
  }
  {
    LwipLists lists(LwipLists::Active{pcb});
    // A reset answers nothing in SYN-SENT: the peer knows of no connection.
    tcp_abandon(pcb, with_reset && pcb->state != SYN_SENT ? 1 : 0);
  }
  end_reason = outer;
  reap();
}

}  // namespace sanproxy::stack
