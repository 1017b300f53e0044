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
// What a client may have us look at in a millisecond: a tenth of a processor. 860 segments under
// way (100 Mbit/s, 100 ms) and four acknowledgements take a sixth of it.
constexpr std::uint32_t kVisitsPerMs = 65'536;
constexpr int kProbeTicksMin = 2;  // longer than acknowledgements are delayed

std::uint32_t end_of(const tcp_seg& segment) { return seq_of(segment) + TCP_TCPLEN(&segment); }

// RFC 6675, IsLost(): the client has enough of what was sent behind it.
bool lost(const Stack::Impl::Had& behind, std::uint32_t wire_bytes) {
  return behind.segments >= kDuplicateThreshold ||
         behind.bytes > (kDuplicateThreshold - 1) * wire_bytes;
}

void insert_sorted(tcp_seg** list, tcp_seg* segment) {
  while (*list != nullptr && seq_before(seq_of(**list), seq_of(*segment))) list = &(*list)->next;
  segment->next = *list;
  *list = segment;
}

using Blocks = std::array<SackBlock, kSackBlocksMax>;

// Those of `said` that can be, in order and apart. A duplicate's report (RFC 2883) is none of them,
// or lies in another.
std::uint32_t in_order(const tcp_pcb& pcb, const TcpOptions& said, Blocks& out) {
  std::uint32_t count = 0;
  for (std::uint32_t i = 0; i < said.sack_blocks; ++i) {
    SackBlock block = said.sack[i];
    if (!seq_before(block.left, block.right) || seq_before(block.left, pcb.lastack) ||
        seq_after(block.right, pcb.snd_nxt)) {
      continue;
    }
    std::uint32_t kept = 0;  // what touches it becomes part of it
    for (std::uint32_t j = 0; j < count; ++j) {
      if (seq_after(block.left, out[j].right) || seq_before(block.right, out[j].left)) {
        out[kept++] = out[j];
        continue;
      }
      if (seq_before(out[j].left, block.left)) block.left = out[j].left;
      if (seq_after(out[j].right, block.right)) block.right = out[j].right;
    }
    std::uint32_t at = kept;
    for (; at > 0 && seq_after(out[at - 1].left, block.left); --at) out[at] = out[at - 1];
    out[at] = block;
    count = kept + 1;
  }
  return count;
}

}  // namespace

// A segment that the client says it has whole is marked; one that it has a part of is cut, at the
// ends of segments of the wire alone, so that no client has us cut finer than that.
void Stack::Impl::mark_selected(Connection& conn, tcp_seg& segment, const SackBlock& block) {
  const std::uint32_t seq = seq_of(segment);
  if ((segment.flags & kSacked) != 0 || !seq_after(end_of(segment), block.left)) return;
  const std::uint32_t wire = wire_bytes(conn, segment);
  if (seq_before(seq, block.left)) {
    const std::uint32_t missing = (block.left - seq + wire - 1) / wire * wire;
    if (missing < segment.len) split(*conn.pcb, segment, missing);
    return;  // the second part is next
  }
  if (seq_after(end_of(segment), block.right)) {
    const std::uint32_t had = (block.right - seq) / wire * wire;
    if (had == 0 || had >= segment.len || !split(*conn.pcb, segment, had)) return;
  }
  segment.flags |= kSacked;
}

// One walk: marks what the client says it has, and counts. False: the flight is too long.
bool Stack::Impl::survey(Connection& conn, const TcpOptions& said, Flight& found) {
  tcp_pcb& pcb = *conn.pcb;
  Blocks blocks;
  const std::uint32_t count = in_order(pcb, said, blocks);
  std::uint32_t next = 0;
  found.only_first = pcb.unsent == nullptr;
  for (tcp_seg* segment = pcb.unacked; segment != nullptr; segment = segment->next) {
    if (++found.segments > kFlightSegmentsMax) break;
    const std::uint32_t seq = seq_of(*segment);
    while (next < count && !seq_before(seq, blocks[next].right)) ++next;
    if (next < count) mark_selected(conn, *segment, blocks[next]);
    if ((segment->flags & kSacked) != 0) {
      found.all.add(*segment);
      if (!seq_before(seq, conn.resent_end)) found.since_resent.add(*segment);
    } else if (segment != pcb.unacked) {
      found.only_first = false;
    }
  }
  visit(conn, found.segments);
  return found.segments <= kFlightSegmentsMax;
}

void Stack::Impl::visit(Connection& conn, std::uint32_t segments) {
  conn.visits += segments;
  counters.recovery_visits += segments;
}

bool Stack::Impl::may_visit(Connection& conn) {
  const auto now_ms = static_cast<std::uint32_t>(now_ns / 1'000'000);
  if (std::exchange(conn.visits_ms, now_ms) != now_ms) conn.visits = 0;
  return conn.visits < kVisitsPerMs;
}

