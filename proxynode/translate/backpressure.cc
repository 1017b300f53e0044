// Who waits for what, and who is let on when (docs/flow_control.md).
//
//   dirty    the stream has something for its application node; served at the end of the burst
//   blocked  the channel had no credit for it; served in order when credits come back
//   starved  the stack had no memory for its bytes; tried again every round, and while memory is
//            low only if it has little in the stack
//   awaiting a chunk   the region had none for its bytes, which the stack keeps; offered again as
//            soon as one is free, before anybody's new ones
#include <algorithm>
#include <array>
#include <cstring>

#include "proxynode/translate/translator.h"

namespace sanproxy::translate {
namespace {

constexpr std::size_t kStarvedPerRound = 64;
constexpr std::size_t kAwaitingPerRound = 64;

}  // namespace

void Translator::mark_dirty(Stream& s, StreamIndex index) {
  if (s.has(kDirty) || (s.has(kBlocked) && !s.has(kCreditPending))) return;
  s.set(kDirty);
  dirty_.push_back(index);
}

void Translator::emit_or_block(Stream& s, StreamIndex index) {
  if (s.state != StreamState::kRequested && s.state != StreamState::kOpen) return;
  AppNode& node = *nodes_[s.node];
  if (node.dead) return;
  const bool others_wait = node.blocked_head != kNone || !node.owed.empty();
  // A CREDIT waits for nobody's data: it may be what the node needs to take any.
  if (others_wait && s.has(kCreditPending)) (void)send_credit(s, node);
  if (s.has(kBlocked)) return;
  if (others_wait || emit(index).is_again()) {
    if (s.state != StreamState::kOrphan) block(s, index, node);
  }
}

void Translator::block(Stream& s, StreamIndex index, AppNode& node) {
  if (s.has(kBlocked)) return;
  s.set(kBlocked);
  s.blocked_next = kNone;
  s.blocked_prev = node.blocked_tail;
  if (node.blocked_tail != kNone) {
    streams_[node.blocked_tail].blocked_next = index;
  } else {
    node.blocked_head = index;
  }
  node.blocked_tail = index;
}

void Translator::unblock(Stream& s, AppNode& node) {
  if (!s.has(kBlocked)) return;
  s.clear(kBlocked);
  if (s.blocked_prev != kNone) {
    streams_[s.blocked_prev].blocked_next = s.blocked_next;
  } else {
    node.blocked_head = s.blocked_next;
  }
  if (s.blocked_next != kNone) {
    streams_[s.blocked_next].blocked_prev = s.blocked_prev;
  } else {
    node.blocked_tail = s.blocked_prev;
  }
  s.blocked_prev = s.blocked_next = kNone;
}

void Translator::on_writable(channel::Channel& channel) {
  AppNode& node = node_of_channel(channel);
  if (channel.references_left() == 0) send_blocked_credits(node);
  serve_blocked(node);
  // What came back may have been more than the reserve, and those in front have taken it all.
  if (node.credits_wait) send_blocked_credits(node);
}

void Translator::serve_blocked(AppNode& node) {
  pay_owed(node);
  if (!node.owed.empty()) return;
  send_unsent_probes(node);
  while (node.blocked_head != kNone) {
    const StreamIndex index = node.blocked_head;
    Stream& s = streams_[index];
    if (emit(index).is_again()) return;
    unblock(s, node);
  }
}

// Data would stop at the first of them: there are credits, or places in the send queue, for CREDITs
// alone.
void Translator::send_blocked_credits(AppNode& node) {
  node.credits_wait = false;
  for (StreamIndex i = node.blocked_head; i != kNone; i = streams_[i].blocked_next) {
    Stream& s = streams_[i];
    if (s.has(kCreditPending) && send_credit(s, node).is_again()) return;
  }
}

void Translator::send_or_owe(AppNode& node, wire::MessageType type, std::uint8_t flags,
                             wire::CloseCode code, std::span<const std::byte> body, bool control) {
  if (node.dead || node.channel->closed()) return;
  if (node.owed.empty() && !node.channel->send_bytes(type, flags, code, body, control).is_again()) {
    return;
  }
  if (node.owed.size() >= node.owed_max) {
    node.channel->close(wire::CloseCode::kLimitReached, "it does not take what it is owed");
    return;
  }
  AppNode::Owed owed{type, flags, code, control, static_cast<std::uint8_t>(body.size()), {}};
  std::memcpy(owed.body.data(), body.data(), body.size());
  node.owed.push_back(owed);
}

void Translator::pay_owed(AppNode& node) {
  while (!node.owed.empty()) {
    const AppNode::Owed& owed = node.owed.front();
    const Status status = node.channel->send_bytes(
        owed.type, owed.flags, owed.code, {owed.body.data(), owed.body_bytes}, owed.control);
    if (status.is_again()) return;
    node.owed.pop_front();
  }
}

void Translator::starve(Stream& s, StreamIndex index) {
  if (s.has(kStarved)) return;
  s.set(kStarved);
  starved_.push_back(index);
}

// A few a round: those that have something in flight are served by on_acked() anyway.
void Translator::feed_starved() {
  std::array<StreamIndex, kStarvedPerRound> turn;
  const std::size_t count = std::min(starved_.size(), kStarvedPerRound);
  std::copy_n(starved_.begin(), count, turn.begin());
  starved_.erase(starved_.begin(), starved_.begin() + static_cast<std::ptrdiff_t>(count));
  for (std::size_t i = 0; i < count; ++i) {
    Stream& s = streams_[turn[i]];
    const bool waits = s.state != StreamState::kFree && s.tx_unwritten != kNone;
    if (waits && !may_write(s)) {
      starved_.push_back(turn[i]);
      continue;
    }
    s.clear(kStarved);
    if (waits) write_records(s, turn[i]);
  }
}

// A stream may hold half as much of the region as is still free beyond the half that is kept for
// those that hold little, and always two chunks: however many stalled streams there are, they leave
// room for the next one (the dynamic thresholds of shared-memory switches, Choudhury and Hahne,
// 1998).
bool Translator::may_take_chunk(const Stream& s, const ChunkRegion& chunks) const {
  const std::size_t free = chunks.free_count();
  const std::size_t spare = free - std::min(free, chunks.count() / 2);
  return free > 0 && (s.chunks_held < kChunksAnyway || s.chunks_held < spare / 2);
}

void Translator::await_chunk(Stream& s, StreamIndex index, ChunkRegion& chunks) {
  if (s.has(kAwaitsChunk)) return;
  s.set(kAwaitsChunk);
  ChunkRegion::Waiting& waiting = chunks.waiting();
  s.waiting_next = kNone;
  s.waiting_prev = waiting.tail;
  (waiting.empty() ? waiting.head : streams_[waiting.tail].waiting_next) = index;
  waiting.tail = index;
}

void Translator::stop_awaiting_chunk(Stream& s, ChunkRegion& chunks) {
  if (!s.has(kAwaitsChunk)) return;
  s.clear(kAwaitsChunk);
  ChunkRegion::Waiting& waiting = chunks.waiting();
  (s.waiting_prev != kNone ? streams_[s.waiting_prev].waiting_next : waiting.head) = s.waiting_next;
  (s.waiting_next != kNone ? streams_[s.waiting_next].waiting_prev : waiting.tail) = s.waiting_prev;
}

void Translator::serve_awaiting_chunks() {
  awaited_chunks_free_ = false;
  for (AppNode* node : present_) {
    if (!node->dead && !node->chunks->waiting().empty()) serve_awaiting_chunks(*node->chunks);
  }
}

// A few a round. Who holds his share leaves the queue, and comes back when the stack has offered
// his bytes at its next tick: however many stand still, they are not looked at each time.
void Translator::serve_awaiting_chunks(ChunkRegion& chunks) {
  ChunkRegion::Waiting& waiting = chunks.waiting();
  for (std::size_t turn = 0; turn < kAwaitingPerRound; ++turn) {
    if (waiting.empty() || chunks.free_count() == 0) return;
    const StreamIndex index = waiting.head;
    Stream& s = streams_[index];
    stop_awaiting_chunk(s, chunks);
    if (may_take_chunk(s, chunks)) stack_->offer_again(index);
  }
  awaited_chunks_free_ |= !waiting.empty() && chunks.free_count() > 0;
}

}  // namespace sanproxy::translate
