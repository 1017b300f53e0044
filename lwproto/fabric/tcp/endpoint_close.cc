// How a channel over TCP ends: docs/tcp_fabric.md "The end".
#include "lwproto/fabric/tcp/endpoint.h"

namespace sanproxy::fabric::tcp {

void TcpEndpoint::start_deadline() {
  deadline_ns_ = core_->now_ns() + core_->options().close_timeout_ms * 1'000'000ull;
  core_->start_ticking();
}

void TcpEndpoint::on_tick() {
  if (core_->now_ns() < deadline_ns_) return;
  if (state_ == State::kDraining) end_with(peer_mark_);
  if (state_ == State::kClosing) {
    let_go();
    state_ = State::kFailing;
  }
}

void TcpEndpoint::disconnect(Status reason) {
  end(reason, reason.code() == Code::kProtocol ? CloseMark::kProtocol : CloseMark::kClosed);
}

void TcpEndpoint::end(Status reason, CloseMark mark) {
  if (state_ != State::kOpen && state_ != State::kDraining) return;
  reason_ = reason;
  begun_ = nullptr;
  if (state_ == State::kDraining) {
    let_go();
    state_ = State::kFailing;
    return;
  }
  for (const auto& stream : streams_) stream->out.commit_end(mark);
  state_ = State::kClosing;
  start_deadline();
  continue_closing();
}

// What was committed before the end still leaves, if the peer takes it in time.
void TcpEndpoint::continue_closing() {
  bool all = true;
  for (const auto& stream : streams_) {
    write(*stream);
    all = all && (stream->broken || stream->out.empty());
  }
  if (!all) return;
  let_go();
  state_ = State::kFailing;
}

// The connections are no longer ours.
void TcpEndpoint::let_go() {
  for (const auto& stream : streams_) {
    stream->in.drop(*slots_);
    stream->out.abandon(lost_);
    if (stream->transport != nullptr) core_->part(std::move(stream->transport));
  }
}

// A frame that is not a transfer.
void TcpEndpoint::take_word(Stream& stream) {
  const FrameHeader head = stream.in.head();
  stream.in.skip();
  if (head.kind() != FrameKind::kEnd) return;  // padding
  const auto mark = static_cast<CloseMark>(head.inline_bytes);
  stream.finished = true;
  // A breach that one connection tells of weighs more than an ordinary end on another.
  if (peer_mark_ != CloseMark::kProtocol) peer_mark_ = mark;
}

Status TcpEndpoint::warm_up() {
  flush();
  bool warm = true;
  for (const auto& stream : streams_) {
    const FrameLimits limits{inline_bytes_max_, transfer_bytes_max_, delivered_, posted_};
    std::size_t words = kWordsPerCall / streams_.size();
    while (state_ == State::kOpen && words != 0 && !stream->in.warm() && !stream->finished) {
      if (Status status = stream->in.fill(*stream->transport, *slots_, limits); !status.ok()) {
        breach(status);
      } else if (stream->in.whole()) {
        take_word(*stream);
        --words;
      } else {
        break;
      }
    }
    warm = warm && !stream->warm_up && stream->in.warm();
  }
  look_for_the_end();
  if (state_ != State::kOpen) return reason_.ok() ? closed_status() : reason_;
  warming_ = !warm;
  return warm ? Status() : Status::again();
}

// Called when nothing more can be delivered at this moment.
void TcpEndpoint::look_for_the_end() {
  if (state_ != State::kOpen && state_ != State::kDraining) return;
  std::size_t ended = 0;
  std::size_t blocked = 0;  // by a transfer whose turn has not come
  bool failed = false;
  for (const auto& stream : streams_) {
    failed = failed || (!stream->finished && stream->in.ended() && stream->in.failed());
    if (over(*stream)) {
      ++ended;
    } else if (stream->in.whole()) {
      if (stream->in.head().sequence() == delivered_) return;  // there was no room for it
      ++blocked;
    }
  }
  if (blocked == streams_.size()) {
    return breach(Status::error(Code::kProtocol, "a transfer is missing"));
  }
  if (ended == 0) return;
  if (state_ == State::kOpen) {
    state_ = State::kDraining;
    start_deadline();
  }
  // A connection that was reset brings nothing more, and the others are of no use without it.
  if (failed || ended + blocked == streams_.size()) end_with(peer_mark_);
}

void TcpEndpoint::end_with(CloseMark mark) {
  switch (mark) {
    case CloseMark::kProtocol:
      reason_ = Status::error(Code::kProtocol, "the peer saw a breach of the protocol");
      break;
    case CloseMark::kClosed:
      reason_ = Status::error(Code::kDisconnected, "the peer closed the channel");
      break;
    case CloseMark::kCold:
      reason_ = refused_by_peer(kLinkSkipSlowStart);
      break;
    default:
      reason_ = Status::error(Code::kDisconnected, "the peer vanished");
      break;
  }
  let_go();
  state_ = State::kFailing;
}

std::size_t TcpEndpoint::poll_failing(std::span<Completion> out) {
  std::size_t n = take_cookies(out);
  const auto complete = [&](Completion::Kind kind, std::uint64_t cookie) {
    Completion& completion = out[n++];
    completion.kind = kind;
    completion.segment_count = 0;
    completion.status = reason_;
    completion.cookie = cookie;
    completion.loan = kNoLoan;
  };
  while (n < out.size() && !lost_.empty()) complete(Completion::Kind::kSend, lost_.pop());
  if (n < out.size() && done_.empty()) {
    slots_->give_back_held();
    complete(Completion::Kind::kDisconnected, 0);
    state_ = State::kDone;
  }
  return n;
}

}  // namespace sanproxy::fabric::tcp
