// TIME-WAIT: lwIP's control block gives way to a record of what must still be answered.
//
// RFC 9293 3.10.7.4 (segments in TIME-WAIT), RFC 1337 (resets are ignored), RFC 6191 (a new SYN).
#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {

void Stack::Impl::link_time_wait(std::uint32_t record) {
  TimeWait& entry = time_waits[record];
  entry.expires_ns = now_ns + std::uint64_t{options.time_wait_ms} * 1'000'000;
  entry.prev = time_wait_tail;
  entry.next = kNone;
  if (time_wait_tail != kNone) {
    time_waits[time_wait_tail].next = record;
  } else {
    time_wait_head = record;
  }
  time_wait_tail = record;
}

void Stack::Impl::unlink_time_wait(std::uint32_t record) {
  const TimeWait& entry = time_waits[record];
  (entry.prev != kNone ? time_waits[entry.prev].next : time_wait_head) = entry.next;
  (entry.next != kNone ? time_waits[entry.next].prev : time_wait_tail) = entry.prev;
}

void Stack::Impl::remove_time_wait(std::uint32_t record) {
  unlink_time_wait(record);
  flows.remove(record | FlowTable::kTimeWaitFlag);
  time_waits[record].next = time_wait_free;
  time_wait_free = record;
  --states[static_cast<std::size_t>(TcpState::kTimeWait)];
  --time_wait_used;
}

void Stack::Impl::enter_time_wait(Connection& conn) {
  tcp_pcb* const pcb = conn.pcb;
  const bool keep = options.time_wait_max > 0 && options.time_wait_ms > 0;
  const FlowNode flow = conn.flow;
  TimeWait entry{};
  entry.flow = flow;
  entry.rcv_nxt = pcb->rcv_nxt;
  entry.snd_nxt = pcb->snd_nxt;
  entry.ts_recent = pcb->ts_recent;
  entry.window = static_cast<std::uint16_t>(
      std::min<std::uint32_t>(conn.window_bytes >> pcb->rcv_scale, 0xffffu));
  entry.interface = conn.interface;
  entry.timestamps = (pcb->flags & TF_TIMESTAMP) != 0;

  const EndReason outer = end_reason;
  end_reason = EndReason::kFinished;
  {
    LwipLists lists(LwipLists::TimeWaiting{pcb});
    tcp_abort(pcb);  // silent in this state; takes the connection out of the flow table
  }
  end_reason = outer;
  if (keep) {
    if (time_wait_used >= options.time_wait_max) {
      ++counters.time_wait_evicted;
      remove_time_wait(time_wait_head);
    }
    std::uint32_t record = time_wait_free;
    if (record != kNone) {
      time_wait_free = time_waits[record].next;
    } else {
      record = time_wait_fresh++;
    }
    time_waits[record] = entry;
    link_time_wait(record);
    flows.insert(record | FlowTable::kTimeWaitFlag);
    ++states[static_cast<std::size_t>(TcpState::kTimeWait)];
    ++time_wait_used;
  }
  reap();
}

void Stack::Impl::expire_time_waits() {
  while (time_wait_head != kNone && time_waits[time_wait_head].expires_ns <= now_ns) {
    remove_time_wait(time_wait_head);
  }
}

bool Stack::Impl::to_time_wait(std::uint32_t record, const Arrived& arrived,
                               const TcpOptions& found) {
  TimeWait& entry = time_waits[record];
  const net::TcpHeader& tcp = arrived.tcp;
  if ((tcp.flags & net::kTcpRst) != 0) return true;
  const bool syn = (tcp.flags & net::kTcpSyn) != 0;
  if (syn && (tcp.flags & net::kTcpAck) == 0) {
    const bool newer_time =
        entry.timestamps && found.timestamps && seq_after(found.ts_value, entry.ts_recent);
    if (newer_time || seq_after(tcp.seq, entry.rcv_nxt)) {
      ++counters.time_wait_reused;
      used_before = entry.snd_nxt;
      remove_time_wait(record);
      return false;
    }
  }
  const bool fin = (tcp.flags & net::kTcpFin) != 0;
  if (fin && !syn) {
    unlink_time_wait(record);
    link_time_wait(record);
  }
  // Pure acknowledgements in order end here; everything else learns where we stand.
  const bool occupies = syn || fin || arrived.parsed.l4_bytes() > arrived.parsed.l4_header_bytes;
  if (occupies || tcp.seq != entry.rcv_nxt) {
    send_bare(entry.interface, entry.flow.key, entry.snd_nxt, entry.rcv_nxt, net::kTcpAck,
              entry.window, entry.timestamps, entry.ts_recent);
  }
  return true;
}

}  // namespace sanproxy::stack
