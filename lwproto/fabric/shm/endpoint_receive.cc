// The part of ShmEndpoint that takes bytes from the peer. Every value from the peer's memory or
// socket is copied to a local once, checked, and only then used: the peer can change its memory at
// any moment.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <utility>

#include "lwproto/fabric/shm/endpoint.h"

namespace sanproxy::fabric::shm {
namespace {

// Copies from memory that may change while we look. The fence keeps the compiler from reading the
// source again instead of the copy.
template <typename T>
T copy_once(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return value;
}

}  // namespace

std::size_t ShmEndpoint::poll(std::span<Completion> out) {
  if (cursor_ != tail_) {
    // The transient segments of the last poll() end here.
    tail_ = cursor_;
    tail_dirty_ = true;
    own_.control().room.ring_tail.store(tail_, std::memory_order_release);
  }
  if (state_ == State::kOpen && !waiting_) {
    const PublishedLine& theirs = peer_.control().published;
    if (theirs.ring_head.load(std::memory_order_relaxed) == cursor_ &&
        theirs.returns_head.load(std::memory_order_relaxed) == returns_taken_) {
      return 0;
    }
  }
  return poll_slow(out);
}

std::size_t ShmEndpoint::poll_slow(std::span<Completion> out) {
  std::size_t n = 0;
  messages_left_ = kSocketMessagesMax;
  if (state_ == State::kOpen) {
    if (waiting_) {
      const std::uint64_t before = peer_tail_;
      room_news_ = (refresh_room() && peer_tail_ != before) || room_news_;
    }
    const PublishedLine& theirs = peer_.control().published;
    // The head before the returns: a transfer may answer one whose loan it returns.
    if (see_head(theirs.ring_head.load(std::memory_order_acquire))) {
      n += take_returns(out, theirs.returns_head.load(std::memory_order_acquire));
      n += take_transfers(out.subspan(n));
    }
  }
  if (state_ == State::kDraining) {
    n += take_returns(out.subspan(n), returns_end_);
    n += take_transfers(out.subspan(n));
    if (state_ == State::kDraining && returns_taken_ == returns_end_ && cursor_ == seen_head_) {
      state_ = State::kFailing;
    }
  }
  if (state_ == State::kFailing) n += poll_failing(out.subspan(n));
  return n;
}

// Takes note of how far the peer has written; false after a breach.
bool ShmEndpoint::see_head(std::uint64_t head) {
  if (state_ != State::kOpen) return false;
  const std::uint64_t room = peer_ring_bytes_ - (seen_head_ - tail_);
  if (head - seen_head_ > room || head % kEntryAlign != 0) {
    breach("the peer's ring head jumped");
    return false;
  }
  seen_head_ = head;
  return true;
}

std::size_t ShmEndpoint::take_returns(std::span<Completion> out, std::uint64_t returns_head) {
  if (returns_head - returns_taken_ > outstanding_) {
    breach("the peer returned more than it got");
    return 0;
  }
  const std::uint64_t mask = peer_.sizes().return_entries - 1;
  std::size_t n = 0;
  while (n < out.size() && returns_taken_ != returns_head) {
    const auto token = copy_once<std::uint32_t>(
        reinterpret_cast<const std::byte*>(peer_.returns() + (returns_taken_ & mask)));
    const std::uint32_t index = token_index(token);
    if (index >= sends_.size() || !sends_[index].used ||
        (sends_[index].generation & 0xffffu) != token_generation(token)) {
      breach("the peer returned something that it does not have");
      return n;
    }
    SendSlot& slot = sends_[index];
    slot.used = false;
    ++slot.generation;
    free_sends_.push_back(index);
    --outstanding_;
    ++returns_taken_;
    Completion& completion = out[n++];
    completion.kind = Completion::Kind::kSend;
    completion.segment_count = 0;
    completion.status = Status();
    completion.cookie = slot.cookie;
    completion.loan = kNoLoan;
  }
  return n;
}

std::size_t ShmEndpoint::take_transfers(std::span<Completion> out) {
  std::size_t n = 0;
  while (n < out.size() && cursor_ != seen_head_ &&
         (state_ == State::kOpen || state_ == State::kDraining)) {
    if (!take_transfer(out[n])) break;
    ++n;
  }
  return n;
}

bool ShmEndpoint::take_transfer(Completion& out) {
  const std::byte* at = peer_ring_ + (cursor_ & (peer_ring_bytes_ - 1));
  const auto header = copy_once<EntryHeader>(at);
  // The sums cannot overflow: both parts are bounded first.
  if (header.inline_bytes > inline_bytes_max_ || header.ref_count > kGatherRefsMax ||
      header.entry_bytes != entry_bytes(header.inline_bytes, header.ref_count) ||
      header.entry_bytes > seen_head_ - cursor_) {
    breach("a malformed entry in the peer's ring");
    return false;
  }
  if (header.inline_bytes == 0 && header.ref_count == 0) {
    breach("an empty transfer");
    return false;
  }
  if (received_ == posted_) {
    breach("a transfer met no posted receive");
    return false;
  }
  out.kind = Completion::Kind::kReceive;
  out.segment_count = 0;
  out.status = Status();
  out.cookie = 0;
  out.loan = kNoLoan;
  if (header.inline_bytes != 0) {
    out.segments[0] = Segment{at + sizeof(EntryHeader), header.inline_bytes, true};
    out.segment_count = 1;
  }
  if (header.ref_count != 0) {
    LoanSlot* const loan = take_loan(header.token, out);
    if (loan == nullptr || !take_refs(at + entry_bytes(header.inline_bytes, 0), header.ref_count,
                                      header.inline_bytes, *loan, out)) {
      return false;
    }
  }
  cursor_ += header.entry_bytes;
  ++received_;
  return true;
}

bool ShmEndpoint::knows_region(RegionKey key) const {
  const std::uint32_t place = region_place(key);
  return key != 0 && place < peer_regions_.size() && peer_regions_[place].key == key;
}

bool ShmEndpoint::take_refs(const std::byte* at, std::uint32_t count, std::uint64_t total,
                            LoanSlot& loan, Completion& out) {
  for (std::uint32_t i = 0; i < count; ++i, at += sizeof(EntryRef)) {
    const auto ref = copy_once<EntryRef>(at);
    // A region's description may still be in the socket: it was sent before the reference, perhaps
    // behind many others, but not behind more than the socket holds.
    if (!knows_region(ref.region)) {
      drain_socket();
      if (state_ == State::kFailing) return false;
    }
    if (!knows_region(ref.region)) {
      breach("a reference to an unknown region");
      return false;
    }
    const std::uint32_t place = region_place(ref.region);
    PeerRegion& region = peer_regions_[place];
    const std::uint64_t bytes = region.mapping.size();
    if (ref.length == 0 || ref.offset > bytes || ref.length > bytes - ref.offset) {
      breach("a reference outside its region");
      return false;
    }
    total += ref.length;
    ++region.refs;
    loan.places[loan.ref_count++] = static_cast<std::uint16_t>(place);
    out.segments[out.segment_count++] =
        Segment{region.mapping.data() + ref.offset, ref.length, false};
  }
  if (total > transfer_bytes_max_) {
    breach("a transfer longer than agreed");
    return false;
  }
  return true;
}

ShmEndpoint::LoanSlot* ShmEndpoint::take_loan(std::uint32_t token, Completion& out) {
  if (free_loans_.empty() && loans_.size() == own_.sizes().return_entries) {
    breach("the peer has more outstanding than agreed");
    return nullptr;
  }
  const std::uint32_t index = take_place(free_loans_, loans_);
  LoanSlot& slot = loans_[index];
  slot.token = token;
  slot.used = true;
  out.loan = (Loan{slot.generation} << 32) | (index + 1);
  return &slot;
}

std::size_t ShmEndpoint::poll_failing(std::span<Completion> out) {
  std::size_t n = 0;
  for (; outstanding_ != 0 && n < out.size(); ++failing_next_) {
    SendSlot& slot = sends_[failing_next_];
    if (!slot.used) continue;
    slot.used = false;
    --outstanding_;
    Completion& completion = out[n++];
    completion.kind = Completion::Kind::kSend;
    completion.segment_count = 0;
    completion.status = reason_.ok() ? closed_status() : reason_;
    completion.cookie = slot.cookie;
    completion.loan = kNoLoan;
  }
  if (outstanding_ == 0 && n < out.size()) {
    Completion& completion = out[n++];
    completion.kind = Completion::Kind::kDisconnected;
    completion.segment_count = 0;
    completion.status = reason_;
    completion.cookie = 0;
    completion.loan = kNoLoan;
    state_ = State::kDone;
  }
  return n;
}

void ShmEndpoint::on_events(std::uint32_t /*events*/) {
  messages_left_ = kSocketMessagesMax;
  drain_socket();
}

// Reads what the peer has said, but no more than `messages_left_`. Who says more is heard again
// when the socket is reported again.
void ShmEndpoint::drain_socket() {
  read_socket();
  (void)core_->keep_spare();
}

void ShmEndpoint::read_socket() {
  std::array<std::byte, kMessageBytesMax> bytes;
  for (; messages_left_ != 0 && state_ == State::kOpen; --messages_left_) {
    core_->lend_spare();
    ReceivedMessage message = receive_message(socket_.get(), bytes);
    switch (message.kind) {
      case ReceivedMessage::Kind::kNothing:
        return;
      case ReceivedMessage::Kind::kEnd:
        return on_end();
      case ReceivedMessage::Kind::kMalformed:
        return breach("a malformed message on the peer's socket");
      case ReceivedMessage::Kind::kNoDescriptors:
        return disconnect(
            Status::error(Code::kExhausted, "no descriptor left for the peer's memory"));
      case ReceivedMessage::Kind::kMessage: {
        const Status taken = take_region_message(message, std::span(bytes).first(message.bytes));
        if (!taken.ok()) disconnect(taken);
      }
    }
  }
}

Status ShmEndpoint::take_region_message(ReceivedMessage& message,
                                        std::span<const std::byte> bytes) {
  RegionMessage region;
  if (bytes.size() != sizeof(region)) {
    return Status::error(Code::kProtocol, "not the description of a region");
  }
  std::memcpy(&region, bytes.data(), sizeof(region));
  if (region.magic == kDetachMagic && message.fd_count == 0) return lose_region(region);
  if (region.magic != kRegionMagic || message.fd_count != kRegionFds) {
    return Status::error(Code::kProtocol, "not the description of a region");
  }
  return take_region(region, std::move(message.fds[0]));
}

Status ShmEndpoint::take_region(const RegionMessage& region, UniqueFd fd) {
  const std::uint32_t place = region_place(region.key);
  if (place > peer_regions_.size()) {
    return Status::error(Code::kProtocol, "not the description of the next region");
  }
  const bool fresh = place == peer_regions_.size();
  const RegionKey expected =
      fresh ? make_region_key(place, 0)
            : make_region_key(place, region_generation(peer_regions_[place].last_key) + 1);
  if (region.key != expected || (!fresh && peer_regions_[place].key != 0)) {
    return Status::error(Code::kProtocol, "not the description of the next region");
  }
  if (place >= std::min(regions_max_, kRegionPlacesMax) ||
      region.bytes > peer_region_bytes_max_ - peer_region_total_) {
    return Status::error(Code::kProtocol, "more regions than agreed");
  }
  auto mapping = map_peer_region(fd.get(), region.bytes);
  if (!mapping.ok()) return mapping.status();
  peer_region_total_ += region.bytes;
  if (fresh) peer_regions_.emplace_back();
  PeerRegion& entry = peer_regions_[place];
  entry.key = entry.last_key = region.key;
  entry.mapping = std::move(*mapping);
  RegionWatcher* const watcher = core_->region_watcher();
  // What others could write must not reach them: it would be their word under its owner's name.
  // Nor must it take the last descriptor.
  if (watcher != nullptr && sealed_against_writing(fd.get()) && core_->keep_spare() &&
      watcher->on_region({entry.mapping.data(), region.bytes, fd.get(), this})) {
    entry.fd = std::move(fd);
  }
  return {};
}

Status ShmEndpoint::lose_region(const RegionMessage& region) {
  if (!knows_region(region.key) || region.bytes != 0) {
    return Status::error(Code::kProtocol, "the end of a region that is not there");
  }
  PeerRegion& entry = peer_regions_[region_place(region.key)];
  if (entry.refs != 0) return Status::error(Code::kProtocol, "the end of a region that is on loan");
  peer_region_total_ -= entry.mapping.size();
  unmap(entry);
  return {};
}

void ShmEndpoint::unmap(PeerRegion& region) {
  if (region.fd.valid()) core_->region_watcher()->on_region_gone(region.mapping.data());
  region.key = 0;
  region.fd.reset();
  region.mapping = Mapping();
}

// The socket has ended: closed by the peer or by its death. What it published before counts.
void ShmEndpoint::on_end() {
  const PublishedLine& theirs = peer_.control().published;
  const auto mark = static_cast<CloseMark>(theirs.close_code.load(std::memory_order_acquire));
  if (!see_head(theirs.ring_head.load(std::memory_order_acquire))) return;
  returns_end_ = theirs.returns_head.load(std::memory_order_acquire);
  switch (mark) {
    case CloseMark::kProtocol:
      reason_ = Status::error(Code::kProtocol, "the peer saw a breach of the protocol");
      break;
    case CloseMark::kClosed:
      reason_ = Status::error(Code::kDisconnected, "the peer closed the channel");
      break;
    default:
      reason_ = Status::error(Code::kDisconnected, "the peer vanished");
      break;
  }
  state_ = State::kDraining;
  close_socket();
}

}  // namespace sanproxy::fabric::shm