// After an acknowledgement of `acked` bytes that has blocks, and after each one while holes are
// being filled. Who sends more of them than we look at is answered by the next one, or the next
// tick. At the end not all that the window takes goes in one burst (RFC 6582 3.2 (3)), but as much
// as may begin a connection.
void Stack::Impl::recover(Connection& conn, const TcpOptions& said, std::uint32_t acked) {
  tcp_pcb& pcb = *conn.pcb;
  conn.recover_due = false;
  if (conn.recovering && !seq_before(pcb.lastack, conn.recover_end)) {
    const std::uint32_t at_once = kInitialWindowSegments * conn.mss_bytes;
    conn.recovering = conn.probed = false;
    pcb.cwnd =
        std::min(pcb.ssthresh, std::max(pcb.snd_nxt - pcb.lastack + conn.mss_bytes, at_once));
    pcb.bytes_acked = 0;
    mark_dirty(conn);
  }
  if (pcb.unacked == nullptr || (pcb.flags & (TF_RTO | TF_INFR)) != 0) return;
  if (!may_visit(conn)) {
    conn.recover_due = true;
    mark_dirty(conn);
    return;
  }
  trim_acknowledged(conn, pcb.unacked);
  Flight found;
  if (!survey(conn, said, found)) return;
  const std::uint32_t before = std::exchange(conn.selected_bytes, found.all.bytes);
  const std::uint32_t arrived = acked + found.all.bytes;
  const std::uint32_t delivered = arrived > before ? arrived - before : 0;
  const std::uint32_t wire = wire_bytes(conn, *pcb.unacked);
  const bool first_missing = (pcb.unacked->flags & kSacked) == 0 && found.all.segments != 0;
  const bool first_lost =
      first_missing && (found.only_first || conn.probed || lost(found.all, wire));
  if (!conn.recovering) {
    if (!first_lost) {
      limited_transmit(conn, found.all.bytes);
      return;
    }
    begin_recovery(conn);
  } else if (!lost(found.since_resent, wire)) {
    fill_holes(conn, found, first_lost, delivered);
    return;
  }
  // What was sent again counts as under way no more: this is the first time, or enough is there of
  // what was sent after holes were filled last, so that it was lost, too.
  for (tcp_seg* segment = pcb.unacked; segment != nullptr; segment = segment->next) {
    segment->flags = static_cast<u8_t>(segment->flags & ~kResent);
  }
  visit(conn, found.segments);
  fill_holes(conn, found, first_lost, delivered);
}

// RFC 3042: two new segments, so that more tells of what was lost from a short flight.
void Stack::Impl::limited_transmit(Connection& conn, std::uint32_t had_bytes) {
  tcp_pcb& pcb = *conn.pcb;
  if (pcb.unsent == nullptr) return;
  const std::uint32_t wire = wire_bytes(conn, *pcb.unsent);
  const std::uint32_t under_way = seq_of(*pcb.unsent) - pcb.lastack;
  const std::uint32_t window = std::min(pcb.cwnd + std::min(had_bytes, 2 * wire), pcb.snd_wnd);
  if (window < under_way + wire) return;
  const std::uint32_t room = (window - under_way) / wire * wire;
  if (pcb.unsent->len > room && !split(pcb, *pcb.unsent, room)) return;
  const tcpwnd_size_t cwnd = std::exchange(pcb.cwnd, window);
  tcp_output(&pcb);
  pcb.cwnd = cwnd;
}

void Stack::Impl::begin_recovery(Connection& conn) {
  tcp_pcb& pcb = *conn.pcb;
  ++counters.recoveries;
  conn.recovering = true;
  conn.recover_end = pcb.snd_nxt;
  conn.resent_end = pcb.snd_nxt;
  on_loss(conn, std::min(pcb.snd_nxt - pcb.lastack, pcb.cwnd));
  pcb.rtime = 0;  // the time-out is the retransmission's
}

