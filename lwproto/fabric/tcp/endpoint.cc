#include "lwproto/fabric/tcp/endpoint.h"

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "lwproto/base/check.h"

namespace sanproxy::fabric::tcp {
namespace {

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
        std::move(parts.transports[i]), std::move(queues[i]), endpoint->inline_bytes_max_,
        parts.link.skip_slow_start ? parts.link.window_bytes / queues.size() : 0));
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
      window_share_(std::move(parts.window_share)),
      inline_bytes_max_(parts.options.inline_bytes_max),
      transfer_bytes_max_(parts.options.transfer_bytes_max),
      receive_depth_(parts.options.receive_depth),
      send_depth_(parts.options.send_depth),
      peer_(parts.peer),
      done_(parts.options.send_depth),
      lost_(parts.options.send_depth),
      posted_(parts.options.receive_depth) {
  warming_ = link_.skip_slow_start;
  if (link_.quality == QualityClass::kVariable) {
    bucket_.emplace(link_.rate_bytes_per_s, link_.burst_bytes, core_->wake_clock_ns());
  }
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

std::size_t TcpEndpoint::poll(std::span<Completion> out) {
  for (const auto& stream : streams_) stream->in.expire();
  std::size_t n = 0;
  if (state_ == State::kOpen || state_ == State::kDraining) {
    // Also so that a shortage of room ends without a flush() by the owner.
    if (waiting_ || bucket_) flush();
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
  std::size_t words = kWordsPerCall;
  // Until each stream in turn has nothing that is due. A breach ends it too.
  for (std::size_t idle = 0; idle < streams_.size() && n < out.size();) {
    if (state_ != State::kOpen && state_ != State::kDraining) return n;
    if (receive_from(*streams_[receiving_], out, n, words)) {
      idle = 0;
    } else {
      ++idle;
    }
    if (n < out.size()) receiving_ = (receiving_ + 1) % streams_.size();
  }
  look_for_the_end();
  return n;
}

// Delivers what is due on this stream; true when there was anything. What is beyond `words` stays
// unread, and take_work() sees it.
bool TcpEndpoint::receive_from(Stream& stream, std::span<Completion> out, std::size_t& n,
                               std::size_t& words) {
  bool any = false;
  FrameLimits limits{inline_bytes_max_, transfer_bytes_max_, delivered_, posted_};
  while (n < out.size() && words != 0 && !stream.finished) {
    limits.next = delivered_;
    if (Status status = stream.in.fill(*stream.transport, *slots_, limits); !status.ok()) {
      breach(status);
      return false;
    }
    if (!stream.in.whole()) return any;
    if (stream.in.head().kind() != FrameKind::kTransfer) {
      take_word(stream);
      --words;
      continue;
    }
    // It was the future when its head arrived, but another stream has delivered it meanwhile.
    if (stream.in.head().sequence() < delivered_) {
      breach(Status::error(Code::kProtocol, "a transfer from the past"));
      return false;
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
  // Also for an owner that waits for the first transfer before it polls.
  if (warming_ && state_ == State::kOpen) (void)warm_up();
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
                               stream->in.head().sequence() <= delivered_)) {
      return true;
    }
  }
  return false;
}

}  // namespace sanproxy::fabric::tcp
