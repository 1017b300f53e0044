// Time: lwIP's ticks for connections that have a TCP timer pending, deadlines for the others.
#include <utility>

#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

// After a stall this many ticks are made up for; the rest is lost time for retransmissions.
constexpr std::uint64_t kCatchUpTicksMax = 4;
// What a device had no room for is tried again after so long: not every one tells when it has some.
constexpr std::uint64_t kDeviceFullNs = 1'000'000;
// The slow ticks of the persist timer's first interval, lwIP's shortest.
constexpr int kPersistTicks = 3;
// What waits behind a gap is kept so long for a client that says nothing: its retransmissions may
// be lost, too. lwIP drops it after six of our time-outs, a second or so.
constexpr std::uint32_t kGapTicksMin = 30'000 / kSlowTickMs;
// RFC 9293 3.8.3, R2: who is silent is not given up before. lwIP's twelve probes take 36 s.
constexpr std::uint32_t kSilentTicksMin = 100'000 / kSlowTickMs;
// FIN that is answered, though not taken, has gone again so often at most: what is waited for is
// the client's window.
constexpr u8_t kFinRepeatsMax = TCP_MAXRTX - 3;
// A SYN that nobody answers goes again so often, and is given up as long after the last time.
constexpr u8_t kSynRepeatsMax = 6;
static_assert(kSynRepeatsMax < TCP_SYNMAXRTX);

// Before lwIP looks at its counts, at the end of which it gives up whatever the clock says.
void be_patient(tcp_pcb& pcb, bool time_out) {
  const std::uint32_t silent_ticks = tcp_ticks - pcb.tmr;
  if (pcb.persist_probe >= TCP_MAXRTX && silent_ticks < kSilentTicksMin) {
    pcb.persist_probe = TCP_MAXRTX - 1;
  }
  const std::uint32_t answer_ticks = std::max(kSilentTicksMin, 2u * static_cast<u16_t>(pcb.rto));
  if (time_out && is_shut_out(pcb) && silent_ticks < answer_ticks) {
    pcb.nrtx = std::min(pcb.nrtx, kFinRepeatsMax);
  }
  if (time_out && pcb.state == SYN_SENT && pcb.nrtx >= kSynRepeatsMax) pcb.nrtx = TCP_SYNMAXRTX;
}

}  // namespace

// A time-out, or a narrower path, puts all that is unacknowledged before all that is unsent. But a
// fast retransmission that the peer's window held back waits among the latter, and is what the peer
// needs first: behind the others it would never go. Both parts are in order; they are merged.
void Stack::Impl::sort_unsent(tcp_pcb& pcb) {
  tcp_seg* last = pcb.unsent;
  if (last == nullptr) return;
  while (last->next != nullptr && !seq_after(seq_of(*last), seq_of(*last->next))) last = last->next;
  tcp_seg* second = std::exchange(last->next, nullptr);
  if (second == nullptr) return;
  tcp_seg* first = pcb.unsent;
  tcp_seg** to = &pcb.unsent;
  while (first != nullptr && second != nullptr) {
    tcp_seg*& lower = seq_after(seq_of(*first), seq_of(*second)) ? second : first;
    *to = lower;
    to = &lower->next;
    lower = lower->next;
  }
  *to = first != nullptr ? first : second;
  pcb.unsent_oversize = 0;  // the last segment may be another one
}

void Stack::Impl::refresh_clock() {
  now_ns = clock.now_ns();
  clock_fresh = true;
  // lwIP takes 0 for "nothing measured".
  tcp_ticks = static_cast<u32_t>(now_ns / (std::uint64_t{kSlowTickMs} * 1'000'000)) + 0x4000'0000u;
}

bool Stack::Impl::timer_pending(const tcp_pcb& pcb) {
  if (pcb.unacked != nullptr || pcb.unsent != nullptr || pcb.ooseq != nullptr) return true;
  if ((pcb.flags & (TF_ACK_DELAY | TF_ACK_NOW | TF_CLOSEPEND | TF_NAGLEMEMERR)) != 0) return true;
  if (pcb.persist_backoff != 0) return true;
  return pcb.state != ESTABLISHED && pcb.state != CLOSE_WAIT && pcb.state != FIN_WAIT_2;
}

void Stack::Impl::arm_tick() {
  if (next_tick_ns == UINT64_MAX) next_tick_ns = (now_ns / kFastTickNs + 1) * kFastTickNs;
}

