// Loss recovery by selective acknowledgements (RFC 2018, 6675). lwIP knows repeated
// acknowledgements alone: of several segments lost from one window it sends the first again, and
// waits for its timer with the others. Where the client says what it has, lwIP's count stays at
// zero (run_input()), and its lists of segments are what is worked on here.
#include <utility>

#include "proxynode/stack/stack_impl.h"

namespace sanproxy::stack {
namespace {

// In tcp_seg::flags, of which lwIP uses the lower five bits.
constexpr u8_t kSacked = 0x40;  // the client has it
constexpr u8_t kResent = 0x80;  // sent again since it was lost

constexpr std::uint32_t kDuplicateThreshold = 3;  // RFC 6675, DupThresh
// Of a longer flight (4 MB in segments of the wire) the timer sees to what is lost: each
// acknowledgement walks the flight.
constexpr std::uint32_t kFlightSegmentsMax = 3000;
constexpr int kProbeTicksMin = 2;  // longer than acknowledgements are delayed

std::uint32_t end_of(const tcp_seg& segment) { return seq_of(segment) + TCP_TCPLEN(&segment); }

// RFC 6675, IsLost(): the client has enough of what was sent behind it.
bool lost(const Stack::Impl::Had& behind, std::uint32_t wire_bytes) {
  return behind.segments >= kDuplicateThreshold ||
         behind.bytes > (kDuplicateThreshold - 1) * wire_bytes;
}

bool too_long(const tcp_seg* flight) {
  std::uint32_t segments = 0;
  for (; flight != nullptr && segments <= kFlightSegmentsMax; flight = flight->next) ++segments;
  return segments > kFlightSegmentsMax;
}

void insert_sorted(tcp_seg** list, tcp_seg* segment) {
  while (*list != nullptr && seq_before(seq_of(**list), seq_of(*segment))) list = &(*list)->next;
  segment->next = *list;
  *list = segment;
}

}  // namespace

// Every segment that the client says it has whole is marked; one that it has a part of is cut, at
// the ends of segments of the wire alone, so that no client has us cut finer than that.
void Stack::Impl::mark_selected(Connection& conn, const SackBlock& block) {
  tcp_pcb& pcb = *conn.pcb;
  if (!seq_before(block.left, block.right) || seq_before(block.left, pcb.lastack) ||
      seq_after(block.right, pcb.snd_nxt)) {
    return;  // a duplicate's report (RFC 2883), or what cannot be
  }
  for (tcp_seg* segment = pcb.unacked; segment != nullptr; segment = segment->next) {
    const std::uint32_t seq = seq_of(*segment);
    if (!seq_before(seq, block.right)) return;
    if ((segment->flags & kSacked) != 0 || !seq_after(end_of(*segment), block.left)) continue;
    const std::uint32_t wire = wire_bytes(conn, *segment);
    if (seq_before(seq, block.left)) {
      const std::uint32_t missing = (block.left - seq + wire - 1) / wire * wire;
      if (missing < segment->len) split(pcb, *segment, missing);
      continue;  // the second part is next
    }
    if (seq_after(end_of(*segment), block.right)) {
      const std::uint32_t had = (block.right - seq) / wire * wire;
      if (had == 0 || had >= segment->len || !split(pcb, *segment, had)) return;
    }
    segment->flags |= kSacked;
  }
}

// After an acknowledgement with blocks, and after each one while holes are being filled.
void Stack::Impl::recover(Connection& conn, const TcpOptions& said) {
  tcp_pcb& pcb = *conn.pcb;
  if (conn.recovering && !seq_before(pcb.lastack, conn.recover_end)) {
    conn.recovering = conn.probed = false;
    pcb.cwnd = pcb.ssthresh;
    pcb.bytes_acked = 0;
  }
  if (pcb.unacked == nullptr || (pcb.flags & (TF_RTO | TF_INFR)) != 0) return;
  if (too_long(pcb.unacked)) return;
  trim_acknowledged(conn, pcb.unacked);
  for (std::uint32_t i = 0; i < said.sack_blocks; ++i) mark_selected(conn, said.sack[i]);
  Had all, since_resent;
  bool only_first = pcb.unsent == nullptr;  // is missing, and nothing more will tell (RFC 5827)
  for (const tcp_seg* segment = pcb.unacked; segment != nullptr; segment = segment->next) {
    if ((segment->flags & kSacked) != 0) {
      all.add(*segment);
      if (!seq_before(seq_of(*segment), conn.resent_end)) since_resent.add(*segment);
    } else if (segment != pcb.unacked) {
      only_first = false;
    }
  }
  if (pcb.unacked == nullptr) return;
  const std::uint32_t wire = wire_bytes(conn, *pcb.unacked);
  const bool first_missing = (pcb.unacked->flags & kSacked) == 0 && all.segments != 0;
  if (conn.probed && !seq_before(pcb.lastack, conn.recover_end)) conn.probed = false;
  const bool first_lost = first_missing && (only_first || conn.probed || lost(all, wire));
  if (!conn.recovering) {
    if (!first_lost) return;
    begin_recovery(conn);
  } else if (lost(since_resent, wire)) {
    // Enough is there of what was sent after holes were filled last: that was lost, too.
    for (tcp_seg* segment = pcb.unacked; segment != nullptr; segment = segment->next) {
      segment->flags = static_cast<u8_t>(segment->flags & ~kResent);
    }
  }
  fill_holes(conn, all, first_lost);
}

void Stack::Impl::begin_recovery(Connection& conn) {
  tcp_pcb& pcb = *conn.pcb;
  ++counters.recoveries;
  conn.recovering = true;
  conn.recover_end = pcb.snd_nxt;
  conn.resent_end = pcb.snd_nxt;
  on_loss(conn, std::min(pcb.snd_nxt - pcb.lastack, pcb.cwnd));
  pcb.rtime = 0;  // the time-out is the retransmission's
  for (tcp_seg* segment = pcb.unacked; segment != nullptr; segment = segment->next) {
    segment->flags = static_cast<u8_t>(segment->flags & ~kResent);
  }
}

// What is lost goes again as what is under way leaves room for it; what room is left then is for
// new bytes. The first hole is filled at once (RFC 6675 5 (4.3)). Without new bytes, whose
// acknowledgements would tell, each hole counts as lost (NextSeg() (3)).
void Stack::Impl::fill_holes(Connection& conn, const Had& all, bool first_lost) {
  tcp_pcb& pcb = *conn.pcb;
  const std::uint32_t wire = wire_bytes(conn, *pcb.unacked);
  const std::uint32_t enough = pcb.unsent == nullptr || conn.probed ? 1 : kDuplicateThreshold;
  const auto missing = [&](const tcp_seg& segment, const Had& behind) {
    return behind.segments >= enough || lost(behind, wire) ||
           (first_lost && !seq_after(seq_of(segment), pcb.lastack));
  };
  std::uint32_t pipe = 0;  // under way: not there, and not lost
  Had behind = all;
  for (const tcp_seg* segment = pcb.unacked; segment != nullptr; segment = segment->next) {
    if ((segment->flags & kSacked) != 0) {
      behind.take(*segment);
    } else if ((segment->flags & kResent) != 0 || !missing(*segment, behind)) {
      pipe += segment->len;
    }
  }
  behind = all;
  for (tcp_seg** at = &pcb.unacked; *at != nullptr;) {
    tcp_seg* const segment = *at;
    if ((segment->flags & kSacked) != 0) behind.take(*segment);
    if (behind.segments == 0 || !missing(*segment, behind)) break;
    std::uint32_t room = pcb.ssthresh > pipe ? pcb.ssthresh - pipe : 0;
    if (first_lost && !seq_after(seq_of(*segment), pcb.lastack)) room = std::max(room, wire);
    if (wire == 0 || room < wire) break;
    const bool waits = (segment->flags & (kSacked | kResent)) == 0 && segment->p->ref == 1;
    room = room / wire * wire;
    if (!waits || (segment->len > room && !split(pcb, *segment, room))) {
      at = &segment->next;
      continue;
    }
    *at = segment->next;
    segment->flags |= kResent;
    insert_sorted(&pcb.unsent, segment);
    pipe += segment->len;
    conn.resent_end = pcb.snd_nxt;
    pcb.rttest = 0;  // Karn
  }
  pcb.cwnd = pcb.snd_nxt - pcb.lastack + (pcb.ssthresh > pipe ? pcb.ssthresh - pipe : 0);
  send_filling(conn);
}

void Stack::Impl::send_filling(Connection& conn) {
  fit_unsent(conn, false);
  tcp_output(conn.pcb);
  hold_retransmission(*conn.pcb);
}

// lwIP writes behind the last segment that waits, and puts FIN on it, although it may be one from
// the middle that goes again: such a one, which neither device nor window took, is under way until
// the next acknowledgement, or the time-out.
void Stack::Impl::hold_retransmission(tcp_pcb& pcb) {
  const tcp_seg* last = pcb.unsent;
  if (last == nullptr) return;
  while (last->next != nullptr) last = last->next;
  const bool from_middle = seq_before(end_of(*last), pcb.snd_lbb);
  if (!from_middle && (pcb.unsent->flags & kResent) == 0) return;
  while (pcb.unsent != nullptr && (from_middle || (pcb.unsent->flags & kResent) != 0)) {
    tcp_seg* const segment = std::exchange(pcb.unsent, pcb.unsent->next);
    segment->flags = static_cast<u8_t>(segment->flags & ~kResent);
    insert_sorted(&pcb.unacked, segment);
  }
  if (pcb.unsent == nullptr) pcb.unsent_oversize = 0;
  pcb.persist_backoff = 0;  // which lwIP has when nothing is under way
  if (pcb.rtime < 0) pcb.rtime = 0;
}

// RFC 8985 7: behind the last segments of a flight nothing comes that would tell of their loss. The
// last one goes again before the time-out, once, and what the client lacks when it has that is
// lost. Of a single segment the acknowledgement may be a delayed one. Called each slow tick.
void Stack::Impl::probe_tail(Connection& conn) {
  tcp_pcb& pcb = *conn.pcb;
  const int round_trip = pcb.sa >> 3;
  const int due = std::max(kProbeTicksMin, 2 * round_trip + 1);
  if (pcb.rtime != due || due + round_trip >= pcb.rto || pcb.unacked == nullptr) return;
  if ((pcb.flags & (TF_SACK | TF_RTO | TF_INFR)) != TF_SACK || conn.recovering) return;
  if (pcb.snd_nxt - pcb.lastack <= wire_bytes(conn, *pcb.unacked)) return;
  if (conn.probed && seq_before(pcb.lastack, conn.recover_end)) return;
  // A part that the client has would be a segment of its own, which fits no window.
  trim_acknowledged(conn, pcb.unacked);
  tcp_seg** at = &pcb.unacked;
  while ((*at)->next != nullptr) at = &(*at)->next;
  const std::uint32_t wire = wire_bytes(conn, **at);
  if ((*at)->p->ref != 1) return;
  if ((*at)->len > wire) {
    if (!split(pcb, **at, ((*at)->len - 1) / wire * wire)) return;
    at = &(*at)->next;
  }
  tcp_seg* const last = std::exchange(*at, nullptr);
  last->flags |= kResent;
  insert_sorted(&pcb.unsent, last);
  conn.probed = true;
  conn.recover_end = pcb.snd_nxt;
  pcb.rttest = 0;
  const s16_t since = pcb.rtime;
  const tcpwnd_size_t cwnd = pcb.cwnd;
  pcb.cwnd = std::max(cwnd, pcb.snd_nxt - pcb.lastack);
  tcp_output(&pcb);
  hold_retransmission(pcb);
  pcb.cwnd = cwnd;
  pcb.rtime = since;
  mark_dirty(conn);
}

// After a time-out, which sends everything again: a client may have dropped what it said it has
// (RFC 2018 8).
void Stack::Impl::forget_selected(Connection& conn) {
  conn.recovering = conn.probed = false;
  for (tcp_seg* list : {conn.pcb->unacked, conn.pcb->unsent}) {
    for (; list != nullptr; list = list->next) {
      list->flags = static_cast<u8_t>(list->flags & ~(kSacked | kResent));
    }
  }
}

}  // namespace sanproxy::stack
