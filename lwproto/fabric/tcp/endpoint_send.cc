// The part of TcpEndpoint that sends: docs/tcp_fabric.md "Sending".
#include <algorithm>
#include <array>
#include <utility>

#include "lwproto/fabric/tcp/endpoint.h"

namespace sanproxy::fabric::tcp {
namespace {

// Of one write. The kernel holds the socket while it copies, and acknowledgements wait for that: on
// loopback half a megabyte moves a quarter more than two megabytes.
constexpr std::size_t kPiecesPerWrite = 64;
constexpr std::size_t kBytesPerWrite = 512 * 1024;
// A stream gets this much before the next one has its turn: small transfers share a write.
constexpr std::uint64_t kBytesPerTurn = 64 * 1024;
// publish() writes when at least so much has gathered.
constexpr std::uint64_t kPublishBytes = 256 * 1024;

// Between two looks at a congestion window that is opening.
constexpr std::uint64_t kWarmUpPauseNs = 1'000'000;

}  // namespace

Status TcpEndpoint::closed_status() const {
  if (!reason_.ok()) {
    return Status::error(Code::kDisconnected, reason_.text(), reason_.sys_errno());
  }
  return Status::error(Code::kDisconnected, "the channel has ended");
}

Result<RegionKey> TcpEndpoint::attach(const buffer::MemoryRegion& region) {
  if (state_ != State::kOpen) return closed_status();
  if (!region.valid()) return Status::error(Code::kInvalidArgument, "attach an empty region");
  if (regions_.size() >= peer_.regions_max ||
      region.size() > peer_.region_bytes_max - region_bytes_) {
    return Status::error(Code::kExhausted, "the peer takes no more regions");
  }
  regions_.push_back({region.data(), region.size()});
  region_bytes_ += region.size();
  return static_cast<RegionKey>(regions_.size());
}

// The stream for the next transfer, or nullptr when there is no room on any.
TcpEndpoint::Stream* TcpEndpoint::choose_stream(std::size_t inline_bytes) {
  Stream& current = *streams_[current_];
  if (current.out.has_room(inline_bytes) &&
      (streams_.size() == 1 || (current.writable && current_bytes_ < kBytesPerTurn))) {
    return &current;
  }
  // The one with the least before it; a connection that takes nothing only if there is no other.
  Stream* best = nullptr;
  std::size_t best_index = 0;
  for (std::size_t i = 1; i <= streams_.size(); ++i) {
    const std::size_t index = (current_ + i) % streams_.size();
    Stream& stream = *streams_[index];
    if (!stream.out.has_room(inline_bytes)) continue;
    const bool better = best == nullptr || (stream.writable && !best->writable) ||
                        (stream.writable == best->writable &&
                         stream.out.pending_bytes() < best->out.pending_bytes());
    if (!better) continue;
    best = &stream;
    best_index = index;
  }
  if (best != nullptr) {
    current_ = best_index;
    current_bytes_ = 0;
  }
  return best;
}

Result<std::span<std::byte>> TcpEndpoint::begin_send(std::size_t inline_bytes) {
  if (state_ != State::kOpen) [[unlikely]]
    return closed_status();
  if (inline_bytes > inline_bytes_max_) [[unlikely]] {
    return Status::error(Code::kInvalidArgument, "inline part too large");
  }
  Stream* stream = outstanding_ < send_depth_ ? choose_stream(inline_bytes) : nullptr;
  if (stream == nullptr) [[unlikely]] {
    flush();
    if (state_ != State::kOpen) return closed_status();
    if (outstanding_ < send_depth_) stream = choose_stream(inline_bytes);
    if (stream == nullptr) {
      waiting_ = true;
      return Status::again();
    }
  }
  waiting_ = room_news_ = false;
  begun_ = stream;
  space_bytes_ = inline_bytes;
  return std::span<std::byte>(stream->out.begin(), inline_bytes);
}

Status TcpEndpoint::resolve(std::size_t inline_bytes, std::span<const GatherRef> refs,
                            std::span<iovec> pieces, std::uint64_t& total) const {
  if (refs.size() > kGatherRefsMax) {
    return Status::error(Code::kInvalidArgument, "too many references");
  }
  total = inline_bytes;
  for (std::size_t i = 0; i < refs.size(); ++i) {
    const GatherRef& ref = refs[i];
    if (ref.region == 0 || ref.region > regions_.size()) {
      return Status::error(Code::kInvalidArgument, "a reference to a region not attached");
    }
    const Region& region = regions_[ref.region - 1];
    if (ref.length == 0 || ref.offset > region.bytes || ref.length > region.bytes - ref.offset) {
      return Status::error(Code::kInvalidArgument, "a reference outside its region");
    }
    // sendmsg() does not write through this pointer.
    pieces[i] = {const_cast<std::byte*>(region.data + ref.offset), ref.length};
    total += ref.length;
  }
  if (total == 0 || total > transfer_bytes_max_) {
    return Status::error(Code::kInvalidArgument, "transfer empty or too large");
  }
  return {};
}

Status TcpEndpoint::commit_send(std::size_t inline_bytes, std::span<const GatherRef> refs,
                                std::uint64_t cookie) {
  if (state_ != State::kOpen) [[unlikely]]
    return closed_status();
  if (begun_ == nullptr || inline_bytes > space_bytes_) [[unlikely]] {
    return Status::error(Code::kInvalidArgument, "commit without space");
  }
  Stream& stream = *std::exchange(begun_, nullptr);
  std::array<iovec, kGatherRefsMax> pieces;
  std::uint64_t total = 0;
  if (Status resolved = resolve(inline_bytes, refs, pieces, total); !resolved.ok()) [[unlikely]]
    return resolved;
  stream.out.commit(
      FrameHeader::make(FrameKind::kTransfer, sent_, static_cast<std::uint32_t>(total),
                        static_cast<std::uint32_t>(inline_bytes)),
      std::span(pieces).first(refs.size()), cookie);
  if (!refs.empty()) ++outstanding_;
  ++sent_;
  current_bytes_ += total;
  unpublished_bytes_ += total;
  return {};
}

// How many bytes may be written now. 0: core_ wakes us when there may be some.
std::size_t TcpEndpoint::write_allowance() {
  if (!bucket_) return kBytesPerWrite;
  const std::uint64_t now = core_->wake_clock_ns();
  const std::uint64_t allowed = bucket_->allowance(now);
  if (allowed == 0) core_->wake_at(now + bucket_->wait_ns());
  return std::min<std::uint64_t>(allowed, kBytesPerWrite);
}

// True when frames may follow.
bool TcpEndpoint::continue_warm_up(Stream& stream) {
  if (!stream.writable) return false;
  const IoState io = state_ == State::kClosing ? stream.warm_up->finish(*stream.transport)
                                               : stream.warm_up->advance(*stream.transport);
  if (io != IoState::kMore) {
    write_stopped(stream, io);
    return false;
  }
  if (state_ == State::kClosing || stream.warm_up->state() == WarmUp::State::kWarm) {
    stream.warm_up.reset();
    return true;
  }
  if (stream.warm_up->state() == WarmUp::State::kCold) {
    end(Status::error(Code::kUnsupported,
                      "link parameter skip_slow_start: the congestion window did not open to the "
                      "window"),
        CloseMark::kCold);
  } else {
    core_->wake_at(core_->wake_clock_ns() + kWarmUpPauseNs);
  }
  return false;
}

void TcpEndpoint::write_stopped(Stream& stream, IoState state) {
  stream.writable = false;
  if (state == IoState::kAgain) return;
  stream.broken = true;
  // Reading tells what has happened, after what had arrived before.
  stream.in.on_readable(true);
}

void TcpEndpoint::write(Stream& stream) {
  if (stream.warm_up && !continue_warm_up(stream)) return;
  std::array<iovec, kPiecesPerWrite> pieces;
  while (stream.writable && !stream.out.empty()) {
    const std::size_t allowed = write_allowance();
    if (allowed == 0) return;
    const std::size_t count = stream.out.gather(pieces, allowed);
    const Io io = stream.transport->write(std::span(pieces).first(count));
    stream.out.advance(io.bytes, done_);
    room_news_ = room_news_ || (waiting_ && io.bytes != 0);
    if (bucket_) bucket_->spend(io.bytes);
    if (io.state != IoState::kMore) write_stopped(stream, io.state);
  }
}

void TcpEndpoint::flush() {
  unpublished_bytes_ = 0;
  for (const auto& stream : streams_) {
    if (state_ != State::kOpen) return;
    if (stream->writable && (stream->warm_up || !stream->out.empty())) write(*stream);
  }
}

void TcpEndpoint::publish() {
  if (unpublished_bytes_ >= kPublishBytes) flush();
}

std::size_t TcpEndpoint::take_cookies(std::span<Completion> out) {
  std::size_t n = 0;
  for (; n < out.size() && !done_.empty(); --outstanding_) {
    Completion& completion = out[n++];
    completion.kind = Completion::Kind::kSend;
    completion.segment_count = 0;
    completion.status = Status();
    completion.cookie = done_.pop();
    completion.loan = kNoLoan;
  }
  room_news_ = room_news_ || (waiting_ && n != 0);
  return n;
}

}  // namespace sanproxy::fabric::tcp
