#include "lwproto/fabric/tcp/endpoint.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "lwproto/base/check.h"

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

std::size_t ring_bytes(const EndpointParts& parts) {
  // Four of the largest inline parts at least, so that a sender can go on while one leaves.
  const std::size_t needed =
      4 * (sizeof(FrameHeader) + std::size_t{parts.options.inline_bytes_max});
  return std::bit_ceil(
      std::max<std::size_t>({parts.core->options().send_queue_bytes, needed, 4096}));
}

}  // namespace

Result<std::unique_ptr<TcpEndpoint>> TcpEndpoint::create(EndpointParts& parts) {
  auto slots = ReceiveSlots::create(parts.options);
  if (!slots.ok()) return slots.status();
  std::vector<SendQueue> queues;
  for (std::size_t i = 0; i < parts.transports.size(); ++i) {
    auto queue = SendQueue::create(ring_bytes(parts));
    if (!queue.ok()) return queue.status();
    queues.push_back(std::move(*queue));
  }
  std::unique_ptr<TcpEndpoint> endpoint(new TcpEndpoint(parts));
  endpoint->slots_ = std::move(*slots);
  for (std::size_t i = 0; i < queues.size(); ++i) {
    endpoint->streams_.push_back(std::make_unique<Stream>(
        std::move(parts.transports[i]), std::move(queues[i]), endpoint->inline_bytes_max_));
    Stream* stream = endpoint->streams_.back().get();
    // Also reports what has arrived already.
    endpoint->core_->rewatch(stream->transport->fd(), stream);
    if (stream->transport->holds_unread()) stream->in.on_readable(false);
  }
  return endpoint;
}

TcpEndpoint::TcpEndpoint(EndpointParts& parts)
    : core_(parts.core),
      identity_(std::move(parts.identity)),
      link_(parts.link),
      inline_bytes_max_(parts.options.inline_bytes_max),
      transfer_bytes_max_(parts.options.transfer_bytes_max),
      receive_depth_(parts.options.receive_depth),
      send_depth_(parts.options.send_depth),
      peer_(parts.peer),
      done_(parts.options.send_depth),
      lost_(parts.options.send_depth),
      posted_(parts.options.receive_depth) {
  core_->add(this);
}

TcpEndpoint::~TcpEndpoint() {
  disconnect(Status::error(Code::kDisconnected, "the endpoint was destroyed"));
  let_go();
  core_->remove(this);
}

void TcpEndpoint::Stream::on_events(std::uint32_t events) {
  if ((events & EPOLLOUT) != 0) writable = true;
  const bool hung_up = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
  if (hung_up || (events & EPOLLIN) != 0) in.on_readable(hung_up);
}

// --- sending

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

void TcpEndpoint::write(Stream& stream) {
  std::array<iovec, kPiecesPerWrite> pieces;
  while (stream.writable && !stream.out.empty()) {
    const std::size_t count = stream.out.gather(pieces, kBytesPerWrite);
    const Io io = stream.transport->write(std::span(pieces).first(count));
    stream.out.advance(io.bytes, done_);
    room_news_ = room_news_ || (waiting_ && io.bytes != 0);
    if (io.state == IoState::kMore) continue;
    stream.writable = false;
    if (io.state != IoState::kAgain) {
      stream.broken = true;
      // Reading tells what has happened, after what had arrived before.
      stream.in.on_readable(true);
      return;
    }
  }
}

void TcpEndpoint::flush() {
  unpublished_bytes_ = 0;
  if (state_ != State::kOpen) return;
  for (const auto& stream : streams_) {
    if (stream->writable && !stream->out.empty()) write(*stream);
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

// --- receiving

std::size_t TcpEndpoint::poll(std::span<Completion> out) {
  for (const auto& stream : streams_) stream->in.expire();
  std::size_t n = 0;
  if (state_ == State::kOpen || state_ == State::kDraining) {
    // Also so that a shortage of room ends without a flush() by the owner.
    if (waiting_) flush();
    n += take_cookies(out);
    n += receive(out.subspan(n));
    if (n == 0) {
      core_->pump_if_due();
      n += receive(out);
    }
  }
  if (state_ == State::kClosing) continue_closing();
  if (state_ == State::kFailing) n += poll_failing(out.subspan(n));
  return n;
}

std::size_t TcpEndpoint::receive(std::span<Completion> out) {
  std::size_t n = 0;
  // Until each stream in turn has nothing that is due. A breach ends it too.
  for (std::size_t idle = 0; idle < streams_.size() && n < out.size();) {
    if (state_ != State::kOpen && state_ != State::kDraining) return n;
    if (receive_from(*streams_[receiving_], out, n)) {
      idle = 0;
    } else {
      ++idle;
    }
    if (n < out.size()) receiving_ = (receiving_ + 1) % streams_.size();
  }
  look_for_the_end();
  return n;
}

// Delivers what is due on this stream; true when there was anything.
bool TcpEndpoint::receive_from(Stream& stream, std::span<Completion> out, std::size_t& n) {
  bool any = false;
  FrameLimits limits{inline_bytes_max_, transfer_bytes_max_, delivered_, posted_};
  while (n < out.size() && !stream.finished) {
    limits.next = delivered_;
    if (Status status = stream.in.fill(*stream.transport, *slots_, limits); !status.ok()) {
      breach(status);
      return false;
    }
    if (!stream.in.whole()) return any;
    if (stream.in.head().kind() == FrameKind::kEnd) {
      take_end(stream);
      return any;
    }
    if (stream.in.head().sequence() != delivered_) return any;
    stream.in.take(out[n++], *slots_);
    ++delivered_;
    any = true;
  }
  return any;
}

std::uint32_t TcpEndpoint::replenish() {
  if (state_ != State::kOpen) return 0;
  const std::uint64_t wanted = delivered_ + receive_depth_;
  if (wanted == posted_) return 0;
  const std::uint32_t added = slots_->post(static_cast<std::uint32_t>(wanted - posted_));
  posted_ += added;
  return added;
}

bool TcpEndpoint::take_work() {
  if (state_ == State::kDone) return false;
  if (state_ == State::kFailing) return true;
  flush();
  if (std::exchange(room_news_, false) || !done_.empty()) return true;
  for (const auto& stream : streams_) {
    if (stream->finished) continue;
    if (state_ == State::kClosing) {
      if (stream->writable && !stream->out.empty()) return true;
      continue;
    }
    if (stream->in.hungry()) return true;
    if (stream->in.whole() && (stream->in.head().kind() != FrameKind::kTransfer ||
                               stream->in.head().sequence() == delivered_)) {
      return true;
    }
  }
  return false;
}

}  // namespace sanproxy::fabric::tcp
