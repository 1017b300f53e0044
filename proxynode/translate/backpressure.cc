// Who waits for what, and who is let on when (docs/flow_control.md).
//
//   dirty    the stream has something for its application node; served at the end of the burst
//   blocked  the channel had no credit for it; served in order when credits come back
//   starved  the stack had no memory for its bytes; tried again every round
#include "proxynode/translate/translator.h"

namespace sanproxy::translate {

void Translator::mark_dirty(Stream& s, StreamIndex index) {
  if (s.has(kDirty) || s.has(kBlocked)) return;
  s.set(kDirty);
  dirty_.push_back(index);
}

void Translator::emit_or_block(Stream& s, StreamIndex index) {
  if (s.state != StreamState::kRequested && s.state != StreamState::kOpen) return;
  AppNode& node = *nodes_[s.node];
  if (node.dead || s.has(kBlocked)) return;
  if (node.blocked_head != kNone || !node.farewells.empty() || emit(index).is_again()) {
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
  while (!node.farewells.empty()) {
    const AppNode::Farewell farewell = node.farewells.front();
    node.farewells.pop_front();
    const std::size_t before = node.farewells.size();
    say_farewell(node, farewell.connection, farewell.request, farewell.code);
    if (node.farewells.size() > before) return;  // still no credit: it is queued again
  }
  while (node.blocked_head != kNone) {
    const StreamIndex index = node.blocked_head;
    Stream& s = streams_[index];
    if (emit(index).is_again()) return;
    unblock(s, node);
  }
}

void Translator::starve(Stream& s, StreamIndex index) {
  if (s.has(kStarved)) return;
  s.set(kStarved);
  starved_.push_back(index);
}

void Translator::feed_starved() {
  const std::size_t count = starved_.size();
  for (std::size_t i = 0; i < count; ++i) {
    const StreamIndex index = starved_[i];
    Stream& s = streams_[index];
    if (!s.has(kStarved)) continue;
    s.clear(kStarved);
    if (s.state != StreamState::kFree && s.tx_unwritten != kNone) write_records(s, index);
  }
  starved_.erase(starved_.begin(), starved_.begin() + static_cast<std::ptrdiff_t>(count));
}

}  // namespace sanproxy::translate
