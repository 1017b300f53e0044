// What the device gives back: finished sends, received transfers, and the remains of a broken
// queue pair. Everything that looks at bytes of the peer is here.
#include "lwproto/fabric/verbs/endpoint.h"

namespace sanproxy::fabric::verbs {
namespace {

// Why a work request failed, for the first that did.
Status failure_of(const ibv_wc& completion) {
  switch (completion.status) {
    case IBV_WC_LOC_QP_OP_ERR:
      // Soft-RoCE's word for a transfer that is longer than its receive.
      if ((completion.wr_id & kReceiveBit) != 0) {
        return Status::error(Code::kProtocol, "the peer sent a transfer that is too large");
      }
      break;
    case IBV_WC_RNR_RETRY_EXC_ERR:
      return Status::error(Code::kProtocol, "a transfer met no posted receive");
    case IBV_WC_LOC_LEN_ERR:
      return Status::error(Code::kProtocol, "the peer sent a transfer that is too large");
    case IBV_WC_REM_INV_REQ_ERR:
      return Status::error(Code::kProtocol, "the peer has no room for a transfer of this size");
    case IBV_WC_RETRY_EXC_ERR:
      return Status::error(Code::kDisconnected, "the peer does not answer any more");
    case IBV_WC_REM_OP_ERR:
    case IBV_WC_REM_ACCESS_ERR:
      return Status::error(Code::kDisconnected, "the peer's queue pair failed");
    case IBV_WC_WR_FLUSH_ERR:
      return Status::error(Code::kDisconnected, "the queue pair was broken");
    default:
      break;
  }
  return Status::error(Code::kDisconnected, "a work request failed");
}

}  // namespace

// Precondition: the stash is empty.
[[gnu::always_inline]] inline bool VerbsEndpoint::fill_stash() {
  const int count = queue_pair_->poll(stash_);
  if (count == 0) return false;
  if (count < 0) [[unlikely]] {
    on_failure(Status::error(Code::kSystem, "poll a completion queue"));
    return false;
  }
  stash_next_ = 0;
  stash_count_ = static_cast<std::size_t>(count);
  return true;
}

bool VerbsEndpoint::anything_new() { return fill_stash(); }

bool VerbsEndpoint::has_completions() {
  return state_ == State::kOpen && (!nothing_left() || fill_stash());
}

[[gnu::hot]] std::size_t VerbsEndpoint::poll(std::span<Completion> out) {
  if (receive_->any_transients()) receive_->end_transients();
  if (!nothing_left()) return poll_rest(out);
  if (fill_stash()) return take_stash(out);
  // A loop that spins comes here most of the time.
  return state_ == State::kOpen ? 0 : poll_rest(out);
}

[[gnu::hot, gnu::noinline]] std::size_t VerbsEndpoint::take_stash(std::span<Completion> out) {
  // For each message of a peer that waits for answers.
  if (stash_count_ == 1 && !out.empty() && take_inline(stash_[0], out[0])) return 1;
  return poll_rest(out);
}

// A transfer as most are, when its turn has come and nothing else is there. False: poll_rest()
// takes it, whatever it is, and nothing has happened.
[[gnu::always_inline]] inline bool VerbsEndpoint::take_inline(const ibv_wc& completion,
                                                              Completion& out) {
  if (completion.status != IBV_WC_SUCCESS || !receive_->is_next(completion) ||
      (completion.wc_flags & IBV_WC_WITH_IMM) != 0 ||
      completion.byte_len - 1 >= options_.inline_bytes_max || !receive_->count_received())
      [[unlikely]] {
    return false;
  }
  stash_next_ = 1;
  fill_inline(completion.byte_len, receive_->take_next(), out);
  return true;
}

[[gnu::hot, gnu::noinline]] std::size_t VerbsEndpoint::poll_rest(std::span<Completion> out) {
  if (state_ == State::kDone) return 0;
  std::size_t count = 0;
  if (state_ != State::kReporting) {
    count = take_completions(out);
    look_at_progress();
  }
  if (state_ == State::kReporting) count += report(out.subspan(count));
  return count;
}

[[gnu::hot]] inline std::size_t VerbsEndpoint::take_completions(std::span<Completion> out) {
  std::size_t count = 0;
  // The device had no more a moment ago: that is not asked again.
  bool emptied = stash_next_ != stash_count_ && stash_count_ < stash_.size();
  for (;;) {
    const bool delivering = state_ == State::kOpen || state_ == State::kDraining;
    // Whoever ends the channel gets all cookies as failed, at the end.
    if (delivering && send_->has_done()) {
      while (count < out.size()) {
        const auto cookie = send_->next_cookie();
        if (!cookie) break;
        Completion& completion = out[count++];
        completion.kind = Completion::Kind::kSend;
        completion.status = {};
        completion.cookie = *cookie;
      }
      room_news_ = waiting_;
    }
    if (delivering && count == out.size()) return count;
    if (receive_->next_is_here()) {
      Arrival arrival;
      const buffer::SlotIndex slot = receive_->take_early(arrival);
      if (handle_receive(arrival, slot, delivering ? &out[count] : nullptr)) ++count;
      continue;
    }
    if (stash_next_ == stash_count_) {
      if (emptied || !fill_stash()) return count;
      emptied = stash_count_ < stash_.size();
    }
    const ibv_wc& completion = stash_[stash_next_++];
    // Whoever has ended the channel takes nothing more, and handle() fills nothing.
    if (handle(completion, delivering ? &out[count] : nullptr)) ++count;
  }
}

// True if `out` was filled.
inline bool VerbsEndpoint::handle(const ibv_wc& completion, Completion* out) {
  if ((completion.wr_id & kReceiveBit) == 0) {
    handle_send(completion);
    return false;
  }
  if (completion.status != IBV_WC_SUCCESS) {
    receive_->failed(completion);
    handle_failed(completion);
    return false;
  }
  Arrival arrival;
  return receive_->arrived(completion, arrival) && handle_receive(arrival, receive_->take(), out);
}

// True if `out` was filled; else the slot is free again.
inline bool VerbsEndpoint::handle_receive(const Arrival& arrival, buffer::SlotIndex slot,
                                          Completion* out) {
  if (deliver(arrival, slot, out)) return true;
  receive_->give_back(slot);
  return false;
}

inline void VerbsEndpoint::handle_send(const ibv_wc& completion) {
  if (completion.status == IBV_WC_SUCCESS) return send_->on_done(completion.wr_id);
  send_->on_failed(completion.wr_id);
  handle_failed(completion);
}

void VerbsEndpoint::handle_failed(const ibv_wc& completion) {
  const Status why = failure_of(completion);
  if (state_ == State::kDraining && completion.status != IBV_WC_WR_FLUSH_ERR) {
    explain(why);
  } else if (state_ == State::kOpen) {
    start_draining(why);
    reason_is_vague_ = completion.status == IBV_WC_WR_FLUSH_ERR;
  } else if (state_ == State::kClosing) {
    start_flushing();
  }
}

inline bool VerbsEndpoint::may_come() {
  if (receive_->count_received()) [[likely]]
    return true;
  breach("a transfer met no posted receive");
  return false;
}

[[gnu::always_inline]] inline bool VerbsEndpoint::deliver(const Arrival& arrival,
                                                          buffer::SlotIndex slot, Completion* out) {
  const std::uint32_t immediate = arrival.immediate;
  const std::uint32_t number = number_of(immediate);
  if (out == nullptr) {
    // Both sides end the channel: nobody will take the rest.
    if (kind_of(immediate) == Kind::kBye && state_ == State::kClosing) start_flushing();
    return false;
  }
  switch (kind_of(immediate)) {
    case Kind::kInline:
      return may_come() && deliver_inline(arrival.bytes, slot, *out);
    case Kind::kReferenced:
      return may_come() && deliver_referenced(number, arrival.bytes, slot, *out);
    case Kind::kBye: {
      const Status why =
          number == static_cast<std::uint32_t>(ByeCode::kProtocol)
              ? Status::error(Code::kProtocol, "the peer saw a broken rule of the protocol")
              : Status::error(Code::kDisconnected, "the peer ended the channel");
      explain(why);
      start_draining(why);
      return false;
    }
    default:
      breach("a transfer of an unknown kind");
      return false;
  }
}

inline void VerbsEndpoint::fill_inline(std::uint32_t length, buffer::SlotIndex slot,
                                       Completion& out) {
  receive_->make_transient(slot);
  out.kind = Completion::Kind::kReceive;
  out.loan = kNoLoan;
  out.segment_count = 1;
  out.segments[0] = {receive_->data(slot), length, true};
}

inline bool VerbsEndpoint::deliver_inline(std::uint32_t length, buffer::SlotIndex slot,
                                          Completion& out) {
  if (length == 0 || length > options_.inline_bytes_max) {
    breach("an inline part that is empty or too large");
    return false;
  }
  fill_inline(length, slot, out);
  return true;
}

inline bool VerbsEndpoint::deliver_referenced(std::uint32_t inline_bytes, std::uint32_t length,
                                              buffer::SlotIndex slot, Completion& out) {
  if (inline_bytes >= length || inline_bytes > options_.inline_bytes_max) {
    breach("a transfer whose inline part is longer than allowed");
    return false;
  }
  out.kind = Completion::Kind::kReceive;
  out.loan = receive_->lend(slot);
  out.segment_count = 0;
  const std::byte* data = receive_->data(slot);
  if (inline_bytes != 0) out.segments[out.segment_count++] = {data, inline_bytes, false};
  out.segments[out.segment_count++] = {data + inline_bytes, length - inline_bytes, false};
  return true;
}

// Moves an ending channel on.
inline void VerbsEndpoint::look_at_progress() {
  if (state_ == State::kClosing && (send_->drained() || core_->now_ns() >= deadline_ns_)) {
    start_flushing();
  }
  if (state_ != State::kFlushing && state_ != State::kDraining) return;
  if (stash_next_ != stash_count_ || receive_->next_is_here()) return;
  if (state_ == State::kDraining && send_->has_done()) return;  // those went well
  const bool drained = send_->drained() && receive_->posted() == 0;
  if (!drained) {
    // However late somebody looks: what is in the queue has arrived, and a broken queue pair adds
    // no end of it. The deadline is for a device that gives nothing back.
    if (anything_new() || core_->now_ns() < deadline_ns_) return;
    ++core_->counters().unflushed_queues;
  }
  start_reporting();
}

std::size_t VerbsEndpoint::report(std::span<Completion> out) {
  std::size_t count = 0;
  while (count < out.size()) {
    Completion& completion = out[count++];
    const auto cookie = send_->next_cookie();
    if (cookie) {
      completion.kind = Completion::Kind::kSend;
      completion.status = closed_status();
      completion.cookie = *cookie;
      continue;
    }
    completion.kind = Completion::Kind::kDisconnected;
    completion.status = reason_;
    state_ = State::kDone;
    break;
  }
  return count;
}

}  // namespace sanproxy::fabric::verbs
