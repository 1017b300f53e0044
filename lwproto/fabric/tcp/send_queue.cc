#include "lwproto/fabric/tcp/send_queue.h"

#include <algorithm>
#include <cstring>

namespace sanproxy::fabric::tcp {

Result<SendQueue> SendQueue::create(std::size_t ring_bytes) {
  auto ring = MirroredRing::create(ring_bytes);
  if (!ring.ok()) return ring.status();
  SendQueue queue;
  queue.ring_ = std::move(*ring);
  queue.pending_.resize(kReferencesMax);
  return queue;
}

void SendQueue::commit(const FrameHeader& header, std::span<const iovec> pieces,
                       std::uint64_t cookie) {
  begun_ = false;
  std::memcpy(ring_.at(head_), &header, sizeof(header));
  head_ += sizeof(header) + header.inline_bytes;
  pending_bytes_ += sizeof(header) + header.total_bytes;
  if (pieces.empty()) return;
  Pending& added = pending(pending_head_++);
  added.at = head_;
  added.cookie = cookie;
  added.count = static_cast<std::uint32_t>(pieces.size());
  std::copy(pieces.begin(), pieces.end(), added.pieces.begin());
}

void SendQueue::commit_end(CloseMark mark) {
  begun_ = false;
  const FrameHeader header =
      FrameHeader::make(FrameKind::kEnd, 0, 0, static_cast<std::uint32_t>(mark));
  std::memcpy(ring_.at(head_), &header, sizeof(header));
  head_ += sizeof(header);
  pending_bytes_ += sizeof(header);
}

std::size_t SendQueue::gather(std::span<iovec> out, std::size_t bytes) const {
  std::size_t n = 0;
  std::size_t total = 0;
  const auto add = [&](const iovec& piece) {
    if (n == out.size() || total >= bytes) return false;
    out[n] = piece;
    out[n].iov_len = std::min(piece.iov_len, bytes - total);
    total += out[n++].iov_len;
    return true;
  };
  std::uint64_t at = written_;
  for (std::uint64_t i = pending_tail_; i != pending_head_; ++i) {
    const Pending& next = pending(i);
    if (next.at != at && !add({ring_.at(at), next.at - at})) return n;
    at = next.at;
    for (std::uint32_t k = i == pending_tail_ ? piece_ : 0; k < next.count; ++k) {
      if (!add(next.pieces[k])) return n;
    }
  }
  if (at != head_) add({ring_.at(at), head_ - at});
  return n;
}

void SendQueue::advance(std::size_t bytes, CookieRing& done) {
  pending_bytes_ -= bytes;
  while (pending_tail_ != pending_head_) {
    Pending& first = pending(pending_tail_);
    const std::uint64_t before = std::min<std::uint64_t>(first.at - written_, bytes);
    written_ += before;
    bytes -= before;
    while (bytes != 0 && piece_ < first.count) {
      iovec& piece = first.pieces[piece_];
      const std::size_t step = std::min(bytes, piece.iov_len);
      piece.iov_base = static_cast<std::byte*>(piece.iov_base) + step;
      piece.iov_len -= step;
      bytes -= step;
      if (piece.iov_len == 0) ++piece_;
    }
    if (piece_ < first.count) break;
    done.push(first.cookie);
    ++pending_tail_;
    piece_ = 0;
  }
  written_ += bytes;
  if (pending_bytes_ == 0 && !begun_) written_ = head_ = 0;
}

void SendQueue::abandon(CookieRing& lost) {
  for (; pending_tail_ != pending_head_; ++pending_tail_) {
    lost.push(pending(pending_tail_).cookie);
  }
  written_ = head_ = pending_bytes_ = 0;
  piece_ = 0;
}

}  // namespace sanproxy::fabric::tcp
