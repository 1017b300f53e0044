#include "lwproto/fabric/tcp/stream_in.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "lwproto/fabric/tcp/warm_up.h"

namespace sanproxy::fabric::tcp {
namespace {

// Read at once while transfers are small.
constexpr std::size_t kStagingBytes = 64 * 1024;
// Behind a large transfer only the next header and a little more is read, because what is staged
// of another large one has to be copied.
constexpr std::size_t kBulkBytes = 16 * 1024;
constexpr std::size_t kBulkReadAheadBytes = 128;

Status breach(const char* text) { return Status::error(Code::kProtocol, text); }

}  // namespace

StreamIn::StreamIn(std::uint32_t inline_bytes_max, std::uint64_t padding_bytes_max)
    : staging_(kStagingBytes + sizeof(FrameHeader) + inline_bytes_max),
      padding_left_(padding_bytes_max),
      warm_(padding_bytes_max == 0) {}

Status StreamIn::fill(Transport& transport, ReceiveSlots& slots, const FrameLimits& limits) {
  for (;;) {
    if (!known_ && filled_ - taken_ >= sizeof(FrameHeader)) {
      if (Status status = begin_head(slots, limits); !status.ok()) return status;
    }
    if (known_ && !in_slot()) have_ = std::min(filled_ - taken_, body_bytes());
    if (whole() || ended_ || !readable_) return {};
    if (!in_slot() && !make_room()) return {};
    read(transport, slots);
  }
}

Status StreamIn::begin_head(ReceiveSlots& slots, const FrameLimits& limits) {
  std::memcpy(&header_, staging_.data() + taken_, sizeof(header_));
  if (Status status = check_head(limits); !status.ok()) return status;
  taken_ += sizeof(header_);
  known_ = true;
  have_ = 0;
  if (header_.kind() != FrameKind::kTransfer) return {};
  sequence_min_ = header_.sequence() + 1;
  if (header_.total_bytes == header_.inline_bytes) return {};
  // Two streams may each hold a transfer of the same sequence; only a liar sends one twice.
  if (slots.empty()) return breach("a transfer met no posted receive");
  slot_ = slots.take();
  have_ = std::min<std::size_t>(filled_ - taken_, header_.total_bytes);
  std::memcpy(slots.data(slot_), staging_.data() + taken_, have_);
  taken_ += have_;
  return {};
}

Status StreamIn::check_head(const FrameLimits& limits) const {
  switch (header_.kind()) {
    case FrameKind::kTransfer:
      break;
    case FrameKind::kEnd:
      return header_.total_bytes == 0 ? Status() : breach("a malformed end");
    case FrameKind::kPadding:
      if (warm_ || header_.total_bytes == 0 || header_.total_bytes > kPaddingBytes ||
          sizeof(header_) + header_.total_bytes > padding_left_) {
        return breach("padding that was not agreed on");
      }
      return {};
    case FrameKind::kWarm:
      return warm_ || header_.total_bytes != 0 ? breach("padding that was not agreed on")
                                               : Status();
    default:
      return breach("an unknown kind of frame");
  }
  if (!warm_) return breach("a transfer before the link was warm");
  if (header_.total_bytes == 0) return breach("an empty transfer");
  if (header_.inline_bytes > header_.total_bytes ||
      header_.inline_bytes > limits.inline_bytes_max ||
      header_.total_bytes > limits.transfer_bytes_max) {
    return breach("a transfer longer than agreed");
  }
  const std::uint64_t sequence = header_.sequence();
  if (sequence < limits.next || sequence < sequence_min_) {
    return breach("a transfer from the past");
  }
  if (sequence >= limits.posted) return breach("a transfer met no posted receive");
  return {};
}

// Whether there is space behind filled_ for what is to be read next.
bool StreamIn::make_room() {
  const std::size_t need = known_ ? body_bytes() : sizeof(FrameHeader);
  if (taken_ == filled_ && !lent_) taken_ = filled_ = 0;
  const bool fits = taken_ + need <= staging_.size() && filled_ < staging_.size();
  if (fits && staging_.size() - filled_ >= kStagingBytes / 4) return true;
  if (lent_) return fits;
  std::memmove(staging_.data(), staging_.data() + taken_, filled_ - taken_);
  filled_ -= taken_;
  taken_ = 0;
  return true;
}

void StreamIn::read(Transport& transport, ReceiveSlots& slots) {
  std::array<iovec, 2> pieces;
  std::size_t count = 0;
  std::size_t wanted = 0;
  if (in_slot()) {
    wanted = header_.total_bytes - have_;
    pieces[count++] = {slots.data(slot_) + have_, wanted};
    if (!lent_) taken_ = filled_ = 0;
  }
  std::size_t room = staging_.size() - filled_;
  if (in_slot() || bulk_) {
    // A body that is to be staged must fit, whatever came before it.
    const std::size_t staged = known_ && !in_slot() ? body_bytes() : 0;
    room = std::min(room, staged + sizeof(FrameHeader) + kBulkReadAheadBytes);
  }
  if (room != 0) pieces[count++] = {staging_.data() + filled_, room};
  const Io io = transport.read(std::span(pieces).first(count));
  if (in_slot()) have_ += std::min(io.bytes, wanted);
  filled_ += io.bytes - std::min(io.bytes, wanted);
  if (io.state == IoState::kAgain) readable_ = hung_up_ && io.bytes != 0;
  if (io.state == IoState::kEnd || io.state == IoState::kFailed) {
    ended_ = true;
    failed_ = io.state == IoState::kFailed;
  }
}

void StreamIn::take(Completion& out, ReceiveSlots& slots) {
  out.kind = Completion::Kind::kReceive;
  out.status = Status();
  out.cookie = 0;
  if (in_slot()) {
    const std::byte* data = slots.data(slot_);
    out.segment_count = 0;
    if (header_.inline_bytes != 0) {
      out.segments[out.segment_count++] = Segment{data, header_.inline_bytes, false};
    }
    out.segments[out.segment_count++] =
        Segment{data + header_.inline_bytes, header_.total_bytes - header_.inline_bytes, false};
    out.loan = slots.lend(slot_);
    slot_ = buffer::kNoSlot;
  } else {
    out.segments[0] = Segment{staging_.data() + taken_, header_.total_bytes, true};
    out.segment_count = 1;
    out.loan = kNoLoan;
    taken_ += header_.total_bytes;
    lent_ = true;
    slots.spare();
  }
  bulk_ = header_.total_bytes >= kBulkBytes;
  next_head();
}

void StreamIn::skip() {
  if (header_.kind() == FrameKind::kPadding) {
    padding_left_ -= sizeof(header_) + header_.total_bytes;
  }
  if (header_.kind() == FrameKind::kWarm) warm_ = true;
  taken_ += body_bytes();
  next_head();
}

void StreamIn::drop(ReceiveSlots& slots) {
  if (in_slot()) slots.put_back(slot_);
  slot_ = buffer::kNoSlot;
}

void StreamIn::next_head() {
  known_ = false;
  have_ = 0;
}

}  // namespace sanproxy::fabric::tcp