void Stack::Impl::link_timer(Connection& conn) {
  const ConnIndex index = index_of(conn);
  arm_tick();
  conn.timer_prev = timers_tail;
  conn.timer_next = kNone;
  (timers_tail != kNone ? connections[timers_tail].timer_next : timers_head) = index;
  timers_tail = index;
  conn.timer_stamp = static_cast<std::uint32_t>(now_ns / kFastTickNs);
  conn.in_timers = true;
}

void Stack::Impl::unlink_timer(Connection& conn) {
  if (!conn.in_timers) return;
  (conn.timer_prev != kNone ? connections[conn.timer_prev].timer_next : timers_head) =
      conn.timer_next;
  (conn.timer_next != kNone ? connections[conn.timer_next].timer_prev : timers_tail) =
      conn.timer_prev;
  conn.in_timers = false;
}

std::uint64_t Stack::Impl::next_timer_ns() const {
  std::uint64_t next = std::min({next_tick_ns, wheel.next_ns(), fragments.next_timer_ns()});
  if (time_wait_head != kNone) next = std::min(next, time_waits[time_wait_head].expires_ns);
  for (const auto& interface : interfaces) {
    if (!interface->queue.empty()) next = std::min(next, now_ns + kDeviceFullNs);
  }
  return next;
}

void Stack::Impl::on_time() {
  refresh_clock();
  expire_time_waits();
  fragments.expire(now_ns);
  const std::uint64_t tick = now_ns / kFastTickNs;
  if (next_tick_ns <= now_ns) {
    offer_refused();
    std::uint64_t due = next_tick_ns / kFastTickNs;
    if (tick - due >= kCatchUpTicksMax) due = tick - kCatchUpTicksMax + 1;
    for (; due <= tick && timers_head != kNone; ++due) run_tick(due);
    const bool idle = timers_head == kNone && refused.empty();
    next_tick_ns = idle ? UINT64_MAX : (tick + 1) * kFastTickNs;
  }
  for (ConnIndex index = wheel.pop_due(now_ns); index != kNone; index = wheel.pop_due(now_ns)) {
    deadline(index);
  }
}

// The chain is turned round once. Connections may leave and join it meanwhile; the stamp says
// which have had this tick.
void Stack::Impl::run_tick(std::uint64_t tick) {
  const auto stamp = static_cast<std::uint32_t>(tick);
  while (timers_head != kNone) {
    const ConnIndex index = timers_head;
    Connection& conn = connections[index];
    if (static_cast<std::int32_t>(conn.timer_stamp - stamp) >= 0) break;
    unlink_timer(conn);
    if (!timer_pending(*conn.pcb)) continue;
    link_timer(conn);
    conn.timer_stamp = stamp;
    run_timers(index, tick % 2 == 0);
  }
}

void Stack::Impl::run_timers(ConnIndex index, bool slow) {
  Connection& conn = connections[index];
  tcp_pcb* const pcb = conn.pcb;
  end_reason = EndReason::kTimedOut;
  if ((pcb->flags & TF_ACK_DELAY) != 0 && conn.rx_segments == 0) conn.rx_segments = 1;
  if ((pcb->flags & TF_CLOSEPEND) != 0) hold_retransmission(*pcb);  // FIN finds memory now, perhaps
  {
    LwipLists lists(LwipLists::Active{pcb});
    pcb->last_timer = lwip_timer_counter++;
    tcp_fasttmr();
  }
  // lwIP takes the acknowledgement for sent also when the device had no room for it.
  if (conn.rx_segments != 0) mark_dirty(conn);
  if (conn.recover_due) recover(conn, {}, 0);
  if (slow) {
    fill_window(conn);
    const bool time_out = pcb->rtime >= 0 && pcb->rtime + 1 >= pcb->rto;
    if (time_out && pcb->unacked != nullptr) prepare_retransmission(conn);
    const std::uint32_t flight =
        conn.recovering ? pcb->ssthresh : std::min(pcb->snd_nxt - pcb->lastack, pcb->cwnd);
    if (!time_out) probe_tail(conn);
    if (time_out && conn.recovering) pcb->cwnd = pcb->ssthresh;  // of which lwIP takes the half
    be_patient(*pcb, time_out);
    const u8_t retransmissions = pcb->nrtx;
    const std::uint32_t generation = conn.generation;
    tcp_seg* waiting = nullptr;
    if (tcp_ticks - pcb->tmr < kGapTicksMin) waiting = std::exchange(pcb->ooseq, nullptr);
    LwipLists lists(LwipLists::Active{pcb});
    pcb->last_timer = lwip_timer_counter++;
    --tcp_ticks;
    tcp_slowtmr();
    const bool alive = conn.generation == generation && conn.pcb != nullptr;
    if (alive && waiting != nullptr) {
      pcb->ooseq = waiting;
    } else {
      tcp_segs_free(waiting);
    }
    if (alive && pcb->nrtx != retransmissions) {
      sort_unsent(*pcb);
      forget_selected(conn);
      if (retransmissions == 0) on_loss(conn, flight);
      if (pcb->state == SYN_SENT) {  // RFC 6298 5.5; lwIP's time-out stays the same
        pcb->rto = static_cast<s16_t>(std::min(pcb->rto * 2, 0x7fff));
      }
    }
  }
  end_reason = EndReason::kFinished;
  settle(index);
  reap();
}