// What is lost goes again as what is under way leaves room for it, by a segment more than what the
// acknowledgement says has come (RFC 6937, PRR-SSRB): a queue on the way that was too short for a
// flight may be too short for half of it at once. What room is left then is for new bytes. The
// first hole is filled at once (RFC 6675 5 (4.3)). Without new bytes, whose acknowledgements would
// tell, each hole counts as lost (NextSeg() (3)).
void Stack::Impl::fill_holes(Connection& conn, const Flight& found, bool first_lost,
                             std::uint32_t delivered) {
  tcp_pcb& pcb = *conn.pcb;
  const std::uint32_t wire = wire_bytes(conn, *pcb.unacked);
  const std::uint32_t enough = pcb.unsent == nullptr || conn.probed ? 1 : kDuplicateThreshold;
  const auto is_first = [&](const tcp_seg& segment) {
    return first_lost && !seq_after(seq_of(segment), pcb.lastack);
  };
  const auto missing = [&](const tcp_seg& segment, const Had& behind) {
    return behind.segments >= enough || lost(behind, wire) || is_first(segment);
  };
  std::uint32_t pipe = 0;  // under way: not there, and not lost
  Had behind = found.all;
  for (const tcp_seg* segment = pcb.unacked; segment != nullptr; segment = segment->next) {
    if ((segment->flags & kSacked) != 0) {
      behind.take(*segment);
    } else if ((segment->flags & kResent) != 0 || !missing(*segment, behind)) {
      pipe += segment->len;
    }
  }
  std::uint32_t left = delivered + wire;  // of what may leave now
  const auto room_now = [&] {
    return std::min<std::uint32_t>(pcb.ssthresh > pipe ? pcb.ssthresh - pipe : 0, left);
  };
  pcb.cwnd = pcb.snd_nxt - pcb.lastack;  // no limit for what goes again
  behind = found.all;
  std::uint32_t visited = found.segments;
  for (tcp_seg* segment = pcb.unacked; segment != nullptr; segment = segment->next, ++visited) {
    if ((segment->flags & kSacked) != 0) behind.take(*segment);
    if (behind.segments == 0 || !missing(*segment, behind)) break;
    std::uint32_t room = room_now();
    if (is_first(*segment)) room = std::max(room, wire);
    if (wire == 0 || room < wire) break;
    const bool waits = (segment->flags & (kSacked | kResent)) == 0 && segment->p->ref == 1;
    room = room / wire * wire;
    if (!waits || (segment->len > room && !split(pcb, *segment, room))) continue;
    if (!send_again(pcb, *segment)) break;
    pipe += segment->len;
    left -= std::min<std::uint32_t>(left, segment->len);
    conn.resent_end = pcb.snd_nxt;
  }
  visit(conn, visited);
  pcb.cwnd = pcb.snd_nxt - pcb.lastack + room_now();
  fit_unsent(conn, false);
  tcp_output(&pcb);
  if (pcb.unsent != nullptr) mark_dirty(conn);  // what is next may have to be cut
}

// A segment of the flight, which stays where it is: lwIP would look for its place from the front,
// for each one. False: the device does not take it, or the client's window.
bool Stack::Impl::send_again(tcp_pcb& pcb, tcp_seg& segment) {
  if (seq_of(segment) + segment.len - pcb.lastack > std::min(pcb.snd_wnd, pcb.cwnd)) return false;
  tcp_seg* const next = std::exchange(segment.next, nullptr);
  tcp_seg* const unacked = std::exchange(pcb.unacked, nullptr);
  tcp_seg* const unsent = std::exchange(pcb.unsent, &segment);
  const u16_t oversize = pcb.unsent_oversize;
  tcp_output(&pcb);
  const bool sent = pcb.unsent == nullptr;
  segment.next = next;
  pcb.unacked = unacked;
  pcb.unsent = unsent;
  pcb.unsent_oversize = oversize;
  pcb.rttest = 0;  // Karn
  if (sent) segment.flags |= kResent;
  return sent;
}

// lwIP writes behind the last segment that waits, and puts FIN on it, although it may be one from
// the middle that goes again without selective acknowledgements: such a one, which neither device
// nor window took, is under way until the time-out.
void Stack::Impl::hold_retransmission(tcp_pcb& pcb) {
  const tcp_seg* last = pcb.unsent;
  if (last == nullptr) return;
  while (last->next != nullptr) last = last->next;
  if (!seq_before(end_of(*last), pcb.snd_lbb)) return;
  while (pcb.unsent != nullptr) {
    tcp_seg* const segment = std::exchange(pcb.unsent, pcb.unsent->next);
    insert_sorted(&pcb.unacked, segment);
  }
  pcb.unsent_oversize = 0;
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
  tcp_seg* last = pcb.unacked;
  while (last->next != nullptr) last = last->next;
  const std::uint32_t wire = wire_bytes(conn, *last);
  if (last->p->ref != 1) return;
  if (last->len > wire) {
    if (!split(pcb, *last, (last->len - 1) / wire * wire)) return;
    last = last->next;
  }
  const s16_t since = pcb.rtime;
  const tcpwnd_size_t cwnd = pcb.cwnd;
  pcb.cwnd = std::max(cwnd, pcb.snd_nxt - pcb.lastack);
  if (send_again(pcb, *last)) {
    conn.probed = true;
    conn.recover_end = pcb.snd_nxt;
  }
  pcb.cwnd = cwnd;
  pcb.rtime = since;
}

// After a time-out, which sends everything again: a client may have dropped what it said it has
// (RFC 2018 8).
void Stack::Impl::forget_selected(Connection& conn) {
  conn.recovering = conn.probed = false;
  conn.selected_bytes = 0;
  for (tcp_seg* list : {conn.pcb->unacked, conn.pcb->unsent}) {
    for (; list != nullptr; list = list->next) {
      list->flags = static_cast<u8_t>(list->flags & ~(kSacked | kResent));
    }
  }
}

}  // namespace sanproxy::stack
