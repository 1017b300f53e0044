// What streams hold of the EgressPool and of the stack's memory, and what happens when that is low.
//
// Two things live in the EgressPool: receive buffers of channels whose fabric receives into our
// memory (posted, then held by a stream until its client has acknowledged the bytes), and copies of
// what the stack had no memory for. The last egress_reserve() slots are for the copies alone:
// endpoints leave them (ReceiveMemory::keep_free), so that whatever a channel delivers can be put
// somewhere.
#include <algorithm>
#include <cstring>

#include "proxynode/translate/translator.h"

namespace sanproxy::translate {
namespace {

// Writes wait while less than this share of the stack's memory is left.
constexpr std::size_t kHeapReserveShare = 16;
// A stream with less than this in the stack writes all the same: what is left serves those whose
// clients take their bytes.
constexpr std::uint64_t kLittleBytes = 4 * 1024;
// Of what the stack refers to it keeps the headers, a fifth of the shortest pieces.
constexpr std::uint64_t kHeadersShare = 8;
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
// smaller. Over shared memory that is only what comes in small pieces.
std::uint32_t Translator::window_for(const AppNode& node) const {
  const std::size_t share = node.receives_into_egress ? 8 : 2;
  const bool much = stack_->heap_bytes_used() > stack_->heap_bytes_max() / share;
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

// A network node that keeps what it was lent is cut off first, and its clients hear again what it
// has kept.
std::uint64_t Translator::patience_ns() const {
  const std::uint64_t ms =
      kMemoryPatienceMs + (options_.lent == nullptr ? 0 : options_.lent_ms_max);
  return ms * 1'000'000;
}

// The EgressPool holds what the stack has no memory for. When that runs low too, application nodes
// have to wait: their messages stay in their own channels. Likewise a channel has to wait for
// receive buffers that streams hold. Clients that take their bytes soon put an end to it; if the
// connection that holds most does not get on at all meanwhile, it is ended, and so on.
bool Translator::must_wait_for_memory() {
  if (!starved_.empty() || heap_low_since_ns_ != 0) look_after_heap();
  const bool copies_wait = egress_.free_count() < egress_reserve(egress_);
  if (!copies_wait && !receives_are_short()) {
    low_since_ns_ = 0;
    return false;
  }
  const std::uint64_t now = clock_.now_ns();
  if (copies_wait) ++counters_.waiting_rounds;
  if (low_since_ns_ == 0 || now - low_since_ns_ > patience_ns()) {
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
  const Stream& s = streams_[largest];
  if (s.id != holder_id_ || s.from_app.freed() != holder_freed_) return;  // it gets on
  end_for_memory(largest);
}

void Translator::end_for_memory(StreamIndex index) {
  Stream& s = streams_[index];
  ++counters_.closed_no_memory;
  if (s.state == StreamState::kOrphan) return reset_stream(s, index);
  fail_stream(s, index, wire::CloseCode::kLimitReached);
}

// Bytes that are written to the stack and that the client has not acknowledged.
std::uint64_t Translator::in_stack(const Stream& s) const {
  std::uint64_t written = s.from_app.received();
  if (s.tx_unwritten != kNone) {
    written = records_[s.tx_unwritten].end_offset - records_[s.tx_unwritten].length;
  }
  return written - s.from_app.freed();
}

bool Translator::may_write(const Stream& s) const {
  return !memory_is_low() || in_stack(s) < kLittleBytes;
}

// Clients that take nothing can fill the stack's memory with a window of copies each, and then
// others write no more than a little at a time. Where that lasts, who fills it and stands still is
// ended, one after the other.
void Translator::look_after_heap() {
  if (starved_.empty() || !memory_is_low()) {
    heap_low_since_ns_ = 0;
    return;
  }
  const std::uint64_t now = clock_.now_ns();
  const bool first = heap_low_since_ns_ == 0;
  if (!first && now - heap_low_since_ns_ <= patience_ns()) return;
  const StreamIndex heaviest = heaviest_that_stands_still();
  heap_low_since_ns_ = now;
  if (!first && heaviest != kNone) end_for_memory(heaviest);
}

// Since the last call, which left its marks.
StreamIndex Translator::heaviest_that_stands_still() {
  StreamIndex heaviest = kNone;
  std::uint64_t most = 0;
  for (const AppNode* node : present_) {
    for (StreamIndex i = node->streams_head; i != kNone; i = streams_[i].node_next) {
      Stream& s = streams_[i];
      const std::uint64_t bytes = in_stack(s);
      const std::uint64_t copied = std::min<std::uint64_t>(s.copied_bytes, bytes);
      const std::uint64_t weight = copied + (bytes - copied) / kHeadersShare;
      if (bytes < kLittleBytes) {
        s.clear(kStandsStill);
      } else if (!s.has(kStandsStill)) {
        s.set(kStandsStill);
      } else if (weight > most) {
        most = weight;
        heaviest = i;
      }
    }
  }
  return heaviest;
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
