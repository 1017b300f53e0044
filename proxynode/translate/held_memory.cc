// What streams hold of the EgressPool, and what happens when it runs low.
//
// Two things live there: receive buffers of channels whose fabric receives into our memory (posted,
// then held by a stream until its client has acknowledged the bytes), and copies of what the stack
// had no memory for. The last egress_reserve() slots are for the copies alone: endpoints leave them
// (ReceiveMemory::keep_free), so that whatever a channel delivers can be put somewhere.
#include <algorithm>
#include <cstring>

#include "proxynode/translate/translator.h"

namespace sanproxy::translate {
namespace {

// Writes wait while less than this share of the stack's memory is left.
constexpr std::size_t kHeapReserveShare = 16;
constexpr std::uint32_t kSmallWindowBytes = 256 * 1024;
constexpr std::uint64_t kMemoryPatienceMs = 500;
// A channel is short of receive buffers when it has no more than this share of them posted, or so
// few that they are all for control messages.
constexpr std::uint32_t kPostedShare = 8;

}  // namespace

bool Translator::memory_is_low() const {
  return stack_->heap_bytes_used() >
         stack_->heap_bytes_max() - stack_->heap_bytes_max() / kHeapReserveShare;
}

std::size_t Translator::egress_headroom() const {
  const std::size_t reserve = egress_reserve(egress_);
  return egress_.free_count() > reserve ? egress_.free_count() - reserve : 0;
}

// Streams hold more than half of what is theirs, for clients that take their bytes late or never:
// what comes now is copied, so that the buffers go round, as long as the stack has ample memory.
bool Translator::is_better_copied() const {
  return egress_.received_count() > egress_headroom() &&
         stack_->heap_bytes_used() < stack_->heap_bytes_max() / 2;
}

// The window of a new stream towards its client. What does not stay in the application's memory is
// ours to keep, whole windows of it if the client takes nothing: once much is kept, new ones are
// smaller.
std::uint32_t Translator::window_for(const AppNode& node) const {
  const bool much =
      node.receives_into_egress && stack_->heap_bytes_used() > stack_->heap_bytes_max() / 8;
  return much ? std::min(options_.send_window_bytes, kSmallWindowBytes)
              : options_.send_window_bytes;
}

// Some channel cannot post its receive buffers, because streams hold them.
bool Translator::receives_are_short() const {
  if (egress_headroom() != 0) return false;
  return std::any_of(present_.begin(), present_.end(), [](const AppNode* node) {
    if (!node->receives_into_egress || node->dead) return false;
    const std::uint32_t few = node->from->options.receive_depth / kPostedShare;
    return node->channel->ledger().posted() <=
           std::max(few, node->channel->our_hello().credits_reserved);
  });
}

// The EgressPool holds what the stack has no memory for. When that runs low too, application nodes
// have to wait: their messages stay in their own channels. Likewise a channel has to wait for
// receive buffers that streams hold. Clients that take their bytes soon put an end to it; if the
// connection that holds most does not get on at all meanwhile, it is ended, and so on.
bool Translator::must_wait_for_memory() {
  const bool copies_wait = egress_.free_count() < egress_reserve(egress_);
  if (!copies_wait && !receives_are_short()) {
    low_since_ns_ = 0;
    return false;
  }
  const std::uint64_t now = clock_.now_ns();
  if (copies_wait) ++counters_.waiting_rounds;
  // A network node that keeps what it was lent is cut off first, and its clients hear again what it
  // has kept.
  const std::uint64_t patience_ms =
      kMemoryPatienceMs + (options_.lent == nullptr ? 0 : options_.lent_ms_max);
  if (low_since_ns_ == 0 || now - low_since_ns_ > patience_ms * 1'000'000) {
    if (low_since_ns_ != 0) end_largest_holder();
    low_since_ns_ = now;
    remember_largest_holder();
  }
  return copies_wait;
}

StreamIndex Translator::largest_holder() const {
  StreamIndex largest = kNone;
  std::uint32_t most = 0;
  for (const AppNode* node : present_) {
    for (StreamIndex i = node->streams_head; i != kNone; i = streams_[i].node_next) {
      if (streams_[i].egress_slots <= most) continue;
      most = streams_[i].egress_slots;
      largest = i;
    }
  }
  return largest;
}

void Translator::remember_largest_holder() {
  const StreamIndex largest = largest_holder();
  holder_id_ = largest == kNone ? 0 : streams_[largest].id;
  holder_freed_ = largest == kNone ? 0 : streams_[largest].from_app.freed();
}

void Translator::end_largest_holder() {
  const StreamIndex largest = largest_holder();
  if (largest == kNone) return;
  Stream& s = streams_[largest];
  if (s.id != holder_id_ || s.from_app.freed() != holder_freed_) return;  // it gets on
  ++counters_.closed_no_memory;
  if (s.state == StreamState::kOrphan) return reset_stream(s, largest);
  fail_stream(s, largest, wire::CloseCode::kLimitReached);
}

// Bytes on loan whose receive buffer is ours, mostly empty, and wanted: those of one stream may
// hold half as many slots as are left, and what comes on top is packed.
bool Translator::is_better_packed(const Stream& s, const AppNode& node,
                                  const channel::Payload& payload) const {
  return node.receives_into_egress && payload.length <= egress_.slot_bytes() / 2 &&
         s.egress_slots > egress_headroom() / 2;
}

std::size_t Translator::slot_bytes_used(const TxRecord& record) const {
  return static_cast<std::size_t>(record.data - egress_.data(record.egress)) + record.length;
}

// Copies the payload behind what the stream has in a slot of its own, or into a new one. False if
// there is no room; nothing has happened then.
bool Translator::pack(Stream& s, const channel::Payload& payload) {
  RecordIndex before = s.tx_last;
  std::size_t used = egress_.slot_bytes();
  if (before != kNone && records_[before].egress != buffer::kNoSlot) {
    used = slot_bytes_used(records_[before]);
  }
  buffer::SlotIndex slot = buffer::kNoSlot;
  if (payload.length <= egress_.slot_bytes() - used) {
    slot = records_[before].egress;
  } else {
    if (egress_headroom() == 0) return false;
    slot = egress_.acquire();
    egress_.mark_received(slot);
    before = kNone;
    used = 0;
  }
  std::byte* to = egress_.data(slot) + used;
  for (const fabric::Segment& piece : payload.pieces) {
    std::memcpy(to, piece.data, piece.length);
    to += piece.length;
  }
  if (!add_record(s, {egress_.data(slot) + used, payload.length}, s.from_app.received(),
                  fabric::kNoLoan, slot)) {
    if (before == kNone) egress_.release(slot);
    return false;
  }
  if (before == kNone) {
    ++s.egress_slots;
  } else {
    records_[before].egress = buffer::kNoSlot;  // the slot goes with its last record
  }
  counters_.copied_pressure += payload.length;
  return true;
}

}  // namespace sanproxy::translate