// When the persist timer is due with some window, that is filled. lwIP would do it too, but with a
// cut of its own (stack_split.cc); it never comes to that, because its count starts again.
void Stack::Impl::fill_window(Connection& conn) {
  tcp_pcb& pcb = *conn.pcb;
  const bool due = pcb.persist_backoff != 0 && pcb.persist_cnt + 1 >= kPersistTicks;
  if (!due || pcb.unsent == nullptr || pcb.snd_wnd == 0) return;
  pcb.persist_cnt = 0;
  fit_unsent(conn, true);
  mark_dirty(conn);
}

void Stack::Impl::deadline(ConnIndex index) {
  Connection& conn = connections[index];
  if (conn.fin_deadline) {
    if (conn.state == TcpState::kFinWait2) {
      abort(index, EndReason::kTimedOut, false);
    }
    return;
  }
  if (!conn.receive_shut && !both_sides_ended(conn.state)) {
    keepalive(index);
  } else if (conn.orphan_acked == conn.pcb->lastack) {
    abort(index, EndReason::kTimedOut, true);
  } else {
    arm_closed(conn);
  }
}

// After close(), or FIN from both sides, nobody waits for the client any more. lwIP gives up on one
// that is silent, but not on one that answers probes of its closed window. Looked at again when the
// time is over: who acknowledged anything meanwhile has as long again.
void Stack::Impl::arm_closed(Connection& conn) {
  conn.fin_deadline = conn.state == TcpState::kFinWait2;
  conn.orphan_acked = conn.pcb->lastack;
  const std::uint64_t ms = conn.fin_deadline ? options.fin_wait_2_ms : options.orphan_ms;
  wheel.arm(index_of(conn), now_ns + ms * 1'000'000);
}

void Stack::Impl::arm_keepalive(Connection& conn) {
  if (options.keepalive_idle_ms == 0) return;
  const std::uint64_t idle_ms = options.keepalive_idle_ms + std::uint64_t{conn.pcb->keep_cnt_sent} *
                                                                options.keepalive_interval_ms;
  const std::uint64_t quiet_ms = std::uint64_t{tcp_ticks - conn.pcb->tmr} * kSlowTickMs;
  const std::uint64_t left_ms = idle_ms > quiet_ms ? idle_ms - quiet_ms : 0;
  wheel.arm(index_of(conn), now_ns + left_ms * 1'000'000);
}

// RFC 9293 3.8.4. Armed lazily: the deadline is looked at again when it comes.
void Stack::Impl::keepalive(ConnIndex index) {
  Connection& conn = connections[index];
  tcp_pcb* const pcb = conn.pcb;
  const std::uint64_t quiet_ms = std::uint64_t{tcp_ticks - pcb->tmr} * kSlowTickMs + kSlowTickMs;
  const std::uint64_t due_ms =
      options.keepalive_idle_ms + std::uint64_t{pcb->keep_cnt_sent} * options.keepalive_interval_ms;
  if (quiet_ms < due_ms || pcb->unacked != nullptr) {
    arm_keepalive(conn);
    return;
  }
  if (pcb->keep_cnt_sent >= options.keepalive_probes) {
    abort(index, EndReason::kTimedOut, true);
    return;
  }
  tcp_keepalive(pcb);
  ++pcb->keep_cnt_sent;
  wheel.arm(index, now_ns + std::uint64_t{options.keepalive_interval_ms} * 1'000'000);
}

}  // namespace sanproxy::stack
